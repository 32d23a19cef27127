"""The model folder: its file names, its manifest, loading and checking it.

    model_int8.onnx  model_int8.onnx.data  model_fp32.onnx  model_fp32.onnx.data
    tokenizer/tokenizer.json  tokenizer/characters.json  tokenizer/pieces.npy
    report.json  speed.json  manifest.json

The build writes manifest.json last, so a folder without one is not whole. Where there are characters and pieces, the
server reads these and not tokenizer.json, see app/engine/tokenizer.py.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import BootError

MANIFEST = "manifest.json"
REPORT = "report.json"
SPEED = "speed.json"
TOKENIZER = "tokenizer/tokenizer.json"
CHARACTERS = "tokenizer/characters.json"
PIECES = "tokenizer/pieces.npy"
FORMAT = 2
REMEDY = "run `make model`"


@dataclass(frozen=True)
class Golden:
    """A text and the vector that each model file gave for it on the machine that built it.

    vectors: model file's name -> (dim,) floats. min_cosine: model file's name -> how near
    another CPU's vector must come.
    """

    text: str
    vectors: Mapping[str, list[float]]
    min_cosine: Mapping[str, float]


@dataclass(frozen=True)
class Manifest:
    """What the files of a model folder are.

    files: path inside the folder -> sha256, hexadecimal. dimension: of the embedding.
    max_positions and max_seq_length: the model's own limits, in tokens, specials included.
    recipe: how the INT8 file was quantized, in words. calibration_sha256: of what quantization
    has seen. build_key: what the build was made from (see build/__main__.py).
    """

    model: str
    revision: str | None
    stand_in: bool
    warning: str | None
    dimension: int
    max_positions: int
    max_seq_length: int
    pooling: str
    normalize: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    files: Mapping[str, str]
    golden: Golden
    quality: Mapping[str, Any]
    versions: Mapping[str, str]
    recipe: str
    calibration_sha256: str
    build_key: str
    format: int = FORMAT

    @property
    def tokenizer(self) -> str:
        """The tokenizer's file that the server reads."""
        return CHARACTERS if CHARACTERS in self.files else TOKENIZER

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read FOLDER/manifest.json.

        Raises:
            BootError: there is none, or it is not one of this version.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BootError(f"{path} not found: the model folder is not complete – {REMEDY}.") from None
        except (OSError, ValueError) as error:
            raise BootError(f"{path} cannot be read ({error}) – {REMEDY}.") from None
        try:
            if content["format"] != FORMAT:
                raise BootError(f"{path} has format {content['format']!r}, this server reads {FORMAT} – {REMEDY}.")
            manifest = cls(**{**content, "golden": Golden(**content["golden"])})
            manifest._validate()
            return manifest
        except (KeyError, TypeError, ValueError) as error:
            raise BootError(f"{path} is not a manifest of this version ({error}) – {REMEDY}.") from None

    def _validate(self) -> None:
        """Raises ValueError where the server would stumble later."""
        if not isinstance(self.files, Mapping):
            raise ValueError(f"files is {self.files!r}")
        for name in ("dimension", "max_positions", "max_seq_length"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(f"default_prompt_name is {self.default_prompt_name!r}, which is no prompt")
        for name, vector in self.golden.vectors.items():
            if len(vector) != self.dimension or name not in self.golden.min_cosine:
                raise ValueError(f"the golden vector of {name} has {len(vector)} numbers")


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder: the two files to open and their manifest.

    tokenizer_file: tokenizer.json, or characters.json with pieces.npy beside it.
    """

    model_file: Path
    tokenizer_file: Path
    manifest: Manifest

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
        characters = self.tokenizer_file.name == Path(CHARACTERS).name
        _compare(self.tokenizer_file, CHARACTERS if characters else TOKENIZER, self.manifest)
        if characters:
            _compare(self.tokenizer_file.with_name(Path(PIECES).name), PIECES, self.manifest)
        for file in (self.model_file, Path(f"{self.model_file}.data")):
            if file == self.model_file or file.name in self.manifest.files:
                _compare(file, file.name, self.manifest)


def _compare(file: Path, name: str, manifest: Manifest) -> None:
    try:
        actual = sha256(file)
    except OSError as error:
        raise BootError(f"{file} cannot be read ({error.strerror}) – {REMEDY}.") from None
    expected = manifest.files.get(name)
    if actual != expected:
        raise BootError(f"{file} is not the file of its {MANIFEST} (sha256 {actual}, expected {expected}) – {REMEDY}.")


def sha256(path: Path) -> str:
    """A file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
