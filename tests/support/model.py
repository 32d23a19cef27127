"""Model folders: build one as a user does, and open one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.engine.encoder import Encoder
from app.engine.model_folder import ModelFolder
from tests.support import ROOT


def build(*arguments: str, **environ: str) -> str:
    """Run `python -m build` as a user does, and return its output."""
    command = [sys.executable, "-m", "build", *arguments]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def open_encoder(model: Path, file: str = "model_int8.onnx", **options: Any) -> Encoder:
    model_folder = ModelFolder.load(model, Path(file), Path("tokenizer"))
    encoder = Encoder.load(model_folder, **{"max_length": 64, "threads": 2, **options})
    encoder.open()
    return encoder
