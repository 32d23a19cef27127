"""A real server with more requests than it can compute, and large or unusual ones."""

import re
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.support import ROOT
from tests.support.http import LARGE_BATCH, connect, embed_request, long_texts, read_answer, repeat_in_threads
from tests.support.load import HEALTH
from tests.support.metrics import wait_until_idle, wait_until_queued
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def small_queue(start: Start, tiny_model: Path) -> Server:
    """One slot, and two requests may wait."""
    return start(
        MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=2, MAX_TEXTS=100_000, CACHE_SIZE=0
    ).wait_until_ready()


def test_overload(small_queue: Server) -> None:
    """Six clients with large batches get 429 or the right vectors; /health and later requests are answered."""
    url = f"{small_queue.url}/embed"
    first = requests.post(url, json={"texts": LARGE_BATCH[:1]}, timeout=30).json()["vectors"][0]
    statuses: Counter[int] = Counter()

    def client() -> None:
        response = requests.post(url, json={"texts": LARGE_BATCH[:2000]}, timeout=60)
        statuses[response.status_code] += 1
        if response.ok:
            assert response.json()["vectors"][0] == first
            return
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")

    with repeat_in_threads(6, client), requests.Session() as session:
        while statuses[200] < 3 or statuses[429] < 20:
            assert session.get(f"{small_queue.url}/health", timeout=30).ok
            assert session.get(f"{small_queue.url}/readyz", timeout=30).ok
    assert set(statuses) == {200, 429}
    assert requests.post(url, json={"texts": ["cat"]}, timeout=30).ok


def test_a_burst_of_clients_is_answered(start: Start, tiny_model: Path) -> None:
    """512 simultaneous clients without retries all get the vector of their text, as Open WebUI sends a file."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(512)]
        for number, connection in enumerate(connections):
            connection.sendall(embed_request([f"{number}"]))
        assert Counter(read_answer(connection).status for connection in connections) == {200: 512}


def fill_queue(server: Server, stack: ExitStack) -> list[socket.socket]:
    """Fill the queue, and return the connections of the requests that fill it."""
    busy = [stack.enter_context(connect(server)) for _ in range(2)]
    for connection in busy:
        connection.sendall(embed_request(LARGE_BATCH))
    with connect(server) as probe:
        for _ in range(1000):
            probe.sendall(embed_request(["cat"]))
            if read_answer(probe).status == 429:
                return busy
    raise AssertionError("the queue is never full")


@contextmanager
def rejected(server: Server, request: bytes) -> Iterator[socket.socket]:
    """Send a request that gets 429, and yield its connection when the queue is empty again."""
    for _ in range(10):  # on a busy machine the queue may be empty again before the request arrives
        with ExitStack() as stack:
            busy = fill_queue(server, stack)
            connection = stack.enter_context(connect(server))
            connection.sendall(request)
            status = read_answer(connection).status
            assert [read_answer(other).status for other in busy] == [200] * 2
            if status == 429:
                yield connection
                return
    raise AssertionError("no request is rejected")


@pytest.mark.parametrize("head", ["", "Connection: close\r\n"])
def test_a_refused_connection_can_be_used_again(small_queue: Server, head: str) -> None:
    """A 429 does not close a kept-alive connection, unless the client asks for it."""
    with rejected(small_queue, embed_request(["cat"], head=head)) as connection:
        if head:
            assert connection.recv(1) == b""
        else:
            connection.sendall(embed_request(["cat"]))
            assert read_answer(connection).status == 200


def test_a_large_body_is_refused_before_it_is_received(small_queue: Server) -> None:
    """A client gets 429 before it has sent its whole body."""
    with rejected(small_queue, embed_request(["cat"], length=1_000_000)) as connection:
        assert connection.recv(1) == b""


def test_large_bodies_all_at_once(start: Start, tiny_model: Path) -> None:
    """40 large bodies at once get 200 or 429, also where a client goes on sending after its 429."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_BODY_BYTES=2_000_000).wait_until_ready()
    request = embed_request(["cat " * 400_000, "dog"])

    def send(_: int) -> int:
        with connect(server) as connection:
            with suppress(OSError):  # refused, and the time to send the rest is over
                connection.sendall(request)
            return read_answer(connection).status

    with ThreadPoolExecutor(40) as threads:
        statuses = Counter(threads.map(send, range(40)))
    assert set(statuses) <= {200, 429} and statuses[200] and statuses[429], statuses


