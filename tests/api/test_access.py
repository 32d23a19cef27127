"""Who may ask, from which pages, and what every answer says besides: API_KEY, CORS_ORIGINS, headers."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from playwright.sync_api import Browser
from werkzeug.test import TestResponse

from app import create_app
from app.engine.encoder import Encoder
from app.errors import BootError
from app.settings import Settings
from tests.api import test_docs_page
from tests.api.test_docs_page import GET_EMBED, HOST, Visit
from tests.api.test_errors import OPEN, READS_JSON, RIGHT, WAITS_FOR_A_SLOT, Answer, Route
from tests.api.test_errors import Row as ErrorRow
from tests.api.test_errors import ask, check, named, request_of
from tests.server.test_load import MANY, clients
from tests.support.server import Server

Start = Callable[..., Server]
browser = test_docs_page.browser

KEYS = "first-key, second-key"
BEARER = {"Authorization": "Bearer second-key"}
ORIGIN, OTHER = "https://a.example", "https://a.example.org"
ORIGINS = f"{ORIGIN}, http://localhost:3000"
UNAUTHORIZED = "The API key is missing or wrong: send one of the server's with Authorization: Bearer KEY."
# What openai's client for JavaScript asks to send.
STAINLESS = "arch lang os package-version retry-count runtime runtime-version timeout"
ASKED = ",".join(["authorization", "content-type", *(f"x-stainless-{name}" for name in STAINLESS.split())])
# Of every answer, each once.
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def app_client(encoder: Encoder, **environ: str) -> FlaskClient:
    """A client of the app with these variables."""
    settings = Settings.from_env({"MAX_LENGTH": "64", "MAX_TEXTS": "8", "MAX_BODY_BYTES": "20000", **environ})
    return create_app(settings, encoder).test_client()


@pytest.fixture(scope="module")
def guarded(tiny_encoder: Encoder) -> FlaskClient:
    return app_client(tiny_encoder, API_KEY=KEYS, CORS_ORIGINS=ORIGINS)


@pytest.fixture(scope="module")
def page_port() -> Iterator[str]:
    """The port of a server of empty pages."""
    with empty_pages() as port:
        yield port


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path, page_port: str) -> Server:
    """Two keys, two origins, one slot, two requests may wait."""
    environ = {"API_KEY": KEYS, "CORS_ORIGINS": f"{ORIGIN},http://{HOST}:{page_port}", "CPUS": 1, "MAX_QUEUE": 2}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_TEXTS=10_000, **environ).wait_until_ready()


def send(client: FlaskClient, route: Route, **headers: str) -> TestResponse:
    """A right request with these headers; _ stands for - in their names."""
    path, body = RIGHT[route]
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.open(path, method=route[0], json=body, headers=given)


# -- Keys


@pytest.mark.parametrize(
    ("authorization", "is_right"),
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
def test_what_is_a_key(guarded: FlaskClient, authorization: str | None, is_right: bool) -> None:
    """Each of the keys, whole, after the scheme Bearer in any case."""
    response = send(guarded, ("GET", "/embed"), **({} if authorization is None else {"Authorization": authorization}))
    assert response.status_code == (200 if is_right else 401)
    assert response.headers.getlist("WWW-Authenticate") == ([] if is_right else ["Bearer"])
    assert "-key" not in response.text


@pytest.mark.parametrize("where", [{"headers": {"X-Api-Key": "first-key"}}, {"query_string": {"prompt": "first-key"}}])
def test_nowhere_else(guarded: FlaskClient, where: dict[str, Any]) -> None:
    """Neither another header nor the query is looked at."""
    assert guarded.get("/info", **where).status_code == 401


@pytest.mark.parametrize("route", named(list(RIGHT)))
def test_which_routes_want_a_key(guarded: FlaskClient, route: Route) -> None:
    """All but those that openapi.yml says are open; a preflight has none; a HEAD is like a GET."""
    is_open = route in OPEN
    assert send(guarded, route).status_code == (200 if is_open else 401)
    assert send(guarded, route, **BEARER).status_code == 200
    assert guarded.options(RIGHT[route][0]).status_code == 200
    if route[0] == "GET":
        assert guarded.head(RIGHT[route][0]).status_code == (200 if is_open else 401)


@pytest.mark.parametrize("path", ["docs.js", "swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"])
def test_the_page_is_open(guarded: FlaskClient, path: str) -> None:
    """What /docs loads has no key to send."""
    with guarded.get(f"/docs/assets/{path}") as response:
        assert response.status_code == 200


@pytest.mark.parametrize(
    "target",
    "/nope /embed/ /Embed?q=a /docs%2f..%2fembed?q=a /docs/../embed?q=a /docs/%2e%2e/embed?q=a //embed?q=a /./embed?q=a"
    " /docs/assets/../../errors.py /docs/assets/%2e%2e/docs.py http://a/embed?q=a http://a/docs/../embed?q=a"
    " /health/ /health/../embed?q=a /health%3f/embed?q=a /embed;/docs?q=a /embed%3b/docs?q=a /%65mbed?q=a".split(),
)
def test_no_way_around(server: Server, target: str) -> None:
    """Other spellings of a path lead to no vector and to no file, and tell nothing of what there is."""
    lines = f"GET {target} HTTP/1.1\r\nHost: a\r\nPATH_INFO: /health\r\nSCRIPT_NAME: /docs\r\n\r\n"
    answer = ask(server, lines.encode())
    assert answer.status in (401, 404)
    assert b"vector" not in answer.body and b"import" not in answer.body


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Authorization: Bearer first-key", 200),
        ("AUTHORIZATION:Bearer first-key\t", 200),
        ("Authorization: Bearer first-key\r\nAuthorization: Bearer first-key", 401),
        ("Authorization: Bearer wrong\r\nAuthorization: Bearer first-key", 401),
        ("Authorization: Bearer first-kéy", 401),
        ("Authorization: Bearer \xff\xfe", 401),
        ("Authorization:\r\n Bearer first-key", 400),
        ("Authorization : Bearer first-key", 400),
    ],
)
def test_what_is_a_key_in_bytes(server: Server, lines: str, status: int) -> None:
    """Two headers are none, and bytes of no encoding do no harm."""
    whole = request_of(("GET", "/info"), head="KEY\r\n")
    for encoding in ("latin-1", "utf-8"):
        assert ask(server, whole.replace(b"KEY", lines.encode(encoding))).status == status


@pytest.mark.parametrize("route", named(READS_JSON))
def test_before_the_body(server: Server, guarded: FlaskClient, route: Route) -> None:
    """Who has no key learns nothing else, sends no large body, and makes no work."""
    row = ErrorRow(route, UNAUTHORIZED, status=401, code="invalid_api_key")
    check(ask(server, request_of(route, length=1_000_000)), row)
    for data, kind in ((b"{", "application/json"), (b" " * 20_001, "application/json"), (b"{}", "text/plain")):
        response = guarded.post(route[1], data=data, content_type=kind)
        assert (response.status_code, response.get_json()["error"]["code"]) == (401, "invalid_api_key")


def test_no_work_without_a_key(server: Server) -> None:
    """A wrong key has no text computed."""

    def texts() -> str:
        metrics = requests.get(f"{server.url}/metrics", headers=BEARER, timeout=10).text
        return next(line for line in metrics.splitlines() if line.startswith("embedding_texts_total "))

    before = texts()
    for _ in range(5):
        answer = requests.post(f"{server.url}/embed", json={"texts": ["no key"]}, headers={"Authorization": "Bearer x"})
        assert answer.status_code == 401
    assert texts() == before
    assert "-key" not in server.output


@pytest.mark.parametrize("keys", ["Anna,", ",Anna", "Anna,,Bert", "Anna, Bert Carl", "Anna,Jürgen", "Anna\tBert", ","])
def test_malformed_keys(keys: str) -> None:
    """They are no keys, and the message has none of them."""
    with pytest.raises(BootError, match=r"^Item \d of API_KEY .* printable ASCII characters without spaces; ") as error:
        Settings.from_env({"API_KEY": keys})
    assert not [name for name in re.findall(r"\w+", keys) if name in str(error.value)]


def test_malformed_keys_stop_the_boot(start: Start, tiny_model: Path) -> None:
    """One line that says which item, and no key anywhere."""
    output = start(MODEL_DIR=tiny_model, API_KEY="good-key,bad key").output_of_failed_boot()
    assert output.startswith("Error: Item 2 of API_KEY ") and output.count("\n") == 1
    assert "good-key" not in output and "bad key" not in output


def test_settings_never_show_keys() -> None:
    """Not where settings are printed, either."""
    assert "-key" not in repr(Settings.from_env({"API_KEY": KEYS}))


# -- Pages of other origins


# Answers of each kind: method, path, whether a key is sent, status.
KINDS = [
    ("GET", "/embed?q=cat", True, 200),
    ("GET", "/health", False, 200),
    ("GET", "/docs", False, 200),
    ("GET", "/embed", True, 400),
    ("GET", "/embed?q=cat", False, 401),
    ("GET", "/nope", True, 404),
    ("PUT", "/embed", True, 405),
    ("POST", "/v1/embeddings", True, 415),
]


def cors_of(response: TestResponse | Answer) -> dict[str, str]:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return {name: value for name, value in headers.items() if name.startswith("access-control-") or name == "vary"}


EXPOSED = {"access-control-expose-headers": "X-Request-Id, Server-Timing, Retry-After"}


@pytest.mark.parametrize(("method", "path", "has_key", "status"), KINDS)
@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        (ORIGIN, True),
        ("http://localhost:3000", True),
        (OTHER, False),
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
    """A page may read all answers, errors too, if its origin is one of CORS_ORIGINS; caches keep them apart."""
    headers = ({} if origin is None else {"Origin": origin}) | (BEARER if has_key else {})
    response = guarded.open(path, method=method, headers=headers)
    assert response.status_code == status
    allowed = {"access-control-allow-origin": str(origin), **EXPOSED} if is_allowed else {}
    assert cors_of(response) == {"vary": "Origin", **allowed}


@pytest.mark.parametrize(("method", "path", "has_key", "status"), KINDS)
@pytest.mark.parametrize("origins", ["*", f"{ORIGIN}, *", ""])
def test_any_origin_or_none(
    tiny_encoder: Encoder, origins: str, method: str, path: str, has_key: bool, status: int
) -> None:
    """With * every page may, without CORS_ORIGINS none."""
    client = app_client(tiny_encoder, API_KEY=KEYS, CORS_ORIGINS=origins)
    response = client.open(path, method=method, headers={"Origin": OTHER} | (BEARER if has_key else {}))
    assert response.status_code == status
    assert cors_of(response) == ({"access-control-allow-origin": "*", **EXPOSED} if origins else {})


@pytest.mark.parametrize("route", named([route for route in RIGHT if route != ("GET", "/docs")]))
def test_preflight(guarded: FlaskClient, route: Route) -> None:
    """A browser asks, without a key, whether it may send one, and the headers of openai's client."""
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": route[0], "Access-Control-Request-Headers": ASKED}
    response = guarded.options(RIGHT[route][0], headers=headers)
    answer = cors_of(response)
    assert (response.status_code, response.data) == (200, b"")
    assert answer["access-control-allow-origin"] == ORIGIN
    assert route[0] in answer["access-control-allow-methods"].split(", ")
    assert answer["access-control-allow-headers"] == ASKED
    assert int(answer["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in answer
    refused = guarded.options(RIGHT[route][0], headers={**headers, "Origin": OTHER})
    assert "access-control-allow-origin" not in cors_of(refused)
    del headers["Access-Control-Request-Headers"]
    assert cors_of(guarded.options(RIGHT[route][0], headers=headers))["access-control-allow-origin"] == ORIGIN


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
        "ftp://a.example",
        "https://",
        "null",
        "**",
    ],
)
def test_malformed_origins(origins: str) -> None:
    """They could never be equal to what a browser sends."""
    with pytest.raises(BootError, match=r"^CORS_ORIGINS has '.*': an origin is like https://example.com, "):
        Settings.from_env({"CORS_ORIGINS": origins})


