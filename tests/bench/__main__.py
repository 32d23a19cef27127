"""make bench: every figure of the README, measured here and now.

What is compared is measured in alternation in one run, since machines are noisy; medians
of ROUNDS. Needs wrk (Debian: apt-get install wrk). The texts are build/texts/, in an order
shuffled with a fixed seed; the server's cache is off.
"""

import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import requests

from app import cpu
from app.artifact import Artifact, Manifest
from app.encoder import Encoder
from app.settings import Settings
from build import verify
from tests.conftest import ROOT, Server

ROUNDS = 5
SECONDS = 4.0
BATCH = 32
CLIENTS = 32
Rates = dict[str, list[float]]


def main() -> None:
    settings = Settings.from_env(os.environ)
    model = settings.model_dir
    if shutil.which("wrk") is None:
        sys.exit("make bench needs wrk: apt-get install wrk")
    if not (model / "manifest.json").is_file():
        sys.exit(f"There is no model in {model}/: run `make run` or `make model` first.")
    texts = [text for lines in verify.texts().values() for text in lines]
    random.Random(0).shuffle(texts)
    batches = [texts[start : start + BATCH] for start in range(0, len(texts) - BATCH + 1, BATCH)]
    manifest = Manifest.load(model)
    features = ", ".join(name for name, value in cpu.features().items() if value is True)
    print(f"{manifest.model}; {cpu.available_cpus()} CPUs ({features}); {len(texts)} texts; medians of {ROUNDS}\n")

    with tempfile.TemporaryDirectory() as folder:
        singles = write_bodies(Path(folder) / "singles", [[text] for text in texts])
        batched = write_bodies(Path(folder) / "batches", batches)
        rates = compare(settings, texts, singles, batched)
    print_speed({name: statistics.median(values) for name, values in rates.items()})
    print_start(settings)
    print_sizes(manifest)


def write_bodies(path: Path, requests_of_texts: Sequence[Sequence[str]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps({"texts": texts}) + b"\n" for texts in requests_of_texts))
    return path


def compare(settings: Settings, texts: list[str], singles: Path, batched: Path) -> Rates:
    """texts/s, and milliseconds where the name says so, of each way, round by round."""
    cpus = cpu.available_cpus()
    int8, fp32 = (load(settings, f"model_{precision}.onnx") for precision in ("int8", "fp32"))
    rates: Rates = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    server = serve(settings, CACHE_SIZE="0").wait_until_ready()
    cached = serve(settings).wait_until_ready()
    try:
        for _ in range(ROUNDS):
            note("engine, FP32", engine(fp32, texts, cpus))
            note("engine, INT8", engine(int8, texts, cpus))
            requests_per_second, _ = wrk(server, batched, clients=2)
            note("HTTP, batches", requests_per_second * BATCH)
            requests_per_second, _ = wrk(server, singles, clients=CLIENTS)
            note("HTTP, one text", requests_per_second)
            note("engine ms", alone(int8, texts))
            _, median = wrk(server, singles, clients=1)
            note("HTTP ms", median)
            requests_per_second, _ = wrk(cached, singles, clients=CLIENTS)
            note("HTTP, cached", requests_per_second)
    finally:
        server.stop()
        cached.stop()
    return rates


def load(settings: Settings, file: str) -> Encoder:
    artifact = Artifact.load(settings.model_dir, Path(file), settings.tokenizer_path)
    encoder = Encoder.load(artifact, max_length=settings.max_length, slots=cpu.available_cpus())
    encoder.open()
    return encoder


def serve(settings: Settings, **environ: str) -> Server:
    model = {"MODEL_DIR": str(settings.model_dir.resolve()), "MAX_LENGTH": str(settings.max_length)}
    return Server({**model, **environ})


