"""GET /metrics of real servers: the right counts, across workers and under load."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.support.http import ask, connect, read_answer, run_in_threads
from tests.support.log import LONG, post_request, send_slow_requests
from tests.support.metrics import Scrape, wait_for
from tests.support.server import Server, Start

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
    "embedding_replaced_surrogates": set(),
    "embedding_refused_requests": {"reason"},
    "embedding_queue_requests": set(),
    "embedding_in_flight_requests": set(),
    "embedding_queue_limit_requests": set(),
    "embedding_slots": set(),
    "embedding_workers": set(),
    "embedding_build_info": {"version", "model", "revision", "precision", "recipe", "stand_in"},
}
STAGES = {"queue", "tokenize", "inference", "serialize"}


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two workers."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=2, WEB_CONCURRENCY=2, MAX_QUEUE=30).wait_until_ready()
    wait_for(server, lambda scrape: scrape("embedding_workers") == 2)
    return server


@pytest.fixture(scope="module")
def first(server: Server) -> Scrape:
    """A scrape before any request but /readyz and /metrics."""
    return Scrape(server)


@pytest.fixture(scope="module")
def one_worker(start: Start, tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()


def test_the_text(first: Scrape) -> None:
    """The text has what Prometheus wants: its type, help and type of each metric, and cumulative buckets."""
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


def test_all_series_exist_at_the_start(first: Scrape) -> None:
    """Every series exists at the start, at zero or with its constant value."""
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
    """Every request, text and token of 12 simultaneous clients is counted once, in whichever worker."""
    answers = []

    def client(number: int) -> None:
        for n in range(12):
            texts = [f"{number} {n} {i}" for i in range(n)]
            answers.append(requests.post(f"{server.url}/embed", json={"texts": texts}, timeout=30))
            answers.append(requests.get(f"{server.url}/embed?q={number}+{n}", timeout=30))
            answers.append(requests.get(f"{server.url}/info", timeout=30))

    run_in_threads(12, client)
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
    after = wait_for(server, lambda scrape: all(scrape(name, **labels) == count for name, labels, count in expected))
    stages = {stage: after("embedding_stage_seconds_sum", stage=stage) for stage in STAGES}
    assert min(stages.values()) > 0
    assert sum(stages.values()) <= after("embedding_request_seconds_sum", route="/embed")


def test_counts_of_computed_texts(one_worker: Server) -> None:
    """Cached and truncated texts and lone surrogates are counted; requests that compute nothing are in no stage."""
    requests.post(f"{one_worker.url}/embed", data=rb'{"texts": ["a \ud83d", "\ude00\ud83d"]}', timeout=30)
    requests.post(f"{one_worker.url}/embed", json={"texts": ["cat", "cat", "a " * 100, "mat"]}, timeout=30)
    requests.post(f"{one_worker.url}/v1/embeddings", json={"input": ["cat", "mat", "sat"]}, timeout=30)
    requests.post(f"{one_worker.url}/embed", json={"inputs": [[5] * 100]}, timeout=30)
    requests.post(f"{one_worker.url}/bigquery", json={"calls": [["cat"], [None], ["sat"]]}, timeout=30)
    for path, body in {"/tokenize": {"inputs": "a"}, "/decode": {"ids": [5]}, "/embed": {"texts": [1]}}.items():
        requests.post(f"{one_worker.url}{path}", json=body, timeout=30)
    requests.post(f"{one_worker.url}/bigquery", json={"calls": [[None]]}, timeout=30)
    for path in ("/health", "/", "/docs", "/v1/models/tiny", "/v1/models/a/b/c", "/docs/assets/nope"):
        requests.get(f"{one_worker.url}{path}", timeout=30)
    scrape = wait_for(
        one_worker, lambda scrape: scrape("embedding_requests_total", route="/docs/assets/<path:filename>") == 1
    )
    counted = {name: scrape(f"embedding_{name}_total") for name in ("texts", "truncated_texts", "cache_hits")}
    assert scrape("embedding_replaced_surrogates_total") == 3
    assert counted == {"texts": 2 + 4 + 3 + 1 + 2, "truncated_texts": 2, "cache_hits": 2 + 2}
    assert {stage: scrape("embedding_stage_seconds_count", stage=stage) for stage in STAGES} == dict.fromkeys(STAGES, 5)
    assert scrape("embedding_requests_total", method="GET", route="/v1/models/<path:model>", status="200") == 1
    assert scrape("embedding_requests_total", method="GET", route="/v1/models/<path:model>", status="404") == 1
    assert scrape("embedding_requests_total", method="POST", route="/embed", status="400") == 1


def test_labels_stay_few(one_worker: Server) -> None:
    """Unknown paths and methods and malformed requests share one route and one method."""
    requests.get(f"{one_worker.url}/nope", timeout=30)
    before = wait_for(one_worker, lambda scrape: "nope" not in str(scrape.values))

    for n in range(200):
        ask(one_worker, f"GET /nope/{n}?{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        ask(one_worker, f"NOPE{n}-{n} /embed/{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        ask(one_worker, f"DELETE /v1/models/{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        ask(one_worker, f"GET /{n}\x01 HTTP/1.{n}\r\n\r\n")
    after = wait_for(one_worker, lambda scrape: scrape("embedding_requests_total", route="other") >= 800)
    assert after("embedding_requests_total", route="other") - before("embedding_requests_total", route="other") <= 801
    added = {series for series in after.values if series not in before.values}
    values = {dict(series[1]).get("method") for series in added} | {dict(series[1]).get("route") for series in added}
    assert values <= {"GET", "other"} and len(added) < 30


@pytest.fixture(scope="module")
def busy(start: Start, tiny_model: Path) -> Server:
    """One CPU; 40 requests may wait, none longer than 2 s."""
    limits = {"CPUS": 1, "MAX_QUEUE": 40, "REQUEST_DEADLINE": 2, "MAX_TEXTS": 100_000}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **limits).wait_until_ready()


def test_a_full_queue(busy: Server) -> None:
    """With a full queue GET /metrics is answered and counts waiting and rejected requests; afterwards none waits."""
    refused = "embedding_refused_requests_total"
    with ExitStack() as stack:
        late, left = (stack.enter_context(connect(busy)) for _ in range(2))
        late.sendall(post_request("/embed", json.dumps(LONG)).encode())
        assert read_answer(late).status == 503
        ahead = send_slow_requests(busy, stack, 20)
        during = wait_for(busy, lambda scrape: scrape("embedding_queue_requests") > 10)
        assert during("embedding_in_flight_requests") > 10
        left.sendall(post_request("/embed", '{"texts": ["%s"]}' % ("cat " * 1000)).encode())
        left.close()
        wait_for(busy, lambda scrape: scrape("embedding_queue_requests") > 0)
        statuses = [read_answer(connection).status for connection in ahead + send_slow_requests(busy, stack, 80)]
    after = wait_for(busy, lambda scrape: scrape("embedding_queue_requests") + others_in_flight(scrape) == 0)
    assert after(refused, reason="queue_full") == statuses.count(429) > 0
    assert after(refused, reason="deadline_exceeded") == 1 + statuses.count(503)
    for status in ("499", "503"):
        assert after("embedding_requests_total", method="POST", route="/embed", status=status) == 1
    assert after("embedding_request_seconds_count", method="POST", route="/embed") == 0
    assert after("embedding_stage_seconds_count") == after("embedding_texts_total") == 0


def others_in_flight(scrape: Scrape) -> float:
    """Return the number of requests in flight without the scrape itself."""
    return max(0, scrape("embedding_in_flight_requests") - 1)
