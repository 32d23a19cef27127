"""GET /docs and GET /openapi.json: Flasgger with a vendored Swagger UI, without external requests."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from flasgger import Swagger
from flask import Flask, Response, make_response, redirect

from app.paths import DOCS_WITH_SLASH
from app.routes import VERSION
from app.settings import Settings

HERE = Path(__file__).parent
# Content policy of /docs: Swagger UI needs icons from data: URLs; styles set by its script do not count as inline.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Asset paths are relative to /docs, so that they hold behind a path prefix.
CONFIG = {
    "headers": [],
    "title": "embedding-api",
    "openapi": "3.0.3",
    "specs": [{"endpoint": "openapi", "route": "/openapi.json", "rule_filter": lambda rule: False}],
    "specs_route": "/docs",
    "oauth_redirect": "/docs/oauth2-redirect.html",
    "template_folder": str(HERE / "templates"),
    "static_folder": str(HERE / "swagger_ui"),
    "static_url_path": "/docs/assets",
    "swagger_ui_bundle_js": "docs/assets/swagger-ui-bundle.js",
    "swagger_ui_css": "docs/assets/swagger-ui.css",
    "favicon": "docs/assets/favicon-32x32.png",
}


def register(app: Flask, settings: Settings) -> None:
    """Serve /docs and /openapi.json. Without API keys the document has none: Swagger UI would show open locks."""
    app.json.sort_keys = False  # type: ignore[attr-defined]  # keeps the order of openapi.yml
    swagger = Swagger(app, config=CONFIG, template_file=str(HERE / "openapi.yml"), decorators=[_with_policy])
    swagger.template["info"]["version"] = VERSION
    if not settings.api_key:
        _remove_keys(swagger.template)
    app.add_url_rule(DOCS_WITH_SLASH, "docs_with_slash", lambda: redirect("../docs", 308))


def _remove_keys(document: dict[str, Any]) -> None:
    """Remove from the OpenAPI document that a key is needed, and how it is sent."""
    del document["security"], document["components"]["securitySchemes"]
    for operations in document["paths"].values():
        for operation in operations.values():
            if isinstance(operation, dict):
                operation.pop("security", None)


def _with_policy(view: Callable[..., Any]) -> Callable[..., Response]:
    @wraps(view)
    def wrapped(*args: Any, **kwargs: Any) -> Response:
        response = make_response(view(*args, **kwargs))
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response

    return wrapped
