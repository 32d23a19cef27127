"""Manifest: the description of a model folder's files. The build writes it last, as manifest.json."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from app.errors import MAX_QUOTED_CHARACTERS, BootError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer/tokenizer.json"
CHARACTERS = "tokenizer/characters.json"
PIECES = "tokenizer/pieces.npy"
CL100K = "tokenizer/cl100k_base.npy"
FORMAT = 2
REMEDY = "run `make model`"
# Longest golden text, characters: the self-check computes it in every worker.
MAX_GOLDEN_CHARACTERS = 1_000
# Allowed lengths (norms) of a golden vector: its cosine must be computable in float32.
VECTOR_LENGTHS = (1e-6, 1e12)

# Types and bounds of the fields, checked when the file is read.
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Length = Annotated[int, msgspec.Meta(ge=3, le=1_000_000)]  # tokens: at least <s>, one of the text, </s>
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Cosine = Annotated[float, msgspec.Meta(gt=0, le=1)]
Numbers = Mapping[str, int | float]


@dataclass(frozen=True)
class Golden:
    """The self-check's text, and the vector that each model file gave for it on the build machine.

    vectors: model file's name -> (dim,) floats. min_cosine: model file's name -> least cosine to that vector that
    another CPU must reach.
    """

    text: Annotated[str, msgspec.Meta(max_length=MAX_GOLDEN_CHARACTERS)]
    vectors: Mapping[str, list[float]]
    min_cosine: Mapping[str, Cosine]


@dataclass(frozen=True)
class Manifest:
    """Description of the files of a model folder.

    files: path inside the folder -> sha256, hexadecimal. dimension: length of a vector.
    max_positions, max_seq_length: the model's own limits, tokens, special tokens included.
    quality: the figures of report.json that GET / shows. recipe: description of the quantization.
    calibration_sha256: hash of the calibration texts. build_key: hash of the build's inputs (see build/build_key.py).
    int8_range: numbers of the lowest and of the highest code of int8 vectors (see dtypes.py); None: there are none.
    """

    model: str
    revision: str | None
    stand_in: bool
    warning: str | None
    dimension: Positive
    max_positions: Length
    max_seq_length: Length
    pooling: str
    normalize: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    files: Mapping[str, Sha256]
    golden: Golden
    quality: Mapping[str, int | float | Numbers]
    versions: Mapping[str, str]
    recipe: str
    calibration_sha256: Sha256
    build_key: str
    int8_range: tuple[float, float] | None = None
    format: int = FORMAT

    @property
    def tokenizer(self) -> str:
        """The tokenizer file that the server reads."""
        return CHARACTERS if CHARACTERS in self.files else TOKENIZER

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read FOLDER/manifest.json.

        Raises:
            BootError: the file is missing, malformed or of another version.
        """
        path = folder / MANIFEST
        try:
            content = path.read_bytes()
            version = msgspec.json.decode(content, type=_Head).format
            if version != FORMAT:
                raise BootError(f"{path} has format {version}, this server reads {FORMAT} – {REMEDY}.")
            manifest = msgspec.json.decode(content, type=cls)
            manifest._validate()
            return manifest
        except FileNotFoundError:
            raise BootError(f"{path} not found: the model folder is not complete – {REMEDY}.") from None
        except msgspec.ValidationError as error:
            raise BootError(f"{path} is wrong: {_sentence(error)} – {REMEDY}.") from None
        except _WrongField as error:
            raise BootError(f"{path} is wrong: {error} – {REMEDY}.") from None
        except OSError as error:
            raise BootError(f"{path} cannot be read ({error.strerror}) – {REMEDY}.") from None
        except (ValueError, RecursionError) as error:
            raise BootError(f"{path} cannot be read ({error}) – {REMEDY}.") from None

    def _validate(self) -> None:
        """Check what the types cannot express; raise _WrongField."""
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or not name.isprintable():
                raise _WrongField(f"files: {_quoted(name)} is not the path of a file inside the folder")
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise _WrongField(f"default_prompt_name: there is no prompt {_quoted(self.default_prompt_name)}")
        if self.int8_range is not None and not 0 < self.int8_range[1] - self.int8_range[0] < math.inf:
            raise _WrongField(f"int8_range: {self.int8_range} is no range of numbers")
        for name, vector in self.golden.vectors.items():
            if name not in self.files:
                raise _WrongField(f"golden.vectors: {_quoted(name)} is not one of the files")
            if len(vector) != self.dimension:
                raise _WrongField(f"golden.vectors: that of {name} has {len(vector)} numbers, not {self.dimension}")
            least, most = VECTOR_LENGTHS
            if not least < (length := math.hypot(*vector)) < most:
                raise _WrongField(f"golden.vectors: that of {name} has the length {length:g}")
            if name not in self.golden.min_cosine:
                raise _WrongField(f"golden.min_cosine: {name} is missing")


class _Head(msgspec.Struct):
    """The only field that manifests of all versions have."""

    format: int


class _WrongField(Exception):
    """A field's value makes no sense. The message begins with the field's name."""


def _sentence(error: msgspec.ValidationError) -> str:
    """Turn "Expected `object`, got `null` - at `$.golden.text`" into "golden.text: expected object, got null"."""
    reason, _, path = str(error).replace("`", "").partition(" - at ")
    field = path.rpartition("$")[2].lstrip(".")
    sentence = reason[0].lower() + reason[1:]
    return f"{field}: {sentence}" if field else sentence


def _quoted(name: str) -> str:
    return repr(name if len(name) <= MAX_QUOTED_CHARACTERS else name[:MAX_QUOTED_CHARACTERS] + "…")
