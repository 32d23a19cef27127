"""API keys, CORS and the headers of every answer, as a real server sends them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import requests

from tests.support.access import ALWAYS, BEARER, EXPOSED, KEYS, ORIGIN, OTHER_ORIGIN, cors_headers
from tests.support.failures import UNAUTHORIZED, Failure, check
from tests.support.http import LARGE_BATCH, ask, repeat_in_threads
from tests.support.routes import READS_JSON, REQUESTS, WAITS_FOR_A_SLOT, Route, as_parameters, request_of
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two keys, one origin, one slot, two requests may wait."""
    environ = {"API_KEY": KEYS, "CORS_ORIGINS": ORIGIN, "CPUS": 1, "MAX_QUEUE": 2}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_TEXTS=10_000, **environ).wait_until_ready()


@contextmanager
def full_queue(server: Server) -> Iterator[None]:
    """Keep the queue full, most of the time, until the block is left."""

    def send_large_batch() -> None:
        requests.post(f"{server.url}/embed", json={"texts": LARGE_BATCH}, headers=BEARER, timeout=60)

    with repeat_in_threads(6, send_large_batch):
        yield


@pytest.mark.parametrize(
    "target",
    "/nope /embed/ /Embed?q=a /docs%2f..%2fembed?q=a /docs/../embed?q=a /docs/%2e%2e/embed?q=a //embed?q=a /./embed?q=a"
    " /docs/assets/../../errors.py /docs/assets/%2e%2e/docs.py http://a/embed?q=a http://a/docs/../embed?q=a"
    " /health/../embed?q=a /health%3f/embed?q=a /embed;/docs?q=a /embed%3b/docs?q=a /%65mbed?q=a"
    " /page/../embed?q=a /page/..%2fembed?q=a /page/../access.py /page/__init__.py".split(),
)
def test_no_way_around(server: Server, target: str) -> None:
    """Other spellings of a path lead to no vector and to no file, and don't show which paths exist."""
    request = f"GET {target} HTTP/1.1\r\nHost: a\r\nPATH_INFO: /health\r\nSCRIPT_NAME: /docs\r\n\r\n"
    answer = ask(server, request)
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
def test_a_key_in_bytes(server: Server, lines: str, status: int) -> None:
    """Two Authorization headers count as none, and bytes in no encoding do no harm."""
    whole = request_of(("GET", "/info"), head="KEY\r\n")
    for encoding in ("latin-1", "utf-8"):
        assert ask(server, whole.replace(b"KEY", lines.encode(encoding))).status == status


@pytest.mark.parametrize("route", as_parameters(READS_JSON))
def test_the_key_is_checked_before_the_body(server: Server, route: Route) -> None:
    """A request without a key gets 401 before its body has arrived."""
    failure = Failure(route, UNAUTHORIZED, status=401, code="invalid_api_key")
    check(ask(server, request_of(route, length=1_000_000)), failure)


def test_no_work_without_a_key(server: Server) -> None:
    """No text is computed for a request with a wrong key, and no key is logged."""

    def texts_total() -> str:
        metrics = requests.get(f"{server.url}/metrics", headers=BEARER, timeout=10).text
        return next(line for line in metrics.splitlines() if line.startswith("embedding_texts_total "))

    before = texts_total()
    for _ in range(5):
        answer = requests.post(f"{server.url}/embed", json={"texts": ["no key"]}, headers={"Authorization": "Bearer x"})
        assert answer.status_code == 401
    assert texts_total() == before
    assert "-key" not in server.output


def test_malformed_keys_stop_the_boot(start: Start, tiny_model: Path) -> None:
    """A malformed key stops the start with one line, which says which item it is and shows no key."""
    output = start(MODEL_DIR=tiny_model, API_KEY="good-key,bad key").output_of_failed_boot()
    assert output.startswith("Error: Item 2 of API_KEY ") and output.count("\n") == 1
    assert "good-key" not in output and "bad key" not in output


