"""The HTTP routes, one file per dialect."""

import time
from typing import Any, cast

import orjson
from flask import Response, current_app, request

from app.encoder import Encoder
from app.record import RECORD, Record
from app.settings import Settings

NAME = "embedding-api"
VERSION = "0.1.0"


def encoder() -> Encoder:
    """The app's encoder."""
    return cast(Encoder, current_app.extensions["encoder"])


def settings() -> Settings:
    """The app's settings."""
    return cast(Settings, current_app.extensions["settings"])


def record() -> Record:
    """What is known of the current request."""
    return cast(Record, request.environ[RECORD])


def json_response(content: Any, status: int = 200) -> Response:
    """Render JSON; numpy float32 arrays become lists of their shortest decimal form."""
    began = time.monotonic()
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    record().stages["serialize"] = time.monotonic() - began
    return Response(body, status, mimetype="application/json")
