"""The app with a test client, and its native vectors, to which other dialects are compared."""

from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.settings import Settings


def app_client(model: Path, encoder: Encoder, **settings: Any) -> FlaskClient:
    """Return a client of the app with these settings and MAX_LENGTH 64."""
    return create_app(Settings(model_dir=model, max_length=64, **settings), encoder).test_client()


def post(client: FlaskClient, path: str, body: Any) -> Any:
    """Return the JSON of an answer with status 200."""
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def vectors(client: FlaskClient, texts: list[str], **options: Any) -> Any:
    """Return the vectors of POST /embed, of length 1 unless the options say otherwise."""
    return post(client, "/embed", {"texts": texts, "normalize": True, **options})["vectors"]
