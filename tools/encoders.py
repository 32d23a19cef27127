"""Encoders of a model folder's files, as the server opens them, for the tools that compute vectors."""

from pathlib import Path

from app.engine import cpu
from app.engine.encoder import MAX_LENGTH, Encoder
from app.engine.manifest import TOKENIZER
from app.engine.model_folder import ModelFolder


def open_encoder(folder: Path, file: str, *, self_check: bool = True) -> Encoder:
    """Return the encoder of a model file, on all CPUs, with the default limit of a text or the model's if that is less.

    self_check: False where another release of ONNX Runtime than the build's computes, which may fail it.

    Raises:
        BootError: a file is missing, not the manifest's, or cannot be opened.
    """
    model_folder = ModelFolder.load(folder, Path(file), Path(TOKENIZER).parent)
    limit = min(MAX_LENGTH, model_folder.manifest.max_positions)
    encoder = Encoder.load(model_folder, max_length=limit, threads=cpu.available_cpus())
    encoder.open(self_check=self_check)
    return encoder
