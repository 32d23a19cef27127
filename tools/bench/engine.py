"""The bare engine: tokenizer and ONNX Runtime in as many threads as CPUs, without HTTP."""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.engine import cpu
from app.engine.encoder import Encoder
from app.engine.manifest import Manifest
from app.engine.model_folder import ModelFolder
from app.engine.tokenizer import Tokenizer
from app.loading import load_encoder
from app.settings import Settings
from build.similarity import cosines
from tools.bench import recipes

Encode = Callable[[str], NDArray[np.float32]]


def load(settings: Settings, file: str) -> Encoder:
    encoder = load_encoder(replace(settings, model_path=Path(file), cache_size=0), cpu.available_cpus())
    encoder.open()
    return encoder


def encode_with(encoder: Encoder) -> Encode:
    return lambda text: encoder.encode([text]).vectors[0]


@contextmanager
def plain_int8(settings: Settings, manifest: Manifest, source: str) -> Iterator[Encode]:
    """Return plain INT8: `quantize_dynamic` of the usual export, one text a run: the best case."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model_folder = ModelFolder.load(settings.model_dir, settings.model_path, settings.tokenizer_path)
    tokenizer = Tokenizer.load(model_folder.tokenizer_file)
    prompt = manifest.prompts[manifest.default_prompt_name] if manifest.default_prompt_name else ""
    with tempfile.TemporaryDirectory() as folder:
        plain, int8 = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        recipes.export_plain(source, plain)
        quantize_dynamic(plain, int8, weight_type=QuantType.QInt8)
        run = recipes.opened(int8, True, manifest.pooling)

        def encode(text: str) -> NDArray[np.float32]:
            ids = tokenizer.prefix + tokenizer(prompt + text)
            ids = ids[: settings.max_length - len(tokenizer.suffix)] + tokenizer.suffix
            return np.asarray(run(np.array(ids, np.int64)), np.float32)

        yield encode


def texts_per_second(encode: Encode, texts: Sequence[str], seconds: float) -> float:
    threads = cpu.available_cpus()
    done, lock = 0, threading.Lock()
    until = time.perf_counter() + seconds

    def work(offset: int) -> None:
        nonlocal done
        count = 0
        while time.perf_counter() < until:
            encode(texts[(offset + count) % len(texts)])
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


def median_ms(encode: Encode, texts: Sequence[str]) -> float:
    """Return the median time of one text a run, milliseconds."""
    times = []
    for text in texts:
        start = time.perf_counter()
        encode(text)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def accuracy(encode: Encode, reference: Encode, texts: Sequence[str]) -> dict[str, float]:
    found = cosines(*(np.array([one(text) for text in texts], np.float32) for one in (encode, reference)))
    return {"mean": float(found.mean()), "min": float(found.min())}
