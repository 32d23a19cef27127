"""Reading of requests by a real server: in parts, in pipelines, with Expect, in two workers."""

import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.http import ask, connect, embed_request, parse_answers, read_all, read_answer
from tests.support.load import HEALTH
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two workers on the tiny model."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, WEB_CONCURRENCY=2, MAX_BODY_BYTES=100_000).wait_until_ready()
    while len(server.workers()) < 2:
        time.sleep(0.01)
    return server


def test_gunicorn_without_arguments(server: Server) -> None:
    """`gunicorn` without arguments serves, and each of its workers gives the same bits."""
    assert len(server.workers()) == 2
    answers = {requests.get(f"{server.url}/embed?q=cat", timeout=10).text for _ in range(20)}
    assert len(answers) == 1


def test_clients_that_hang_up(server: Server) -> None:
    """Clients that disconnect in the middle of a request, or before the answer, do no harm to the workers."""
    workers = server.workers()
    body = json.dumps({"texts": ["cat"] * 500}).encode()
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    for data in (head + body[:100], head + body):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", int(server.port))) as connection:
                connection.sendall(data)
    assert requests.get(f"{server.url}/embed?q=cat", timeout=30).ok
    assert server.workers() == workers


def test_many_clients_at_once(server: Server) -> None:
    """16 clients with batches of different sizes all get the right answers."""
    expected = requests.get(f"{server.url}/embed?q=cat", timeout=10).json()["vector"]
    wrong: list[Any] = []

    def client(number: int) -> None:
        with requests.Session() as session:
            for i in range(10):
                texts = ["cat"] + [f"{number} {i} {j}" for j in range(number)]
                answer = session.post(f"{server.url}/embed", json={"texts": texts}, timeout=30).json()
                if answer["vectors"][0] != expected or answer["count"] != len(texts):
                    wrong.append(answer)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_killed_workers_are_replaced(server: Server) -> None:
    """After kill -9 of every worker new ones serve the same vectors."""
    before = requests.get(f"{server.url}/embed?q=cat", timeout=10).text
    killed = server.workers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    while set(server.workers()) & set(killed) or len(server.workers()) < 2:
        time.sleep(0.01)
    assert server.wait_until_ready()
    assert requests.get(f"{server.url}/embed?q=cat", timeout=10).text == before


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 0000000000000009",
        "Content-Length: 9, 9",
        "Content-Length: 9\r\nContent-Length: 0",
        "Content-Length : 9",
    ],
)
def test_ambiguous_lengths(server: Server, head: str) -> None:
    """A head with an ambiguous Content-Length is refused, and the bytes behind it are no second request."""
    with connect(server) as connection:
        connection.sendall(f"POST /embed HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode())
        time.sleep(0.1)
        connection.sendall(b"GET /heal")
        connection.shutdown(socket.SHUT_WR)
        answer = read_answer(connection)
        assert answer.status in (400, 415) and "error" in answer.json
        assert connection.recv(1) == b""


def test_expect_100_continue(shared_server: Start) -> None:
    """Expect: 100-continue, as curl sends it before large bodies, gets 100 and then the whole answer."""
    server = shared_server()
    request = embed_request(["a"] * 2000, head="Expect: 100-continue\r\n")
    head_bytes = request.index(b"\r\n\r\n") + 4
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(request[:head_bytes])
            time.sleep(0.2)
            assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(request[head_bytes:])
            time.sleep(0.5)
            answer = read_answer(connection)
            assert (answer.status, answer.json["count"], len(answer.json["vectors"])) == (200, 2000, 2000)


@pytest.mark.parametrize(
    ("target", "length", "status"), [("/embed", 10**9, 413), ("/nothing", 9, 404), ("/health", 9, 405)]
)
def test_expect_100_continue_in_vain(server: Server, target: str, length: int, status: int) -> None:
    """A request that is refused gets no 100, but its answer at once, and the connection ends."""
    head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    with connect(server) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert connection.recv(1) == b""


def test_a_slow_body(start: Start, tiny_model: Path) -> None:
    """A body that arrives byte by byte is refused when the request's deadline is over."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, REQUEST_DEADLINE=2).wait_until_ready()
    with connect(server) as connection:
        connection.sendall(embed_request(["cat"], length=100_000))
        for _ in range(8):
            time.sleep(0.5)
            with suppress(OSError):
                connection.sendall(b" ")
        answer = read_answer(connection)
        assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")
        assert answer.json["error"]["message"].startswith("The body ends after ")


def test_a_request_in_many_parts_and_several_in_one(shared_server: Start) -> None:
    """A request may arrive byte by byte, and several in one packet; each is answered in order."""
    server = shared_server()
    with connect(server) as connection:
        for byte in embed_request(["cat"]):
            connection.sendall(bytes([byte]))
        alone = read_answer(connection)
        assert alone.status == 200
        large = [f"cat {'the ' * 20}{n}" for n in range(1000)]
        connection.sendall(
            embed_request(["cat"])
            + HEALTH
            + embed_request(large)
            + embed_request(["cat"], head="Connection: close\r\n")
        )
        first, second, third, last = [answer.json for answer in parse_answers(read_all(connection))]
    assert first == last == alone.json
    assert (second, third["count"]) == ({"ok": True}, 1000)


def test_a_query_in_utf8(server: Server) -> None:
    """A query in UTF-8 without percent signs, as curl sends it, is read as UTF-8."""
    answer = ask(server, "GET /embed?q=東京 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (answer.status, answer.json["text"]) == (200, "東京")
