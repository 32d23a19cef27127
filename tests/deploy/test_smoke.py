"""deploy/smoke.py against a real server, against altered responses, and against URLs without this server."""

import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from build import verify
from tests.support import ROOT
from tests.support.server import Server, free_port
from tests.support.stand_ins import Change, altered, answering, model, quality, vectors

SMOKE = runpy.run_path(str(ROOT / "deploy/smoke.py"))


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH="64").wait_until_ready()


def test_the_smoke_check_has_the_builds_gate() -> None:
    """smoke.py has the limits of build/verify.py."""
    gate = {name: value for name, value in vars(verify).items() if name.startswith(("FP32_", "INT8_"))}
    assert len(gate) == 7
    assert {name: SMOKE[name] for name in gate} == gate


def smoke(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run smoke.py as the image does: from standard input, with any locale."""
    with (ROOT / "deploy/smoke.py").open() as script:
        return subprocess.run(
            [sys.executable, "-", *arguments],
            stdin=script,
            env={"LC_ALL": "C", **environ},
            capture_output=True,
            text=True,
        )


def test_smoke(server: Server) -> None:
    """A good server passes, with a line for each check and its result."""
    run = smoke(server.url)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("ok: ") for line in lines)
    about = requests.get(server.url, timeout=10).json()["model"]
    assert f"{about['id']} at {about['revision']}, int8, {about['dimension']} dimensions" in lines[1]


def test_smoke_with_a_key(start: Callable[..., Server], tiny_model: Path) -> None:
    """For a server with keys, the key is sent, and Cloud Run's token in another header."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, API_KEY="one,two").wait_until_ready()
    assert "401" in smoke(server.url, SMOKE_TOKEN="token").stderr
    assert smoke(server.url, SMOKE_TOKEN="token", SMOKE_API_KEY="two").returncode == 0
    assert smoke(server.url, SMOKE_API_KEY="one,two").returncode == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (model(stand_in=True), "The model is the "),
        (quality("fp32", "min", 0.9999), "FP32's least cosine is 0.9999, below 0.99999"),
        (quality("fp32", "length_difference", 0.01), "FP32's vectors differ in length by 0.01, not below 0.001"),
        (quality("int8", "mean", 0.9), f"INT8's mean cosine is 0.9, below {verify.INT8_COSINE['mean']}"),
        (quality("int8", "p1", 0.8), f"INT8's p1 cosine is 0.8, below {verify.INT8_COSINE['p1']}"),
        (quality("int8", "min", 0.7), f"INT8's min cosine is 0.7, below {verify.INT8_COSINE['min']}"),
        (quality("unlike", "min", 0.9), f"is 0.9, below {verify.INT8_UNLIKE_COSINE['min']}"),
        (quality("int8", "pairwise_difference", 0.02), f"is 0.02, not below {verify.INT8_PAIRWISE_DIFFERENCE}"),
        (quality("int8", "pairwise_difference", float("nan")), f"is nan, not below {verify.INT8_PAIRWISE_DIFFERENCE}"),
        (quality("retrieval", "difference", -0.5), f"more than {verify.INT8_RETRIEVAL_LOSS} below the original's"),
        (quality("neighbours", "overlap", 0.5), f"is 0.5, below {verify.INT8_NEIGHBOURS}"),
        (vectors(lambda given: given[:2]), "for 3 texts"),
        (vectors(lambda given: [given[0]] * 3), "the same vector for different texts"),
        (vectors(lambda given: [*given[:2], given[2][::-1]]), "another vector alone than in a batch"),
        (vectors(lambda given: [[float("inf"), *given[0][1:]], *given[1:]]), "not finite"),
        (lambda path, answer: (503 if path == "/embed" else 200, answer), "/embed answered 503"),
        (lambda path, answer: (200, {} if path == "/" else answer), "not of this API's form"),
        (
            lambda path, answer: (200, {"replies": []} if path == "/bigquery" else answer),
            "do not all give the vectors of /embed with texts",
        ),
        (lambda path, answer: (200, {"error": "no"} if "error" in answer else answer), "/embed answered an empty list"),
    ],
)
def test_smoke_refuses(server: Server, change: Change, says: str) -> None:
    """Each wrong response fails its check, with the reason."""
    with altered(server, change) as url:
        run = smoke(url)
    assert run.returncode == 1
    assert run.stderr.startswith("FAILED: ")
    assert says in run.stderr
    assert "Traceback" not in run.stderr


