"""The server, from outside: against the bare engine, with more clients, with unfair ones, with too many."""

import http.client
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import requests

from app.engine.encoder import Encoder
from app.settings import Settings
from tests.support.server import Server
from tools.bench import engine, load
from tools.bench.engine import Encode
from tools.bench.load import BATCH

ROUNDS = 5
SECONDS = 4.0
CLIENTS = (1, 2, 4, 8, 16, 32)
MANY_CLIENTS = 32
# Tokens, special ones included.
LENGTHS = {"word": (3, 8), "sentence": (15, 30), "paragraph": (60, 130), "page": (200, 100_000)}
LARGE_BATCH = 64
# Offered, in multiples of the most that is answered; each client sends again after so many seconds.
OVERLOAD = 10
OVERLOAD_PAUSE_SECONDS = 0.25
PROBE_SECONDS = 0.02

Rates = dict[str, list[float]]
Result = dict[str, Any]


def compare(settings: Settings, texts: list[str], engines: Mapping[str, Encode]) -> dict[str, Result]:
    """Measure bare engines and the server in alternation, since machines are noisy; return medians of ROUNDS."""
    rates: Rates = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        singles, batched = (load.write_bodies(folder, texts, size) for size in (1, BATCH))
        server = load.serve(settings, CACHE_SIZE="0").wait_until_ready()
        cached = load.serve(settings).wait_until_ready()
        try:
            for _ in range(ROUNDS):
                for name, encode in engines.items():
                    note(name, engine.texts_per_second(encode, texts, SECONDS))
                note("batches", load.wrk(server, batched, 2, SECONDS).requests_per_second * BATCH)
                note("clients_32", load.wrk(server, singles, MANY_CLIENTS, SECONDS).requests_per_second)
                note("engine_p50", engine.median_ms(engines["int8"], texts))
                note("one_client_p50", load.wrk(server, singles, 1, SECONDS).p50)
                note("cached", load.wrk(cached, singles, MANY_CLIENTS, SECONDS).requests_per_second)
                note("hit_p50", load.wrk(cached, singles, 1, SECONDS).p50)
        finally:
            server.stop()
            cached.stop()
    median = {name: statistics.median(values) for name, values in rates.items()}
    http = {name: median[name] for name in ("batches", "clients_32", "cached", "one_client_p50", "engine_p50")}
    for name in ("batches", "clients_32"):
        http[f"{name}_over_engine"] = statistics.median(
            there / bare for there, bare in zip(rates[name], rates["int8"], strict=True)
        )
    return {"engine": {name: median[name] for name in engines}, "http": http, "cache": {"hit_p50": median["hit_p50"]}}


def latencies(settings: Settings, texts: list[str], encoder: Encoder) -> Result:
    """Measure latency by the number of clients, and by the length of texts with one client."""
    of_clients: dict[int, list[load.Figures]] = {}
    of_lengths: dict[str, list[load.Figures]] = {}
    some = by_length(texts, encoder)
    with tempfile.TemporaryDirectory() as folder:
        singles = load.write_bodies(folder, texts, 1)
        files = {name: load.write_bodies(folder, found, 1, name) for name, found in some.items()}
        server = load.serve(settings, CACHE_SIZE="0").wait_until_ready()
        try:
            for _ in range(3):
                for clients in CLIENTS:
                    of_clients.setdefault(clients, []).append(load.wrk(server, singles, clients, SECONDS))
                for name, file in files.items():
                    of_lengths.setdefault(name, []).append(load.wrk(server, file, 1, SECONDS))
        finally:
            server.stop()
    tokens = {name: statistics.median(encoder.encode(found).tokens) for name, found in some.items()}
    return {
        "latency_by_clients": [
            {
                "clients": clients,
                "texts_per_second": statistics.median(item.requests_per_second for item in figures),
                **load.percentiles(figures),
            }
            for clients, figures in of_clients.items()
        ],
        "latency_by_length": [
            {"name": name, "tokens": min(int(tokens[name]), settings.max_length), **load.percentiles(figures)}
            for name, figures in of_lengths.items()
        ],
    }


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(item[name] for item in rounds) for name in rounds[0]}


def by_length(texts: list[str], encoder: Encoder) -> dict[str, list[str]]:
    """Return the texts of each of LENGTHS; without any, all texts joined, which the server truncates."""
    counts = encoder.encode(texts).tokens
    joined = [" ".join(texts)[: 8 * encoder.max_length]]
    return {
        name: [text for text, count in zip(texts, counts, strict=True) if least <= count <= most] or joined
        for name, (least, most) in LENGTHS.items()
    }