def engine(encoder: Encoder, texts: list[str], threads: int) -> float:
    """texts/s of the bare engine: tokenizer and session in as many threads as CPUs, no HTTP."""
    done, lock = 0, threading.Lock()
    until = time.perf_counter() + SECONDS

    def work(offset: int) -> None:
        nonlocal done
        count = 0
        while time.perf_counter() < until:
            encoder.encode([texts[(offset + count) % len(texts)]])
            count += 1
        with lock:
            done += count

    start = time.perf_counter()
    workers = [threading.Thread(target=work, args=(n * len(texts) // threads,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return done / (time.perf_counter() - start)


def alone(encoder: Encoder, texts: list[str]) -> float:
    """Median milliseconds of one text, one at a time, without HTTP."""
    times = []
    for text in texts:
        start = time.perf_counter()
        encoder.encode([text])
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def wrk(server: Server, bodies: Path, clients: int) -> tuple[float, float]:
    """Requests/s and median milliseconds; every request must succeed."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{math.ceil(SECONDS)}s", "--timeout=30s", "-s"]
    command += [str(ROOT / "tests/bench/load.lua"), server.url]
    environ = {**os.environ, "BENCH_BODIES": str(bodies)}
    output = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    figures = next(line.split()[1:] for line in output.splitlines() if line.startswith("FIGURES"))
    done, failed, seconds, median = int(figures[0]), int(figures[1]), float(figures[2]), float(figures[3])
    if failed or not done:
        sys.exit(f"{failed} of {done} requests failed")
    return done / seconds, median


def print_speed(median: dict[str, float]) -> None:
    engine_int8 = median["engine, INT8"]
    print("| speed | | |\n| --- | --- | --- |")
    print(f"| bare engine, FP32 | {median['engine, FP32']:.0f} texts/s | |")
    print(f"| bare engine, INT8 | {engine_int8:.0f} texts/s | {engine_int8 / median['engine, FP32']:.2f} x FP32 |")
    for name, label in (
        ("HTTP, batches", f"HTTP, {BATCH} texts a request, 2 clients"),
        ("HTTP, one text", f"HTTP, 1 text a request, {CLIENTS} clients"),
    ):
        print(f"| {label} | {median[name]:.0f} texts/s | {median[name] / engine_int8:.2f} x bare engine |")
    print(f"| the same, texts seen before (cache) | {median['HTTP, cached']:.0f} texts/s | |")
    over = median["HTTP ms"] - median["engine ms"]
    print(f"| HTTP, 1 text, 1 client, p50 | {median['HTTP ms']:.1f} ms | bare engine + {over:.1f} ms |\n")


def print_start(settings: Settings) -> None:
    """Seconds from exec to the first vector, and proportional set size after some work."""
    seconds, memory = [], {}
    for workers in (1, 2, 1, 2, 1):
        start = time.perf_counter()
        server = serve(settings, WEB_CONCURRENCY=str(workers))
        try:
            until(lambda: requests.get(f"{server.url}/embed?q=a", timeout=10).ok)
            if workers == 1:
                seconds.append(time.perf_counter() - start)
            until(lambda: len(server.workers()) == workers)
            for n in range(40):
                requests.post(f"{server.url}/embed", json={"texts": [f"{n} {i}" for i in range(32)]}, timeout=30)
            memory[workers] = sum(pss_megabytes(pid) for pid in [server.process.pid, *server.workers()])
        finally:
            server.stop()
    print("| start and memory | |\n| --- | --- |")
    print(f"| `gunicorn` to first vector | {statistics.median(seconds):.2f} s |")
    print(f"| memory (PSS), one worker | {memory[1]:.0f} MB |")
    print(f"| each further worker | {memory[2] - memory[1]:.0f} MB |\n")


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


def pss_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss")


def print_sizes(manifest: Manifest) -> None:
    quality = manifest.quality
    print("| model | FP32 | INT8 |\n| --- | --- | --- |")
    sizes = [quality["bytes"][f"model_{precision}.onnx"] / 1e6 for precision in ("fp32", "int8")]
    print(f"| size | {sizes[0]:.0f} MB | {sizes[1]:.0f} MB |")
    for key, label in (
        ("mean", "cosine to sentence-transformers, mean"),
        ("p1", "the same, 1st percentile"),
        ("min", "the same, least"),
        ("pairwise_difference", "mean difference of similarities"),
    ):
        print(f"| {label} | {quality['fp32'][key]:.5f} | {quality['int8'][key]:.5f} |")


if __name__ == "__main__":
    main()
