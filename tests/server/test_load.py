"""A real Gunicorn with more to do than it can bear, and clients that are slow, many, or cut off."""

import http.client
import json
import os
import re
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.server import Server

Start = Callable[..., Server]
LATE = ("The request did not arrive within 10 s.", "The body did not arrive: no more of it came within 10 s.")
# Half a second of work for the tiny model, and many seconds.
MANY = [f"{n}" for n in range(6_000)]
ENDLESS = [f"{n}" for n in range(150_000)]


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.port)), timeout=30)


def post(texts: list[str], *, head: str = "", length: int | None = None) -> bytes:
    """The bytes of a request."""
    body = json.dumps({"texts": texts}).encode()
    lines = f"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{head}"
    return f"{lines}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """The next answer on a connection: status, headers, content."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, json.loads(response.read())


@contextmanager
def clients(count: int, work: Callable[[], None]) -> Iterator[None]:
    """Threads that do this again and again until the block is left; it fails if one of them failed."""
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


@pytest.fixture(scope="module")
def small_queue(start: Start, tiny_model: Path) -> Server:
    """One slot, and two requests may wait."""
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=2, MAX_TEXTS=100_000).wait_until_ready()


def test_a_full_queue_refuses_at_once_and_the_rest_is_right(small_queue: Server) -> None:
    """With 6 clients of large batches: 429 or the right vectors, /health all the while, and peace afterwards."""
    url = f"{small_queue.url}/embed"
    first = requests.post(url, json={"texts": MANY[:1]}, timeout=30).json()["vectors"][0]
    statuses: Counter[int] = Counter()

    def client() -> None:
        response = requests.post(url, json={"texts": MANY}, timeout=60)
        statuses[response.status_code] += 1
        if response.ok:
            assert response.json()["vectors"][0] == first
            return
        assert response.headers["Retry-After"] == "1"
        assert response.json() == {
            "error": {
                "message": "The queue is full: 2 requests wait already (MAX_QUEUE). Try again later.",
                "type": "rate_limit_error",
                "param": None,
                "code": "queue_full",
            },
            "error_type": "Overloaded",  # unread, it may be text-embeddings-inference's POST /embed
        }

    with clients(6, client), requests.Session() as session:
        while statuses[200] < 3 or statuses[429] < 20:
            assert session.get(f"{small_queue.url}/health", timeout=30).ok
            assert session.get(f"{small_queue.url}/readyz", timeout=30).ok
    assert set(statuses) == {200, 429}
    assert requests.post(url, json={"texts": ["cat"]}, timeout=30).ok


def test_a_burst_of_clients_is_answered(start: Start, tiny_model: Path) -> None:
    """512 clients at once with one short text each and no retry, as Open WebUI sends a file: all get their vector."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(512)]
        for number, connection in enumerate(connections):
            connection.sendall(post([f"{number}"]))
        assert Counter(answer(connection)[0] for connection in connections) == {200: 512}


def fill(server: Server, stack: ExitStack) -> list[socket.socket]:
    """Connections of requests that wait for their texts: the queue is full when this returns."""
    busy = [stack.enter_context(connect(server)) for _ in range(2)]
    for connection in busy:
        connection.sendall(post(MANY))
    with connect(server) as probe:
        for _ in range(1000):
            probe.sendall(post(["cat"]))
            if answer(probe)[0] == 429:
                return busy
    raise AssertionError("the queue is never full")


@pytest.mark.parametrize("head", ["", "Connection: close\r\n"])
def test_a_refused_connection_can_be_used_again(small_queue: Server, head: str) -> None:
    """429 does not close a kept-alive connection, unless the client wants it."""
    with ExitStack() as stack:
        busy = fill(small_queue, stack)
        refused = stack.enter_context(connect(small_queue))
        refused.sendall(post(["cat"], head=head))
        assert answer(refused)[0] == 429
        assert [answer(connection)[0] for connection in busy] == [200] * 2
        if head:
            assert refused.recv(1) == b""
        else:
            refused.sendall(post(["cat"]))
            assert answer(refused)[0] == 200


def test_a_large_body_is_refused_before_it_is_received(small_queue: Server) -> None:
    """The client reads 429 although it has not sent everything."""
    with ExitStack() as stack:
        busy = fill(small_queue, stack)
        refused = stack.enter_context(connect(small_queue))
        refused.sendall(post(["cat"], length=1_000_000))
        assert answer(refused)[0] == 429
        assert [answer(connection)[0] for connection in busy] == [200] * 2


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 0000000000000009",
        "Content-Length: 9, 9",
        "Content-Length: 9\r\nContent-Length: 0",
        "Content-Length : 9",
    ],
)
def test_lengths_that_only_gunicorn_may_judge(small_queue: Server, head: str) -> None:
    """A head that could be read in two ways is not taken for a whole request, and never leads to a second one."""
    with connect(small_queue) as connection:
        connection.sendall(f"POST /embed HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode())
        time.sleep(0.1)
        connection.sendall(b"GET /heal")
        connection.shutdown(socket.SHUT_WR)
        status, _, content = answer(connection)
        assert status in (400, 415) and "error" in content
        assert connection.recv(1) == b""


def test_a_body_that_is_asked_for(start: Start, tiny_model: Path) -> None:
    """`Expect: 100-continue`, as curl sends it before large bodies: the body is asked for, its answer is complete."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    request = post(["a"] * 2000, head="Expect: 100-continue\r\n")
    head_bytes = request.index(b"\r\n\r\n") + 4
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(request[:head_bytes])
            time.sleep(0.2)
            assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(request[head_bytes:])
            time.sleep(0.5)
            status, _, content = answer(connection)
            assert (status, content["count"], len(content["vectors"])) == (200, 2000, 2000)


