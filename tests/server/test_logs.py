"""The log of a real server: one JSON object a line, one line a request, with the fields that Cloud Logging knows."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from tests.support import ROOT
from tests.support.http import ask
from tests.support.log import (
    PIECE_BYTES,
    SECRET_KEYS,
    Line,
    get_request,
    line_of,
    line_where,
    parse_lines,
    post_request,
)
from tests.support.server import VARIABLES, Server, Start, free_port

PROJECT = "my-project"


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two workers with API keys that log everything."""
    environ = {"API_KEY": ",".join(SECRET_KEYS), "LOG_LEVEL": "debug", "GOOGLE_CLOUD_PROJECT": PROJECT}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_TEXTS=8, WEB_CONCURRENCY=2, **environ).wait_until_ready()


@pytest.fixture(scope="module")
def busy(start: Start, tiny_model: Path) -> Server:
    """One CPU; 40 requests may wait, none longer than 2 s."""
    limits = {"CPUS": 1, "MAX_QUEUE": 40, "REQUEST_DEADLINE": 2, "MAX_TEXTS": 100_000}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **limits).wait_until_ready()


def check_http_request(line: Line, method: str, url: str, status: int, request_bytes: int, answer: bytes) -> None:
    """Check https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry#HttpRequest and the message."""
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
    "a text": (get_request("/embed?q=cat"), 200, "/embed", ["queue", "tokenize", "inference", "serialize"]),
    "texts": (
        post_request("/embed", '{"texts": ["a", "b"]}'),
        200,
        "/embed",
        ["queue", "tokenize", "inference", "serialize"],
    ),
    "none of a text": (get_request("/embed?q=cat", method="HEAD"), 200, "/embed", None),
    "a model": (get_request("/v1/models/tiny"), 200, "/v1/models/<path:model>", ["queue", "serialize"]),
    "an asset": (get_request("/docs/assets/swagger-ui.css"), 200, "/docs/assets/<path:filename>", ["queue"]),
    "a scrape": (get_request("/metrics"), 200, "/metrics", ["queue"]),
    "a probe": (get_request("/health"), 200, "/health", ["queue", "serialize"]),
    "not JSON": (post_request("/embed", "{"), 400, "/embed", ["queue"]),
    "unknown": (get_request("/nope"), 404, "other", ["queue"]),
    "a wrong method": (get_request("/embed", method="DELETE"), 405, "other", ["queue"]),
    "too many": (post_request("/embed", '{"texts": ["", "", "", "", "", "", "", "", ""]}'), 413, "/embed", ["queue"]),
    "no JSON": (get_request("/v1/embeddings", "Content-Length: 0\r\n", "POST"), 400, "/v1/embeddings", ["queue"]),
    "no key": (get_request("/embed?q=cat").replace("second", "third"), 401, "/embed", ["queue"]),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_and_its_line(server: Server, case: str) -> None:
    """Each answer has one line with the fields of Cloud Logging, its id and route, and stages within the total time."""
    request, status, route, stages = CASES[case]
    answer = ask(server, request, is_last=True)
    line = line_of(server, answer.headers["x-request-id"])
    method, target, _ = request.split(" ", 2)
    size = len(request.partition("\r\n\r\n")[2])
    check_http_request(line, method, target.partition("?")[0], status, size, answer.body)
    assert (answer.status, line["route"], "error" in line) == (status, route, status >= 400)
    if stages:
        assert [*line["ms"]] == [*stages, "total"]
    timing = {part.split(";dur=")[0]: part.split("=")[1] for part in answer.headers["server-timing"].split(", ")}
    assert timing == {stage: f"{float(timing[stage]):.2f}" for stage in line["ms"] if stage != "total"}
    if "inference" in line["ms"]:
        texts = 2 if method == "POST" else 1
        assert (line["texts"], line["truncated"]) == (texts, 0) and line["tokens"] > line["cacheHits"] >= 0


MALFORMED = {
    400: get_request("/embed?q=cat").replace(" HTTP/1.1", " \x01 HTTP/1.1"),
    414: get_request("/embed?q=" + "a" * 9000),
    431: get_request("/embed?q=cat", f"A: {'a' * 9000}\r\n"),
}


