"""Every route is sent every failure that one request can cause: status, the one error shape, and a helpful sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.engine.model_folder import sha256
from app.settings import Settings
from tests.support import failures_of_bodies as bodies
from tests.support import failures_of_dialects as dialects
from tests.support import failures_of_routes as routes
from tests.support.failures import ANYWHERE, Failure, check
from tests.support.http import Answer
from tests.support.model import open_encoder
from tests.support.routes import DOCUMENTED, REQUESTS, WAITS_FOR_A_SLOT

TABLES = [bodies.not_json, bodies.texts, bodies.options, bodies.ids, bodies.named_twice, routes.others, routes.queries]
TABLES += [dialects.ollama, dialects.cohere, dialects.weaviate, dialects.predictions]
TABLES += [routes.elsewhere, routes.without_a_key, routes.not_ready, routes.faults]
# Documented, but in no table: ids are checked, and no vocabulary is known that the library fails to decode.
UNTESTED = {(("POST", "/decode"), 500)}
# /readyz answers 503 in its own shape: tests/api/test_ops.py.
OWN_SHAPE = {(("GET", "/readyz"), 503)}


def all_failures() -> list[Any]:
    """Return all failures that need no real server, as parameters of a test."""
    return [
        pytest.param(failure, id=f"{table.__name__}-{''.join(failure.route)}-{number}")
        for table in TABLES
        for number, failure in enumerate(table())
    ]


def app_client(encoder: Encoder, **settings: Any) -> FlaskClient:
    return create_app(Settings(max_length=64, **settings), encoder).test_client()


@pytest.fixture(scope="module")
def plain(tiny_encoder: Encoder) -> FlaskClient:
    """A client of a server with MAX_TEXTS 8 and MAX_BODY_BYTES 20,000."""
    return app_client(tiny_encoder, max_texts=8, max_body_bytes=20_000)


@pytest.fixture(scope="module")
def guarded(tiny_encoder: Encoder) -> FlaskClient:
    """A client of a server with an API key."""
    return app_client(tiny_encoder, api_key=("key",))


@pytest.fixture(scope="module")
def unready(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FlaskClient:
    """A client of a server whose model gives another vector than where it was built."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("unready") / "model")
    change_manifest(folder, golden={"vectors": {"model_int8.onnx": [1.0] * 32}})
    return app_client(open_encoder(folder))


@pytest.fixture(scope="module")
def faulty(tiny_model: Path, tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> FlaskClient:
    """A client of a server whose tokenizer has no token for unknown characters."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("faulty") / "model")
    file = folder / "tokenizer/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["unk_token"] = "[NONE]"
    file.write_text(json.dumps(tokenizer))
    golden = {"text": "cat", "vectors": {"model_int8.onnx": tiny_encoder.encode(["cat"]).vectors[0].tolist()}}
    change_manifest(folder, golden=golden, files={"tokenizer/tokenizer.json": sha256(file)})
    return app_client(open_encoder(folder))


def change_manifest(model: Path, **fields: dict[str, Any]) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    for name, values in fields.items():
        manifest[name] |= values
    (model / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("failure", all_failures())
def test_an_invalid_request(failure: Failure, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    """An invalid request gets its failure, and the next request is answered."""
    client: FlaskClient = request.getfixturevalue(failure.client)
    headers = bodies.JSON if failure.headers is None else failure.headers
    response = client.open(failure.target, method=failure.route[0], data=failure.sent or None, headers=headers)
    check(
        Answer(response.status_code, {name.lower(): value for name, value in response.headers}, response.data), failure
    )
    if failure.status == 500:
        assert "Traceback" in caplog.text and routes.SNOWMAN not in caplog.text
    path = "/health" if failure.client in ("guarded", "unready") else "/embed?q=cat"
    assert client.get(path).status_code == 200


def test_every_documented_failure_is_tested() -> None:
    """Each route of openapi.yml has a valid request, and each of its 4xx and 5xx a failure in the tables."""
    assert set(REQUESTS) == set(DOCUMENTED)
    documented = {(route, status) for route, statuses in DOCUMENTED.items() for status in statuses if status >= 400}
    tested = {(parameter.values[0].route, parameter.values[0].status) for parameter in all_failures()}
    # by tests/server/test_errors.py
    tested |= {(route, status) for route in WAITS_FOR_A_SLOT for status in (429, 503)}
    tested |= {(route, status) for route in REQUESTS for status in (408, 414)}
    assert documented - tested == UNTESTED | OWN_SHAPE
    assert {(route, status) for route, status in tested - documented if status not in ANYWHERE} == set()
