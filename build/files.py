"""Writing files so that a killed build leaves no half-made one."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build import BuildError

PART = ".part-"
# What makes a model folder whole: written last, gone as soon as another file is replaced.
SEAL = "manifest.json"


@contextmanager
def replacing(folder: Path, *names: str) -> Iterator[Path]:
    """A folder beside the place of the files: write them there, and they are moved on leaving.

    On an exception nothing is moved, and the folder's seal holds. Names may hold a subfolder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder, prefix=PART))
    try:
        for name in names:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
        yield part
        (folder / SEAL).unlink(missing_ok=True)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).chmod(0o644)
            os.replace(part / name, folder / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other builds out of a folder.

    Raises:
        BuildError: another build is at work in it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BuildError(f"Another build is at work in {folder}/: wait until it is done.") from None
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):  # refused before anything was written
            folder.rmdir()
        os.close(handle)


def sha256(path: Path) -> str:
    """A file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clean(folder: Path) -> None:
    """Remove what a killed build left behind."""
    for part in folder.glob(f"{PART}*"):
        shutil.rmtree(part, ignore_errors=True)
