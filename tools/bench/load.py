"""Load generation for every measurement: the texts, a server, wrk, the memory. Needs wrk (apt-get install wrk)."""

import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson
import requests

from app.engine.manifest import Manifest
from app.settings import Settings
from build.texts import texts
from tests.support import ROOT
from tests.support.server import Server

BATCH = 32


class Figures(NamedTuple):
    """Results of wrk. Latencies: milliseconds. answered, refused: requests, where clients pause."""

    requests: int
    seconds: float
    p50: float
    p95: float
    p99: float
    answered: int = 0
    refused: int = 0

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds


def settings() -> Settings:
    """Return the settings from the environment; exit if the model or wrk is missing."""
    found = Settings.from_env(os.environ)
    if shutil.which("wrk") is None:
        sys.exit("The measurements need wrk: apt-get install wrk")
    if not (found.model_dir / "manifest.json").is_file():
        sys.exit(f"There is no model in {found.model_dir}/: run `make run` or `make model` first.")
    return replace(found, max_length=found.max_length or Manifest.load(found.model_dir).max_seq_length)


def mixed_texts() -> list[str]:
    """Return all texts of build/texts/, shuffled with a fixed seed."""
    mixed = [text for lines in texts().values() for text in lines]
    random.Random(0).shuffle(mixed)
    return mixed


class Target(Protocol):
    """A server to measure."""

    @property
    def url(self) -> str: ...


def write_bodies(folder: str, mixed: Sequence[str], size: int, name: str = "", field: str = "texts") -> Path:
    """Write a file of request bodies with `size` texts each and return its path; a rest of fewer texts is left out."""
    path = Path(folder) / f"{field}{size}{name}"
    batches = (mixed[start : start + size] for start in range(0, len(mixed) - size + 1, size))
    path.write_bytes(b"".join(orjson.dumps({field: batch}) + b"\n" for batch in batches))
    return path


def model_variables(settings: Settings) -> dict[str, str]:
    """Return the variables with which another process uses the same model in the same way."""
    return {"MODEL_DIR": str(settings.model_dir.resolve()), "MAX_LENGTH": str(settings.max_length)}


def serve(settings: Settings, **environ: str) -> Server:
    return Server({**model_variables(settings), **environ}, is_quiet=True)


def wait_for_first_vector(server: Server) -> None:
    until(lambda: requests.get(f"{server.url}/embed?q=a", timeout=10).ok)


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        try:
            if true():
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.005)
    sys.exit("the server does not answer")


def wrk(server: Target, bodies: Path, clients: int, seconds: float, path: str = "/embed") -> Figures:
    """Run wrk: each client sends its next request after the response to the last; every request must succeed."""
    return _wrk(server, bodies, clients, seconds, {"BENCH_PATH": path})


def wrk_paced(server: Target, bodies: Path, clients: int, seconds: float, pause_seconds: float) -> Figures:
    """Run wrk with a pause before each request; 429 counts as a response."""
    return _wrk(server, bodies, clients, seconds, {"BENCH_PAUSE": str(pause_seconds * 1e3)})


@contextmanager
def wrk_behind(server: Target, bodies: Path, clients: int, seconds: float) -> Iterator[None]:
    """Run wrk while the block runs."""
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(wrk, server, bodies, clients, seconds)
        yield
        load.result()


def _wrk(server: Target, bodies: Path, clients: int, seconds: float, environ: dict[str, str]) -> Figures:
    command = ["wrk", "-t1", f"-c{clients}", f"-d{math.ceil(seconds)}s", "--timeout=30s", "-s"]
    command += [str(ROOT / "tools/bench/load.lua"), server.url]
    environ = {**os.environ, **environ, "BENCH_BODIES": str(bodies)}
    output = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    line = next(line.split()[1:] for line in output.splitlines() if line.startswith("FIGURES"))
    done, failed = int(line[0]), int(line[1])
    if failed or not done:
        sys.exit(f"{failed} of {done} requests failed")
    seconds, p50, p95, p99 = map(float, line[2:6])
    return Figures(done, seconds, p50, p95, p99, int(line[6]), int(line[7]))


def percentiles(figures: Sequence[Figures]) -> dict[str, float]:
    """Return the medians of the rounds, milliseconds."""
    return {name: statistics.median(getattr(item, name) for item in figures) for name in ("p50", "p95", "p99")}


def pss_megabytes(pid: int) -> float:
    """Return the proportional set size of a process and its descendants, MB: shared pages count once."""
    return sum(_pss_megabytes(member) for member in _tree(pid))


def _pss_megabytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return 0.0
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss")


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                yield from _tree(int(child))
