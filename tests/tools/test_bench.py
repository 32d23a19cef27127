"""make bench and make soak measure the figures of the documents; test_bench_report.py is about showing them."""

import os
from pathlib import Path

import pytest
import requests

from app.engine import cpu
from tests.support.programs import require
from tools.bench import bulk, engine, load, one_cpu, serving, soak


@pytest.fixture
def quick(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model, one short round."""
    require("wrk", "wrk")
    for module, seconds in ((serving, 1), (one_cpu, 2)):  # on one busy CPU, no request may be done in a second
        monkeypatch.setattr(module, "ROUNDS", 1)
        monkeypatch.setattr(module, "SECONDS", seconds)
    monkeypatch.setattr(serving, "CLIENTS", (1, 8))
    monkeypatch.setattr(one_cpu, "LOADS", [(1, 1), (1, 20), (32, 2)])
    monkeypatch.setenv("MODEL_DIR", str(tiny_model))
    monkeypatch.setenv("MAX_LENGTH", "64")


@pytest.mark.usefixtures("quick")
def test_the_server_against_the_engine() -> None:
    """The comparison has rates, the milliseconds of one client, and ratios of the same round."""
    settings, texts = load.settings(), load.mixed_texts()
    encode = engine.encode_with(engine.load(settings, "model_int8.onnx"))
    found = serving.compare(settings, texts, {"int8": encode})
    assert found["engine"]["int8"] > 0 and found["cache"]["hit_p50"] > 0
    http = found["http"]
    assert all(value > 0 for value in http.values())
    assert http["batches_over_engine"] == pytest.approx(http["batches"] / found["engine"]["int8"])
    assert engine.accuracy(encode, encode, texts)["min"] == pytest.approx(1)


@pytest.mark.usefixtures("quick")
def test_latencies_and_fairness() -> None:
    """Percentiles rise for each number of clients and length, alone and beside large batches."""
    settings, texts = load.settings(), load.mixed_texts()
    encoder = engine.load(settings, "model_int8.onnx")
    found = serving.latencies(settings, texts, encoder)
    assert [row["clients"] for row in found["latency_by_clients"]] == [1, 8]
    assert [row["name"] for row in found["latency_by_length"]] == ["word", "sentence", "paragraph", "page"]
    unfair = serving.fairness(settings, texts, encoder)
    rows = [*found["latency_by_clients"], *found["latency_by_length"], unfair["unloaded"], unfair["loaded"]]
    assert all(0 < row["p50"] <= row["p95"] <= row["p99"] for row in rows)


@pytest.mark.usefixtures("quick")
def test_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the capacity is sent, and the responses are counted."""
    monkeypatch.setenv("MAX_QUEUE", "40")  # more than the clients that measure what can be answered
    monkeypatch.setattr(serving, "OVERLOAD_PAUSE_SECONDS", 0.02)
    found = serving.overload(load.settings(), load.mixed_texts())
    assert found["offered"] > found["answered"] > 0
    assert 0 <= found["refused_p50"] <= found["refused_p99"]  # no probe may have been refused


@pytest.mark.usefixtures("quick")
def test_start_and_memory() -> None:
    """Start and memory are seconds to the first vector and megabytes of a worker."""
    found = serving.start_and_memory(load.settings())
    assert 0 < found["start_seconds"] < 60 and found["memory"]["one_worker_mb"] > 10


@pytest.mark.usefixtures("quick")
def test_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bulk command and the bare engine have rates for short and for mixed texts, which are all different."""
    monkeypatch.setattr(bulk, "ROUNDS", 1)
    monkeypatch.setattr(bulk, "COUNTS", {"short": 300, "mixed": 200})
    found = bulk.measure(load.settings())
    assert [row["texts"] for row in found.values()] == [300, 200]
    assert found["short"]["tokens"] < found["mixed"]["tokens"]
    assert all(value > 0 for row in found.values() for value in row.values())
    assert len(set(bulk.samples("short", 20_000))) > 19_000


@pytest.mark.usefixtures("quick")
def test_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short form of `make soak`: in 20 seconds, memory grows by a few percent at most."""
    monkeypatch.setattr(soak, "TEXTS", 2000)
    server = load.serve(load.settings(), CACHE_SIZE="1000").wait_until_ready()
    try:
        assert -0.5 < soak.soak(server, load.settings(), 20) < 0.05
    finally:
        server.stop()


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(cpu.available_cpus() < 2, reason="wrk needs a second CPU")
def test_one_cpu() -> None:
    """Each load has texts/s, rising percentiles and CPU time; afterwards this process may use all its CPUs."""
    before = os.sched_getaffinity(0)
    found = one_cpu.measure(load.settings(), load.mixed_texts())
    assert os.sched_getaffinity(0) == before
    assert found is not None
    assert [(row["texts"], row["clients"]) for row in found["loads"]] == [(1, 1), (1, 20), (32, 2)]
    for row in found["loads"]:
        assert row["texts_per_second"] > 0 and row["cpu_ms_per_text"] > 0
        assert row["p50"] <= row["p95"] <= row["p99"]
    assert found["start_seconds"] > 0 and found["memory_mb"] > 0 and found["largest_seconds"] > 0


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(cpu.available_cpus() < 2, reason="wrk needs a second CPU")
def test_one_cpu_server_has_one_cpu() -> None:
    """A pinned server counts one CPU; the load runs on another."""
    with one_cpu.one_cpu_server(load.settings()) as server:
        load.wait_for_first_vector(server)
        assert requests.get(server.url, timeout=10).json()["cpu"]["available"] == 1
        assert os.sched_getaffinity(server.workers()[0]) & os.sched_getaffinity(0) == set()