def test_smoke_takes_the_stand_in_where_that_is_said(server: Server) -> None:
    """The stand-in passes only with --allow-stand-in."""
    with altered(server, model(stand_in=True, warning="not for production")) as url:
        run = smoke(url, "--allow-stand-in")
    assert run.returncode == 0, run.stderr
    assert "warning: not for production" in run.stdout


def test_smoke_gives_up(server: Server) -> None:
    """A closed port and a private service fail with the reason when the time is up."""
    run = smoke(f"http://127.0.0.1:{free_port()}", "--timeout", "0.5")
    assert run.returncode == 1
    assert "/readyz did not answer 200 within 0.5 s; last: <urlopen error" in run.stderr
    with altered(server, lambda _, answer: (403, answer)) as url:
        run = smoke(url, "--timeout", "0.5", "--ready-path", "/health")
    assert run.returncode == 1
    assert "/health went on answering 403 with " in run.stderr
    assert "set SMOKE_TOKEN to an identity token" in run.stderr


@pytest.mark.parametrize(("denials", "passes"), [(2, True), (10**9, False)])
def test_smoke_waits_for_a_permission_but_not_long(
    server: Server, monkeypatch: pytest.MonkeyPatch, denials: int, passes: bool
) -> None:
    """A new permission is waited for, but only for seconds: a missing one does not use the time of a slow start."""
    names = SMOKE["ready"].__globals__
    monkeypatch.setitem(names, "RETRY_SECONDS", 0.01)
    monkeypatch.setitem(names, "DENIED_SECONDS", 10 if passes else 0.1)
    asked: list[str] = []

    def change(path: str, answer: Any) -> tuple[int, Any]:
        asked.append(path)
        return 403 if len(asked) <= denials else 200, answer

    began = time.monotonic()
    with altered(server, change) as url:
        if passes:
            assert SMOKE["ready"](SMOKE["Server"](url), "/health", 300) == "/health answers 200"
            assert len(asked) == denials + 1
        else:
            with pytest.raises(SMOKE["Failed"], match="went on answering 403"):
                SMOKE["ready"](SMOKE["Server"](url), "/health", 300)
            assert len(asked) > 1
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("failures", "passes"), [(2, True), (3, False)])
def test_smoke_bears_an_instance_that_starts(server: Server, failures: int, passes: bool) -> None:
    """503 is tried again twice."""
    asked: list[str] = []

    def change(path: str, answer: Any) -> tuple[int, Any]:
        if path == "/embed":
            asked.append(path)
        return (503 if path == "/embed" and len(asked) <= failures else 200), answer

    with altered(server, change) as url:
        run = smoke(url)
    assert (run.returncode == 0) == passes, run.stderr
    assert passes or "/embed answered 503" in run.stderr


def test_smoke_follows_no_redirect(server: Server) -> None:
    """A redirect is not followed: the token would go to another host."""
    seen: list[str] = []

    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.path)
        request.send_response(200)
        request.end_headers()

    with answering(elsewhere) as other:

        def redirect(request: BaseHTTPRequestHandler) -> None:
            request.send_response(307)
            request.send_header("Location", other + request.path)
            request.end_headers()

        with answering(redirect) as url:
            run = smoke(url, "--timeout", "0.5", SMOKE_TOKEN="token")
    assert run.returncode == 1
    assert "/readyz did not answer 200 within 0.5 s; last: 307" in run.stderr
    assert seen == []


def test_smoke_does_not_wait_for_a_server_that_drips(server: Server) -> None:
    """A server that sends a byte now and then fails when the limit of all checks is reached."""

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            request.wfile.write(b" ")
            time.sleep(0.1)

    began = time.monotonic()
    with answering(drip) as url:
        run = smoke(url, "--timeout", "0.5")
    assert run.returncode == 1
    assert "an answer of /readyz did not end within 4.5 s" in run.stderr
    assert time.monotonic() - began < 60


def test_smoke_reads_no_more_than_an_answer_can_have(server: Server) -> None:
    """A response that is too large fails."""

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            request.wfile.write(b" " * 100_000)

    with answering(endless) as url:
        run = smoke(url)
    assert run.returncode == 1
    assert "/readyz answered with more than 1000000 bytes." in run.stderr


@pytest.mark.parametrize(
    "url",
    ["localhost", "localhost:8080", "http://", "http://localhost:port", "http://[::1", "http://localhost/docs", ""],
)
def test_smoke_wants_a_url(url: str) -> None:
    """A malformed URL is refused."""
    run = smoke(url)
    assert run.returncode == 1
    assert run.stderr == (
        f"FAILED: {url}: this is no URL of a server; it must be like http://localhost:8080 or https://example.com, "
        "without a path.\n"
    )
