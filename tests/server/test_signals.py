"""Signals to a real server: shutdown, reload and killed workers lose no request that could be answered."""

import http.client
import os
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from app.server.worker import BEAT_SECONDS
from tests.support.http import HUGE_BATCH, LARGE_BATCH, connect, embed_request, long_texts, read_answer
from tests.support.load import HEALTH
from tests.support.server import Start


def test_sigterm(start: Start, tiny_model: Path) -> None:
    """After SIGTERM a started request is answered, /readyz says 503 on open connections, and the exit code is 0."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, WEB_CONCURRENCY=1).wait_until_ready()
    with requests.Session() as session, socket.create_connection(("127.0.0.1", int(server.port))) as slow:
        assert session.get(f"{server.url}/readyz", timeout=10).ok
        body = b'{"texts": ["cat"]}'
        slow.sendall(
            b"POST /embed HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        time.sleep(0.3)  # the worker has the head and waits for the body
        server.process.terminate()
        while (answer := session.get(f"{server.url}/readyz", timeout=10)).ok:
            pass  # the signal is on its way
        assert answer.json() == {"ok": False, "reason": "The server is shutting down."}
        slow.sendall(body)
        assert read_answer(slow).status == 200
    output = server.wait(10)
    assert server.process.returncode == 0, output
    assert "SIGABRT" not in output and "Traceback" not in output


def test_the_last_connection(start: Start, tiny_model: Path) -> None:
    """A connection that a stopping worker accepts last is answered, even when it is the only one."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, WEB_CONCURRENCY=1, MAX_TEXTS=10_000).wait_until_ready()
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    with connect(server) as connection:
        connection.sendall(embed_request(LARGE_BATCH))
        os.kill(worker, signal.SIGTERM)
        time.sleep(2 * BEAT_SECONDS)  # the connection and the end of the worker's sleep come together
        os.kill(worker, signal.SIGCONT)
        assert read_answer(connection).status == 200
    while server.workers() in ([], [worker]):
        time.sleep(0.01)


@pytest.mark.alone
def test_sigterm_under_load(start: Start, tiny_model: Path) -> None:
    """Under load SIGTERM ends the server within 8 seconds: each request that was sent is answered, a long one by 503.

    Idle connections and half a request are open at the same time.
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
                        connection.sendall(embed_request(texts))
                        answer = read_answer(connection)
                        is_new = False
                    except ConnectionResetError as error:
                        # accepted by the kernel, but not by the server before it closed its port
                        if not (is_new and stopped):
                            lost.append(error)
                        return
                    except (OSError, http.client.HTTPException) as error:
                        lost.append(error)
                        return
                    statuses[answer.status] += 1
                    if answer.headers.get("connection") == "close":
                        break

    with ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(20)]
        for connection in idle[:10]:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(connection).status == 200
        idle[0].sendall(b"POST /embed HTT")
        endless = stack.enter_context(connect(server))
        endless.sendall(embed_request(long_texts(HUGE_BATCH)))
        threads = [threading.Thread(target=client, args=(LARGE_BATCH[: 1 + n % 3 * 50],)) for n in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        stopped.append(time.monotonic())
        server.process.terminate()
        assert read_answer(endless).status == 503
        for thread in threads:
            thread.join()
        output = server.wait(30)
        seconds = time.monotonic() - stopped[0]
    assert (server.process.returncode, lost) == (0, []), output
    assert seconds < 8
    assert statuses[200] > 20 and set(statuses) <= {200, 503}
    assert "Traceback" not in output


def test_kill_of_one_worker_under_load(start: Start, tiny_model: Path) -> None:
    """When a worker is killed, each client loses at most the request in flight, and its next one is answered."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=2, WEB_CONCURRENCY=2).wait_until_ready()
    while len(server.workers()) < 2:
        time.sleep(0.01)
    done, lost = Counter[int](), Counter[int]()
    ended = threading.Event()

    def client(number: int) -> None:
        while not ended.is_set():
            try:
                response = requests.post(f"{server.url}/embed", json={"texts": LARGE_BATCH[:50]}, timeout=30)
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


@pytest.mark.alone
def test_sigterm_with_a_full_queue(start: Start, tiny_model: Path) -> None:
    """SIGTERM with idle connections, half requests and 500 queued requests: all are answered within 8 seconds."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, CACHE_SIZE=0).wait_until_ready()
    with ExitStack() as stack:
        idle, heads, bodies, queued = (
            [stack.enter_context(connect(server)) for _ in range(count)] for count in (100, 100, 100, 500)
        )
        for connection in idle:
            connection.sendall(HEALTH)
            assert read_answer(connection).status == 200
        for connection in heads:
            connection.sendall(HEALTH[:-9])
        for connection in bodies:
            connection.sendall(embed_request(["cat"])[:-9])
        for number, connection in enumerate(queued):
            connection.sendall(embed_request([f"{number} {n}" for n in range(50)]))
        time.sleep(0.5)
        began = time.monotonic()
        server.process.terminate()
        found = Counter(read_answer(connection).status for connection in queued)
        assert set(found) <= {200, 503}, found
        assert {read_answer(connection).status for connection in bodies} <= {400, 503}
        for connection in idle:
            assert connection.recv(1) == b""
        output = server.wait(30)
        assert time.monotonic() - began < 8
    assert server.process.returncode == 0
    assert "Traceback" not in output and "SIGABRT" not in output


@pytest.mark.parametrize("number", ["SIGHUP", "SIGTTIN", "SIGTTOU", "SIGSTOP"])
def test_signals_under_load(start: Start, tiny_model: Path, number: str) -> None:
    """A reload, one worker more or less, and a paused worker lose no request."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=2, WEB_CONCURRENCY=2).wait_until_ready()
    ended = threading.Event()
    statuses: Counter[int] = Counter()
    lost: list[Exception] = []

    request = embed_request([str(n) for n in range(50)], head="Connection: close\r\n")

    def client() -> None:
        while not ended.is_set():
            try:
                with connect(server) as connection:
                    connection.sendall(request)
                    statuses[read_answer(connection).status] += 1
            except Exception as error:
                lost.append(error)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.5)
        if number == "SIGSTOP":
            worker = server.workers()[0]
            os.kill(worker, signal.SIGSTOP)
            time.sleep(1)
            os.kill(worker, signal.SIGCONT)
        else:
            os.kill(server.process.pid, signal.Signals[number])
    time.sleep(2)
    ended.set()
    for thread in threads:
        thread.join()
    assert (lost, set(statuses)) == ([], {200})
    output = server.stop()
    assert server.process.returncode == 0 and "Traceback" not in output
