"""The log of rejected requests: a full queue, deadlines, clients that disconnect, and floods."""

import json
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.http import HUGE_BATCH, connect, embed_request, long_texts, read_answer
from tests.support.log import LONG, SPAN, TRACE, Line, line_of, line_where, post_request, send_slow_requests
from tests.support.metrics import Scrape, wait_until_queued
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def busy(start: Start, tiny_model: Path) -> Server:
    """One CPU; 40 requests may wait, none longer than 2 s."""
    limits = {"CPUS": 1, "MAX_QUEUE": 40, "REQUEST_DEADLINE": 2, "MAX_TEXTS": 100_000}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **limits).wait_until_ready()


@pytest.fixture(scope="module")
def rejections(busy: Server) -> dict[int, tuple[Line, bytes]]:
    """Log lines and bodies by status: a full queue, a deadline, a client that disconnected, and one that stopped."""
    traced = f"traceparent: 00-{TRACE}-{SPAN}-01\r\nX-Request-Id: "
    slow_head = "POST /similarity HTTP/1.1\r\nContent-Length: \xb2\r\nX-Request-Id: slow\r\nUser-Agent: me\r\nX-A: "
    with ExitStack() as stack:
        late, left, slow = (stack.enter_context(connect(busy)) for _ in range(3))
        slow.sendall(slow_head.encode("latin-1"))
        late.sendall(post_request("/embed", json.dumps(LONG), f"{traced}late\r\n").encode())
        bodies = {503: read_answer(late).body, 499: b""}
        ahead = send_slow_requests(busy, stack, 20, f"{traced}ahead\r\n")
        wait_until_queued(busy, 15)
        left.sendall(post_request("/embed", '{"texts": ["%s"]}' % ("cat " * 1000), f"{traced}left\r\n").encode())
        left.close()
        wait_until_queued(busy, 1)  # it has arrived
        behind = send_slow_requests(busy, stack, 80, f"{traced}behind\r\n")
        refused = next(answer for connection in behind if (answer := read_answer(connection)).status == 429)
        assert {read_answer(connection).status for connection in ahead} <= {200, 503}
        bodies |= {429: refused.body, 408: read_answer(slow).body}
    lines = {
        429: line_where(busy, lambda line: line.get("error") == "queue_full", is_only=False),
        503: line_of(busy, "late"),
        499: line_of(busy, "left"),
        408: line_where(busy, lambda line: line.get("error") == "request_timeout"),
    }
    return {status: (line, bodies[status]) for status, line in lines.items()}


def test_rejections(rejections: dict[int, tuple[Line, bytes]]) -> None:
    """A full queue, a deadline and a client that disconnected have a line each, with the reason."""
    for status, severity, error, path in (
        (429, "WARNING", "queue_full", "/tokenize"),
        (503, "WARNING", "deadline_exceeded", "/embed"),
        (499, "INFO", None, "/embed"),
    ):
        line, body = rejections[status]
        assert (line["severity"], line.get("error")) == (severity, error)
        request = line["httpRequest"]
        assert (request["requestMethod"], request["requestUrl"], line["route"]) == ("POST", path, path)
        assert (request["status"], request["responseSize"], request["protocol"]) == (status, str(len(body)), "HTTP/1.1")
        assert "texts" not in line
    assert rejections[503][0]["ms"]["total"] > 1900 and rejections[499][0]["ms"]["total"] > 100


def test_half_a_head_that_stops(rejections: dict[int, tuple[Line, bytes]]) -> None:
    """Half a head has a line with the client's address and the time it took, but no URL."""
    line, body = rejections[408]
    request = line["httpRequest"]
    assert (line["severity"], line["route"], request["requestUrl"], request["userAgent"]) == ("INFO", "other", "", "")
    assert (request["status"], request["responseSize"], request["remoteIp"]) == (408, str(len(body)), "127.0.0.1")
    assert line["ms"]["total"] > 9_900


@pytest.mark.parametrize("status", [429, 499])
def test_rejections_name_client_and_trace(rejections: dict[int, tuple[Line, bytes]], status: int) -> None:
    """Lines of 429 and 499 have the client's address and trace, so that an operator sees who sends too much."""
    line, _ = rejections[status]
    assert (line["httpRequest"]["remoteIp"], line["httpRequest"]["userAgent"]) == ("127.0.0.1", "me")
    assert line.get("logging.googleapis.com/trace") == TRACE


@pytest.mark.parametrize("abort", [False, True])
def test_a_client_that_disconnects(busy: Server, abort: bool) -> None:
    """A client that disconnects while its texts are computed has a line with status 499."""
    with connect(busy) as leaving:
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", abort, 0))
        texts = json.dumps({"texts": [f"{abort} {n}" for n in range(4000)]})
        leaving.sendall(post_request("/embed", texts, f"X-Request-Id: left-{abort}\r\n").encode())
        wait_until_queued(busy, 1)
    line = line_of(busy, f"left-{abort}")
    assert (line["httpRequest"]["status"], line["route"]) == (499, "/embed")


def test_a_flood_of_rejections(start: Start, tiny_model: Path) -> None:
    """Over 100 rejections in a second the rest is counted in one line; metrics have all."""
    server = start(
        MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=1, MAX_TEXTS=10_000_000, MAX_BODY_BYTES=100_000_000
    )
    server.wait_until_ready()
    with ExitStack() as stack:
        stack.enter_context(connect(server)).sendall(embed_request(long_texts(HUGE_BATCH[:30_000])))
        wait_until_queued(server, 1)
        connection = stack.enter_context(connect(server))
        for _ in range(2000):
            connection.sendall(embed_request(["a"]))
            assert read_answer(connection).status == 429
        time.sleep(2.5)
        scrape = Scrape(server)
    lines = [json.loads(line) for line in server.output.splitlines()]
    single = sum(line.get("error") == "queue_full" for line in lines)
    summed = sum(line.get("refused", 0) for line in lines)
    assert single + summed == scrape("embedding_refused_requests_total", reason="queue_full") >= 2000
    assert summed > 0
