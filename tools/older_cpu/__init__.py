"""onnxruntime as on a CPU with AVX2 but neither AVX-512 nor VNNI nor AMX, at full speed, on a CPU that has them.

INT8 is computed by other instructions on such a CPU: its speed and the vectors should be known before a server runs
on one. onnxruntime asks the cpuid instruction what there is, and has no setting that says otherwise. So a copy of its
library has that instruction replaced by one that raises SIGILL, and the handler, in older_cpu.c, answers without the
newer features. Only onnxruntime is deceived: NumPy, /proc/cpuinfo and so cpu.features() say what the CPU has.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("older_cpu.c")
CACHE = Path(__file__).parents[2] / ".cache"
CPUID = b"\x0f\xa2"
PATCHED = b"\x06\xa2"


class Unavailable(Exception):
    """It can't be done here; the message says why."""


def environment() -> dict[str, str]:
    """Return os.environ for a process in which `import onnxruntime` finds the older CPU."""
    folder = _prepared()
    first = {"PYTHONPATH": folder / "site", "LD_PRELOAD": folder / "older_cpu.so"}
    return {**os.environ, **{name: _before(path, os.environ.get(name)) for name, path in first.items()}}


def _before(path: Path, paths: str | None) -> str:
    return f"{path}:{paths}" if paths else str(path)


def _prepared() -> Path:
    """Return the folder of the patched library, made at the first call."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Unavailable("An older CPU can be imitated on x86-64 Linux only.")
    package = _package()
    library = next(package.glob("capi/onnxruntime_pybind11_state*.so")).relative_to(package)
    content = (package / library).read_bytes()
    # the package's path too, since symlinks lead there
    key = hashlib.sha256(hashlib.sha256(content).digest() + SOURCE.read_bytes() + bytes(package)).hexdigest()
    folder = CACHE / f"older-cpu-{key[:16]}"
    if folder.is_dir():
        return folder

    CACHE.mkdir(exist_ok=True)
    for program in ("cc", "objdump"):
        if shutil.which(program) is None:
            raise Unavailable(f"An older CPU can't be imitated without {program}, which is not installed.")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch, "made")
        copy = made / "site/onnxruntime"
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"), copy_function=os.symlink)
        (copy / library).unlink()
        (copy / library).write_bytes(_patched(content, _cpuid_offsets(package / library)))
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", made / "older_cpu.so", SOURCE], check=True)
        try:
            made.rename(folder)
        except OSError:
            # another process may have been quicker
            if not folder.is_dir():
                raise
    return folder


def _package() -> Path:
    """Return the folder of the installed onnxruntime, also from its copy, which consists of symlinks."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise Unavailable("An older CPU can't be imitated without onnxruntime, which is not installed.")
    return Path(spec.origin).resolve().parent


def _cpuid_offsets(library: Path) -> list[int]:
    """Return the offsets of a file's cpuid instructions; the same two bytes also occur inside other instructions."""
    command = ["objdump", "--disassemble", "--file-offsets", "--no-show-raw-insn", str(library)]
    offsets = []
    moved = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"([0-9a-f]+) <.*\(File Offset: 0x([0-9a-f]+)\):$", line):
                moved = int(found[2], 16) - int(found[1], 16)
            elif found := re.match(r" *([0-9a-f]+):\tcpuid\s*$", line):
                offsets.append(int(found[1], 16) + moved)
    if process.returncode != 0 or not offsets:
        raise Unavailable(f"No cpuid instruction is found in {library}, so an older CPU can't be imitated.")
    return offsets


def _patched(content: bytes, offsets: list[int]) -> bytes:
    patched = bytearray(content)
    for offset in offsets:
        assert patched[offset : offset + 2] == CPUID, f"no cpuid instruction at {offset:#x}"
        patched[offset : offset + 2] = PATCHED
    return bytes(patched)
