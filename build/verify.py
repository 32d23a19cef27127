"""Prove that what is served equals the original: report.json, and manifest.json if it does.

The shipped Encoder, on INT8 and on FP32, against SentenceTransformer.encode, on build/texts/.

    python -m build.verify [--model MODEL] [--revision REV] [--out DIR]
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import cpu
from app.artifact import MANIFEST, REPORT, TOKENIZER, Artifact, Golden, Manifest, sha256
from app.encoder import Encoder
from app.errors import BootError
from app.settings import Settings
from build import BuildError, files
from build.export_onnx import FP32, Facts
from build.quantize import INT8
from build.source import Source
from build.texts import texts

GOLDEN_TEXT = "動的計画法は、問題を小さな部分問題に分けて解く。Dynamic programming, 2026."
# How near another CPU's vector must come. The integer sums are the same everywhere; float
# sums may be ordered in another way, which flips a few roundings of the activations: between
# VNNI and AVX2 1.000000 for this text, 0.9990 for pages (see build/quantize.py).
GOLDEN_MIN_COSINE = {FP32: 0.99999, INT8: 0.995}
FP32_MIN_COSINE = 0.99999
INT8_MEAN_COSINE = 0.98
INT8_PAIRWISE_DIFFERENCE = 0.02
LENGTHS = (16, 64, 256)  # tokens: the report's groups
SPEED_TEXTS = 24
SPEED_ROUNDS = 3

Matrix = NDArray[np.float32]
Report = dict[str, Any]


def verify(
    model: Any,
    facts: Facts,
    source: Source,
    out: Path,
    build_key: str,
    progress: Callable[[], object] = lambda: None,
) -> Report:
    """Write OUT/report.json and, if the gate is passed, OUT/manifest.json.

    Args:
        model: the SentenceTransformer that was exported, the reference.
        progress: called when a part is done.

    Raises:
        BuildError: the model falls short of the gate; report.json says where.
    """
    groups = texts()
    everything = [text for lines in groups.values() for text in lines]
    group_of = [group for group, lines in groups.items() for _ in lines]
    max_length = min(Settings.max_length, facts.max_positions)
    model.max_seq_length = max_length
    reference = np.concatenate([model.encode([text]) for text in everything])
    progress()

    draft = _draft(facts, source, out, build_key)
    encoders = {name: _open(draft, out / name, max_length) for name in (FP32, INT8)}
    golden = {name: encoder.encode([GOLDEN_TEXT], prompt="").vectors[0].tolist() for name, encoder in encoders.items()}
    outputs = {}
    for name, encoder in encoders.items():
        outputs[name] = encoder.encode(everything)
        progress()
    tokens, truncated = outputs[INT8].tokens, outputs[INT8].truncated
    lengths = [_length_group(n, cut) for n, cut in zip(tokens, truncated, strict=True)]
    alone = np.concatenate([encoders[INT8].encode([text]).vectors for text in reversed(everything)])[::-1]
    report: Report = {
        "model": source.model,
        "revision": source.revision,
        "warning": source.warning,
        "texts": len(everything),
        "max_length": max_length,
        "truncated": sum(truncated),
        "fp32": _accuracy(outputs[FP32].vectors, reference, group_of, lengths),
        "int8": _accuracy(outputs[INT8].vectors, reference, group_of, lengths),
        "invariance": {"alone_equals_together": bool(np.array_equal(alone, outputs[INT8].vectors))},
        "tokens_equal": _true_lengths(model, everything) == _counted(encoders[INT8], everything),
        "bytes": {name: _size(out, name) for name in (FP32, INT8)},
        "speed": _speed(encoders, everything),
        "cpu": cpu.features(),
    }
    progress()
    _write(out, REPORT, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    reasons = shortfalls(report)
    if reasons:
        raise BuildError(f"The model falls short, see {out / REPORT}: {' '.join(reasons)}")
    manifest = replace(
        draft, golden=Golden(GOLDEN_TEXT, golden, GOLDEN_MIN_COSINE), quality=_summary(report), created=_now()
    )
    _write(out, MANIFEST, manifest.to_json())
    return report


def shortfalls(report: Report) -> list[str]:
    """The gate: a sentence for each figure of a report that is not good enough."""
    fp32, int8 = report["fp32"], report["int8"]
    checks = [
        (fp32["min"] >= FP32_MIN_COSINE, f"FP32's least cosine is {fp32['min']:.6f}, below {FP32_MIN_COSINE}."),
        (int8["mean"] >= INT8_MEAN_COSINE, f"INT8's mean cosine is {int8['mean']:.4f}, below {INT8_MEAN_COSINE}."),
        (
            int8["pairwise_difference"] < INT8_PAIRWISE_DIFFERENCE,
            f"INT8's mean difference of similarities is {int8['pairwise_difference']:.4f}, "
            f"not below {INT8_PAIRWISE_DIFFERENCE}.",
        ),
        (report["invariance"]["alone_equals_together"], "A text's INT8 vector depends on its neighbours."),
        (report["tokens_equal"], "The tokens counted are not those of the model's own tokenizer."),
    ]
    return [sentence for good, sentence in checks if not good]  # a NaN is not good


def _draft(facts: Facts, source: Source, out: Path, build_key: str) -> Manifest:
    """The manifest as far as it is known before measuring; never written."""
    names = [name for file in (FP32, INT8) for name in (file, f"{file}.data")] + [TOKENIZER]
    packages = ("torch", "sentence-transformers", "transformers", "tokenizers", "onnx", "onnxruntime", "numpy")
    return Manifest(
        model=source.model,
        revision=source.revision,
        stand_in=source.stand_in,
        warning=source.warning,
        dimension=facts.dimension,
        max_positions=facts.max_positions,
        max_seq_length=facts.max_seq_length,
        pooling=facts.pooling,
        normalize=facts.normalize,
        prompts=facts.prompts,
        default_prompt_name=facts.default_prompt_name,
        files={name: sha256(out / name) for name in names if (out / name).is_file()},
        golden=Golden("", {}, {}),
        quality={},
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
        created="",
        build_key=build_key,
    )


def _open(manifest: Manifest, model_file: Path, max_length: int) -> Encoder:
    """The shipped encoder on one of the model files, without a cache."""
    artifact = Artifact(model_file, model_file.parent / TOKENIZER, manifest)
    try:
        encoder = Encoder.load(artifact, max_length=max_length, slots=cpu.available_cpus())
        encoder.open(self_check=False)  # there is no golden vector yet
    except BootError as error:
        raise BuildError(f"The server would not load the model: {error}") from error
    return encoder


def _cosines(a: Matrix, b: Matrix) -> NDArray[np.float64]:
    """(n, dim), (n, dim) -> (n,) cosine of each pair of rows."""
    cosines: NDArray[np.float64] = np.sum(_unit(a) * _unit(b), axis=1)
    return cosines


def _unit(a: Matrix) -> NDArray[np.float64]:
    wide = a.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def pairwise_difference(a: Matrix, b: Matrix) -> float:
    """Mean absolute difference of all pairs' cosine similarities, (n, dim) against (n, dim)."""
    upper = np.triu_indices(len(a), 1)
    unit_a, unit_b = _unit(a), _unit(b)
    return float(np.mean(np.abs(unit_a @ unit_a.T - unit_b @ unit_b.T)[upper]))


