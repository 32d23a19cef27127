"""The documentation of the API, without a browser: its routes, its policy, and Flasgger's own pages."""

import re

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.settings import Settings
from tests.support.access import KEYS
from tests.support.routes import OPERATIONS, PUBLIC

# Flasgger's own: assets, an old address that leads to /docs, a page for logins. /docs/ leads to /docs, too. And the
# files of the page of GET /.
UNDOCUMENTED = "/docs/assets/<path:filename> /apidocs/index.html /docs/oauth2-redirect.html /docs/ /page/<name>"


def test_openapi_lists_all_routes(client: FlaskClient) -> None:
    """openapi.yml has every route of the app, and no other."""
    rules = [rule for rule in client.application.url_map.iter_rules() if rule.rule not in UNDOCUMENTED.split()]
    # Flask's <path:model> is OpenAPI's {model}
    paths = {rule.rule: re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in rules}
    routes = [(method, paths[rule.rule]) for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}]
    assert sorted(OPERATIONS) == sorted(routes)


@pytest.mark.parametrize("path", ["/flasgger_static/swagger-ui-bundle.js", "/docs/assets/lib/jquery.min.js"])
def test_flasggers_own_swagger_ui_is_not_served(client: FlaskClient, path: str) -> None:
    """The old Swagger UI inside Flasgger and its jQuery answer 404, as JSON."""
    answer = client.get(path)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("keys", ["", KEYS])
def test_keys_are_documented_where_they_are_needed(tiny_encoder: Encoder, keys: str) -> None:
    """Without API_KEY the document has no security, so that /docs shows no locks; with it every data route has."""
    app = create_app(Settings.from_env({"MAX_LENGTH": "64", "API_KEY": keys}), tiny_encoder)
    document = app.test_client().get("/openapi.json").get_json()
    assert document.get("security") == ([{"key": []}] if keys else None)
    assert ("securitySchemes" in document["components"]) == bool(keys)
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    without = [operation["operationId"] for operation in operations if operation.get("security") == [{}]]
    assert set(without) == ({OPERATIONS[route]["operationId"] for route in PUBLIC} if keys else set())


def test_policy_lets_in_this_server_alone(client: FlaskClient) -> None:
    """The Content-Security-Policy names no other host and allows nothing inline."""
    policy = client.get("/docs").headers["Content-Security-Policy"]
    directives = {name: sources for name, *sources in (part.split() for part in policy.split(";"))}
    assert directives["default-src"] == ["'none'"]
    assert {source for sources in directives.values() for source in sources} == {"'none'", "'self'", "data:"}