def fairness(settings: Settings, texts: list[str], encoder: Encoder) -> Result:
    """Measure a client with short texts, alone and beside two clients that post batches of 64 long paragraphs."""
    some = by_length(texts, encoder)
    short, paragraphs = some["sentence"], some["paragraph"]
    paragraphs = (paragraphs * (1 + LARGE_BATCH // len(paragraphs)))[:LARGE_BATCH]
    found: dict[str, list[load.Figures]] = {"unloaded": [], "loaded": []}
    with tempfile.TemporaryDirectory() as folder:
        singles = load.write_bodies(folder, short, 1, "short")
        # each text its own, or the server would compute equal ones once
        numbered = [f"{number} {text}" for number in range(4) for text in paragraphs]
        batched = load.write_bodies(folder, numbered, LARGE_BATCH)
        server = load.serve(settings, CACHE_SIZE="0").wait_until_ready()
        try:
            for _ in range(ROUNDS):
                found["unloaded"].append(load.wrk(server, singles, 1, SECONDS))
                with load.wrk_behind(server, batched, 2, 2 * SECONDS + 2):
                    time.sleep(1)
                    found["loaded"].append(load.wrk(server, singles, 1, 2 * SECONDS))
        finally:
            server.stop()
    return {name: load.percentiles(figures) for name, figures in found.items()}


def overload(settings: Settings, texts: list[str]) -> Result:
    """Measure OVERLOAD times the capacity, from clients that send again after any response."""
    rounds: list[dict[str, float]] = []
    answered_ms: list[float] = []
    refused_ms: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        singles = load.write_bodies(folder, texts, 1)
        server = load.serve(settings, CACHE_SIZE="0", MAX_QUEUE=str(settings.max_queue)).wait_until_ready()
        try:
            for _ in range(ROUNDS):
                capacity = load.wrk(server, singles, MANY_CLIENTS, SECONDS).requests_per_second
                # those that wait in the queue do not ask meanwhile
                clients = int(OVERLOAD * capacity * OVERLOAD_PAUSE_SECONDS) + settings.max_queue
                with Probe(server, texts) as probe:
                    figures = load.wrk_paced(server, singles, clients, 2 * SECONDS, OVERLOAD_PAUSE_SECONDS)
                rounds.append(
                    {
                        "capacity": capacity,
                        "offered": (figures.answered + figures.refused) / figures.seconds,
                        "answered": figures.answered / figures.seconds,
                        "goodput": figures.answered / figures.seconds / capacity,
                    }
                )
                answered_ms += probe.milliseconds[200]
                refused_ms += probe.milliseconds[429]
        finally:
            server.stop()
    return {
        **medians(rounds),
        **{f"answered_p{p}": float(np.percentile(answered_ms or [0], p)) for p in (50, 99)},
        **{f"refused_p{p}": float(np.percentile(refused_ms or [0], p)) for p in (50, 99)},
    }


class Probe:
    """A client that asks every PROBE_SECONDS, on one connection, and notes how long each answer took, by its status."""

    def __init__(self, server: Server, texts: Sequence[str]) -> None:
        self.milliseconds: dict[int, list[float]] = {200: [], 429: []}
        self._bodies = [orjson.dumps({"texts": [text]}) for text in texts]
        self._port = int(server.port)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        time.sleep(1)  # the load has begun
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        for body in self._bodies * 100:
            if self._ended.wait(PROBE_SECONDS):
                break
            start = time.perf_counter()
            connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            self.milliseconds[response.status].append((time.perf_counter() - start) * 1e3)
        connection.close()


def start_and_memory(settings: Settings) -> Result:
    """Measure the seconds from exec to the first vector, and the proportional set size after some work."""
    seconds, memory = [], {}
    for workers in (1, 2, 1, 2, 1):
        start = time.perf_counter()
        server = load.serve(settings, WEB_CONCURRENCY=str(workers))
        try:
            load.wait_for_first_vector(server)
            if workers == 1:
                seconds.append(time.perf_counter() - start)
            load.until(lambda: len(server.workers()) == workers)
            for n in range(40):
                requests.post(f"{server.url}/embed", json={"texts": [f"{n} {i}" for i in range(32)]}, timeout=30)
            memory[workers] = load.pss_megabytes(server.process.pid)
        finally:
            server.stop()
    return {
        "start_seconds": statistics.median(seconds),
        "memory": {"one_worker_mb": memory[1], "further_worker_mb": memory[2] - memory[1]},
    }
