"""CORS_ORIGINS, and the headers that every answer has."""

import re

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.errors import BootError
from app.settings import Settings
from tests.support.access import ALWAYS, BEARER, EXPOSED, KEYS, ORIGIN, OTHER_ORIGIN, cors_headers
from tests.support.routes import REQUESTS, Route, as_parameters

ORIGINS = f"{ORIGIN}, http://localhost:3000"
# Headers that openai's client for JavaScript asks to send.
STAINLESS = "arch lang os package-version retry-count runtime runtime-version timeout"
ASKED = ",".join(["authorization", "content-type", *(f"x-stainless-{name}" for name in STAINLESS.split())])
# Requests for each kind of answer: method, path, whether a key is sent, status.
KINDS = [
    ("GET", "/embed?q=cat", True, 200),
    ("GET", "/health", False, 200),
    ("GET", "/docs", False, 200),
    ("GET", "/embed", True, 400),
    ("GET", "/embed?q=cat", False, 401),
    ("GET", "/nope", True, 404),
    ("PUT", "/embed", True, 405),
    ("POST", "/v1/embeddings", True, 400),
]


def app_client(encoder: Encoder, origins: str) -> FlaskClient:
    settings = Settings.from_env({"MAX_LENGTH": "64", "API_KEY": KEYS, "CORS_ORIGINS": origins})
    return create_app(settings, encoder).test_client()


@pytest.fixture(scope="module")
def guarded(tiny_encoder: Encoder) -> FlaskClient:
    """A client of a server with two keys and two origins."""
    return app_client(tiny_encoder, ORIGINS)


@pytest.mark.parametrize(("method", "path", "has_key", "status"), KINDS)
@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        (ORIGIN, True),
        ("http://localhost:3000", True),
        (OTHER_ORIGIN, False),
        ("http://a.example", False),
        ("https://a.example:8443", False),
        ("https://a.example/", False),
        ("https://a.exampl", False),
        ("http://localhost", False),
        ("null", False),
        ("*", False),
        ("", False),
        (None, False),
    ],
)
def test_origins(
    guarded: FlaskClient, method: str, path: str, has_key: bool, status: int, origin: str | None, is_allowed: bool
) -> None:
    """A page may read all answers, errors too, if its origin is one of CORS_ORIGINS; caches keep the origins apart."""
    headers = ({} if origin is None else {"Origin": origin}) | (BEARER if has_key else {})
    response = guarded.open(path, method=method, headers=headers)
    assert response.status_code == status
    allowed = {"access-control-allow-origin": str(origin), **EXPOSED} if is_allowed else {}
    assert cors_headers(response.headers) == {"vary": "Origin", **allowed}


@pytest.mark.parametrize(("method", "path", "has_key", "status"), KINDS)
@pytest.mark.parametrize("origins", ["*", f"{ORIGIN}, *", ""])
def test_any_origin_or_none(
    tiny_encoder: Encoder, origins: str, method: str, path: str, has_key: bool, status: int
) -> None:
    """With CORS_ORIGINS=* every page may read the answers, without CORS_ORIGINS none."""
    client = app_client(tiny_encoder, origins)
    response = client.open(path, method=method, headers={"Origin": OTHER_ORIGIN} | (BEARER if has_key else {}))
    assert response.status_code == status
    assert cors_headers(response.headers) == ({"access-control-allow-origin": "*", **EXPOSED} if origins else {})