def test_malformed_origins_stop_the_boot(start: Start, tiny_model: Path) -> None:
    """One line that has the value."""
    output = start(MODEL_DIR=tiny_model, CORS_ORIGINS=f"{ORIGIN},a.example").output_of_failed_boot()
    assert output.startswith("Error: CORS_ORIGINS has 'a.example': ") and output.count("\n") == 1


# -- Headers of every answer


@pytest.mark.parametrize(("method", "path", "has_key", "status"), [*KINDS, ("OPTIONS", "/embed", False, 200)])
def test_headers_of_every_answer(guarded: FlaskClient, method: str, path: str, has_key: bool, status: int) -> None:
    """Nothing is sniffed, framed, run or told to others; each header is there once."""
    response = guarded.open(path, method=method, headers=BEARER if has_key else {})
    assert response.status_code == status
    names = {name for name, _ in response.headers} | ALWAYS.keys() | {"X-Request-Id"}
    assert {name for name in names if len(response.headers.getlist(name)) != 1} == set()
    for name, value in ALWAYS.items():
        if path != "/docs" or name != "Content-Security-Policy":
            assert response.headers[name] == value
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("given", "is_kept"),
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
def test_the_requests_id(guarded: FlaskClient, given: str, is_kept: bool) -> None:
    """The client's own is kept where it does no harm in a log; otherwise the request gets one."""
    ids = [guarded.get("/health", headers={"X-Request-Id": given}).headers["X-Request-Id"] for _ in range(2)]
    if is_kept:
        assert ids == [given] * 2
    else:
        assert all(re.fullmatch("[0-9a-f]{16}", own) for own in ids) and ids[0] != ids[1]


