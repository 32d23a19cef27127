"""Estimate of the memory that a build takes, and a warning if less is free."""

import json
import math
import struct
from pathlib import Path

# Memory at the peak of a build, GB. It fits what shapes of docs/models.md ("What it needs") took with --effort fast,
# 2.4 to 10.2, and the forms of each layer that the search keeps with another effort, 2.4 for each billion weights: 11
# for 24 layers of 1024, which took 10.6.
BASE_GB = 2.1
GB_PER_BILLION_WORDS = 0.9  # weights of the table of words
GB_PER_BILLION_OTHERS = 28.5  # all other weights
# Ends of the names that models of transformers give to their table of words.
WORDS = ("word_embeddings.weight", "tok_embeddings.weight")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def memory_gb(folder: Path) -> float | None:
    """Return the memory at the peak of the build of a sentence-transformers folder, GB.

    None: it has no weights as safetensors, or they cannot be read. The build then fails with the reason.
    """
    try:
        words, others = weights(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return None
    if not words + others:
        return None
    return BASE_GB + (GB_PER_BILLION_WORDS * words + GB_PER_BILLION_OTHERS * others) / 1e9


def weights(folder: Path) -> tuple[int, int]:
    """Return the numbers of weights in the table of words and in all other tensors.

    A file of safetensors begins with the length of a JSON object of its tensors and their shapes:
    https://huggingface.co/docs/safetensors/index#format
    """
    modules = folder / "modules.json"
    backbone = json.loads(modules.read_text(encoding="utf-8"))[0]["path"] if modules.is_file() else ""
    words = others = 0
    for file in (folder / backbone).glob("*.safetensors"):
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > file.stat().st_size:  # such as a pointer of Git LFS
                raise ValueError(f"{file} is not a file of safetensors")
            tensors = json.loads(content.read(length))
        tensors.pop("__metadata__", None)
        for name, tensor in tensors.items():
            if name.endswith(WORDS):
                words += math.prod(tensor["shape"])
            else:
                others += math.prod(tensor["shape"])
    return words, others


def free_gb(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> float | None:
    """Return the memory that this process can still take, GB, or None if it is not known.

    It is the machine's available memory or what is left of the cgroup's limit, whichever is less. Files in the cgroup's
    cache count as free, since the kernel drops them when memory is short.
    """
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return None
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat["inactive_file"]) + int(stat["active_file"]))
    except (OSError, ValueError, LookupError):  # no cgroup v2, or "max": no limit
        pass
    return free / 1e9


def warning(needed_gb: float | None, free: float | None) -> str | None:
    """Return a sentence if there is less memory than a build needs, GB, or None. None: it is not known."""
    if needed_gb is None or free is None or free >= needed_gb:
        return None
    return (
        f"The build needs about {needed_gb:.0f} GB of memory, and {free:.1f} GB are free: it may be killed. "
        "Build on a machine with more memory, and copy the model folder."
    )
