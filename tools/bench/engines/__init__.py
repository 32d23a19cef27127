"""Bare engines: other people's engines beside ours, without HTTP, on the same token ids and as many CPUs."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from app.engine import cpu
from app.engine.encoder import Encoder
from build.similarity import cosines
from tools.bench.engines import prepare

HERE = Path(__file__).parent
# Tokens, special ones included: name -> least and most.
LENGTHS = {"10": (8, 12), "20": (17, 23), "40": (34, 46), "120": (100, 140)}
TEXTS = 96
BATCHES = (1, 8, 32)
ROUNDS = 3
SECONDS = 1.0

Result = dict[str, Any]
Rows = list[list[int]]


@dataclass(frozen=True)
class Engine:
    """One engine. adapter: its function in adapters.py. make: (source, model folder) -> its folder.

    packages: those that it needs besides the build's, as pinned in requirements.txt. needs_bf16: it is left out where
    the CPU does not compute in bfloat16, which is then emulated. needs_compiler: its packages come as source, so it is
    left out without a C++ compiler.
    """

    name: str
    adapter: str
    make: Callable[[Path, Path], Path]
    packages: Sequence[str] = ()
    batches: Sequence[int] = BATCHES
    needs_bf16: bool = False
    needs_compiler: bool = False

    def is_possible(self) -> bool:
        """Return whether this machine can run it at a speed that says something."""
        return bool(
            (not self.needs_bf16 or cpu.features()["bf16"]) and (not self.needs_compiler or shutil.which("c++"))
        )


ENGINES = [
    Engine("ours, INT8", "ours", prepare.ours),
    Engine("CTranslate2, INT8", "ctranslate2", prepare.ctranslate2, ("ctranslate2",)),
    Engine("OpenVINO, BF16 or FP32", "openvino", prepare.openvino, ("openvino", "openvino-telemetry")),
    Engine("OpenVINO, INT8", "openvino", prepare.openvino_int8, ("openvino", "openvino-telemetry")),
    Engine("llama.cpp, Q8_0", "llama_cpp", prepare.llama_cpp, ("llama-cpp-python", "diskcache"), needs_compiler=True),
    Engine("ONNX Runtime, plain INT8", "onnx_runtime", prepare.onnx_int8),
    Engine("ONNX Runtime, FP32", "onnx_runtime", prepare.onnx_fp32),
    Engine("PyTorch, BF16", "torch_bf16", prepare.torch, needs_bf16=True),
    Engine("PyTorch, FP32", "torch_fp32", prepare.torch),
]


class Worker:
    """The process of one engine, with `streams` runs at once of `threads` threads each."""

    def __init__(self, engine: Engine, folder: Path, streams: int, threads: int) -> None:
        self.engine, self.streams, self.threads = engine, streams, threads
        self.memory_mb = 0.0
        paths = [str(prepare.packages(name)) for name in engine.packages]
        command = [sys.executable, str(HERE / "worker.py"), engine.adapter, str(folder), str(streams), str(threads)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=environ, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, rows: Rows, batch: int, seconds: float | None = None) -> Any:
        """Return texts per second, or without `seconds` the vectors of rows."""
        command: Result = {"rows": rows, "batch": batch} | ({"seconds": seconds} if seconds else {})
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.engine.name} has ended")
        answer = json.loads(line)
        self.memory_mb = answer["memory_mb"]
        return answer["answer"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def by_length(encoder: Encoder, texts: Sequence[str]) -> dict[str, Rows]:
    """Return the token ids of up to TEXTS texts for each of LENGTHS, the model's default prompt included."""
    prompt = encoder.prompt(None, None)
    rows = [encoder.tokenizer.encode(prompt + text, encoder.max_length, encoder.runner).ids.tolist() for text in texts]
    return {name: [row for row in rows if least <= len(row) <= most][:TEXTS] for name, (least, most) in LENGTHS.items()}


def measure(engines: Sequence[Engine], rows: Mapping[str, Rows], source: Path, model: Path, fp32: Encoder) -> Result:
    """Measure all engines in alternation: each at the best of its streams, threads and batches, for each length."""
    cpus = cpu.available_cpus()
    engines = [engine for engine in engines if engine.is_possible()]
    ways = dict.fromkeys(((cpus, 1), (1, cpus)))
    everything = [row for some in rows.values() for row in some]
    reference = np.stack([fp32.compute([np.array(row)])[0] for row in everything])
    speeds: dict[tuple[str, str, int, int, int], list[float]] = {}
    with ExitStack() as stack:
        folders = {engine.name: engine.make(source, model) for engine in engines}
        workers = [
            stack.enter_context(Worker(engine, folders[engine.name], *way)) for engine in engines for way in ways
        ]
        quality = {}
        for worker in workers:
            vectors = np.array(worker.ask(everything, max(worker.engine.batches)), np.float32)
            found = cosines(vectors, reference)
            quality[worker.engine.name] = {"mean": float(found.mean()), "min": float(found.min())}
        for number in range(ROUNDS):
            for length, some in rows.items():
                for worker in workers[:: -1 if number % 2 else 1]:
                    for batch in worker.engine.batches:
                        key = worker.engine.name, length, worker.streams, worker.threads, batch
                        speeds.setdefault(key, []).append(worker.ask(some, batch, SECONDS))
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
        memory = {engine.name: min(w.memory_mb for w in workers if w.engine is engine) for engine in engines}
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    return {
        "engines": [
            {
                "name": engine.name,
                "versions": {name: prepare.pinned(name) for name in engine.packages},
                "best": {length: _best(medians, engine.name, length) for length in rows},
                "cosine": quality[engine.name],
                "memory_mb": memory[engine.name],
                "file_mb": sum(p.stat().st_size for p in prepare.weights(folders[engine.name], engine.adapter)) / 1e6,
            }
            for engine in engines
        ],
        "lengths": {
            name: {"texts": len(some), "tokens": statistics.mean(map(len, some))} for name, some in rows.items()
        },
    }


def _best(medians: Mapping[tuple[str, str, int, int, int], float], name: str, length: str) -> Result:
    of_engine = {key: value for key, value in medians.items() if key[:2] == (name, length)}
    key = max(of_engine, key=lambda key: of_engine[key])
    _, _, streams, threads, batch = key
    return {"texts_per_second": of_engine[key], "streams": streams, "threads": threads, "batch": batch}