@pytest.mark.parametrize("route", as_parameters([route for route in REQUESTS if route != ("GET", "/docs")]))
def test_preflight(guarded: FlaskClient, route: Route) -> None:
    """A preflight without a key allows the key and the headers of openai's client, for the listed origins only."""
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": route[0], "Access-Control-Request-Headers": ASKED}
    response = guarded.options(REQUESTS[route][0], headers=headers)
    answer = cors_headers(response.headers)
    assert (response.status_code, response.data) == (200, b"")
    assert answer["access-control-allow-origin"] == ORIGIN
    assert route[0] in answer["access-control-allow-methods"].split(", ")
    assert answer["access-control-allow-headers"] == ASKED
    assert int(answer["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in answer
    refused = guarded.options(REQUESTS[route][0], headers={**headers, "Origin": OTHER_ORIGIN})
    assert "access-control-allow-origin" not in cors_headers(refused.headers)
    del headers["Access-Control-Request-Headers"]
    assert (
        cors_headers(guarded.options(REQUESTS[route][0], headers=headers).headers)["access-control-allow-origin"]
        == ORIGIN
    )


@pytest.mark.parametrize(
    "origins",
    [
        "a.example",
        "https://a.example/",
        "https://a.example/app",
        "https://a.example https://b.example",
        "https://a.example,",
        "https://*.a.example",
        "https://A.example",
        "https://user@a.example",
        "https://a.example:",
        "app:obsidian.md",
        "APP://obsidian.md",
        "1app://obsidian.md",
        "file:///home",
        "https://",
        "null",
        "**",
    ],
)
def test_malformed_origins(origins: str) -> None:
    """Origins that no browser could send are refused at the start."""
    with pytest.raises(
        BootError, match=r"^CORS_ORIGINS has '.*': an origin is like https://example.com or app://obsidian.md, "
    ):
        Settings.from_env({"CORS_ORIGINS": origins})


@pytest.mark.parametrize(
    "origin",
    [
        "app://obsidian.md",
        "chrome-extension://aaaabbbbccccddddeeeeffffgggghhhh",
        "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
        "tauri://localhost",
        "capacitor://localhost",
        "vscode-webview://0a1b_2c",
        "http://[::1]:3000",
    ],
)
def test_origins_of_any_scheme(tiny_encoder: Encoder, origin: str) -> None:
    """Apps and browser extensions have origins with schemes of their own."""
    response = app_client(tiny_encoder, origin).get("/health", headers={"Origin": origin})
    assert response.headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize(("method", "path", "has_key", "status"), [*KINDS, ("OPTIONS", "/embed", False, 200)])
def test_headers_of_every_answer(guarded: FlaskClient, method: str, path: str, has_key: bool, status: int) -> None:
    """Every answer has each security header once: nothing is sniffed, framed, run, or told to others."""
    response = guarded.open(path, method=method, headers=BEARER if has_key else {})
    assert response.status_code == status
    names = {name for name, _ in response.headers} | ALWAYS.keys() | {"X-Request-Id"}
    assert {name for name in names if len(response.headers.getlist(name)) != 1} == set()
    for name, value in ALWAYS.items():
        if path != "/docs" or name != "Content-Security-Policy":
            assert response.headers[name] == value
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        ("a", True),
        ("0af7651916cd43dd8448eb211c80319c", True),
        ("123e4567-e89b-12d3-a456-426614174000", True),
        ("Root=1-67891233-abcdef012345678912345678", True),
        ("a.b:c+d/e=f_g", True),
        ("a" * 128, True),
        ("", False),
        ("a" * 129, False),
        ("a b", False),
        ("a\tb", False),
        ("a,b", False),
        ('a"b', False),
        ("<script>", False),
        ("日本".encode().decode("latin-1"), False),
        ("é", False),
        ("¹", False),
    ],
)
def test_the_request_id(guarded: FlaskClient, sent: str, is_kept: bool) -> None:
    """A client's X-Request-Id is kept if it is harmless in a log; otherwise the server makes one."""
    ids = [guarded.get("/health", headers={"X-Request-Id": sent}).headers["X-Request-Id"] for _ in range(2)]
    if is_kept:
        assert ids == [sent] * 2
    else:
        assert all(re.fullmatch("[0-9a-f]{16}", own) for own in ids) and ids[0] != ids[1]


def test_an_unknown_path_has_no_timing(guarded: FlaskClient) -> None:
    """Server-Timing is left out where no stage was timed."""
    assert "Server-Timing" not in guarded.get("/nope", headers=BEARER).headers