def test_what_took_how_long(server: Server, guarded: FlaskClient) -> None:
    """Server-Timing has the stages in milliseconds, as https://www.w3.org/TR/server-timing/ has it."""
    stages = ["queue", "tokenize", "inference", "serialize"]
    answer = requests.get(f"{server.url}/embed?q=a", headers=BEARER, timeout=10)
    entries = [entry.split(";dur=") for entry in answer.headers["Server-Timing"].split(", ")]
    assert [name for name, _ in entries] == stages
    assert all(re.fullmatch(r"\d+\.\d\d", milliseconds) for _, milliseconds in entries)
    assert requests.get(f"{server.url}/embed?q=a", timeout=10).headers["Server-Timing"].startswith("queue;dur=")
    assert "Server-Timing" not in guarded.get("/nope", headers=BEARER).headers


# What the worker answers without the app: the status, whether it has read whose page and which id it is, the request.
OWN = [
    (400, False, "GET / HTTP/1.1\r\n{}Ho st: a\r\n\r\n"),
    (414, False, f"GET /?{'a' * 9000} HTTP/1.1\r\n{{}}\r\n"),
    (431, False, f"GET / HTTP/1.1\r\n{{}}A: {'a' * 9000}\r\n\r\n"),
    (429, True, "GET /embed?q=a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer first-key\r\n{}\r\n"),
    (408, False, "GET / HTTP/1.1\r\n{}A: "),
]


