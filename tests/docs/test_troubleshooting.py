"""Every message on the page about troubleshooting is printed word by word."""

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import requests

from app.engine.model_folder import ModelFolder
from app.settings import Settings
from tests.support.documents import read
from tests.support.hub import build
from tests.support.server import Server, free_port

Start = Callable[..., Server]
# Messages of Cloud Run itself, which tests cannot provoke.
NOT_OURS = ("Memory limit of", "failed to start and listen", "Rate exceeded.")


def messages() -> set[str]:
    """Return what the first column has between backquotes, settings and paths left out."""
    cells = [line.split("|")[1] for line in read("docs/troubleshooting.md").splitlines() if line.startswith("| ")]
    quoted = [part for cell in cells for part in re.findall("`([^`]+)`", cell)]
    return {part for part in quoted if " " in part and not part.startswith(("make ", "docker ", *NOT_OURS))}


def failed_start(start: Start, **environ: str | Path) -> str:
    server = start(**environ)
    output = server.output_of_failed_boot()
    assert server.process.returncode != 0
    return output


def no_folder(start: Start, model: Path, tmp_path: Path) -> str:
    return failed_start(start, MODEL_DIR=tmp_path / "model")


def no_manifest(start: Start, model: Path, tmp_path: Path) -> str:
    return failed_start(start, MODEL_DIR=copied(model, tmp_path, without="manifest.json"))


def no_tokenizer(start: Start, model: Path, tmp_path: Path) -> str:
    return failed_start(start, MODEL_DIR=copied(model, tmp_path, without="tokenizer.json"))


def another_tokenizer(start: Start, model: Path, tmp_path: Path) -> str:
    folder = copied(model, tmp_path)
    tokenizer = folder / "tokenizer/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"id":0', '"id":101'))
    return failed_start(start, MODEL_DIR=folder)


def the_other_precision(start: Start, model: Path, tmp_path: Path) -> str:
    folder = copied(model, tmp_path, without="model_fp32.onnx")
    return failed_start(start, MODEL_DIR=folder, MODEL_PATH="model_fp32.onnx")


def a_text_without_its_axis(start: Start, model: Path, tmp_path: Path) -> str:
    session = ort.InferenceSession(str(model / "model_int8.onnx"), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception) as raised:
        session.run(None, {"input_ids": np.zeros(8, np.int64)})
    return str(raised.value)


def a_malformed_port(start: Start, model: Path, tmp_path: Path) -> str:
    return failed_start(start, MODEL_DIR=model, PORT="http")


def a_busy_port(start: Start, model: Path, tmp_path: Path) -> str:
    with socket.socket() as busy:
        busy.bind(("0.0.0.0", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        return failed_start(start, MODEL_DIR=model, MAX_LENGTH="64", PORT=port).replace(port, "8080")


def too_long(start: Start, model: Path, tmp_path: Path) -> str:
    positions = "128"  # of the tiny model; the default model has 512
    return failed_start(start, MODEL_DIR=model, MAX_LENGTH="1024").replace(positions, "512")


def killed(start: Start, model: Path, tmp_path: Path) -> str:
    """Kill a worker as the kernel does when memory runs out. The next worker serves."""
    server = start(MODEL_DIR=model, MAX_LENGTH="64", WEB_CONCURRENCY="1").wait_until_ready()
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    until = time.monotonic() + 20
    while server.workers() in ([worker], []) and time.monotonic() < until:
        time.sleep(0.05)
    assert requests.get(f"{server.url}/health", timeout=20).ok
    return server.stop()


def another_cpu(start: Start, model: Path, tmp_path: Path) -> str:
    """Serve a model whose golden vector differs from this CPU's."""
    folder = copied(model, tmp_path)
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    vectors = content["golden"]["vectors"]
    vectors["model_int8.onnx"] = [-number for number in vectors["model_int8.onnx"]]
    manifest.write_text(json.dumps(content))
    server = start(MODEL_DIR=folder, MAX_LENGTH="64")
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            answer = requests.get(f"{server.url}/readyz", timeout=20)
            if answer.json().get("reason", "").startswith("The self-check"):
                return answer.text
        except requests.ConnectionError:
            time.sleep(0.05)
    raise AssertionError(server.stop())


def a_changed_file(start: Start, model: Path, tmp_path: Path) -> str:
    """Check a changed file as the server does; tests/unit/test_model_folder.py has the responses."""
    folder = ModelFolder.load(copied(model, tmp_path), Settings.model_path, Settings.tokenizer_path)
    folder.model_file.write_bytes(folder.model_file.read_bytes() + b"more")
    return folder.changed() or ""


def no_hub(start: Start, model: Path, tmp_path: Path) -> str:
    return build(tmp_path, f"http://127.0.0.1:{free_port()}", "--model", "org/tiny").stderr


def copied(model: Path, tmp_path: Path, without: str = "") -> Path:
    shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns(without) if without else None)
    return tmp_path / "model"


CASES = {
    "Model folder not found: model": no_folder,
    "manifest.json not found: the model folder is not complete": no_manifest,
    "Tokenizer file not found: model/tokenizer/tokenizer.json": no_tokenizer,
    "tokenizer.json is not the file of its manifest.json": another_tokenizer,
    "Model file not found: model/model_fp32.onnx": the_other_precision,
    "Invalid rank for input: input_ids": a_text_without_its_axis,
    "PORT is 'http'; it must be a whole number from 1 to 65535.": a_malformed_port,
    "Port 8080 cannot be used": a_busy_port,
    "MAX_LENGTH is 1024, over the model's 512 positions": too_long,
    "was sent SIGKILL! Perhaps out of memory?": killed,
    "has changed since the server started": a_changed_file,
    "The self-check failed": another_cpu,
    "The hub cannot be reached": no_hub,
}


@pytest.mark.parametrize("message", CASES)
def test_message(message: str, start: Start, tiny_model: Path, tmp_path: Path) -> None:
    """The message appears, in a sentence and not in a stack trace."""
    output = CASES[message](start, tiny_model, tmp_path).replace(f"{tmp_path}/", "")
    assert message in output
    assert "Traceback" not in output


def test_every_message_is_tried() -> None:
    """The tests provoke every message on the page, and no other."""
    assert messages() == set(CASES)
