"""Clients that send slowly, flood the server, or never read: others are served, and nothing of them stays."""

import http.client
import resource
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from app.server.connection import MAX_HEAD_BYTES
from tests.support.http import connect, embed_request, parse_answers, read_all, read_answer, run_in_threads
from tests.support.load import HEALTH, good_clients, memory
from tests.support.metrics import answered, wait_until_idle
from tests.support.server import Server, Start

CHUNKED = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()


def drip(data: bytes, bytes_at_once: int = 1) -> Callable[[socket.socket], None]:
    """Return a function that sends data in packets of a few bytes, thousands a second."""

    def run(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), bytes_at_once):
            connection.sendall(data[start : start + bytes_at_once])
            time.sleep(0.0002)

    return run


def flood(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


TRAILER = b"a: " + b"b" * 8000 + b"\r\n"
BLANKS = b"a: " + b" " * 7900 + b"\r\n"
DIGITS = b"".join(b"1\r\n%d\r\n" % (n % 10) for n in range(20_000))
SLOW_TO_PARSE = {
    "a head byte by byte": drip(HEALTH[:-2] + b"a: " + b" " * 8000),
    "headers of spaces, without an end": drip(HEALTH[:-2] + BLANKS * 7 + b" " * 8000, 8),
    "a head that is too long": flood(HEALTH[:-2] + b"a: b\r\n" * (MAX_HEAD_BYTES // 6 + 1)),
    "a body byte by byte": drip(embed_request([], length=60_000) + b" " * 8000),
    "trailers without an end": drip(CHUNKED + b"1\r\n[\r\n0\r\n" + TRAILER * 99, 8000),
    "a trailer byte by byte": drip(CHUNKED + b"1\r\n[\r\n0\r\n" + TRAILER),
    "a chunk extension without an end": drip(CHUNKED + b"1;a=" + b'"' + b"\\a" * 4000),
    "a chunk size without an end": flood(CHUNKED + b"0" * 100_000),
    "chunks of one byte": flood(CHUNKED + b"1\r\n[\r\n" + DIGITS),
    "a pipeline": flood(HEALTH * 3000),
    "more than its length allows": flood(embed_request([], length=10**11) + b" " * 20_000_000),
}


@pytest.mark.parametrize("case", SLOW_TO_PARSE)
def test_requests_that_are_slow_to_parse(server: Server, case: str) -> None:
    """10 clients whose requests are slow to parse keep no other client from being served, and leave nothing behind."""

    def client(_: int) -> None:
        with connect(server) as connection, suppress(OSError):
            reader = threading.Thread(target=read_all, args=(connection,))
            reader.start()
            with suppress(OSError):
                SLOW_TO_PARSE[case](connection)
            connection.shutdown(socket.SHUT_RDWR)
            reader.join()

    with good_clients(server):
        run_in_threads(10, client)
    wait_until_idle(server)


def test_a_long_pipeline(server: Server) -> None:
    """A client is answered before the 20,000 requests that another one sent in one go."""
    received: list[bytes] = []
    with connect(server) as pipeline, connect(server) as other:
        reader = threading.Thread(target=lambda: received.append(read_all(pipeline)))
        reader.start()
        pipeline.sendall(HEALTH * 20_000)
        for _ in range(10):
            other.sendall(HEALTH)
            assert read_answer(other).status == 200
        assert not received
        pipeline.shutdown(socket.SHUT_WR)
        reader.join()
    assert [answer.status for answer in parse_answers(received[0])] == [200] * 20_000


ASSET = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE_ANSWER = ["a"] * 2048
NEVER_READ = {
    "equal texts": embed_request(LARGE_ANSWER),
    "cached texts": embed_request([str(n) for n in range(2048)]),
    "tokens": embed_request(["a b " * 25_000]).replace(b"/embed", b"/tokenize").replace(b'"texts": ', b'"inputs":'),
    "assets": ASSET * 8,
}


@pytest.mark.parametrize("case", NEVER_READ)
def test_answers_that_nobody_reads(server: Server, case: str) -> None:
    """100 unread answers take little memory and block nobody, and a client that reads slowly gets its whole answer."""
    with connect(server) as first:  # from now on the texts are in the cache
        first.sendall(NEVER_READ[case])
        http.client.HTTPResponse(first).begin()
    before = memory(server)
    with ExitStack() as stack, good_clients(server):
        for _ in range(100):
            connection = stack.enter_context(connect(server))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(NEVER_READ[case])
        with connect(server) as honest:
            honest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            honest.sendall(embed_request(LARGE_ANSWER, head="Connection: close\r\n"))
            received = b""
            while data := honest.recv(20_000):
                received += data
                time.sleep(0.02)
        assert [answer.status for answer in parse_answers(received)] == [200]
        assert memory(server) < before + 200
    wait_until_idle(server)


def test_large_answers_that_nobody_reads(server: Server) -> None:
    """Large answers that nobody reads block neither slots nor /health."""
    with ExitStack() as stack:
        for n in range(12):
            connection = stack.enter_context(connect(server))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asset = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n" * 4
            connection.sendall(embed_request(["a"] * 9000) if n % 2 else asset)
        time.sleep(0.5)
        for _ in range(5):
            assert requests.get(f"{server.url}/health", timeout=5).ok
            assert requests.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=5).ok


def test_many_requests_that_stop(server: Server) -> None:
    """300 requests that stop in the middle block no other request, and get 408 after 10 seconds."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(300)]
        for number, connection in enumerate(slow):
            connection.sendall([b"GET /health HTT", embed_request(["cat"], length=1000)][number % 2])
        for _ in range(20):
            assert requests.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=5).ok
        for connection in slow:
            answer = read_answer(connection)
            assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert requests.get(f"{server.url}/health", timeout=5).ok


def test_thousands_of_connections(server: Server) -> None:
    """4,000 idle connections, half heads and half bodies keep no good client from being served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle = min(4000, hard - 1500)
    before = answered(server)
    with ExitStack() as stack, good_clients(server):
        heads = [stack.enter_context(connect(server)) for _ in range(500)]
        for connection in heads:
            connection.sendall(HEALTH[:-9])
        bodies = [stack.enter_context(connect(server)) for _ in range(200)]
        for connection in bodies:
            connection.sendall(embed_request(["cat"])[:-9])
        for number in range(idle):
            stack.enter_context(
                socket.create_connection(("127.0.0.1", int(server.port)), 30, (f"127.0.0.{2 + number % 8}", 0))
            )
        for connection in [*heads, *bodies]:
            connection.sendall((HEALTH if connection in heads else embed_request(["cat"]))[-9:])
            assert read_answer(connection).status == 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until_idle(server)
    assert set(answered(server) - before) <= {"200"}
