"""The bulk command against the bare engine: python -m tools.bench.bulk

The same texts, in alternation: by `python -m app.bulk` from a file of JSONL to one of Parquet, and by the tokenizer and
ONNX Runtime alone: a thread for each CPU, which gets its share of the texts in one call, so that as many as possible
share a run. The ratio leaves out the command's start, since the bare engine is open, too; its rate does not. Writes a
file for this machine under docs/bench/bulk/ and the table of docs/bulk.md.
"""

import datetime
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from app.engine import cpu
from app.engine.encoder import Encoder
from app.engine.manifest import Manifest
from app.engine.runner import Threads
from app.settings import Settings
from tests.support import ROOT
from tools import capacity
from tools.bench import engine, load, report
from tools.bench.__main__ import machine

ROUNDS = 3
# Kind of texts -> their number.
COUNTS = {"short": 20_000, "mixed": 8000}
SHORT_CHARACTERS = 40


def samples(kind: str, count: int) -> list[str]:
    """Return different texts: those of build/texts/, of all lengths, or for "short" their beginnings."""
    known = load.mixed_texts()
    generator = random.Random(0)
    found = []
    for number in range(count):
        text = generator.choice(known)
        if kind == "short":
            text = text[: generator.randrange(3, SHORT_CHARACTERS)]
        found.append(f"{number % 1000} {text}")
    return found


def measure(settings: Settings) -> dict[str, Any]:
    """Return the figures of each kind of texts: medians of the rounds."""
    encoder = engine.load(settings, settings.model_path.name)
    return {kind: compare(settings, encoder, samples(kind, count)) for kind, count in COUNTS.items()}


def compare(settings: Settings, encoder: Encoder, sample: list[str]) -> dict[str, Any]:
    """Return rates of the command and of the bare engine, their ratio, and the command's peak of memory."""
    rounds, tokens = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_bytes(b"".join(orjson.dumps({"id": n, "text": text}) + b"\n" for n, text in enumerate(sample)))
        for number in range(ROUNDS):
            start = time.perf_counter()
            tokens = encode_all(encoder, sample)
            bare = len(sample) / (time.perf_counter() - start)
            found = run(settings, path, Path(folder) / f"vectors{number}.parquet")
            found |= {"bare": bare, "texts_per_second": len(sample) / found["seconds"]}
            rounds.append(found | {"over_bare": len(sample) / found["open_seconds"] / bare})
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    return {"texts": len(sample), "tokens": tokens / len(sample), **medians}


def encode_all(encoder: Encoder, sample: list[str]) -> int:
    """Compute all texts, each CPU its share, and return the number of tokens that the model read."""
    cpus = cpu.available_cpus()

    def encode(number: int) -> int:
        runner = Threads(encoder.compute, encoder.texts_per_run, 1)
        tokens = encoder.encode(sample[number::cpus], runner=runner).tokens
        return sum(min(count, encoder.max_length) for count in tokens)

    with ThreadPoolExecutor(cpus) as pool:
        return sum(pool.map(encode, range(cpus)))


def run(settings: Settings, path: Path, out: Path) -> dict[str, float]:
    """Run the command. Return its seconds, those since its model was open, and its peak of memory in MB."""
    environ = {**os.environ, **load.model_variables(settings)}
    command = [sys.executable, "-m", "app.bulk", str(path), str(out), "--id", "id"]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE) as process:
        assert process.stderr
        log = process.stderr.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"Error: {' '.join(command)} ended with {process.returncode}.")
    lines = [orjson.loads(line) for line in log]
    first = next(line for line in lines if "shards" in line)  # written once the model is open
    opened, ended = (datetime.datetime.fromisoformat(line["time"]) for line in (first, lines[-1]))
    return {
        "seconds": seconds,
        "open_seconds": (ended - opened).total_seconds(),
        "memory_mb": usage.ru_maxrss / 1e3,
    }


def main() -> None:
    settings = load.settings()
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "model": Manifest.load(settings.model_dir).model,
        "prices": capacity.inputs(),
        "bulk": measure(settings),
    }
    path = report.save(result, ROOT / "docs/bench/bulk")
    report.write_bulk(result, ROOT)
    print(f"{path.relative_to(ROOT)}, and the table made from it")


if __name__ == "__main__":
    main()
