"""make bench: every figure of the README and of docs/scaling.md, measured here and now.

What is compared is measured in alternation in one run, since machines are noisy; medians
of ROUNDS. The server's cache is off, except where it is what is measured.
"""

import statistics
import tempfile
import threading
import time
from pathlib import Path

import requests

from app import cpu
from app.artifact import Artifact, Manifest
from app.encoder import Encoder
from app.settings import Settings
from tests.bench import load, one_cpu
from tests.bench.load import BATCH

ROUNDS = 5
SECONDS = 4.0
CLIENTS = 32
Rates = dict[str, list[float]]


def main() -> None:
    settings = load.settings()
    texts = load.mixed_texts()
    manifest = Manifest.load(settings.model_dir)
    features = ", ".join(name for name, value in cpu.features().items() if value is True)
    print(f"{manifest.model}; {cpu.available_cpus()} CPUs ({features}); {len(texts)} texts; medians of {ROUNDS}\n")

    with tempfile.TemporaryDirectory() as folder:
        singles, batched = (load.write_bodies(folder, texts, size) for size in (1, BATCH))
        rates = compare(settings, texts, singles, batched)
    print_speed({name: statistics.median(values) for name, values in rates.items()})
    print_start(settings)
    print_sizes(manifest)
    one_cpu.measure(settings, texts)


def compare(settings: Settings, texts: list[str], singles: Path, batched: Path) -> Rates:
    """texts/s, and milliseconds where the name says so, of each way, round by round."""
    cpus = cpu.available_cpus()
    int8, fp32 = (load_encoder(settings, f"model_{precision}.onnx") for precision in ("int8", "fp32"))
    rates: Rates = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    server = load.serve(settings, CACHE_SIZE="0").wait_until_ready()
    cached = load.serve(settings).wait_until_ready()
    try:
        for _ in range(ROUNDS):
            note("engine, FP32", engine(fp32, texts, cpus))
            note("engine, INT8", engine(int8, texts, cpus))
            note("HTTP, batches", load.wrk(server, batched, 2, SECONDS).requests_per_second * BATCH)
            note("HTTP, one text", load.wrk(server, singles, CLIENTS, SECONDS).requests_per_second)
            note("engine ms", alone(int8, texts))
            note("HTTP ms", load.wrk(server, singles, 1, SECONDS).p50)
            note("HTTP, cached", load.wrk(cached, singles, CLIENTS, SECONDS).requests_per_second)
    finally:
        server.stop()
        cached.stop()
    return rates


def load_encoder(settings: Settings, file: str) -> Encoder:
    artifact = Artifact.load(settings.model_dir, Path(file), settings.tokenizer_path)
    encoder = Encoder.load(artifact, max_length=settings.max_length, slots=cpu.available_cpus())
    encoder.open()
    return encoder


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
        server = load.serve(settings, WEB_CONCURRENCY=str(workers))
        try:
            load.wait_for_first_vector(server)
            if workers == 1:
                seconds.append(time.perf_counter() - start)
            load.until(lambda: len(server.workers()) == workers)
            for n in range(40):
                requests.post(f"{server.url}/embed", json={"texts": [f"{n} {i}" for i in range(32)]}, timeout=30)
            memory[workers] = load.pss_megabytes(server)
        finally:
            server.stop()
    print("| start and memory | |\n| --- | --- |")
    print(f"| `gunicorn` to first vector | {statistics.median(seconds):.2f} s |")
    print(f"| memory (PSS), one worker | {memory[1]:.0f} MB |")
    print(f"| each further worker | {memory[2] - memory[1]:.0f} MB |\n")


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
    retrieval, neighbours = quality["retrieval"], quality["neighbours"]
    found = [f"{retrieval[side]:.3f}" for side in ("reference", "int8")]
    print(f"| translations found first, of {retrieval['queries']} | {' | '.join(found)} |")
    print(f"| of a text's {neighbours['nearest']} nearest, the same | 1 | {neighbours['overlap']:.3f} |\n")


if __name__ == "__main__":
    main()