@contextmanager
def full_queue(server: Server) -> Iterator[None]:
    """Most of the time it is."""

    def large() -> None:
        requests.post(f"{server.url}/embed", json={"texts": MANY}, headers=BEARER, timeout=60)

    with clients(6, large):
        yield


@pytest.mark.parametrize(("status", "is_read", "lines"), OWN, ids=[str(status) for status, _, _ in OWN])
def test_the_workers_own_answers(server: Server, status: int, is_read: bool, lines: str) -> None:
    """Those have all of these headers, too."""
    with full_queue(server) if status == 429 else nullcontext():
        for origin, request_id in ((ORIGIN, "mine"), (OTHER, "not mine"))[: 1 if status == 408 else 2]:
            data = lines.format(f"Origin: {origin}\r\nX-Request-Id: {request_id}\r\n").encode()
            while (answer := ask(server, data)).status == 200:
                pass
            is_mine = is_read and origin == ORIGIN
            assert answer.status == status
            assert {name: answer.headers[name.lower()] for name in ALWAYS} == ALWAYS
            allowed = {"access-control-allow-origin": ORIGIN, **EXPOSED} if is_mine else {}
            assert cors_of(answer) == {"vary": "Origin", **allowed}
            assert re.fullmatch("mine" if is_mine else "[0-9a-f]{16}", answer.headers["x-request-id"])