def test_bodies_that_would_fill_the_memory(start: Start, tiny_model: Path) -> None:
    """Incomplete bodies that take too much memory get 429, the largest first; complete ones are answered."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_BODY_BYTES=200_000).wait_until_ready()
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(12)]
        for number, connection in enumerate(connections):
            connection.sendall(embed_request(["a"], length=200_000) + b" " * (190_000 if number < 4 else 150_000))
            time.sleep(0.05)
        for _ in range(3):
            assert requests.post(f"{server.url}/embed", json={"texts": ["cat " * 30_000]}, timeout=10).ok
            assert requests.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=10).ok
        refused, _, _ = select.select(connections, [], [], 0)
        assert len(set(refused) & set(connections[:4])) > 1
        assert {read_answer(connection).status for connection in refused} == {429}


def test_deadlines_under_load(start: Start, tiny_model: Path) -> None:
    """Requests over their deadline stop between texts with 503; repeated, they go on from there and succeed."""
    server = start(
        MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_TEXTS=20_000, REQUEST_DEADLINE=2, CACHE_SIZE=100_000
    )
    url = f"{server.wait_until_ready().url}/embed"
    bodies = [{"texts": long_texts(f"{client} {n}" for n in range(2_000))} for client in range(16)]
    with ThreadPoolExecutor(16) as pool:
        first = list(pool.map(lambda body: requests.post(url, json=body, timeout=60), bodies))
    late = [response for response in first if not response.ok]
    assert late
    for response in late:
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "deadline_exceeded")
        assert re.search(
            r" after \d+ of 2000 texts: try again \(finished vectors are kept for a while\)", error["message"]
        )
    for body in bodies:
        for _ in range(10):
            response = requests.post(url, json=body, timeout=60)
            if response.ok:
                break
        assert response.json()["count"] == 2000


def test_too_many_connections(start: Start, tiny_model: Path) -> None:
    """Over the limit, connections that sent nothing are closed first, then idle ones, half heads, half bodies."""
    config = ROOT / "gunicorn.conf.py"
    server = start(
        MODEL_DIR=tiny_model,
        MAX_LENGTH=64,
        CPUS=1,
        MAX_TEXTS=50_000,
        REQUEST_DEADLINE=600,
        GUNICORN_CMD_ARGS=f"--config {config} --worker-connections 43",
    ).wait_until_ready()

    def closed(connections: list[socket.socket]) -> int:
        count = 0
        for connection in connections:
            connection.settimeout(0)
            with suppress(BlockingIOError):
                try:
                    count += not connection.recv(1, socket.MSG_PEEK)
                except ConnectionError:
                    count += 1
        return count

    with ExitStack() as stack:
        kinds: dict[str, list[socket.socket]] = {}
        for kind, data in {
            "served": embed_request([f"{n}" for n in range(20_000)]),
            "body": embed_request([], length=99),
            "head": HEALTH[:20],
            "idle": HEALTH,
            "new": b"",
        }.items():
            kinds[kind] = [stack.enter_context(connect(server)) for _ in range(3 if kind == "served" else 10)]
            for connection in kinds[kind]:
                connection.sendall(data)
                if kind == "idle":
                    assert read_answer(connection).status == 200
            if kind == "served":  # a body that is still being received would be closed like the half ones
                wait_until_queued(server, 3)
        time.sleep(1)
        order = ["new", "idle", "head", "body"]
        for number, kind in enumerate(order):
            for _ in range(10):
                # it sends half a body at once, so that it is not closed next
                connection = stack.enter_context(connect(server))
                connection.sendall(embed_request([], length=99))
                time.sleep(0.05)
            until = time.monotonic() + 10
            while closed(kinds[kind]) < 10 and time.monotonic() < until:
                time.sleep(0.05)
            gone = {name: closed(connections) for name, connections in kinds.items()}
            assert gone == {name: 10 * (name in order[: number + 1]) for name in kinds}
        for connection in kinds["served"]:
            connection.settimeout(60)
            answer = read_answer(connection)
            assert (answer.status, answer.json.get("count")) == (200, 20_000), answer.body
    wait_until_idle(server)
    assert "Traceback" not in server.output
