"""GET /metrics of real servers: right across workers, while they work and when they die."""

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.server.test_load import connect
from tests.server.test_logs import LONG, crowd, received, send
from tests.support.server import Server

Start = Callable[..., Server]
ROUTES = """GET /, POST /, GET /embed, POST /embed, POST /v1/embeddings, GET /v1/models, GET /v1/models/<path:model>,
    POST /similarity, POST /tokenize, POST /decode, GET /info, POST /bigquery, GET /health, GET /healthz, GET /readyz,
    GET /metrics, GET /docs, GET /openapi.json, GET other, POST other"""
LABELS = {
    "embedding_requests": {"method", "route", "status"},
    "embedding_request_seconds": {"method", "route"},
    "embedding_stage_seconds": {"stage"},
    "embedding_texts": set(),
    "embedding_tokens": set(),
    "embedding_truncated_texts": set(),
    "embedding_cache_hits": set(),
    "embedding_refused_requests": {"reason"},
    "embedding_queue_requests": set(),
    "embedding_in_flight_requests": set(),
    "embedding_queue_limit_requests": set(),
    "embedding_slots": set(),
    "embedding_workers": set(),
    "embedding_build_info": {"version", "model", "revision", "precision", "recipe", "stand_in"},
}
STAGES = {"queue", "tokenize", "inference", "serialize"}


# A name, and the names and values of labels.
Series = tuple[str, tuple[tuple[str, str], ...]]


class Scrape:
    """What GET /metrics says. values: of each series."""

    def __init__(self, server: Server) -> None:
        response = requests.get(f"{server.url}/metrics", timeout=30)
        assert response.ok, response.text
        self.type = response.headers["Content-Type"]
        self.families = {family.name: family for family in text_string_to_metric_families(response.text)}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self.values: dict[Series, float] = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}
        assert len(self.values) == len(samples) == len([x for x in response.text.splitlines() if x[0] != "#"])

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of all series that have these labels, of which there must be one."""
        found = [
            value
            for (own, there), value in self.values.items()
            if own == name and labels.items() <= dict(there).items()
        ]
        assert found, (name, labels)
        return sum(found)

    def counters(self) -> dict[Series, float]:
        """All that must never become less."""
        ends = ("_total", "_bucket", "_count", "_sum")
        return {series: value for series, value in self.values.items() if series[0].endswith(ends)}


def when(server: Server, holds: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape of which that holds: another worker's counts may come a little later."""
    until = time.monotonic() + 20
    while not holds(scrape := Scrape(server)):
        assert time.monotonic() < until, {series: value for series, value in scrape.values.items() if value}
        time.sleep(0.02)
    return scrape


def are(count: int) -> Callable[[Scrape], bool]:
    return lambda scrape: scrape("embedding_workers") == count


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two workers."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=2, WEB_CONCURRENCY=2, MAX_QUEUE=30).wait_until_ready()
    when(server, are(2))
    return server


@pytest.fixture(scope="module")
def first(server: Server) -> Scrape:
    """Before anything but /readyz and /metrics was asked."""
    return Scrape(server)


@pytest.fixture(scope="module")
def alone(start: Start, tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()


def test_the_text(first: Scrape) -> None:
    """What Prometheus wants: the type, a help and a type for each, buckets that grow and end with all."""
    assert first.type == "text/plain; version=0.0.4; charset=utf-8"
    assert {name: LABELS[name] for name in first.families} == LABELS
    for name, family in first.families.items():
        assert family.documentation and family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == LABELS[name]
        if family.type == "histogram":
            buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
            assert [float(sample.labels["le"]) for sample in buckets[:16]] == [
                *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, float("inf"))
            ]
            for before, after in zip(buckets, buckets[1:]):
                assert before.value <= after.value or before.labels["le"] == "+Inf"


