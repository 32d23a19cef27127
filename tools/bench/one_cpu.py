"""Capacity of one CPU: the figures behind docs/capacity.md and the concurrency of a Cloud Run instance.

The server is pinned to one CPU and wrk to another, so the server gives itself one slot, as it
does with one vCPU. Without the rest of make bench: python -m tools.bench.one_cpu
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests

from app.engine import cpu
from app.settings import Settings
from tests.support.server import Server
from tools.bench import load
from tools.bench.load import BATCH, Figures

ROUNDS = 3
SECONDS = 4.0
# Texts in a request, clients.
LOADS = [(1, 1), (1, 2), (1, 5), (1, 10), (1, 20), (1, 40), (1, 80), (BATCH, 1), (BATCH, 2)]
P95_LIMIT_MS = 300
# Cut at MAX_LENGTH. The largest request has MAX_TEXTS of them; it is reckoned from one of PAGES.
PAGE = "深さ優先探索は、グラフを深く進めるだけ進む方法である。" * 30
PAGES = 128


class Measured(NamedTuple):
    figures: Figures
    cpu_ms_per_text: float


def measure(settings: Settings, texts: list[str]) -> dict[str, Any] | None:
    """Measure loads, start and memory, with a new server in each round; None if wrk has no CPU of its own."""
    if cpu.available_cpus() < 2:
        return None
    rounds: dict[tuple[int, int], list[Measured]] = {}
    starts, memory, largest = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        bodies = {size: load.write_bodies(folder, texts, size) for size, _ in LOADS}
        for number in range(ROUNDS):
            start = time.perf_counter()
            with one_cpu_server(settings) as server:
                load.wait_for_first_vector(server)
                starts.append(time.perf_counter() - start)
                # Every other round backwards: what comes late in a round is not always the same.
                for size, clients in LOADS[:: -1 if number % 2 else 1]:
                    measured = run(server, bodies[size], size, clients)
                    rounds.setdefault((size, clients), []).append(measured)
                largest.append(seconds_of_pages(server) / PAGES * settings.max_texts)
                memory.append(load.pss_megabytes(server.process.pid))
    found = [load_of(size, clients, measured) for (size, clients), measured in sorted(rounds.items())]
    borne = [item["clients"] for item in found if item["texts"] == 1 and item["p95"] < P95_LIMIT_MS]
    return {
        "loads": found,
        "most_clients": max(borne, default=0),
        "p95_limit": P95_LIMIT_MS,
        "start_seconds": statistics.median(starts),
        "memory_mb": max(memory),
        "largest_texts": settings.max_texts,
        "largest_seconds": statistics.median(largest),
    }


def load_of(size: int, clients: int, measured: list[Measured]) -> dict[str, Any]:
    """Return the medians of the rounds, milliseconds."""
    return {
        "texts": size,
        "clients": clients,
        "texts_per_second": statistics.median(each.figures.requests_per_second for each in measured) * size,
        **load.percentiles([each.figures for each in measured]),
        "cpu_ms_per_text": statistics.median(each.cpu_ms_per_text for each in measured),
    }


@contextmanager
def one_cpu_server(settings: Settings) -> Iterator[Server]:
    """Yield a server on the first CPU, while this process and wrk run on the second."""
    before = os.sched_getaffinity(0)
    first, second = sorted(before)[:2]
    try:
        os.sched_setaffinity(0, {first})  # a new process inherits it
        server = load.serve(settings, CACHE_SIZE="0", MAX_QUEUE="1000", REQUEST_DEADLINE="1000")
        os.sched_setaffinity(0, {second})
        try:
            yield server
        finally:
            server.stop()
    finally:
        os.sched_setaffinity(0, before)


def run(server: Server, bodies: Path, size: int, clients: int) -> Measured:
    before = cpu_seconds(server)
    figures = load.wrk(server, bodies, clients, SECONDS)
    used = cpu_seconds_when_idle(server) - before
    # wrk leaves when its time is over; the server still computes what each client was waiting for.
    return Measured(figures, used * 1e3 / ((figures.requests + clients) * size))


def seconds_of_pages(server: Server) -> float:
    texts = [f"{number} {PAGE}" for number in range(PAGES)]
    start = time.perf_counter()
    requests.post(f"{server.url}/embed", json={"texts": texts}, timeout=300).raise_for_status()
    return time.perf_counter() - start


def cpu_seconds(server: Server) -> float:
    """Return the user and system time of all the server's processes so far, seconds."""
    ticks = 0
    for pid in [server.process.pid, *server.workers()]:
        # Fields 14 and 15, counted after the name, which may hold spaces: man 5 proc_pid_stat
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_seconds_when_idle(server: Server) -> float:
    """Return that time after the rest of the load is done."""
    seconds = [cpu_seconds(server)]

    def idle() -> bool:
        time.sleep(0.2)
        seconds.append(cpu_seconds(server))
        return seconds[-1] - seconds[-2] < 0.02

    load.until(idle)
    return seconds[-1]


if __name__ == "__main__":
    print(json.dumps(measure(load.settings(), load.mixed_texts()), indent=1))
