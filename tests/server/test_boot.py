"""A server that cannot start says why in one line, and ends."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import onnx
import pytest
import requests
from onnx import TensorProto, helper

from app.engine.model_folder import sha256
from tests.support.server import Server, Start


def boot_failure(server: Server) -> str:
    """Return the one line that says why; the output must have no stack trace and no second start of a worker."""
    output = server.output_of_failed_boot()
    assert server.process.returncode not in (0, None)
    assert "Traceback" not in output
    assert output.count("Booting worker") <= 1, "a crash loop"
    reasons = [line for line in output.splitlines() if "Error: " in line or '"CRITICAL"' in line]
    assert len(reasons) == 1, output
    return reasons[0]


def test_no_model_folder(start: Start, tmp_path: Path) -> None:
    """A missing model folder is named, with `make model` as the remedy."""
    reason = boot_failure(start(MODEL_DIR=tmp_path / "none"))
    assert reason == f"Error: Model folder not found: {tmp_path}/none – run `make model` (or set MODEL_DIR)."


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_no_tokenizer(start: Start, copy: Path) -> None:
    """A missing tokenizer is named by its file."""
    shutil.rmtree(copy / "tokenizer")
    reason = boot_failure(start(MODEL_DIR=copy, MAX_LENGTH=64))
    assert reason.startswith(f"Error: Tokenizer file not found: {copy}/tokenizer/tokenizer.json – run `make model`")


def test_no_manifest(start: Start, copy: Path) -> None:
    """A folder without manifest.json is not served."""
    (copy / "manifest.json").unlink()
    reason = boot_failure(start(MODEL_DIR=copy))
    assert reason.startswith(f"Error: {copy}/manifest.json not found: the model folder is not complete")


@pytest.mark.parametrize("name", ["model_int8.onnx", "tokenizer/tokenizer.json"])
def test_a_changed_file(start: Start, copy: Path, name: str) -> None:
    """A file with one byte more than the manifest's is refused by its hash."""
    with (copy / name).open("ab") as file:
        file.write(b" ")
    reason = boot_failure(start(MODEL_DIR=copy))
    assert reason.startswith(f"Error: {copy / name} is not the file of its manifest.json (sha256 ")


def test_a_broken_manifest(start: Start, copy: Path) -> None:
    """A manifest that is cut off is refused."""
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text()[:100])
    assert f"Error: {copy}/manifest.json cannot be read" in boot_failure(start(MODEL_DIR=copy))


@pytest.mark.parametrize(
    "change",
    [{"max_positions": None}, {"default_prompt_name": "nope"}, {"golden": None}, {"format": 99}, {"files": None}],
)
def test_a_manifest_with_invalid_fields(start: Start, copy: Path, change: dict[str, Any]) -> None:
    """A field of the wrong type is found at the start, not by the first request."""
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | change))
    assert f"Error: {copy}/manifest.json " in boot_failure(start(MODEL_DIR=copy, MAX_LENGTH=64))


def test_a_model_replaced_under_a_running_server(start: Start, copy: Path) -> None:
    """When a new worker finds another model file than the others serve, the server ends and says why."""
    server = start(MODEL_DIR=copy, MAX_LENGTH=64, WEB_CONCURRENCY=1).wait_until_ready()
    other = copy / "other"
    other.write_bytes((copy / "model_int8.onnx").read_bytes() + b" ")
    other.replace(copy / "model_int8.onnx")
    os.kill(server.workers()[0], signal.SIGKILL)
    assert f"{copy}/model_int8.onnx is not the file of its manifest.json" in server.output_of_failed_boot()
    assert server.process.returncode == 3


def test_a_model_path_outside_the_manifest(start: Start, copy: Path) -> None:
    """A MODEL_PATH that is not in the manifest is refused, with those that are."""
    shutil.copy(copy / "model_int8.onnx", copy / "mine.onnx")
    reason = boot_failure(start(MODEL_DIR=copy, MODEL_PATH="mine.onnx"))
    assert "does not know mine.onnx, only model_fp32.onnx, model_int8.onnx" in reason


def test_a_manifest_of_another_dimension(start: Start, copy: Path) -> None:
    """A model whose output differs from the manifest's dimension is refused."""
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["golden"]["vectors"] = dict.fromkeys(manifest["golden"]["vectors"], [1.0] * 384)
    (copy / "manifest.json").write_text(json.dumps(manifest | {"dimension": 384}))
    assert (
        "needed is input_ids (seq,) or (texts, seq) int64 in, embedding (384,) or (texts, 384) float32 out"
        in boot_failure(start(MODEL_DIR=copy, MAX_LENGTH=64))
    )


def test_a_model_with_other_inputs(start: Start, copy: Path) -> None:
    """An ordinary batched export under the right name and hash is refused."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", "seq"])
    node = helper.make_node("Cast", ["input_ids"], ["embedding"], to=TensorProto.FLOAT)
    model = helper.make_model(helper.make_graph([node], "g", [ids], [out]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, copy / "model_int8.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model_int8.onnx"] = sha256(copy / "model_int8.onnx")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "takes [('input_ids', 'tensor(int64)', 2)]" in boot_failure(start(MODEL_DIR=copy, MAX_LENGTH=64))


def test_a_malformed_variable(start: Start) -> None:
    """A malformed variable is named, with its value."""
    reason = boot_failure(start(MAX_LENGTH="long"))
    assert reason == "Error: MAX_LENGTH is 'long'; it must be a whole number of at least 3, or model."


def test_the_models_own_limit(start: Start, tiny_model: Path) -> None:
    """MAX_LENGTH=model cuts where sentence-transformers does; another limit is told at the start."""
    own = start(MODEL_DIR=tiny_model, MAX_LENGTH="model").wait_until_ready()
    assert requests.get(own.url, timeout=10).json()["max_length"] == 128
    assert "Texts are cut at" not in own.stop()
    other = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    said = other.stop()
    assert "Texts are cut at 64 tokens (MAX_LENGTH), by sentence-transformers at the model's own limit of 128: " in said


def test_a_max_length_over_the_model(start: Start, tiny_model: Path) -> None:
    """A MAX_LENGTH over the model's positions is refused."""
    reason = boot_failure(start(MODEL_DIR=tiny_model, MAX_LENGTH="512"))
    assert reason == "Error: MAX_LENGTH is 512, over the model's 128 positions; set it to 128 or less."


def test_a_busy_port(start: Start, tiny_model: Path, shared_server: Start) -> None:
    """A port in use is named, with the remedy."""
    server = shared_server()
    reason = boot_failure(start(MODEL_DIR=tiny_model, MAX_LENGTH=64, PORT=server.port))
    assert reason == f"Error: Port {server.port} cannot be used (Address already in use): set PORT to a free one."
