"""The HTTP routes, one file per dialect."""

from typing import Any, cast

import orjson
from flask import Response, current_app

from app.encoder import Encoder
from app.settings import Settings


def encoder() -> Encoder:
    """The app's encoder."""
    return cast(Encoder, current_app.extensions["encoder"])


def settings() -> Settings:
    """The app's settings."""
    return cast(Settings, current_app.extensions["settings"])


def json_response(content: Any, status: int = 200) -> Response:
    """Render JSON; numpy float32 arrays become lists of their shortest decimal form."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, mimetype="application/json")