@pytest.mark.parametrize(
    ("target", "length", "status"), [("/embed", 10**9, 413), ("/nothing", 9, 404), ("/health", 9, 405)]
)
def test_a_body_that_nobody_wants_is_not_asked_for(small_queue: Server, target: str, length: int, status: int) -> None:
    """The answer comes at once, and ends the connection: the client may send the body all the same."""
    head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    with connect(small_queue) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        found, headers, _ = answer(connection)
        assert (found, headers["connection"]) == (status, "close")
        assert connection.recv(1) == b""


def test_bodies_that_would_fill_the_memory(start: Start, tiny_model: Path) -> None:
    """Those that are not all there make room, the largest first; whole ones are answered, small ones always."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_BODY_BYTES=200_000).wait_until_ready()
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(12)]
        for number, connection in enumerate(connections):
            connection.sendall(post(["a"], length=200_000) + b" " * (190_000 if number < 4 else 150_000))
            time.sleep(0.05)
        for _ in range(3):
            assert requests.post(f"{server.url}/embed", json={"texts": ["cat " * 30_000]}, timeout=10).ok
            assert requests.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=10).ok
        refused, _, _ = select.select(connections, [], [], 0)
        assert len(set(refused) & set(connections[:4])) > 1
        assert {answer(connection)[0] for connection in refused} == {429}


def test_large_bodies_all_at_once(start: Start, tiny_model: Path) -> None:
    """Each gets its answer, the right one or 429, also a client that sends on after that."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_BODY_BYTES=2_000_000).wait_until_ready()
    request = post(["cat " * 400_000, "dog"])

    def send(_: int) -> int:
        with connect(server) as connection:
            with suppress(OSError):  # it was refused, and more than the time to send the rest has passed
                connection.sendall(request)
            return answer(connection)[0]

    with ThreadPoolExecutor(40) as threads:
        statuses = Counter(threads.map(send, range(40)))
    assert set(statuses) <= {200, 429} and statuses[200] and statuses[429], statuses


def test_clients_that_do_not_read(small_queue: Server) -> None:
    """Large answers that nobody fetches hold neither slots nor the threads of /health."""
    with ExitStack() as stack:
        for n in range(12):
            connection = stack.enter_context(connect(small_queue))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asset = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n" * 4
            connection.sendall(post(["a"] * 9000) if n % 2 else asset)
        time.sleep(0.5)
        for _ in range(5):
            assert requests.get(f"{small_queue.url}/health", timeout=5).ok
            assert requests.post(f"{small_queue.url}/embed", json={"texts": ["cat"]}, timeout=5).ok