def test_all_is_there_at_the_start(first: Scrape) -> None:
    """Every series that there will be, at zero, and what does not change."""
    for method, route in (pair.split() for pair in ROUTES.replace("\n", "").split(",")):
        asked = route in ("/readyz", "/metrics")
        for status in ("200", "400", "401", "413", "429", "500", "503"):
            count = first("embedding_requests_total", method=method, route=route, status=status)
            assert count == 0 or asked, (method, route, status)
        assert first("embedding_request_seconds_count", method=method, route=route) == 0 or asked
    assert {
        dict(series[1])["stage"] for series in first.values if series[0] == "embedding_stage_seconds_count"
    } == STAGES
    for name in ("stage_seconds_count", "texts_total", "tokens_total", "truncated_texts_total", "cache_hits_total"):
        assert first(f"embedding_{name}") == 0
    for reason in ("queue_full", "deadline_exceeded", "shutting_down"):
        assert first("embedding_refused_requests_total", reason=reason) == 0
    for name, value in {"queue": 0, "queue_limit": 60}.items():
        assert first(f"embedding_{name}_requests") == value
    assert first("embedding_slots") == first("embedding_workers") == 2
    assert first("embedding_build_info", model="tiny", precision="int8", stand_in="false", revision="") == 1


def test_counts_of_all_workers(server: Server, first: Scrape) -> None:
    """12 clients at once, each of its own mix: every request, text and token is counted once."""
    answers = []

    def client(number: int) -> None:
        for n in range(12):
            texts = [f"{number} {n} {i}" for i in range(n)]
            answers.append(requests.post(f"{server.url}/embed", json={"texts": texts}, timeout=30))
            answers.append(requests.get(f"{server.url}/embed?q={number}+{n}", timeout=30))
            answers.append(requests.get(f"{server.url}/info", timeout=30))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [answer.json().get("tokens", []) for answer in answers]
    tokens = [count for counts in found for count in (counts if isinstance(counts, list) else [counts])]
    post = {"method": "POST", "route": "/embed"}
    expected: list[tuple[str, dict[str, str], int]] = [
        ("embedding_texts_total", {}, len(tokens)),
        ("embedding_tokens_total", {}, sum(tokens)),
        ("embedding_requests_total", {**post, "status": "200"}, 12 * 11),
        ("embedding_requests_total", {**post, "status": "400"}, 12),
        ("embedding_requests_total", {"method": "GET", "route": "/embed", "status": "200"}, 12 * 12),
        ("embedding_requests_total", {"route": "/info"}, 12 * 12),
        ("embedding_request_seconds_count", post, 12 * 12),
        ("embedding_request_seconds_bucket", {**post, "le": "+Inf"}, 12 * 12),
        *(("embedding_stage_seconds_count", {"stage": stage}, 12 * 23) for stage in STAGES),
    ]
    assert len(tokens) == 12 * (66 + 12)
    after = when(server, lambda scrape: all(scrape(name, **labels) == count for name, labels, count in expected))
    stages = {stage: after("embedding_stage_seconds_sum", stage=stage) for stage in STAGES}
    assert min(stages.values()) > 0
    assert sum(stages.values()) <= after("embedding_request_seconds_sum", route="/embed")


def test_what_is_computed_is_told_apart(alone: Server) -> None:
    """Cached and cut texts are counted; who computes nothing is in no stage."""
    requests.post(f"{alone.url}/embed", json={"texts": ["cat", "cat", "a " * 100, "mat"]}, timeout=30)
    requests.post(f"{alone.url}/v1/embeddings", json={"input": ["cat", "mat", "sat"]}, timeout=30)
    requests.post(f"{alone.url}/embed", json={"inputs": [[5] * 100]}, timeout=30)
    requests.post(f"{alone.url}/bigquery", json={"calls": [["cat"], [None], ["sat"]]}, timeout=30)
    for path, body in {"/tokenize": {"inputs": "a"}, "/decode": {"ids": [5]}, "/embed": {"texts": [1]}}.items():
        requests.post(f"{alone.url}{path}", json=body, timeout=30)
    requests.post(f"{alone.url}/bigquery", json={"calls": [[None]]}, timeout=30)
    for path in ("/health", "/", "/docs", "/v1/models/tiny", "/v1/models/a/b/c", "/docs/assets/nope"):
        requests.get(f"{alone.url}{path}", timeout=30)
    scrape = when(alone, lambda scrape: scrape("embedding_requests_total", route="/docs/assets/<path:filename>") == 1)
    counted = {name: scrape(f"embedding_{name}_total") for name in ("texts", "truncated_texts", "cache_hits")}
    assert counted == {"texts": 4 + 3 + 1 + 2, "truncated_texts": 2, "cache_hits": 2 + 2}
    assert {stage: scrape("embedding_stage_seconds_count", stage=stage) for stage in STAGES} == dict.fromkeys(STAGES, 4)
    assert scrape("embedding_requests_total", method="GET", route="/v1/models/<path:model>", status="200") == 1
    assert scrape("embedding_requests_total", method="GET", route="/v1/models/<path:model>", status="404") == 1
    assert scrape("embedding_requests_total", method="POST", route="/embed", status="400") == 1