def test_malformed_origins_stop_the_boot(start: Start, tiny_model: Path) -> None:
    """A malformed origin stops the start with one line, which quotes it."""
    output = start(MODEL_DIR=tiny_model, CORS_ORIGINS=f"{ORIGIN},a.example").output_of_failed_boot()
    assert output.startswith("Error: CORS_ORIGINS has 'a.example': ") and output.count("\n") == 1


def test_server_timing(server: Server) -> None:
    """Server-Timing has the stages in milliseconds, in the form of https://www.w3.org/TR/server-timing/."""
    stages = ["queue", "tokenize", "inference", "serialize"]
    answer = requests.get(f"{server.url}/embed?q=a", headers=BEARER, timeout=10)
    entries = [entry.split(";dur=") for entry in answer.headers["Server-Timing"].split(", ")]
    assert [name for name, _ in entries] == stages
    assert all(re.fullmatch(r"\d+\.\d\d", milliseconds) for _, milliseconds in entries)
    assert requests.get(f"{server.url}/embed?q=a", timeout=10).headers["Server-Timing"].startswith("queue;dur=")


# Requests that the worker answers without the app: status, whether it has read Origin and X-Request-Id, the request.
OWN = [
    (400, False, "GET / HTTP/1.1\r\n{}Ho st: a\r\n\r\n"),
    (414, False, f"GET /?{'a' * 9000} HTTP/1.1\r\n{{}}\r\n"),
    (431, False, f"GET / HTTP/1.1\r\n{{}}A: {'a' * 9000}\r\n\r\n"),
    (429, True, "GET /embed?q=a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer first-key\r\n{}\r\n"),
    (408, False, "GET / HTTP/1.1\r\n{}A: "),
]


@pytest.mark.parametrize(("status", "is_read", "lines"), OWN, ids=[str(status) for status, _, _ in OWN])
def test_the_workers_own_answers(server: Server, status: int, is_read: bool, lines: str) -> None:
    """Answers that the worker makes without the app have the same headers."""
    with full_queue(server) if status == 429 else nullcontext():
        for origin, request_id in ((ORIGIN, "mine"), (OTHER_ORIGIN, "not mine"))[: 1 if status == 408 else 2]:
            data = lines.format(f"Origin: {origin}\r\nX-Request-Id: {request_id}\r\n").encode()
            while (answer := ask(server, data)).status == 200:
                pass
            is_known = is_read and origin == ORIGIN
            assert answer.status == status
            assert {name: answer.headers[name.lower()] for name in ALWAYS} == ALWAYS
            allowed = {"access-control-allow-origin": ORIGIN, **EXPOSED} if is_known else {}
            assert cors_headers(answer.headers.items()) == {"vary": "Origin", **allowed}
            assert re.fullmatch("mine" if is_known else "[0-9a-f]{16}", answer.headers["x-request-id"])


def test_a_preflight_does_not_wait(server: Server) -> None:
    """A preflight is answered while the queue is full, so that the page can send its request and read the 429."""
    head = f"Host: a\r\nOrigin: {ORIGIN}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    with full_queue(server):
        for route in WAITS_FOR_A_SLOT:
            while ask(server, request_of(route, head="Authorization: Bearer first-key\r\n")).status == 200:
                pass
            answer = ask(server, f"OPTIONS {REQUESTS[route][0]} HTTP/1.1\r\n{head}")
            assert answer.status == 200 and answer.headers["access-control-allow-origin"] == ORIGIN


def test_a_large_body_that_is_not_read(shared_server: Start) -> None:
    """A refused body of 200 KB closes the connection with notice, so that the client's next request is not lost."""
    server = shared_server(API_KEY=KEYS)
    with requests.Session() as session:
        for _ in range(5):
            refused = session.post(f"{server.url}/embed", data=b" " * 200_000, timeout=30)
            assert (refused.status_code, refused.headers["Connection"]) == (401, "close")
            assert session.get(f"{server.url}/health", timeout=30).ok