def test_a_body_that_drips(start: Start, tiny_model: Path) -> None:
    """A byte now and then keeps nobody for ever: when the request's time is up, no more is received."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, REQUEST_DEADLINE=2).wait_until_ready()
    with connect(server) as connection:
        connection.sendall(post(["cat"], length=100_000))
        for _ in range(8):
            time.sleep(0.5)
            with suppress(OSError):
                connection.sendall(b" ")
        status, _, content = answer(connection)
        assert (status, content["error"]["code"]) == (400, "invalid_request")
        assert content["error"]["message"].startswith("The body ends after ")


def test_requests_that_take_too_long_together(start: Start, tiny_model: Path) -> None:
    """They stop between texts with 503 and say how far they came; repeated, they go on there and end."""
    server = start(
        MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_TEXTS=20_000, REQUEST_DEADLINE=2, CACHE_SIZE=100_000
    )
    url = f"{server.wait_until_ready().url}/embed"
    bodies = [{"texts": [f"{client} {n}" for n in range(2_000)]} for client in range(16)]
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


def test_many_clients_that_stop_in_the_middle(start: Start, tiny_model: Path) -> None:
    """300 of them take no thread from others, and after 10 seconds each one is told."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(300)]
        for number, connection in enumerate(slow):
            connection.sendall([b"GET /health HTT", post(["cat"], length=1000)][number % 2])
        for _ in range(20):
            assert requests.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=5).ok
        for connection in slow:
            status, headers, content = answer(connection)
            assert (status, headers["connection"]) == (408, "close")
            assert content["error"]["message"] in LATE
    assert requests.get(f"{server.url}/health", timeout=5).ok


def test_a_request_in_many_parts_and_two_in_one(start: Start, tiny_model: Path) -> None:
    """Bytes that come one by one make a request; what comes behind one is the next, whoever serves it."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    with connect(server) as connection:
        for byte in post(["cat"]):
            connection.sendall(bytes([byte]))
        status, _, alone = answer(connection)
        assert status == 200
        health = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        large = [f"cat {'the ' * 20}{n}" for n in range(1000)]
        connection.sendall(post(["cat"]) + health + post(large) + post(["cat"], head="Connection: close\r\n"))
        received = b""
        while data := connection.recv(65536):
            received += data
    contents = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        contents.append(json.loads(received[:length]))
        received = received[length:]
    assert [contents[0], contents[1], contents[2]["count"], contents[3]] == [alone, {"ok": True}, 1000, alone]


def test_sigterm_under_load(start: Start, tiny_model: Path) -> None:
    """Every request that was sent gets an answer, what would take too long gets 503, and it ends within 8 seconds.

    Idle connections and one that stopped in the middle are open all the while.
    """
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_TEXTS=10_000_000, MAX_BODY_BYTES=100_000_000)
    server.wait_until_ready()
    statuses: Counter[int] = Counter()
    lost: list[Exception] = []
    stopped: list[float] = []

    def client(texts: list[str]) -> None:
        while True:
            try:
                connection = connect(server)
            except OSError:
                return
            is_new = True
            with connection:
                while True:
                    try:
                        connection.sendall(post(texts))
                        status, headers, _ = answer(connection)
                        is_new = False
                    except ConnectionResetError as error:
                        # one that the kernel had taken, and the server not yet, when it closed its port
                        if not (is_new and stopped):
                            lost.append(error)
                        return
                    except (OSError, http.client.HTTPException) as error:
                        lost.append(error)
                        return
                    statuses[status] += 1
                    if headers.get("connection") == "close":
                        break

    with ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(20)]
        for connection in idle[:10]:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answer(connection)[0] == 200
        idle[0].sendall(b"POST /embed HTT")
        endless = stack.enter_context(connect(server))
        endless.sendall(post(ENDLESS))
        threads = [threading.Thread(target=client, args=(MANY[: 1 + n % 3 * 50],)) for n in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        stopped.append(time.monotonic())
        server.process.terminate()
        assert answer(endless)[0] == 503
        for thread in threads:
            thread.join()
        output = server.wait(30)
        seconds = time.monotonic() - stopped[0]
    assert (server.process.returncode, lost) == (0, []), output
    assert seconds < 8
    assert statuses[200] > 20 and set(statuses) <= {200, 503}
    assert "Traceback" not in output


def test_kill_of_one_worker_under_load(start: Start, tiny_model: Path) -> None:
    """Only what it had in flight fails: at most one request of each client, and the next one works."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=2, WEB_CONCURRENCY=2).wait_until_ready()
    while len(server.workers()) < 2:
        time.sleep(0.01)
    done, lost = Counter[int](), Counter[int]()
    ended = threading.Event()

    def client(number: int) -> None:
        while not ended.is_set():
            try:
                response = requests.post(f"{server.url}/embed", json={"texts": MANY[:50]}, timeout=30)
                assert response.ok
                done[number] += 1
            except requests.RequestException:
                lost[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()

    def wait_for_five_more() -> None:
        before, until = done.copy(), time.monotonic() + 30
        while min(done[number] - before[number] for number in range(8)) < 5 and time.monotonic() < until:
            time.sleep(0.01)

    wait_for_five_more()
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for_five_more()
    ended.set()
    for thread in threads:
        thread.join()
    assert min(done[number] for number in range(8)) >= 10
    assert max(lost.values(), default=0) <= 1