@pytest.mark.parametrize("status", MALFORMED)
def test_lines_of_malformed_requests(server: Server, status: int) -> None:
    """A request that does not reach the app has its line, too, with the client's address."""
    answer = ask(server, MALFORMED[status], is_last=True)
    line = line_of(server, answer.headers["x-request-id"])
    assert (answer.status, line["httpRequest"]["status"], line["severity"]) == (status, status, "INFO")
    assert (line["route"], line["error"]) == ("other", answer.json["error"]["code"])
    assert line["httpRequest"]["responseSize"] == str(len(answer.body))
    assert line["httpRequest"]["remoteIp"] == "127.0.0.1"


def test_the_first_line(server: Server, busy: Server) -> None:
    """The first line says what is served, on which CPU, and the limits."""
    line = line_where(server, lambda line: "limits" in line)
    assert re.fullmatch(r"embedding-api [\d.]+ serves tiny \(int8\) on port \d+", line["message"])
    assert (line["severity"], line["version"], line["model"], line["precision"]) == (
        "INFO",
        requests.get(f"{busy.url}/", timeout=10).json()["version"],
        "tiny",
        "int8",
    )
    assert set(line["cpu"]) == {"architecture", "amx", "bf16", "vnni", "avx512", "avx2"}
    assert (line["workers"], line["limits"]["max_texts"], line["limits"]["max_length"]) == (2, 8, 64)
    other = line_where(busy, lambda line: "limits" in line)
    assert [other[name] for name in ("cpus", "workers", "slots")] == [1, 1, 1]
    assert (other["limits"]["max_queue"], other["limits"]["request_deadline"]) == (40, 2)


def test_probes(server: Server, busy: Server) -> None:
    """Successful probes are logged at LOG_LEVEL=debug only, failed ones always."""
    for path in ("/health", "/healthz", "/readyz"):
        answer = ask(server, get_request(path), is_last=True)
        assert (answer.status, line_of(server, answer.headers["x-request-id"])["severity"]) == (200, "DEBUG")
        assert ask(busy, get_request(path, "X-Request-Id: quiet\r\n")).status == 200
    assert ask(busy, get_request("/health", "X-Request-Id: loud\r\n", "POST")).status == 405
    assert line_of(busy, "loud")["severity"] == "INFO"
    assert "quiet" not in busy.output


@pytest.fixture(scope="module")
def text_server(start: Start, tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, LOG_FORMAT="text", WEB_CONCURRENCY=1).wait_until_ready()


def test_text(text_server: Server) -> None:
    """LOG_FORMAT=text is for people: time, severity, sentence, and the other fields as name=value."""
    answer = ask(text_server, get_request("/embed?q=cat"), is_last=True)
    until = time.monotonic() + 10
    while answer.headers["x-request-id"] not in text_server.output and time.monotonic() < until:
        time.sleep(0.01)
    for line in text_server.output.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING) \S", line), line
    (line,) = (line for line in text_server.output.splitlines() if answer.headers["x-request-id"] in line)
    for part in ("INFO GET /embed 200 in ", " route=/embed texts=1 tokens=3 ", " queue_ms=", " inference_ms="):
        assert part in line


def test_text_log_injection(text_server: Server) -> None:
    """A path with line breaks or terminal codes adds no line and no colors to the text log."""
    before = text_server.output.count("\n")
    answer = ask(
        text_server, get_request("/a%0A2026-01-01%2000:00:00%20INFO%20forged%1B[31m%E2%80%A8%C2%85"), is_last=True
    )
    until = time.monotonic() + 10
    while answer.headers["x-request-id"] not in text_server.output and time.monotonic() < until:
        time.sleep(0.01)
    assert answer.status == 404
    assert text_server.output.count("\n") == before + 1
    assert "\x1b" not in text_server.output
    assert [line for line in text_server.output.splitlines() if not re.match(r"\d{4}-.* (INFO|WARNING) \S", line)] == []


def test_lines_never_mix(tiny_model: Path) -> None:
    """Two workers write into one pipe, and each line is whole, also at the start and the end."""
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
    assert sorted(line["requestId"] for line in parse_lines(output) if "requestId" in line) == sorted(ids)
    assert max(len(line.encode()) for line in output.splitlines()) < PIECE_BYTES
