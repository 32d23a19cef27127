"""Files of a model folder: written so that a killed build leaves no incomplete folder that looks complete."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.engine.manifest import MANIFEST
from build import BuildError

PART = ".part-"


@contextmanager
def replacing(folder: Path, *names: str) -> Iterator[Path]:
    """Yield a temporary folder to write the named files to; on leaving, they are moved into `folder`.

    The manifest, which marks a folder as complete, is removed before the first move. On an exception nothing is moved
    and the manifest stays. Names may include a subfolder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder, prefix=PART))
    try:
        for name in names:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
        yield part
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).chmod(0o644)
            os.replace(part / name, folder / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(folder: Path, name: str, text: str) -> None:
    """Replace one text file of a model folder."""
    with replacing(folder, name) as part:
        (part / name).write_text(text, encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other builds out of a folder.

    Raises:
        BuildError: another build is running in it.
    """
    is_new = not folder.exists()
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
        if is_new and not any(folder.iterdir()):  # the build failed before it wrote anything
            folder.rmdir()
        os.close(handle)


def size(folder: Path, name: str) -> int:
    """Return the bytes of a file and of its .data file."""
    return sum(path.stat().st_size for path in (folder / name, folder / f"{name}.data") if path.is_file())


def clean(folder: Path) -> None:
    """Remove the temporary folders of killed builds."""
    for part in folder.glob(f"{PART}*"):
        shutil.rmtree(part, ignore_errors=True)
