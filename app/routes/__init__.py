"""The HTTP routes: one file per dialect. body.py, body_errors.py, options.py and rendering.py are shared."""

from typing import cast

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


def context() -> RequestContext:
    """Return the context of the current request."""
    return cast(RequestContext, request.environ[CONTEXT])