def _accuracy(vectors: Matrix, reference: Matrix, group_of: list[str], lengths: list[str]) -> Report:
    cosines = _cosines(vectors, reference)
    return {
        **_figures(cosines),
        "pairwise_difference": round(pairwise_difference(vectors, reference), 6),
        "by_group": _by(group_of, cosines),
        "by_length": _by(lengths, cosines),
    }


def _figures(cosines: NDArray[np.float64]) -> Report:
    return {
        "mean": round(float(cosines.mean()), 7),
        "p1": round(float(np.percentile(cosines, 1)), 7),
        "min": round(float(cosines.min()), 7),
    }


def _by(labels: list[str], cosines: NDArray[np.float64]) -> Report:
    keys = np.array(labels)
    return {
        str(key): {"texts": int((keys == key).sum()), **_figures(cosines[keys == key])} for key in dict.fromkeys(labels)
    }


def _length_group(tokens: int, truncated: bool) -> str:
    if truncated:
        return "truncated"
    return next((f"up to {n} tokens" for n in LENGTHS if tokens <= n), f"over {LENGTHS[-1]} tokens")


def _true_lengths(model: Any, everything: list[str]) -> list[int]:
    tokenizer = model.tokenizer
    return [len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in _counted_texts(everything)]


def _counted(encoder: Encoder, everything: list[str]) -> list[int]:
    return encoder.encode(_counted_texts(everything), prompt="").tokens


def _counted_texts(everything: list[str]) -> list[str]:
    """All texts and, so that the encoder cuts it into pieces, all of them as one."""
    return [*everything, " ".join(everything)]


def _speed(encoders: dict[str, Encoder], everything: list[str]) -> Report:
    """texts/s of FP32 and INT8 in alternation, and their ratio (medians of rounds)."""
    some = everything[:: max(1, len(everything) // SPEED_TEXTS)]
    rates: dict[str, list[float]] = {FP32: [], INT8: []}
    for _ in range(SPEED_ROUNDS):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode(some)
            rates[name].append(len(some) / (time.perf_counter() - start))
    fp32, int8 = (statistics.median(rates[name]) for name in (FP32, INT8))
    return {
        "threads": cpu.available_cpus(),
        "fp32_texts_per_second": round(fp32, 1),
        "int8_texts_per_second": round(int8, 1),
        "int8_over_fp32": round(int8 / fp32, 2),
    }


def _size(out: Path, name: str) -> int:
    """Bytes of a model file and its data."""
    return sum(path.stat().st_size for path in (out / name, out / f"{name}.data") if path.is_file())


def _summary(report: Report) -> Report:
    """What GET / shows of a report."""
    short = ("mean", "p1", "min", "pairwise_difference")
    return {
        "texts": report["texts"],
        "int8": {name: report["int8"][name] for name in short},
        "fp32": {name: report["fp32"][name] for name in short},
        "bytes": report["bytes"],
        "int8_over_fp32_speed": report["speed"]["int8_over_fp32"],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(out: Path, name: str, text: str) -> None:
    with files.replacing(out, name) as part:
        (part / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    from build.__main__ import main_verify

    sys.exit(main_verify())
