"""Model folders: build one as a user does, and open one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

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


def assert_same_bits_in_any_run(file: Path, rounds: int) -> None:
    """Random rows of 2 to 64 tokens have the same bits alone and in runs of any number and order."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(7)
    for _ in range(rounds):
        length = int(random.integers(2, 65))
        rows = random.integers(0, 60, (int(random.integers(2, 2 + 256 // length)), length))
        together = session.run(None, {"input_ids": rows})[0]
        alone = np.concatenate([session.run(None, {"input_ids": row[None]})[0] for row in rows])
        np.testing.assert_array_equal(together, alone, str(rows.shape))


def open_encoder(model: Path, file: str = "model_int8.onnx", **options: Any) -> Encoder:
    model_folder = ModelFolder.load(model, Path(file), Path("tokenizer"))
    encoder = Encoder.load(model_folder, **{"max_length": 64, "threads": 2, **options})
    encoder.open()
    return encoder
