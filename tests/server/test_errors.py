"""Failures below the app have the one error shape: malformed HTTP, bodies that break off, requests that stop."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.support.failures import Failure, check
from tests.support.http import ask, connect, read_answer
from tests.support.routes import CHUNKED, READS_JSON, REQUESTS, Route, as_parameters, request_of
from tests.support.server import Server, Start

NO_BODY = "The body did not arrive: no more of it came within 10 s."
NO_HEAD = "The request did not arrive within 10 s."


class Stalled:
    """A server with connections that sent a part of a request, and send no more."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.connections: dict[Any, socket.socket] = {}
        self._stack = stack
        for route in REQUESTS:
            whole = request_of(route)
            self._send(route, whole[: -1 if whole.endswith(b"}") else -2])
        self._send("large", request_of(("POST", "/embed"), length=99_999))
        self._send("chunked", request_of(("POST", "/embed"), head=CHUNKED, body=b"20\r\n{"))

    def _send(self, name: Any, data: bytes) -> None:
        connection = self.connections[name] = self._stack.enter_context(connect(self.server))
        connection.sendall(data)


@pytest.fixture(scope="module")
def stalled(start: Start, tiny_model: Path) -> Iterator[Stalled]:
    """The stalled requests expire after 10 seconds. Meanwhile the other tests use the same server."""
    with ExitStack() as stack:
        yield Stalled(start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_BODY_BYTES=100_000).wait_until_ready(), stack)


@pytest.fixture
def server(stalled: Stalled) -> Server:
    return stalled.server


@pytest.mark.parametrize("route", as_parameters(READS_JSON))
@pytest.mark.parametrize(
    ("head", "body", "length", "message"),
    [
        ("", b'{"a": 1', 100, "The body ends after 7 of 100 bytes (Content-Length)."),
        ("", b"{" * 70_000, 99_999, "The body ends after 70000 of 99999 bytes (Content-Length)."),
        (CHUNKED, b"ZZZ\r\n\r\n", None, "The body cannot be read: Invalid chunk size: b'ZZZ'."),
        (CHUNKED, b"-1\r\n\r\n", None, "The body cannot be read: Invalid chunk size: b'-1'."),
        (CHUNKED, b"2\r\n{}XX\r\n", None, "The body cannot be read: Invalid chunk terminator is not …: b'XX'."),
        (CHUNKED, b"9\r\n{", None, "The body ends before its last chunk."),
        (CHUNKED, b"2\r\n{}\r\n", None, "The body ends before its last chunk."),
        (CHUNKED, b"", None, "The body ends before its last chunk."),
    ],
)
def test_a_body_that_breaks_off(
    server: Server, route: Route, head: str, body: bytes, length: int | None, message: str
) -> None:
    """A body that is incomplete or wrongly chunked is refused, never taken for the whole."""
    data = request_of(route, head=head, body=body, length=length)
    check(ask(server, data, is_last=True), Failure(route, message))
    assert ask(server, request_of(route)).status == 200


@pytest.mark.parametrize("route", as_parameters(READS_JSON))
def test_a_chunked_body_over_the_limit(server: Server, route: Route) -> None:
    """A chunked body over MAX_BODY_BYTES gets 413, although no Content-Length announced its size."""
    body = b"100001\r\n" + b" " * 0x100001 + b"\r\n0\r\n\r\n"
    message = "The body …over the limit of 100000 bytes (MAX_BODY_BYTES)…."
    failure = Failure(route, message, status=413, code="request_entity_too_large")
    check(ask(server, request_of(route, head=CHUNKED, body=body)), failure)


@pytest.mark.parametrize(
    ("old", "new", "status", "message"),
    [
        (" HTTP/1.1", " HTTP/9.9", 400, "The request cannot be read: Invalid HTTP Version: (9, 9)."),
        ("Host", "Ho st", 400, "The request cannot be read: Invalid HTTP header name: 'Ho st'."),
        ("Host: a", "Host: a\r\nContent-Length: -1", 400, "The request cannot be read: …CONTENT-LENGTH…."),
        (" HTTP/1.1", "\x01 HTTP/1.1", 400, "The request cannot be read: …."),
        (" HTTP/1.1\r\n", "\r\n\r\n", 400, "The request cannot be read: …."),
        (" HTTP/1.1", f"?{'a' * 9000} HTTP/1.1", 414, "The URL is over the limit of 8190 bytes: … POST /embed."),
        ("Host: a", f"Host: {'a' * 9000}", 431, "The headers are over the limit of 100 fields, or of 8190 bytes in …."),
        ("Host: a", "Host: a" + "\r\nA: a" * 100, 431, "The headers are over the limit of 100 fields, or of …."),
        ("Host: a", "Host: a\r\nExpect: more", 417, "The request cannot be read: … expectation: 'more'."),
    ],
)
def test_malformed_http(server: Server, old: str, new: str, status: int, message: str) -> None:
    """Requests that Gunicorn refuses to parse get the one error shape, and the next request is answered."""
    for route in REQUESTS:
        failure = Failure(route, message, status=status, code=HTTPStatus(status).name.lower())
        check(ask(server, request_of(route).replace(old.encode(), new.encode(), 1)), failure, is_parsed=False)
        assert ask(server, request_of(route)).status == 200


def test_a_long_malformed_line_is_quoted_in_part(server: Server) -> None:
    """The error message quotes a long line only as far as it shows the mistake."""
    answer = ask(server, request_of(("GET", "/health")).replace(b"Host", b"a " * 4000, 1))
    assert answer.status == 400
    assert len(answer.json["error"]["message"]) < 300


def test_an_impossible_host(server: Server) -> None:
    """A Host header that no host can have gets 400, and the message names the header."""
    message = "The request cannot be read: its Host, or another header, is malformed."
    failure = Failure(("GET", "/info"), message, code="bad_request")
    check(ask(server, request_of(failure.route).replace(b"Host: a", b"Host: " + b"a" * 300)), failure)


@pytest.mark.parametrize(("path", "quoted"), [("/東京", "at /東京;"), ("/v1/models/モデル", "model 'モデル' here;")])
def test_a_path_in_utf8(server: Server, path: str, quoted: str) -> None:
    """A path in UTF-8 without percent signs, as curl sends it, is read as UTF-8."""
    answer = ask(server, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.status == 404 and quoted in answer.json["error"]["message"]


@pytest.mark.parametrize("header", ["SCRIPT_NAME: /a", "PATH_INFO: /nope"])
def test_no_header_changes_the_path(server: Server, header: str) -> None:
    """No header of a client makes the server believe that it is mounted elsewhere."""
    assert ask(server, request_of(("GET", "/health"), head=f"{header}\r\n")).status == 200


@pytest.mark.parametrize("route", as_parameters(list(REQUESTS)))
def test_a_request_that_stops(stalled: Stalled, route: Route) -> None:
    """A request that stops in the middle gets 408 after 10 seconds."""
    # without a body it is the head that is incomplete, so the route is unknown
    message = NO_BODY if REQUESTS[route][1] else NO_HEAD
    failure = Failure(route, message, status=408, code="request_timeout")
    check(read_answer(stalled.connections[route]), failure, is_parsed=route[0] == "POST")
    assert ask(stalled.server, request_of(route)).status == 200


@pytest.mark.parametrize("name", ["large", "chunked"])
def test_a_long_body_that_stops(stalled: Stalled, name: str) -> None:
    """Large and chunked bodies, which are read by the app, get 408 as well."""
    failure = Failure(("POST", "/embed"), NO_BODY, status=408, code="request_timeout")
    check(read_answer(stalled.connections[name]), failure)
