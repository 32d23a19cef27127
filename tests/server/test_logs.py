"""What a real server writes: one JSON object a line, one line a request, and nothing of what it was sent."""

import base64
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from app.context import RequestContext
from tests.server.test_load import ENDLESS, answer, connect, post
from tests.support import ROOT
from tests.support.server import VARIABLES, Server, free_port

Start = Callable[..., Server]
Line = dict[str, Any]
Headers = dict[str, str]
KEYS = ("first-SECRETKEY", "second-SECRETKEY")
BEARER = f"Authorization: Bearer {KEYS[1]}\r\n"
PROJECT = "my-project"
TRACE = "105445aa7843bc8bf206b12000100000"
SPAN = "00f067aa0ba902b7"
# More than two seconds of work.
LONG = {"texts": [f"{n}" for n in range(7_000)], "prompt": "a " * 500}
# Texts that wait for their turn to be tokenized: a twentieth of a second each.
SLOW = json.dumps({"inputs": "!" * 90_000})
# What a pipe takes as one piece, whoever else writes into it (PIPE_BUF).
PIECE_BYTES = 4096
QUEUED = re.compile(r"^embedding_queue_requests (\S+)", re.M)
VECTOR_DIGITS = re.compile(r"\d\.\d{7,}")


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two workers that say all they have to say."""
    environ = {"API_KEY": ",".join(KEYS), "LOG_LEVEL": "debug", "GOOGLE_CLOUD_PROJECT": PROJECT}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_TEXTS=8, WEB_CONCURRENCY=2, **environ).wait_until_ready()


@pytest.fixture(scope="module")
def busy(start: Start, tiny_model: Path) -> Server:
    """One CPU, 40 requests may wait, and none for longer than 2 s."""
    limits = {"CPUS": 1, "MAX_QUEUE": 40, "REQUEST_DEADLINE": 2, "MAX_TEXTS": 100_000}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **limits).wait_until_ready()


def lines(text: str) -> list[Line]:
    """Each line is an object with severity, time and message."""
    found = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    for line in found:
        assert line["severity"] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), line
        assert line["time"].endswith("Z") and datetime.fromisoformat(line["time"]), line
        assert isinstance(line["message"], str) and line["message"].strip(), line
    return found


def line_where(server: Server, is_it: Callable[[Line], bool], *, is_only: bool = True) -> Line:
    """The only line of which that holds, or the first one; it may come a little after the answer."""
    until = time.monotonic() + 20
    while not (found := [line for line in lines(server.output.rpartition("\n")[0]) if is_it(line)]):
        assert time.monotonic() < until, server.output
        time.sleep(0.01)
    assert len(found) == 1 or not is_only, found
    return found[0]


def line_of(server: Server, request_id: str) -> Line:
    return line_where(server, lambda line: line.get("requestId") == request_id)


def ask(server: Server, request: bytes | str) -> tuple[int, Headers, bytes]:
    """Send bytes and half-close: status, headers and body of the answer."""
    with connect(server) as connection:
        connection.sendall(request.encode() if isinstance(request, str) else request)
        connection.shutdown(socket.SHUT_WR)
        return received(connection)


def received(connection: socket.socket) -> tuple[int, Headers, bytes]:
    """All until the server closes. No answer: 0."""
    answer = b""
    while data := connection.recv(65536):
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]) if first else 0, {line.split(": ")[0]: line.split(": ", 1)[1] for line in rest}, body


def get(target: str, headers: str = "", method: str = "GET") -> str:
    return f"{method} {target} HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\nConnection: close\r\n{BEARER}{headers}\r\n"


def send(path: str, body: str, headers: str = "") -> str:
    return get(path, f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}", "POST") + body


def check_http_request(line: Line, method: str, url: str, status: int, request_bytes: int, answer: bytes) -> None:
    """https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry#HttpRequest"""
    found = dict(line["httpRequest"])
    assert re.fullmatch(r"\d+\.\d+s", found["latency"])
    assert float(found.pop("latency")[:-1]) == pytest.approx(line["ms"]["total"] / 1e3, abs=1e-5)
    assert found == {
        "requestMethod": method,
        "requestUrl": url,
        "requestSize": str(request_bytes),
        "status": status,
        "responseSize": str(len(answer)),
        "userAgent": "me",
        "remoteIp": "127.0.0.1",
        "protocol": "HTTP/1.1",
    }
    assert line["message"].startswith(f"{method} {url} {status} in ")
    assert sum(ms for stage, ms in line["ms"].items() if stage != "total") <= line["ms"]["total"] + 0.01


