"""Routes for operators: health, readiness, and GET /."""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.settings import Settings
from tests.support.model import open_encoder


def test_health(client: FlaskClient) -> None:
    """/healthz and /health answer {"ok": true}."""
    for path in ("/healthz", "/health"):
        response = client.get(path)
        assert (response.status_code, response.get_json()) == (200, {"ok": True})


def test_about(client: FlaskClient, tiny_model: Path) -> None:
    """GET / shows model, precision, limits, quality, the CPU and ONNX Runtime."""
    body = client.get("/").get_json()
    assert (body["name"], body["max_length"]) == ("embedding-api", 64)
    model = body["model"]
    assert (model["id"], model["revision"], model["precision"]) == ("tiny", None, "int8")
    assert (model["dimension"], model["max_positions"]) == (32, 128)
    assert model["recipe"] == json.loads((tiny_model / "manifest.json").read_text())["recipe"]
    assert (model["stand_in"], model["warning"]) == (False, None)
    assert body["limits"] == {"max_texts": 8, "max_body_bytes": 20_000}
    assert body["quality"]["int8"]["mean"] > 0.98
    assert body["quality"]["retrieval"]["queries"] == body["quality"]["pairs"]["texts"] == 1000
    assert 0 < body["quality"]["neighbours"]["overlap"] <= 1
    assert isinstance(body["cpu"]["vnni"], bool)
    assert body["onnxruntime"] == dict.fromkeys(("version", "model_made_with"), version("onnxruntime"))
    assert body["links"]["docs"] == "/docs"


def test_the_recipe_is_of_the_file_that_is_served(tiny_model: Path) -> None:
    """GET / shows how the model was quantized if INT8 is served, and nothing with FP32."""
    for file, recipe in (("model_int8.onnx", "INT8 weights"), ("model_fp32.onnx", "")):
        model_folder = open_encoder(tiny_model, file).model_folder
        model_folder = dataclasses.replace(
            model_folder, manifest=dataclasses.replace(model_folder.manifest, recipe="INT8 weights")
        )
        app = create_app(Settings(model_dir=tiny_model, max_length=64), Encoder.load(model_folder, max_length=64))
        assert app.test_client().get("/").get_json()["model"]["recipe"] == recipe


def test_ready_only_after_the_golden_vector(tiny_model: Path) -> None:
    """/readyz answers 503 before the model is open, and 200 after the golden text gave its vector."""
    encoder = Encoder.load(open_encoder(tiny_model).model_folder, max_length=64)
    client = create_app(Settings(model_dir=tiny_model, max_length=64), encoder).test_client()
    before = client.get("/readyz")
    assert before.status_code == 503
    assert before.get_json() == {"ok": False, "reason": "The model is not open yet."}
    assert before.headers["Retry-After"].isdigit()
    encoder.open()
    assert client.get("/readyz").get_json() == {"ok": True}


def test_a_failed_self_check(tiny_model: Path) -> None:
    """After a failed self-check /readyz and /embed answer 503 with the reason, and /health still answers 200."""
    model_folder = open_encoder(tiny_model).model_folder
    other = dict.fromkeys(model_folder.manifest.golden.vectors, [1.0] * 32)
    golden = dataclasses.replace(model_folder.manifest.golden, vectors=other)
    model_folder = dataclasses.replace(model_folder, manifest=dataclasses.replace(model_folder.manifest, golden=golden))
    encoder = Encoder.load(model_folder, max_length=64)
    encoder.open()
    client = create_app(Settings(model_dir=tiny_model, max_length=64), encoder).test_client()
    assert "self-check failed" in client.get("/readyz").get_json()["reason"]
    answer = client.get("/embed?q=a")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "not_ready")
    assert answer.headers["Retry-After"].isdigit()
    assert client.get("/health").status_code == 200
