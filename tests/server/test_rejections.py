"""Requests that a real server rejects for lack of capacity or time: 429 and 503, on every route."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.failures import Failure, check
from tests.support.http import LARGE_BATCH, Answer, ask, connect, read_answer, repeat_in_threads
from tests.support.routes import REQUESTS, WAITS_FOR_A_SLOT, Route, as_parameters, request_of
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def small_queue(start: Start, tiny_model: Path) -> Server:
    """One slot, and two requests may wait."""
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=2, MAX_TEXTS=10_000).wait_until_ready()


def test_a_full_queue(small_queue: Server) -> None:
    """Every route that waits for a slot answers 429, and those that compute nothing are still answered."""

    def send_large_batch() -> None:
        requests.post(f"{small_queue.url}/embed", json={"texts": LARGE_BATCH}, timeout=60)

    message = "The queue is full: 2 requests wait already (MAX_QUEUE). Try again later."
    with repeat_in_threads(6, send_large_batch):
        for route in WAITS_FOR_A_SLOT:
            while (answer := ask(small_queue, request_of(route))).status == 200:
                pass
            check(answer, Failure(route, message, status=429, code="queue_full"))
            assert answer.headers["retry-after"] == "1"
            if route[0] == "POST":  # an incomplete body
                while (answer := ask(small_queue, request_of(route, length=1_000_000))).status != 429:
                    assert answer.status == 400
                assert answer.headers["connection"] == "close"
        for route in set(REQUESTS) - set(WAITS_FOR_A_SLOT):
            assert ask(small_queue, request_of(route)).status == 200
        # another spelling of the path waits like the others
        other = request_of(("GET", "/embed")).replace(b" /embed", b" //embed")
        while (answer := ask(small_queue, other)).status == 200:
            pass
        assert answer.status == 429
    for route in WAITS_FOR_A_SLOT:
        assert ask(small_queue, request_of(route)).status == 200


def test_a_burst_is_not_a_full_queue(small_queue: Server) -> None:
    """Requests that compute nothing and arrive at the same moment are all answered."""
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(small_queue)) for _ in range(8)]
        for connection in connections:
            connection.sendall(request_of(("GET", "/info")))
            assert read_answer(connection).status == 200
        os.kill(small_queue.workers()[0], signal.SIGSTOP)
        for connection in connections:
            connection.sendall(request_of(("GET", "/info")))
        os.kill(small_queue.workers()[0], signal.SIGCONT)
        assert {read_answer(connection).status for connection in connections} == {200}


# Routes whose requests wait to be tokenized.
CAN_BE_LATE = [route for route in WAITS_FOR_A_SLOT if route[1] != "/api/show"]


def slow_request_of(route: Route) -> bytes:
    """Return a valid request with a text that must wait to be tokenized."""
    valid = REQUESTS[route][1]
    if not valid:
        return request_of(route).replace(b"cat", b"the" + b"+the" * 800)
    return request_of(route, body=json.dumps(valid).replace("cat", "the" + " the" * 800).encode())


def answers_after_pause(server: Server, seconds: float, *, count_ahead: int, stop: bool = False) -> dict[Route, Answer]:
    """Return the answers of waiting requests on a worker that is paused past their deadline, as clouds do it.

    count_ahead: number of slow requests that they wait for.
    """
    slow = request_of(("POST", "/tokenize"), body=json.dumps({"inputs": "!" * 60_000}).encode())
    worker = server.workers()[0]
    with ExitStack() as stack, ExitStack() as ahead, requests.Session() as session:
        waiting = {route: stack.enter_context(connect(server)) for route in WAITS_FOR_A_SLOT}
        for connection in waiting.values():  # it is accepted before the others come
            connection.sendall(request_of(("GET", "/info")))
            assert read_answer(connection).status == 200
        assert session.get(f"{server.url}/readyz", timeout=30).ok
        for _ in range(count_ahead):
            ahead.enter_context(connect(server)).sendall(slow)
        for route, connection in waiting.items():
            connection.sendall(slow_request_of(route))
        for _ in range(2):  # then what was sent before on these connections has most likely been received
            assert session.get(f"{server.url}/readyz", timeout=30).ok
        if stop:
            server.process.terminate()
            while session.get(f"{server.url}/readyz", timeout=30).ok:
                pass
        os.kill(worker, signal.SIGSTOP)
        ahead.close()
        time.sleep(seconds)
        os.kill(worker, signal.SIGCONT)
        return {route: read_answer(connection) for route, connection in waiting.items()}


@pytest.fixture(scope="module")
def late(start: Start, tiny_model: Path) -> dict[str, dict[Route, Answer]]:
    """The answers after REQUEST_DEADLINE, and those of a server that is shutting down, by error code."""
    environ: dict[str, Any] = {"MODEL_DIR": tiny_model, "MAX_LENGTH": 64, "CPUS": 1, "CACHE_SIZE": 0}
    hasty = start(REQUEST_DEADLINE=1, **environ).wait_until_ready()

    def exceed_the_deadline(count_ahead: int) -> dict[Route, Answer]:
        return answers_after_pause(hasty, 1.2, count_ahead=count_ahead)

    def shut_down(count_ahead: int) -> dict[Route, Answer]:
        ending = start(**environ).wait_until_ready()
        answers = answers_after_pause(ending, 6.7, count_ahead=count_ahead, stop=True)
        assert "Traceback" not in ending.wait(30)
        assert ending.process.returncode == 0
        return answers

    found = {"deadline_exceeded": until_late(exceed_the_deadline)}
    for route in WAITS_FOR_A_SLOT:
        assert ask(hasty, request_of(route)).status == 200
    return {**found, "shutting_down": until_late(shut_down)}


def until_late(answers_behind: Callable[[int], dict[Route, Answer]]) -> dict[Route, Answer]:
    """Return answers that are all late, or those of the last try.

    Behind too few requests some are done before the pause; behind too many some are received after it.
    """
    for count_ahead in (40, 20, 80, 40, 20, 80, 40):
        answers = answers_behind(count_ahead)
        if {answers[route].status for route in CAN_BE_LATE} == {503}:
            break
    return answers


@pytest.mark.parametrize("code", ["deadline_exceeded", "shutting_down"])
@pytest.mark.parametrize("route", as_parameters(CAN_BE_LATE))
def test_too_late(late: dict[str, dict[Route, Answer]], code: str, route: Route) -> None:
    """A request that is late gets 503 and is not started, whether its own time is up or the server's."""
    texts = 2 if route[1] == "/similarity" else 1
    message = (
        f"The request's time was up (REQUEST_DEADLINE, or the server is shutting down) after 0 of {texts} texts: …"
    )
    check(late[code][route], Failure(route, message, status=503, code=code))
    assert late[code][route].headers["retry-after"] == {"deadline_exceeded": "1", "shutting_down": "5"}[code]
