"""HTTP in bytes: requests as they go over a socket, answers as they come back, and clients in threads."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.support.server import Server

# Texts of tenths of a second of work for the tiny model, and of seconds.
LARGE_BATCH = [f"{n}" for n in range(6_000)]
HUGE_BATCH = [f"{n}" for n in range(150_000)]


def long_texts(texts: Iterable[str]) -> list[str]:
    """Return texts that begin with these and are so long, 63 tokens, that no two share a run of the tiny model."""
    return [text + " the" * 60 for text in texts]


@dataclass
class Answer:
    """An HTTP response. The names of headers are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.port)), timeout=30)


def embed_request(texts: list[str], *, head: str = "", length: int | None = None) -> bytes:
    """Return the bytes of a POST /embed. length: another Content-Length than the right one."""
    body = json.dumps({"texts": texts}).encode()
    lines = f"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{head}"
    return f"{lines}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def ask(server: Server, request: bytes | str, *, is_last: bool = False) -> Answer:
    """Send a request on a new connection. is_last: half-close, and read until the server closes, too."""
    with connect(server) as connection:
        connection.sendall(request.encode() if isinstance(request, str) else request)
        if not is_last:
            return read_answer(connection)
        connection.shutdown(socket.SHUT_WR)
        return parse_answers(read_all(connection))[0]


def read_answer(connection: socket.socket) -> Answer:
    """Read the next answer on a connection. Not for HEAD: http.client would wait for the body."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection, or resets it."""
    received = bytearray()
    with suppress(ConnectionError):
        while data := connection.recv(1 << 20):
            received += data
    return bytes(received)


def parse_answers(received: bytes) -> list[Answer]:
    """Split what a connection received into its answers, which all have a Content-Length."""
    answers = []
    view = memoryview(received)
    at = 0
    while at < len(received):
        end = received.index(b"\r\n\r\n", at)
        first, *lines = received[at:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        at = end + 4 + int(headers["content-length"])
        answers.append(Answer(int(first.split()[1]), headers, bytes(view[end + 4 : at])))
    return answers


@contextmanager
def repeat_in_threads(count: int, work: Callable[[], None]) -> Iterator[None]:
    """Call `work` again and again in `count` threads until the block is left. Fails if one of the calls failed."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not ended.is_set():
                work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []


def run_in_threads(count: int, work: Callable[[int], None]) -> None:
    """Call work(0), work(1), … once in a thread each, all at the same time, and wait for all."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
