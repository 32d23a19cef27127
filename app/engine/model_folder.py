"""The model folder: its file names, its manifest, loading and checking it.

    model_int8.onnx  model_int8.onnx.data  model_fp32.onnx  model_fp32.onnx.data
    tokenizer/tokenizer.json  tokenizer/characters.json  tokenizer/pieces.npy
    report.json  speed.json  manifest.json

The build writes manifest.json last, so a folder without one is not whole. Where there are characters and pieces, the
server reads these and not tokenizer.json, see app/engine/tokenizer.py.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from app.engine.manifest import CHARACTERS, MANIFEST, PIECES, REMEDY, TOKENIZER, Manifest
from app.errors import BootError

REPORT = "report.json"
SPEED = "speed.json"
# Stat that changes with a file's content: device, inode, size, and times of modification and of change, nanoseconds.
# The last one cannot be set back, as `cp -p` and `touch` do with the one before it.
Stat = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder: the two files to open and their manifest.

    tokenizer_file: tokenizer.json, or characters.json with pieces.npy beside it.
    _checked: file -> its stat when it was last hashed, and what was wrong with it then.
    """

    model_file: Path
    tokenizer_file: Path
    manifest: Manifest
    _checked: dict[Path, tuple[Stat | None, str | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def precision(self) -> str:
        return "int8" if "int8" in self.model_file.name else "fp32"

    @classmethod
    def load(cls, model_dir: Path, model_path: Path, tokenizer_path: Path) -> "ModelFolder":
        """Find the files (relative paths are under model_dir) and check them against the manifest.

        Raises:
            BootError: a file is missing or not the one that the manifest describes.
        """
        if not model_dir.is_dir():
            raise BootError(f"Model folder not found: {model_dir} – {REMEDY} (or set MODEL_DIR).")
        model_file = model_dir / model_path
        tokenizer_file = model_dir / tokenizer_path
        if not model_file.is_file():
            raise BootError(f"Model file not found: {model_file} – {REMEDY} (or set MODEL_PATH).")
        manifest = Manifest.load(model_dir)
        if tokenizer_file.suffix != ".json":
            tokenizer_file /= Path(manifest.tokenizer).name
        if not tokenizer_file.is_file():
            raise BootError(f"Tokenizer file not found: {tokenizer_file} – {REMEDY} (or set TOKENIZER_PATH).")
        if model_file.name not in manifest.golden.vectors:
            known = ", ".join(manifest.golden.vectors)
            raise BootError(
                f"{model_dir / MANIFEST} does not know {model_file.name}, only {known} – set MODEL_PATH to one."
            )
        model_folder = cls(model_file, tokenizer_file, manifest)
        model_folder.check()
        return model_folder

    def check(self) -> None:
        """Compare the files' hashes with the manifest's.

        Raises:
            BootError: a file is not the one that the manifest describes.
        """
        self._checked.clear()
        for file, name in self._files():
            if problem := self._problem(file, name):
                raise BootError(f"{file} {problem} – {REMEDY}.")

    def changed(self) -> str | None:
        """Return a sentence that names a file with another content than `check` found, or None.

        A file is hashed again only where its stat is another: 40 µs otherwise, 0.15 s for an INT8 model of 120 MB.
        """
        for file, name in self._files():
            if problem := self._problem(file, name):
                return (
                    f"{file} has changed since the server started (it {problem}): "
                    "restart the server, or put the file back."
                )
        return None

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Yield the files that are served, with their names in the manifest."""
        characters = self.tokenizer_file.name == Path(CHARACTERS).name
        yield self.tokenizer_file, CHARACTERS if characters else TOKENIZER
        if characters:
            yield self.tokenizer_file.with_name(Path(PIECES).name), PIECES
        yield self.model_file, self.model_file.name
        data = Path(f"{self.model_file}.data")
        if data.name in self.manifest.files:
            yield data, data.name

    def _problem(self, file: Path, name: str) -> str | None:
        """Return what is wrong with a file, or None. It is hashed if its stat is another than the last time."""
        stat, problem = self._checked.get(file, (None, None))
        try:
            now = _stat(file)
            if now != stat:
                actual, expected = sha256(file), self.manifest.files.get(name)
                problem = None
                if actual != expected:
                    problem = f"is not the file of its {MANIFEST} (sha256 {actual}, expected {expected})"
        except OSError as error:
            now, problem = None, f"cannot be read ({error.strerror})"
        self._checked[file] = now, problem
        return problem


def _stat(file: Path) -> Stat:
    stat = os.stat(file)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def sha256(path: Path) -> str:
    """A file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
