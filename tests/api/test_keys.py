"""API_KEY: what is accepted as a key, and which routes need one."""

import re
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from app.engine.encoder import Encoder
from app.errors import BootError
from app.settings import Settings
from tests.support.access import BEARER, KEYS
from tests.support.routes import PUBLIC, READS_JSON, REQUESTS, Route, as_parameters


@pytest.fixture(scope="module")
def guarded(tiny_encoder: Encoder) -> FlaskClient:
    """A client of a server with two keys."""
    variables = {"MAX_LENGTH": "64", "MAX_BODY_BYTES": "20000", "API_KEY": KEYS}
    return create_app(Settings.from_env(variables), tiny_encoder).test_client()


def send(client: FlaskClient, route: Route, headers: dict[str, str]) -> TestResponse:
    """Send a valid request with these headers."""
    path, body = REQUESTS[route]
    return client.open(path, method=route[0], json=body, headers=headers)


@pytest.mark.parametrize(
    ("authorization", "is_accepted"),
    [
        (None, False),
        ("Bearer first-key", True),
        ("Bearer second-key", True),
        ("bearer first-key", True),
        ("BEARER second-key", True),
        ("Bearer   first-key  ", True),
        ("", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("Bearer first-ke", False),
        ("Bearer first-key2", False),
        ("Bearer FIRST-KEY", False),
        ("Bearer first-key,second-key", False),
        ("Bearer first-key, second-key", False),
        ("Bearer first-key second-key", False),
        ('Bearer "first-key"', False),
        ("first-key", False),
        ("Bearerfirst-key", False),
        ("Basic first-key", False),
        ("Basic OmZpcnN0LWtleQ==", False),
        ("Bearer first-kéy", False),
        ("Bearer ÿ", False),
        ("Bearer " + "é" * 5000, False),
    ],
)
def test_accepted_keys(guarded: FlaskClient, authorization: str | None, is_accepted: bool) -> None:
    """Each of the keys is accepted, whole, after the scheme Bearer in any case."""
    response = send(guarded, ("GET", "/embed"), {} if authorization is None else {"Authorization": authorization})
    assert response.status_code == (200 if is_accepted else 401)
    assert response.headers.getlist("WWW-Authenticate") == ([] if is_accepted else ["Bearer"])
    assert "-key" not in response.text


@pytest.mark.parametrize(
    ("headers", "is_accepted"),
    [
        ({"api-key": "first-key"}, True),
        ({"X-API-Key": "second-key"}, True),
        ({"x-api-key": " first-key "}, True),
        ({"api-key": "none", "Authorization": "Bearer first-key"}, True),
        ({"api-key": "first-key", "Authorization": "Bearer none"}, True),
        ({"api-key": "Bearer first-key"}, False),
        ({"api-key": "first-key,second-key"}, False),
        ({"api-key": "first-ke"}, False),
        ({"api-key": ""}, False),
        ({"X-API-Key": "é" * 5000}, False),
    ],
)
def test_other_headers_for_keys(guarded: FlaskClient, headers: dict[str, str], is_accepted: bool) -> None:
    """A key is accepted in the headers that Azure's and others' clients send, too."""
    assert guarded.get("/info", headers=headers).status_code == (200 if is_accepted else 401)


@pytest.mark.parametrize("where", [{"headers": {"X-Key": "first-key"}}, {"query_string": {"prompt": "first-key"}}])
def test_a_key_elsewhere(guarded: FlaskClient, where: dict[str, Any]) -> None:
    """A key in another header or in the query is not accepted."""
    assert guarded.get("/info", **where).status_code == 401


@pytest.mark.parametrize("route", as_parameters(list(REQUESTS)))
def test_routes_that_need_a_key(guarded: FlaskClient, route: Route) -> None:
    """All routes but the public ones of openapi.yml need a key; a preflight does not, and a HEAD is like a GET."""
    is_public = route in PUBLIC
    assert send(guarded, route, {}).status_code == (200 if is_public else 401)
    assert send(guarded, route, BEARER).status_code == 200
    assert guarded.options(REQUESTS[route][0]).status_code == 200
    if route[0] == "GET":
        assert guarded.head(REQUESTS[route][0]).status_code == (200 if is_public else 401)


@pytest.mark.parametrize("path", ["docs.js", "docs.css", "swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"])
def test_the_page_needs_no_key(guarded: FlaskClient, path: str) -> None:
    """The files that /docs loads need no key, since a browser cannot send one."""
    with guarded.get(f"/docs/assets/{path}") as response:
        assert response.status_code == 200


@pytest.mark.parametrize("keys", ["Anna,", ",Anna", "Anna,,Bert", "Anna, Bert Carl", "Anna,Jürgen", "Anna\tBert", ","])
def test_malformed_keys(keys: str) -> None:
    """Malformed keys are refused at the start, and the message shows no key."""
    with pytest.raises(BootError, match=r"^Item \d of API_KEY .* printable ASCII characters without spaces; ") as error:
        Settings.from_env({"API_KEY": keys})
    assert not [name for name in re.findall(r"\w+", keys) if name in str(error.value)]


def test_settings_never_show_keys() -> None:
    """Printed settings don't show the keys."""
    assert "-key" not in repr(Settings.from_env({"API_KEY": KEYS}))


@pytest.mark.parametrize("route", as_parameters(READS_JSON))
@pytest.mark.parametrize(
    ("data", "content_type"),
    [(b"{", "application/json"), (b" " * 20_001, "application/json"), (b"{}", "text/plain")],
    ids=["not JSON", "over the limit", "another type"],
)
def test_the_key_is_checked_before_the_body(guarded: FlaskClient, route: Route, data: bytes, content_type: str) -> None:
    """A client without a key learns nothing about its body."""
    response = guarded.post(route[1], data=data, content_type=content_type)
    assert response.status_code == 401
    assert "The API key is missing or wrong" in response.text
