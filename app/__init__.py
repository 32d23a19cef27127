"""The embedding server: text in, vector out."""

import logging
import os

from flask import Flask

from app import access, docs, errors, metrics
from app.artifact import Artifact
from app.encoder import Encoder
from app.routes import VERSION, bigquery, native, openai, ops, tei
from app.settings import Settings

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None, encoder: Encoder | None = None) -> Flask:
    """Put the parts together. Without arguments: from the environment and the model folder it names.

    The encoder opens its session at the first text, or when `Encoder.open` is called: after
    Gunicorn's fork.

    Raises:
        BootError: a malformed setting, or a model folder that is not whole.
    """
    settings = settings or Settings.from_env(os.environ)
    if encoder is None:
        artifact = Artifact.load(settings.model_dir, settings.model_path, settings.tokenizer_path)
        if artifact.manifest.warning:
            logger.warning("%s", artifact.manifest.warning)
        encoder = Encoder.load(
            artifact,
            max_length=settings.max_length,
            slots=settings.slots,
            threads=settings.threads,
            cache_size=settings.cache_size,
        )
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # an unknown path is an error in JSON, not a page that leads elsewhere
    app.extensions["settings"] = settings
    app.extensions["encoder"] = encoder
    # A worker knows better: whether it ends, and what it has answered but not counted yet.
    app.extensions["shutting_down"] = lambda: False
    app.extensions["count"] = lambda: None
    for dialect in (native, openai, tei, bigquery, ops):
        app.register_blueprint(dialect.blueprint)
    access.register(app, settings)
    errors.register(app)
    docs.register(app)
    rules = [rule for rule in app.url_map.iter_rules() if not rule.rule.startswith(("/docs/", "/apidocs/"))]
    routes = [(method, rule.rule) for rule in rules for method in rule.methods or () if method in metrics.METHODS]
    metrics.expose(routes, VERSION, encoder.artifact)
    return app
