"""What every measurement needs: the texts, a server, the load, the memory. Needs wrk (Debian: apt-get install wrk)."""

import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson
import requests

from app.settings import Settings
from build.texts import texts
from tests.conftest import ROOT, Server

BATCH = 32


class Figures(NamedTuple):
    """What wrk measured; latencies in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p95: float
    p99: float

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds


def settings() -> Settings:
    """The settings of the environment, if there is a model and wrk."""
    found = Settings.from_env(os.environ)
    if shutil.which("wrk") is None:
        sys.exit("The measurements need wrk: apt-get install wrk")
    if not (found.model_dir / "manifest.json").is_file():
        sys.exit(f"There is no model in {found.model_dir}/: run `make run` or `make model` first.")
    return found


def mixed_texts() -> list[str]:
    """build/texts/, in an order shuffled with a fixed seed."""
    mixed = [text for lines in texts().values() for text in lines]
    random.Random(0).shuffle(mixed)
    return mixed


def write_bodies(folder: str, mixed: Sequence[str], size: int) -> Path:
    """A file of request bodies, each with `size` texts; what does not fill a request is left out."""
    path = Path(folder) / str(size)
    batches = (mixed[start : start + size] for start in range(0, len(mixed) - size + 1, size))
    path.write_bytes(b"".join(orjson.dumps({"texts": batch}) + b"\n" for batch in batches))
    return path


def serve(settings: Settings, **environ: str) -> Server:
    model = {"MODEL_DIR": str(settings.model_dir.resolve()), "MAX_LENGTH": str(settings.max_length)}
    return Server({**model, **environ})


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


def wrk(server: Server, bodies: Path, clients: int, seconds: float) -> Figures:
    """Each client sends its next request when it has the answer to the last; every request must succeed."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{math.ceil(seconds)}s", "--timeout=30s", "-s"]
    command += [str(ROOT / "tests/bench/load.lua"), server.url]
    environ = {**os.environ, "BENCH_BODIES": str(bodies)}
    output = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    line = next(line.split()[1:] for line in output.splitlines() if line.startswith("FIGURES"))
    done, failed = int(line[0]), int(line[1])
    if failed or not done:
        sys.exit(f"{failed} of {done} requests failed")
    return Figures(done, *map(float, line[2:]))


def pss_megabytes(server: Server) -> float:
    """Proportional set size of all its processes: shared pages are counted once."""
    return sum(_pss_megabytes(pid) for pid in [server.process.pid, *server.workers()])


def _pss_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss")
