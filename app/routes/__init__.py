"""The HTTP routes: one file per dialect. body.py, body_errors.py, options.py and rendering.py are shared."""

from typing import Any, cast

from flask import current_app, request

from app.context import CONTEXT, RequestContext
from app.engine.encoder import Encoder
from app.engine.manifest import Manifest
from app.settings import Settings

NAME = "embedding-api"
VERSION = "0.1.0"


def encoder() -> Encoder:
    """Return the app's encoder."""
    return cast(Encoder, current_app.extensions["encoder"])


def manifest() -> Manifest:
    """Return the manifest of the model that is served."""
    return encoder().model_folder.manifest


def settings() -> Settings:
    """Return the app's settings."""
    return cast(Settings, current_app.extensions["settings"])


def served_name(asked: str | None = None) -> str:
    """Return the name by which clients know the model: SERVED_MODEL_NAME, or the model's id.

    asked: the name in the request, which answers repeat: many clients compare the two.
    """
    return (settings().served_model_name or manifest().model) if asked is None else asked


def not_ready_reason() -> str | None:
    """Return a sentence that says why this server should get no requests, or None if it should."""
    if current_app.extensions["shutting_down"]():
        return "The server is shutting down."
    return encoder().not_ready_reason


def plain_error(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return the sentence as error, in place of the object: error fields of dialects whose clients show a string."""
    return {"error": message}


def context() -> RequestContext:
    """Return the context of the current request."""
    return cast(RequestContext, request.environ[CONTEXT])