def test_a_preflight_does_not_wait(server: Server) -> None:
    """A page learns of a full queue by its request, which a preflight must not keep it from sending."""
    head = f"Host: a\r\nOrigin: {ORIGIN}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    with full_queue(server):
        for route in WAITS_FOR_A_SLOT:
            while ask(server, request_of(route, head="Authorization: Bearer first-key\r\n")).status == 200:
                pass
            answer = ask(server, f"OPTIONS {RIGHT[route][0]} HTTP/1.1\r\n{head}".encode())
            assert answer.status == 200 and answer.headers["access-control-allow-origin"] == ORIGIN


# -- A real browser


@contextmanager
def empty_pages() -> Iterator[str]:
    """A server of empty pages; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        yield str(pages.server_port)
        pages.shutdown()


FETCH = """async ([url, key]) => {
  const headers = {"Content-Type": "application/json", "X-Stainless-Lang": "js"};
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    const answer = await fetch(url, {method: "POST", headers, body: '{"input": "cat"}'});
    return [answer.status, await answer.json(), answer.headers.get("X-Request-Id")];
  } catch (error) {
    return [0, String(error), null];
  }
}"""


@pytest.mark.browser
def test_a_page_of_another_origin(browser: Browser, server: Server, page_port: str) -> None:
    """Chromium lets a page of an origin in CORS_ORIGINS send its key and read the vectors, and the errors; no other."""
    url = f"{server.url}/v1/embeddings"
    expected = requests.post(url, json={"input": "cat"}, headers=BEARER, timeout=10).json()
    with empty_pages() as other_port:
        for port, is_allowed in ((page_port, True), (other_port, False)):
            page = browser.new_page()
            page.goto(f"http://{HOST}:{port}/")
            status, content, request_id = page.evaluate(FETCH, [url, "first-key"])
            if not is_allowed:
                assert (status, content) == (0, "TypeError: Failed to fetch")
            else:
                assert (status, content) == (200, expected) and request_id
                status, content, _ = page.evaluate(FETCH, [url, "wrong"])
                assert (status, content["error"]["message"]) == (401, UNAUTHORIZED)
            page.close()


@pytest.mark.browser
def test_docs_with_a_key(browser: Browser, start: Start, tiny_model: Path) -> None:
    """The page opens without a key, asks for one, and sends it; its own policy forbids nothing of that."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, API_KEY=KEYS).wait_until_ready()
    page = browser.new_page()
    visit = Visit(page, server.port)
    code, shown = visit.execute(*GET_EMBED)
    assert (code, shown["error"]["message"]) == ("401", UNAUTHORIZED)
    page.locator("button.authorize").click()
    page.locator(".modal-ux input").fill("second-key")
    page.locator(".modal-ux button.authorize").click()
    page.locator(".modal-ux button.btn-done").click()
    section = page.locator("#operations-embed-embedOne")
    section.get_by_role("button", name="Execute").click()
    section.locator(".live-responses-table tr.response .response-col_status", has_text="200").wait_for()
    assert not [complaint for complaint in visit.complaints if "Content Security Policy" in complaint]
    page.close()


def test_a_large_body_that_is_not_read(start: Start, tiny_model: Path) -> None:
    """Who sent 200 KB with a wrong key learns that the connection ends, so that the next request is not lost."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, API_KEY=KEYS).wait_until_ready()
    with requests.Session() as session:
        for _ in range(5):
            refused = session.post(f"{server.url}/embed", data=b" " * 200_000, timeout=30)
            assert (refused.status_code, refused.headers["Connection"]) == (401, "close")
            assert session.get(f"{server.url}/health", timeout=30).ok