CASES = {
    "a text": (get("/embed?q=cat"), 200, "/embed", ["queue", "tokenize", "inference", "serialize"]),
    "texts": (send("/embed", '{"texts": ["a", "b"]}'), 200, "/embed", ["queue", "tokenize", "inference", "serialize"]),
    "none of a text": (get("/embed?q=cat", method="HEAD"), 200, "/embed", None),
    "a model": (get("/v1/models/tiny"), 200, "/v1/models/<path:model>", ["queue", "serialize"]),
    "an asset": (get("/docs/assets/swagger-ui.css"), 200, "/docs/assets/<path:filename>", ["queue"]),
    "a scrape": (get("/metrics"), 200, "/metrics", ["queue"]),
    "a probe": (get("/health"), 200, "/health", ["queue", "serialize"]),
    "not JSON": (send("/embed", "{"), 400, "/embed", ["queue"]),
    "unknown": (get("/nope"), 404, "other", ["queue"]),
    "a wrong method": (get("/embed", method="DELETE"), 405, "other", ["queue"]),
    "too many": (send("/embed", '{"texts": ["", "", "", "", "", "", "", "", ""]}'), 413, "/embed", ["queue"]),
    "no JSON": (get("/v1/embeddings", "Content-Length: 0\r\n", "POST"), 415, "/v1/embeddings", ["queue"]),
    "no key": (get("/embed?q=cat").replace("second", "third"), 401, "/embed", ["queue"]),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_and_its_line(server: Server, case: str) -> None:
    """One line has what Cloud Logging wants, the answer's id, its route, and stages within the whole time."""
    request, status, route, stages = CASES[case]
    found, headers, body = ask(server, request)
    line = line_of(server, headers["X-Request-Id"])
    method, target, _ = request.split(" ", 2)
    size = len(request.partition("\r\n\r\n")[2])
    check_http_request(line, method, target.partition("?")[0], status, size, body)
    assert (found, line["route"], "error" in line) == (status, route, status >= 400)
    if stages:
        assert [*line["ms"]] == [*stages, "total"]
    timing = {part.split(";dur=")[0]: part.split("=")[1] for part in headers["Server-Timing"].split(", ")}
    assert timing == {stage: f"{float(timing[stage]):.2f}" for stage in line["ms"] if stage != "total"}
    if "inference" in line["ms"]:
        texts = 2 if method == "POST" else 1
        assert (line["texts"], line["truncated"]) == (texts, 0) and line["tokens"] > line["cacheHits"] >= 0


GUNICORNS = {
    400: get("/embed?q=cat").replace(" HTTP/1.1", " \x01 HTTP/1.1"),
    414: get("/embed?q=" + "a" * 9000),
    431: get("/embed?q=cat", f"A: {'a' * 9000}\r\n"),
}


@pytest.mark.parametrize("status", GUNICORNS)
def test_gunicorns_own_answers_have_a_line(server: Server, status: int) -> None:
    """What never reaches the app has its line, too."""
    found, headers, body = ask(server, GUNICORNS[status])
    line = line_of(server, headers["X-Request-Id"])
    assert (found, line["httpRequest"]["status"], line["severity"]) == (status, status, "INFO")
    assert (line["route"], line["error"]) == ("other", json.loads(body)["error"]["code"])
    assert line["httpRequest"]["responseSize"] == str(len(body))


@pytest.mark.parametrize("status", GUNICORNS)
def test_gunicorns_own_answers_say_to_whom(server: Server, status: int) -> None:
    """The address at least, which is known of every connection."""
    _, headers, _ = ask(server, GUNICORNS[status])
    assert line_of(server, headers["X-Request-Id"])["httpRequest"]["remoteIp"] == "127.0.0.1"


@pytest.fixture(scope="module")
def refusals(busy: Server) -> dict[int, tuple[Line, bytes]]:
    """The lines and bodies of what is refused, by status: a queue that is full, a deadline, a client that has left."""
    traced = f"traceparent: 00-{TRACE}-{SPAN}-01\r\nX-Request-Id: "
    slow_head = "POST /similarity HTTP/1.1\r\nContent-Length: \xb2\r\nX-Request-Id: slow\r\nUser-Agent: me\r\nX-A: "
    with ExitStack() as stack:
        late, left, slow = (stack.enter_context(connect(busy)) for _ in range(3))
        slow.sendall(slow_head.encode("latin-1"))
        late.sendall(send("/embed", json.dumps(LONG), f"{traced}late\r\n").encode())
        bodies = {503: received(late)[2], 499: b""}
        ahead = crowd(busy, stack, 20, f"{traced}ahead\r\n")
        wait_until_queued(busy, 15)
        left.sendall(send("/embed", '{"texts": ["%s"]}' % ("cat " * 1000), f"{traced}left\r\n").encode())
        left.close()
        wait_until_queued(busy, 1)  # it is there
        behind = crowd(busy, stack, 80, f"{traced}behind\r\n")
        refused = next(found for connection in behind if (found := received(connection))[0] == 429)
        assert {received(connection)[0] for connection in ahead} <= {200, 503}
        bodies |= {429: refused[2], 408: received(slow)[2]}
    lines = {
        429: line_where(busy, lambda line: line.get("error") == "queue_full", is_only=False),
        503: line_of(busy, "late"),
        499: line_of(busy, "left"),
        408: line_where(busy, lambda line: line.get("error") == "request_timeout"),
    }
    return {status: (line, bodies[status]) for status, line in lines.items()}


def crowd(server: Server, stack: ExitStack, count: int, headers: str = "") -> list[socket.socket]:
    """So many requests that wait for each other."""
    connections = [stack.enter_context(connect(server)) for _ in range(count)]
    for connection in connections:
        connection.sendall(send("/tokenize", SLOW, headers).encode())
    return connections


def wait_until_queued(server: Server, least: int) -> None:
    """Until so many requests wait, or more, as GET /metrics says."""
    until = time.monotonic() + 10
    while float(QUEUED.findall(requests.get(f"{server.url}/metrics", timeout=10).text)[0]) < least:
        assert time.monotonic() < until


def test_refusals(refusals: dict[int, tuple[Line, bytes]]) -> None:
    """A full queue, a deadline, a client that has left and one that does not go on: a line each, with why."""
    for status, severity, error, path in (
        (429, "WARNING", "queue_full", "/tokenize"),
        (503, "WARNING", "deadline_exceeded", "/embed"),
        (499, "INFO", None, "/embed"),
    ):
        line, body = refusals[status]
        assert (line["severity"], line.get("error")) == (severity, error)
        request = line["httpRequest"]
        assert (request["requestMethod"], request["requestUrl"], line["route"]) == ("POST", path, path)
        assert (request["status"], request["responseSize"], request["protocol"]) == (status, str(len(body)), "HTTP/1.1")
        assert "texts" not in line
    assert refusals[503][0]["ms"]["total"] > 1900 and refusals[499][0]["ms"]["total"] > 100


def test_half_a_head_that_stops(refusals: dict[int, tuple[Line, bytes]]) -> None:
    """Nobody knows what it asks for, only who did not go on."""
    line, body = refusals[408]
    request = line["httpRequest"]
    assert (line["severity"], line["route"], request["requestUrl"], request["userAgent"]) == ("INFO", "other", "", "")
    assert (request["status"], request["responseSize"], request["remoteIp"]) == (408, str(len(body)), "127.0.0.1")


@pytest.mark.parametrize("status", [429, 499])
def test_refusals_say_whom_and_of_which_trace(refusals: dict[int, tuple[Line, bytes]], status: int) -> None:
    """What an operator needs most of all: who sends too much."""
    line, _ = refusals[status]
    assert (line["httpRequest"]["remoteIp"], line["httpRequest"]["userAgent"]) == ("127.0.0.1", "me")
    assert line.get("logging.googleapis.com/trace") == TRACE


def test_a_request_that_does_not_arrive_took_its_time(refusals: dict[int, tuple[Line, bytes]]) -> None:
    assert refusals[408][0]["ms"]["total"] > 9_900


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "+1", "1_0", " 1", "", "x"])
def test_lengths_that_are_none(length: str) -> None:
    """What nobody has checked yet, of a request that is refused unparsed, is taken for no length."""
    record = RequestContext()
    record.read_environ({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": length})
    assert record.request_bytes == 0


@pytest.mark.parametrize("abort", [False, True])
def test_who_leaves_in_the_middle(busy: Server, abort: bool) -> None:
    """A client that goes away while its texts are computed has a line, too."""
    with connect(busy) as leaving:
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", abort, 0))
        texts = json.dumps({"texts": [f"{abort} {n}" for n in range(4000)]})
        leaving.sendall(send("/embed", texts, f"X-Request-Id: left-{abort}\r\n").encode())
        wait_until_queued(busy, 1)
    line = line_of(busy, f"left-{abort}")
    assert (line["httpRequest"]["status"], line["route"]) == (499, "/embed")


TRACES = {
    "W3C": (f"traceparent: 00-{TRACE}-{SPAN}-01", SPAN),
    "W3C of later": (f"traceparent: 01-{TRACE}-{SPAN}-01-more", SPAN),
    "Google": (f"X-Cloud-Trace-Context: {TRACE}/2;o=1", "0000000000000002"),
    "Google's largest": (f"X-Cloud-Trace-Context: {TRACE}/{2**64 - 1}", "f" * 16),
    "both": (f"traceparent: 00-{TRACE}-{SPAN}-01\r\nX-Cloud-Trace-Context: {'a' * 32}/2", SPAN),
    "one is wrong": (f"traceparent: 00-{TRACE}-01\r\nX-Cloud-Trace-Context: {TRACE}/2", "0000000000000002"),
}
NO_TRACES = ["traceparent: x", f"traceparent: 00-{'g' * 32}-{SPAN}-01", f"X-Cloud-Trace-Context: {TRACE}x/2;o=1"]
NO_TRACES += ["X-Cloud-Trace-Context: ", f'X-Cloud-Trace-Context: "{TRACE}"', "traceparent: " + "0" * 5000]


@pytest.mark.parametrize("case", TRACES)
def test_a_trace(server: Server, busy: Server, case: str) -> None:
    """Trace and span are those of the header; with the project's name, where it is known."""
    headers, span = TRACES[case]
    for asked, trace in ((server, f"projects/{PROJECT}/traces/{TRACE}"), (busy, TRACE)):
        line = line_of(asked, ask(asked, get("/embed?q=cat", f"{headers}\r\n"))[1]["X-Request-Id"])
        assert line["logging.googleapis.com/trace"] == trace
        assert line["logging.googleapis.com/spanId"] == span


@pytest.mark.parametrize("header", NO_TRACES)
def test_a_malformed_trace(server: Server, header: str) -> None:
    """It is as none."""
    status, headers, _ = ask(server, get("/info", f"{header}\r\n"))
    assert status == 200
    assert not [name for name in line_of(server, headers["X-Request-Id"]) if name.startswith("logging.")]


@pytest.mark.parametrize(
    ("header", "trace", "span"),
    [
        (f"traceparent: 00-{'0' * 32}-{SPAN}-01", None, None),
        (f"traceparent: ff-{TRACE}-{SPAN}-01", None, None),
        (f"traceparent: 00-{TRACE}-{'0' * 16}-01", None, None),
        (f"traceparent: 00-{TRACE}-{SPAN}-01more", None, None),
        (f"X-Cloud-Trace-Context: {TRACE}", TRACE, None),
        (f"X-Cloud-Trace-Context: {TRACE}/0", TRACE, None),
        (f"X-Cloud-Trace-Context: {TRACE}/{2**64}", TRACE, None),
        (f"X-Cloud-Trace-Context: {TRACE.upper()}/2", TRACE, "0000000000000002"),
    ],
)
def test_traces_and_spans_that_there_cannot_be(busy: Server, header: str, trace: str | None, span: str | None) -> None:
    """Zeros and too large numbers are no ids (https://www.w3.org/TR/trace-context/#traceparent-header-field-values)."""
    line = line_of(busy, ask(busy, get("/info", f"{header}\r\n"))[1]["X-Request-Id"])
    assert (line.get("logging.googleapis.com/trace"), line.get("logging.googleapis.com/spanId")) == (trace, span)


def test_the_first_line(server: Server, busy: Server) -> None:
    """What is served, on what, and the limits."""
    line = line_where(server, lambda line: "limits" in line)
    assert re.fullmatch(r"embedding-api [\d.]+ serves tiny \(int8\) on port \d+", line["message"])
    assert (line["severity"], line["version"], line["model"], line["precision"]) == (
        "INFO",
        requests.get(f"{busy.url}/", timeout=10).json()["version"],
        "tiny",
        "int8",
    )
    assert set(line["cpu"]) == {"architecture", "vnni", "avx512", "avx2"}
    assert (line["workers"], line["limits"]["max_texts"], line["limits"]["max_length"]) == (2, 8, 64)
    busys = line_where(busy, lambda line: "limits" in line)
    assert [busys[name] for name in ("cpus", "workers", "slots")] == [1, 1, 1]
    assert (busys["limits"]["max_queue"], busys["limits"]["request_deadline"]) == (40, 2)


def test_probes(server: Server, busy: Server) -> None:
    """A probe that is answered well is worth a line only at LOG_LEVEL=debug, one that is not always."""
    for path in ("/health", "/healthz", "/readyz"):
        status, headers, _ = ask(server, get(path))
        assert (status, line_of(server, headers["X-Request-Id"])["severity"]) == (200, "DEBUG")
        assert ask(busy, get(path, "X-Request-Id: quiet\r\n"))[0] == 200
    assert ask(busy, get("/health", "X-Request-Id: loud\r\n", "POST"))[0] == 405
    assert line_of(busy, "loud")["severity"] == "INFO"
    assert "quiet" not in busy.output


SEVERITIES = """
from app import logs
from app.context import RequestContext
logs.configure("json", "info", "")
for status in (200, 304, 400, 404, 429, 499, 500, 501, 503):
    context = RequestContext()
    context.finish(status, 0)
    logs.log_request(context)
"""


def test_the_severity() -> None:
    """The server's faults are errors, load is a warning, the client's faults are news like any other."""
    run = subprocess.run([sys.executable, "-c", SEVERITIES], cwd=ROOT, capture_output=True, text=True, check=True)
    severities = {line["httpRequest"]["status"]: line["severity"] for line in lines(run.stderr)}
    warnings = {status for status, severity in severities.items() if severity == "WARNING"}
    assert warnings == {429, 503}
    assert {severities[status] for status in (200, 304, 400, 404, 499, 501)} == {"INFO"}
    assert severities[500] == "ERROR"


@pytest.fixture(scope="module")
def text_server(start: Start, tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, LOG_FORMAT="text", WEB_CONCURRENCY=1).wait_until_ready()


def test_text(text_server: Server) -> None:
    """LOG_FORMAT=text is for people: time, severity, sentence, and the rest as name=value."""
    _, headers, _ = ask(text_server, get("/embed?q=cat"))
    until = time.monotonic() + 10
    while headers["X-Request-Id"] not in text_server.output and time.monotonic() < until:
        time.sleep(0.01)
    for line in text_server.output.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING) \S", line), line
    (line,) = (line for line in text_server.output.splitlines() if headers["X-Request-Id"] in line)
    for part in ("INFO GET /embed 200 in ", " route=/embed texts=1 tokens=3 ", " queue_ms=", " inference_ms="):
        assert part in line


def test_text_that_a_client_would_write_itself(text_server: Server) -> None:
    """A path with a new line, or with codes for the terminal, makes no line of its own and no colors."""
    before = text_server.output.count("\n")
    status, headers, _ = ask(text_server, get("/a%0A2026-01-01%2000:00:00%20INFO%20forged%1B[31m%E2%80%A8%C2%85"))
    until = time.monotonic() + 10
    while headers["X-Request-Id"] not in text_server.output and time.monotonic() < until:
        time.sleep(0.01)
    assert status == 404
    assert text_server.output.count("\n") == before + 1
    assert "\x1b" not in text_server.output
    assert [line for line in text_server.output.splitlines() if not re.match(r"\d{4}-.* (INFO|WARNING) \S", line)] == []


def bodies(mark: str) -> list[tuple[str, Any]]:
    """Requests of all dialects, right and wrong ones, with the mark in all that they have."""
    own = [{"texts": [mark]}, {"texts": [mark, 1]}, {"texts": mark}, {mark: 1}, {"texts": [mark], "prompt": mark}]
    own += [{"texts": [mark], "prompt_name": mark}, {"texts": [mark] * 9}, {"texts": [mark], "normalize": mark}]
    own += [
        {"texts": ["x " * 100 + mark], "truncate": False},
        {"texts": [mark * 20_000]},
        mark,
        [mark],
        {"texts": [""]},
    ]
    tei: list[Any] = [{"inputs": mark}, {"inputs": [mark, 2]}, {"inputs": mark, "prompt_name": mark}]
    tei += [{"inputs": [5, 6, 7]}, {"inputs": mark, "truncation_direction": mark}, {"inputs": {mark: mark}}]
    openai = {"input": [mark], "model": mark, "user": mark}
    calls = {"requestId": mark, "caller": mark, "sessionUser": mark, "userDefinedContext": {}, "calls": [[mark]]}
    return [
        *(("/embed", body) for body in [*own, *tei]),
        *(("/", body) for body in tei),
        *(("/tokenize", body) for body in tei),
        ("/v1/embeddings", openai),
        *(("/v1/embeddings", {**openai, name: mark}) for name in ("encoding_format", "dimensions", "input")),
        ("/similarity", {"inputs": {"source_sentence": mark, "sentences": [mark, f"{mark} 2"]}}),
        ("/similarity", {"inputs": {"source_sentence": mark, "sentences": mark}}),
        ("/decode", {"ids": [mark]}),
        ("/bigquery", calls),
        ("/bigquery", {**calls, "calls": [[mark, mark]]}),
        ("/bigquery", {**calls, "userDefinedContext": {mark: mark}}),
        ("/bigquery", {**calls, "userDefinedContext": {"prompt": mark}}),
    ]


def test_no_text_vector_or_key_is_logged(server: Server) -> None:
    """Not in any dialect, right or wrong, in the query, the body, a header, or a key, at LOG_LEVEL=debug."""
    mark, other = "SECRETMARK", "Bearer SECRETKEY-wrong"
    answers, last = [], ""

    def send_all(path: str, headers: Headers | None = None, **arguments: Any) -> None:
        nonlocal last
        method, sent = "POST" if arguments else "GET", {"Authorization": f"Bearer {KEYS[0]}", **(headers or {})}
        response = requests.request(method, f"{server.url}{path}", headers=sent, timeout=30, **arguments)
        assert response.status_code < 500
        answers.append(response.text)
        last = response.headers["X-Request-Id"]

    for path, body in bodies(mark):
        send_all(path, json=body)
        send_all(path, json=body, headers={"Authorization": other})
    for data in (f'{{"texts": ["{mark}"', f'"{mark}"', b'{"texts": ["\xff' + mark.encode(), mark.encode("utf-16")):
        send_all("/embed", data=data, headers={"Content-Type": "application/json"})
    for kind in ("text/plain", f"text/{mark}", f"application/json; charset={mark}"):
        send_all("/embed", data=mark, headers={"Content-Type": kind})
    send_all("/embed", json={"texts": [mark]}, headers={"Content-Encoding": mark})
    for query in (f"q={mark}", f"q={mark}&prompt={mark}", f"{mark}=1", f"q={mark}&q=2", f"q=1&dimensions={mark}"):
        send_all(f"/embed?{query}")
        send_all(f"/nope?{query}")
    for header in ("Authorization", "Proxy-Authorization", "X-Api-Key", "Cookie", "Origin", "Referer"):
        send_all("/embed?q=a", headers={header: f"Basic {mark}"})
    send_all(f"/embed?q=a&api_key={mark}", headers={"X-Request-Id": f"{mark} {mark}", "traceparent": mark})
    line_of(server, last)
    output = server.output
    vectors = {digits for answer in answers for digits in VECTOR_DIGITS.findall(answer)}
    assert len(vectors) > 100 and sum(mark in answer for answer in answers) > 10
    assert [digits for digits in vectors if digits in output] == []
    for secret in (mark, "SECRETKEY", base64.b64encode(mark.encode()).decode()[:12], mark.encode().hex(), "NERTES"):
        assert secret.lower() not in output.lower()


JSON_IN_CHUNKS = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
MALFORMED = {
    "a control character in the query": get("/embed?q=MARK\x01"),
    "a space in the query": get("/embed?q=cat MARK"),
    "a header without a colon": get("/embed?q=cat", "Authorization Bearer MARK\r\n"),
    "a space in a header's name": get("/embed?q=cat", "Authorization Bearer MARK: 1\r\n"),
    "a control character in a header": get("/embed?q=cat", "Authorization: Bearer MARK\x01\r\n"),
    "an expectation": get("/embed?q=cat", "Expect: MARK\r\n"),
    "a coding": get("/embed?q=cat", "Transfer-Encoding: MARK\r\n"),
    "a long query": get(f"/embed?q=MARK{'a' * 9000}"),
    "a long header": get("/embed?q=cat", f"Authorization: Bearer MARK{'a' * 9000}\r\n"),
    "a body without its head": '{"texts": ["MARK"]}\r\n\r\n',
    "two lengths": send("/embed", '{"texts": ["MARK"]}', "Content-Length: 1\r\n"),
    "half a body": send("/embed", '{"texts": ["MARK"]}').replace("Content-Length: 19", "Content-Length: 99"),
    "a wrong chunk": get("/embed", JSON_IN_CHUNKS, "POST") + "MARK\r\n",
    "a chunk too long": get("/embed", JSON_IN_CHUNKS, "POST") + "2\r\nMARK\r\n0\r\n\r\n",
    "what comes behind": send("/embed", '{"texts": ["a"]}') + "MARK",
}
HALVES = ["GET /embed?q=MARK", "GET /embed?q=cat HTTP/1.1\r\nAuthorization: Bearer MARK\r\n"]


def output_after(server: Server, request: str) -> str:
    """What it has written when a later request has its line."""
    ask(server, request)
    line_of(server, ask(server, get("/info"))[1]["X-Request-Id"])
    return server.output


@pytest.mark.parametrize("case", MALFORMED)
def test_what_http_cannot_be_is_not_logged(server: Server, case: str) -> None:
    """Texts and keys in a line that cannot be read are texts and keys."""
    assert "SECRETMALFORMED" not in output_after(server, MALFORMED[case].replace("MARK", "SECRETMALFORMED"))


@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_is_not_logged(server: Server, half: str) -> None:
    """A client that goes away in the middle of a head."""
    mark = f"SECRET{len(half)}HALF"
    assert mark not in output_after(server, half.replace("MARK", mark))


HOSTILE = {
    "quotes": '"}\\", {"severity": "EMERGENCY"',
    "a tab": "a\tb",
    "not UTF-8": "\xff\xc3\x28\xed\xa0\x80",
    "almost a line": "\x85\xa0\xad",
    "long": "a" * 8000,
    "long and wide": "\xe3\x81\x82" * 2500,
    "too long": "a" * 10_000,
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("header", ["User-Agent", "X-Request-Id", "X-Cloud-Trace-Context", "traceparent"])
def test_what_a_client_would_write_in_a_header(server: Server, header: str, case: str) -> None:
    """One line, of the severity that it has, not longer than a pipe takes at once."""
    request = get("/embed?q=cat", f"{header}: {HOSTILE[case]}\r\n").replace("User-Agent: me\r\n", "")
    status, headers, _ = ask(server, request.encode("latin-1"))
    line = line_of(server, headers["X-Request-Id"])
    assert status == (431 if case == "too long" else 200)
    assert (line["severity"], line["httpRequest"]["status"]) == ("INFO", status)
    assert re.fullmatch(r"[0-9a-f]{16}|a{1,128}", line["requestId"])
    assert len(json.dumps(line, ensure_ascii=False).encode()) < PIECE_BYTES
    assert not [name for name in line if name.startswith("logging.")]


@pytest.mark.parametrize("escaped", ["%0A", "%0D%0A", "%00", "%22%7D", "%1B[2J", "%E2%80%A8", "%ED%A0%80", "%FF", "é"])
def test_what_a_client_would_write_in_a_path(server: Server, escaped: str) -> None:
    """Escapes make neither lines nor wrong UTF-8, and a long path is cut."""
    status, headers, _ = ask(server, get(f"/{escaped}{{}}{escaped * 500}"))
    line = line_of(server, headers["X-Request-Id"])
    assert (status, line["route"], line["error"]) == (404, "other", "not_found")
    assert line["httpRequest"]["requestUrl"].startswith("/") and len(line["httpRequest"]["requestUrl"]) <= 200
    assert len(json.dumps(line, ensure_ascii=False).encode()) < PIECE_BYTES


def test_lines_never_mix(tiny_model: Path) -> None:
    """Two workers and their threads write into one pipe: each line is whole, and every request has its own.

    So are those of the start and of the end.
    """
    environ = {name: value for name, value in os.environ.items() if name.upper() not in VARIABLES}
    environ |= {"PORT": str(free_port()), "MODEL_DIR": str(tiny_model), "MAX_LENGTH": "64", "WEB_CONCURRENCY": "2"}
    url = f"http://127.0.0.1:{environ['PORT']}"
    gunicorn = Path(sys.executable).parent / "gunicorn"
    ids: list[str] = []

    def client(number: int) -> None:
        with requests.Session() as session:
            session.headers["User-Agent"] = '"\\\t' * 1000
            for n in range(50):
                path = "/embed?q=cat" if n % 2 else f"/{number}{'%01' * 300}"
                ids.append(session.get(f"{url}{path}", timeout=30).headers["X-Request-Id"])

    def end() -> None:
        for thread in threads[:12]:
            thread.join()
        process.terminate()

    with subprocess.Popen([gunicorn], cwd=ROOT, env=environ, stderr=subprocess.PIPE) as process:
        assert process.stderr
        first = b""
        while b"Booting worker" not in first:
            first += process.stderr.readline()
        threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
        threads.append(threading.Thread(target=end))
        for thread in threads:
            thread.start()
        output = (first + process.stderr.read()).decode()
    assert process.returncode == 0, output
    assert len(ids) == 600
    assert sorted(line["requestId"] for line in lines(output) if "requestId" in line) == sorted(ids)
    assert max(len(line.encode()) for line in output.splitlines()) < PIECE_BYTES


def test_a_flood_of_refusals_is_summed_up(start: Start, tiny_model: Path) -> None:
    """Of more than 100 in a second the rest is counted in one line; metrics have all."""
    server = start(
        MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=1, MAX_TEXTS=10_000_000, MAX_BODY_BYTES=100_000_000
    )
    server.wait_until_ready()
    with ExitStack() as stack:
        stack.enter_context(connect(server)).sendall(post(ENDLESS[:30_000]))
        wait_until_queued(server, 1)
        connection = stack.enter_context(connect(server))
        for _ in range(2000):
            connection.sendall(post(["a"]))
            assert answer(connection)[0] == 429
        time.sleep(2.5)
        scraped = requests.get(f"{server.url}/metrics", timeout=30).text
    lines = [json.loads(line) for line in server.output.splitlines()]
    told = sum(line.get("error") == "queue_full" for line in lines)
    summed = sum(line.get("refused", 0) for line in lines)
    counted = re.search(r'^embedding_refused_requests_total\{reason="queue_full"\} (\S+)$', scraped, re.M)
    assert counted and told + summed == float(counted[1]) >= 2000
    assert summed > 0
