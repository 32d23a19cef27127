"""The log of a real server, and requests whose lines are easy to find in it."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from tests.support.http import connect
from tests.support.server import Server

Line = dict[str, Any]
SECRET_KEYS = ("first-SECRETKEY", "second-SECRETKEY")
BEARER = f"Authorization: Bearer {SECRET_KEYS[1]}\r\n"
TRACE = "105445aa7843bc8bf206b12000100000"
SPAN = "00f067aa0ba902b7"
# A body of more than two seconds of work, most of it tokenizing, which the estimate of a request does not count.
LONG = {"texts": [f"{n} {'b ' * 300}" for n in range(7_000)], "prompt": "a " * 500}
# A body whose text must wait to be tokenized, which takes a twentieth of a second.
SLOW = json.dumps({"inputs": "!" * 90_000})
# Bytes that a pipe takes in one piece, whatever others write into it (PIPE_BUF).
PIECE_BYTES = 4096


def parse_lines(text: str) -> list[Line]:
    """Parse log lines, and check that each is an object with severity, time and message."""
    found = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    for line in found:
        assert line["severity"] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), line
        assert line["time"].endswith("Z") and datetime.fromisoformat(line["time"]), line
        assert isinstance(line["message"], str) and line["message"].strip(), line
    return found


def line_where(server: Server, is_it: Callable[[Line], bool], *, is_only: bool = True) -> Line:
    """Wait for the line for which this holds, and return it. is_only: fail if there are several."""
    until = time.monotonic() + 20
    while not (found := [line for line in parse_lines(server.output.rpartition("\n")[0]) if is_it(line)]):
        assert time.monotonic() < until, server.output
        time.sleep(0.01)
    assert len(found) == 1 or not is_only, found
    return found[0]


def line_of(server: Server, request_id: str) -> Line:
    """Wait for the line of the request with this X-Request-Id, and return it."""
    return line_where(server, lambda line: line.get("requestId") == request_id)


def get_request(target: str, headers: str = "", method: str = "GET") -> str:
    """Return a request with an API key. headers: whole lines."""
    return f"{method} {target} HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\nConnection: close\r\n{BEARER}{headers}\r\n"


def post_request(path: str, body: str, headers: str = "") -> str:
    """Return a POST of JSON with an API key. headers: whole lines."""
    return (
        get_request(path, f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}", "POST") + body
    )


def send_slow_requests(server: Server, stack: ExitStack, count: int, headers: str = "") -> list[socket.socket]:
    """Send so many requests that wait for each other, and return their connections."""
    connections = [stack.enter_context(connect(server)) for _ in range(count)]
    for connection in connections:
        connection.sendall(post_request("/tokenize", SLOW, headers).encode())
    return connections