def test_labels_stay_few(alone: Server) -> None:
    """Unknown paths, methods, versions and requests that cannot be read are one route and one method each."""
    requests.get(f"{alone.url}/nope", timeout=30)
    before = when(alone, lambda scrape: "nope" not in str(scrape.values))

    def sent(request: str) -> None:
        with connect(alone) as connection:
            connection.sendall(request.encode())
            connection.shutdown(socket.SHUT_WR)
            received(connection)

    for n in range(200):
        sent(f"GET /nope/{n}?{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        sent(f"NOPE{n}-{n} /embed/{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        sent(f"DELETE /v1/models/{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        sent(f"GET /{n}\x01 HTTP/1.{n}\r\n\r\n")
    after = when(alone, lambda scrape: scrape("embedding_requests_total", route="other") >= 800)
    assert after("embedding_requests_total", route="other") - before("embedding_requests_total", route="other") <= 801
    added = {series for series in after.values if series not in before.values}
    values = {dict(series[1]).get("method") for series in added} | {dict(series[1]).get("route") for series in added}
    assert values <= {"GET", "other"} and len(added) < 30


@pytest.fixture(scope="module")
def busy(start: Start, tiny_model: Path) -> Server:
    """One CPU, 40 requests may wait, and none for longer than 2 s."""
    limits = {"CPUS": 1, "MAX_QUEUE": 40, "REQUEST_DEADLINE": 2, "MAX_TEXTS": 100_000}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **limits).wait_until_ready()


def test_a_full_queue(busy: Server) -> None:
    """GET /metrics is answered, says who waits and who is refused, and that all is over afterwards."""
    refused = "embedding_refused_requests_total"
    with ExitStack() as stack:
        late, left = (stack.enter_context(connect(busy)) for _ in range(2))
        late.sendall(send("/embed", json.dumps(LONG)).encode())
        assert received(late)[0] == 503
        ahead = crowd(busy, stack, 20)
        during = when(busy, lambda scrape: scrape("embedding_queue_requests") > 10)
        assert during("embedding_in_flight_requests") > 10
        left.sendall(send("/embed", '{"texts": ["%s"]}' % ("cat " * 1000)).encode())
        left.close()
        when(busy, lambda scrape: scrape("embedding_queue_requests") > 0)
        statuses = [received(connection)[0] for connection in ahead + crowd(busy, stack, 80)]
    after = when(busy, lambda scrape: scrape("embedding_queue_requests") + idle(scrape) == 0)
    assert after(refused, reason="queue_full") == statuses.count(429) > 0
    assert after(refused, reason="deadline_exceeded") == 1 + statuses.count(503)
    for status in ("499", "503"):
        assert after("embedding_requests_total", method="POST", route="/embed", status=status) == 1
    assert after("embedding_request_seconds_count", method="POST", route="/embed") == 0
    assert after("embedding_stage_seconds_count") == after("embedding_texts_total") == 0


def idle(scrape: Scrape) -> float:
    """Requests in flight but the scrape itself, which may be."""
    return max(0, scrape("embedding_in_flight_requests") - 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_workers_counts_stay_and_its_gauges_go(server: Server, first: Scrape, number: signal.Signals) -> None:
    """However a worker ends: no counter goes back, ever, and nobody is counted twice."""
    for n in range(40):
        requests.get(f"{server.url}/embed?q={n}", timeout=30)
    at_least = 40 + first("embedding_texts_total")
    last = when(server, lambda scrape: scrape("embedding_texts_total") >= at_least)
    for _ in range(2):
        old = server.workers()
        os.kill(old[0], number)
        while set(server.workers()) == set(old) or len(server.workers()) < 2 or not are(2)(last):
            scrape = Scrape(server)
            assert {series for series, value in last.counters().items() if scrape.values[series] < value} == set()
            last = scrape
    last = when(server, lambda scrape: scrape("embedding_slots") == scrape("embedding_workers") == 2)
    assert last("embedding_queue_limit_requests") == 60
    assert last("embedding_build_info") == 1


def test_a_reload_keeps_the_counts(server: Server) -> None:
    """SIGHUP replaces all workers."""
    requests.get(f"{server.url}/embed?q=cat", timeout=30)
    before, old = Scrape(server), server.workers()
    server.process.send_signal(signal.SIGHUP)
    while set(server.workers()) & set(old):
        time.sleep(0.02)
    after = when(server, are(2))
    assert {series for series, value in before.counters().items() if after.values[series] < value} == set()
    texts = after("embedding_texts_total")
    requests.get(f"{server.url}/embed?q=cat", timeout=30)
    assert when(server, lambda scrape: scrape("embedding_texts_total") == texts + 1)("embedding_build_info") == 1


def folder(server: Server) -> Path:
    return Path(f"/dev/shm/embedding-metrics-{server.process.pid}")


def test_the_folder(start: Start, tiny_model: Path) -> None:
    """In memory, nobody else's, and gone when the server is."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    assert folder(server).stat().st_mode & 0o777 == 0o700
    server.stop()
    assert not folder(server).exists()


class NoFolder(Server):
    """A server that cannot make its folder: something else has that name."""

    def run(self, command: list[str], environ: dict[str, str] | None = None, is_quiet: bool = False) -> None:
        name = "/dev/shm/embedding-metrics-$$"
        super().run(["sh", "-c", f': > {name} && exec "$0"', *command], environ, is_quiet)


def test_without_a_folder(tiny_model: Path, first: Scrape) -> None:
    """It serves as well; each worker tells its own."""
    server = NoFolder({"MODEL_DIR": str(tiny_model), "MAX_LENGTH": "64", "CPUS": "1"})
    try:
        server.wait_until_ready()
        assert folder(server).is_file()
        assert requests.get(f"{server.url}/embed?q=cat", timeout=30).ok
        scrape = when(server, lambda scrape: scrape("embedding_texts_total") == 1)
        assert scrape("embedding_requests_total", method="GET", route="/embed", status="200") == 1
        assert scrape("embedding_workers") == scrape("embedding_slots") == scrape("embedding_build_info") == 1
        assert set(scrape.families) == set(first.families)
    finally:
        server.stop()
        folder(server).unlink(missing_ok=True)


@pytest.mark.parametrize("environ", [{"MODEL_DIR": "nowhere"}, {"MAX_LENGTH": "long"}])
def test_a_failed_start_leaves_no_folder(start: Start, environ: dict[str, str]) -> None:
    server = start(**environ)
    server.output_of_failed_boot()
    assert not folder(server).exists()


def kill_the_worker(server: Server) -> None:
    """And wait until the next one answers."""
    (old,) = server.workers()
    os.kill(old, signal.SIGKILL)
    while server.workers() in ([], [old]):
        time.sleep(0.02)
    server.wait_until_ready()
    when(server, are(1))


def test_dead_workers_do_not_fill_the_memory(start: Start, tiny_model: Path) -> None:
    """Docker gives /dev/shm 64 MB; when it is full, every write kills a worker."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()
    blocks = []
    for _ in range(4):
        kill_the_worker(server)
        blocks.append(sum(file.stat().st_blocks for file in folder(server).iterdir()))
    assert blocks[1] == blocks[2] == blocks[3]


def test_a_folder_that_somebody_takes_away(start: Start, tiny_model: Path) -> None:
    """Metrics may be lost, the server may not."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()
    shutil.rmtree(folder(server))
    kill_the_worker(server)
    scrape = Scrape(server)
    assert scrape("embedding_workers") == scrape("embedding_build_info") == 1
