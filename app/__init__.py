"""The embedding server: text in, vector out."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flask import Flask

from app import access, http_errors, metrics, openapi, page, paths
from app.context import ErrorFields
from app.engine.cl100k import Cl100k
from app.engine.encoder import Encoder
from app.loading import load_encoder
from app.routes import VERSION, bigquery, cohere, native, ollama, openai, ops, tei, vertex, weaviate
from app.settings import Settings


class App(Flask):
    """Flask with other spellings of paths, and without its check for asynchronous functions: this app has none."""

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Any:
        environ["PATH_INFO"] = paths.canonical(environ["PATH_INFO"])
        return super().wsgi_app(environ, start_response)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def create_app(settings: Settings | None = None, encoder: Encoder | None = None) -> Flask:
    """Create the Flask app: settings, encoder, routes, access rules, error handlers, documentation and metrics.

    settings: None reads the environment. encoder: None loads the model folder that the settings name. The encoder
    opens its session later, with `Encoder.open` after Gunicorn's fork or at the first text.

    Raises:
        BootError: a setting is malformed, or the model folder is not complete.
    """
    settings = settings or Settings.from_env(os.environ)
    if encoder is None:
        encoder = load_encoder(settings, settings.capacity)
    settings = replace(settings, max_length=encoder.max_length)
    app = App(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # an unknown path gets 404 in JSON, not a redirect
    app.extensions["settings"] = settings
    app.extensions["encoder"] = encoder
    table = encoder.model_folder.cl100k_file
    app.extensions["cl100k"] = Cl100k.load(table) if table else None
    # Replaced by a worker: whether it is shutting down, and counting of the requests that it has answered.
    app.extensions["shutting_down"] = lambda: False
    app.extensions["count_answered"] = lambda: None
    for dialect in (native, openai, tei, ollama, cohere, weaviate, vertex, bigquery, ops):
        app.register_blueprint(dialect.blueprint)
    vertex.add_routes(app, settings)
    app.extensions["error_fields"] = _error_fields(app)
    access.register(app, settings)
    http_errors.register(app)
    openapi.register(app, settings)
    page.register(app, settings.model_dir)
    rules = [rule for rule in app.url_map.iter_rules() if not rule.rule.startswith(("/docs/", "/apidocs/", "/page/"))]
    routes = [(method, rule.rule) for rule in rules for method in rule.methods or () if method in metrics.METHODS]
    metrics.declare(routes, VERSION, encoder.model_folder)
    return app


def _error_fields(app: Flask) -> Callable[[str], ErrorFields | None]:
    """Return the function: canonical path -> function of its dialect that adds fields to the body of an error."""
    by_path = {
        rule.rule: dialect.error_fields
        for dialect in (native, tei, ollama, cohere, weaviate, vertex, bigquery)
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith(f"{dialect.blueprint.name}.")
    }

    def find(path: str) -> ErrorFields | None:
        if path.endswith(vertex.SUFFIX):
            return vertex.error_fields
        if path.startswith("/api/"):  # also those that are not here
            return ollama.error_fields
        return by_path.get(path)

    return find
