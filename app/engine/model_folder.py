"""The model folder: its file names, its manifest, loading and checking it.

    model_int8.onnx  model_int8.onnx.data  model_fp32.onnx  model_fp32.onnx.data
    tokenizer/tokenizer.json  tokenizer/characters.json  tokenizer/pieces.npy  tokenizer/cl100k_base.npy
    report.json  speed.json  manifest.json

The build writes manifest.json last: a folder without it is incomplete. characters.json and pieces.npy are the mapped
form of a Unigram vocabulary; where they exist, the server reads them instead of tokenizer.json (see tokenizer.py).
cl100k_base.npy is OpenAI's table of tokens, for clients that send its ids (see cl100k.py).
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from app.engine.manifest import CHARACTERS, CL100K, MANIFEST, PIECES, REMEDY, TOKENIZER, Manifest
from app.errors import BootError

REPORT = "report.json"
SPEED = "speed.json"
# Stat that changes with a file's content: device, inode, size, modification time and change time, nanoseconds. Programs
# such as `cp -p` and `touch` can set the modification time back, but not the change time.
Stat = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder: the two files to open and their manifest.

    tokenizer_file: tokenizer.json, or characters.json with pieces.npy beside it.
    _checked: file -> its stat when it was last hashed, and the problem found then, or None.
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

    @property
    def cl100k_file(self) -> Path | None:
        """The table of OpenAI's token ids, or None where the build had none."""
        return self.tokenizer_file.with_name(Path(CL100K).name) if CL100K in self.manifest.files else None

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
        """Return a sentence that names a file whose content has changed since `check`, or None.

        A file is hashed only if its stat has changed: 0.15 s for an INT8 model of 120 MB, otherwise 40 µs.
        """
        for file, name in self._files():
            if problem := self._problem(file, name):
                return (
                    f"{file} has changed since the server started (it {problem}): "
                    "restart the server, or put the file back."
                )
        return None

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Yield the files that the server reads, with their names in the manifest."""
        characters = self.tokenizer_file.name == Path(CHARACTERS).name
        yield self.tokenizer_file, CHARACTERS if characters else TOKENIZER
        if characters:
            yield self.tokenizer_file.with_name(Path(PIECES).name), PIECES
        if self.cl100k_file:
            yield self.cl100k_file, CL100K
        yield self.model_file, self.model_file.name
        data = Path(f"{self.model_file}.data")
        if data.name in self.manifest.files:
            yield data, data.name

    def _problem(self, file: Path, name: str) -> str | None:
        """Return the problem of a file, or None. It is hashed if its stat has changed since the last time."""
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
    """Return a file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
