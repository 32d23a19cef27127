"""Prove that what is served equals the original: report.json, its plots, speed.json, and manifest.json if it does.

The shipped Encoder, on INT8 and on FP32, against SentenceTransformer.encode, on the texts that
quantization has not seen (see build/texts/). But for speed.json, the same build twice on one
machine gives the same bytes.

    python -m build.verify [--model MODEL] [--revision REV] [--out DIR]
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from app.engine import BootError, cpu
from app.engine.encoder import MAX_LENGTH, Encoder
from app.engine.manifest import CHARACTERS, MANIFEST, PIECES, TOKENIZER, Golden, Manifest
from app.engine.model_folder import REPORT, SPEED, ModelFolder, sha256
from app.engine.tokenizer import Tokenizer
from build import BuildError, files, plots
from build.export_onnx import FP32, Facts
from build.quantize import INT8, effort_of
from build.similarity import NEAREST, Matrix, cosines, neighbour_overlap, pairwise_difference, translation_accuracy
from build.source import Source
from build.texts import calibration_sha256, pairs, proof

GOLDEN_TEXT = "動的計画法は、問題を小さな部分問題に分けて解く。Dynamic programming, 2026."
# How near another CPU's vector must come. On x86-64 with AVX2 it is the same, bit for bit (see
# build/graph.py); elsewhere float sums may be ordered in another way, which flips roundings of the activations.
GOLDEN_MIN_COSINE = {FP32: 0.99999, INT8: 0.999}
# The gate: a little under what both models reach that it was made with (docs/quantization.md), since
# elsewhere a few weights may be rounded in another way. The overlap depends on how close to each
# other a model's vectors lie, and finding translations on whether it knows the languages.
FP32_MIN_COSINE = 0.99999
INT8_COSINE = {"mean": 0.9995, "p1": 0.998, "min": 0.996}
INT8_PAIRWISE_DIFFERENCE = 0.005
INT8_RETRIEVAL_LOSS = 0.005  # of the accuracy of finding translations
INT8_NEIGHBOURS = 0.9
LENGTHS = (16, 64, 256)  # tokens: the report's groups
PIECES_IN_A_ROW = 20
SPEED_TEXTS = 24
SPEED_ROUNDS = 3

Report = dict[str, Any]


def verify(
    model: Any,
    facts: Facts,
    source: Source,
    out: Path,
    build_key: str,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Report, Report]:
    """Write OUT/report.json, its plots, OUT/speed.json and, if the gate is passed, OUT/manifest.json.

    Args:
        model: the SentenceTransformer that was exported, the reference.
        progress: called when a part is done.

    Returns: what is in report.json and in speed.json.

    Raises:
        BuildError: the model falls short of the gate, report.json says where; or a file of
            build/texts/ cannot be read.
    """
    groups = proof()
    everything = [text for lines in groups.values() for text in lines]
    group_of = [group for group, lines in groups.items() for _ in lines]
    translations = pairs()
    unseen = everything + [english for english, _ in translations] + [japanese for _, japanese in translations]
    n = len(everything)
    max_length = min(MAX_LENGTH, facts.max_positions)
    model.max_seq_length = max_length
    reference = _reference(model, unseen)
    progress()

    draft = _draft(facts, source, out, build_key)
    encoders = {name: _open(draft, out / name, max_length) for name in (FP32, INT8)}
    golden = {name: encoder.encode([GOLDEN_TEXT], prompt="").vectors[0].tolist() for name, encoder in encoders.items()}
    fp32 = encoders[FP32].encode(everything).vectors
    progress()
    output = encoders[INT8].encode(unseen)
    progress()
    int8, truncated = output.vectors, output.truncated[:n]
    lengths = [_length_group(tokens, cut) for tokens, cut in zip(output.tokens[:n], truncated, strict=True)]
    alone = np.concatenate([encoders[INT8].encode([text]).vectors for text in reversed(everything)])[::-1]
    report: Report = {
        "model": source.model,
        "revision": source.revision,
        "warning": source.warning,
        "texts": n,
        "max_length": max_length,
        "truncated": sum(truncated),
        "fp32": _accuracy(fp32, reference[:n], group_of, lengths),
        "int8": _accuracy(int8[:n], reference[:n], group_of, lengths),
        "pairs": {"texts": len(unseen) - n, **_figures(cosines(int8[n:], reference[n:]))},
        "retrieval": _retrieval(int8[n:], reference[n:]),
        "neighbours": _neighbours(int8, reference, unseen),
        "invariance": {"alone_equals_together": bool(np.array_equal(alone, int8[:n]))},
        "tokens_equal": _true_lengths(model, everything) == _counted(encoders[INT8], everything)
        and _same_pieces(out, draft, unseen),
        "bytes": {name: _size(out, name) for name in (FP32, INT8)},
    }
    speed = _speed(encoders, everything)
    progress()
    for name, content in ((REPORT, report), (SPEED, speed)):
        _write(out, name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    limits = {f"{name} allowed": 1 - least for name, least in INT8_COSINE.items()}
    plots.write(out, source.model, reference[:n], int8[:n], group_of, output.tokens[:n], limits)
    reasons = shortfalls(report)
    if reasons:
        if effort_of(out) == "fast":
            reasons.append("Another effort than fast keeps layers in FP32 where it is needed.")
        raise BuildError(f"The model falls short, see {out / REPORT}: {' '.join(reasons)}")
    manifest = replace(draft, golden=Golden(GOLDEN_TEXT, golden, GOLDEN_MIN_COSINE), quality=_summary(report))
    _write(out, MANIFEST, manifest.to_json())
    return report, speed


def shortfalls(report: Report) -> list[str]:
    """The gate: a sentence for each figure of a report that is not good enough."""
    fp32, int8, retrieval = report["fp32"], report["int8"], report["retrieval"]
    difference, overlap = int8["pairwise_difference"], report["neighbours"]["overlap"]
    checks = [
        (fp32["min"] >= FP32_MIN_COSINE, f"FP32's least cosine is {fp32['min']}, below {FP32_MIN_COSINE}."),
        *(
            (int8[name] >= least, f"INT8's {name} cosine is {int8[name]}, below {least}.")
            for name, least in INT8_COSINE.items()
        ),
        (
            difference < INT8_PAIRWISE_DIFFERENCE,
            f"INT8's mean difference of similarities is {difference}, not below {INT8_PAIRWISE_DIFFERENCE}.",
        ),
        (
            retrieval["difference"] >= -INT8_RETRIEVAL_LOSS,
            f"INT8's accuracy of finding translations is {retrieval['int8']}, "
            f"more than {INT8_RETRIEVAL_LOSS} below the original's {retrieval['reference']}.",
        ),
        (overlap >= INT8_NEIGHBOURS, f"INT8's overlap of nearest neighbours is {overlap}, below {INT8_NEIGHBOURS}."),
        (report["invariance"]["alone_equals_together"], "A text's INT8 vector depends on its neighbours."),
        (report["tokens_equal"], "The tokens counted are not those of the model's own tokenizer."),
    ]
    return [sentence for good, sentence in checks if not good]  # a NaN is not good


def _draft(facts: Facts, source: Source, out: Path, build_key: str) -> Manifest:
    """The manifest as far as it is known before measuring; never written."""
    names = [name for file in (FP32, INT8) for name in (file, f"{file}.data")] + [TOKENIZER, CHARACTERS, PIECES]
    int8 = {item.key: item.value for item in onnx.load(out / INT8, load_external_data=False).metadata_props}
    if int8.get("calibration_sha256") != calibration_sha256():
        raise BuildError(
            f"{out / INT8} was quantized with other texts than those of build/texts/, so the proof might measure "
            f"what it has seen: run python -m build.quantize --out {out}."
        )
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
        recipe=int8["recipe"],
        calibration_sha256=int8["calibration_sha256"],
        build_key=build_key,
    )


def _open(manifest: Manifest, model_file: Path, max_length: int) -> Encoder:
    """The shipped encoder on one of the model files, without a cache."""
    model_folder = ModelFolder(model_file, model_file.parent / manifest.tokenizer, manifest)
    try:
        encoder = Encoder.load(model_folder, max_length=max_length, threads=cpu.available_cpus())
        encoder.open(self_check=False)  # there is no golden vector yet
    except BootError as error:
        raise BuildError(f"The server would not load the model: {error}") from error
    return encoder


def _reference(model: Any, unseen: list[str]) -> Matrix:
    """SentenceTransformer.encode of one text after the other, so nothing is padded: (n, dim).

    In one thread: the sums' order does not depend on the machine's CPUs, and with several threads
    short texts take ten times as long where the CPUs are busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return np.concatenate([model.encode([text]) for text in unseen])
    finally:
        torch.set_num_threads(threads)


def _retrieval(vectors: Matrix, reference: Matrix) -> Report:
    """(2 n, dim) each: n sentences and then their translations."""
    int8, original = (translation_accuracy(*np.split(side, 2)) for side in (vectors, reference))
    return {
        "queries": len(vectors),
        "reference": round(original, 7),
        "int8": round(int8, 7),
        "difference": round(int8 - original, 7),
    }


def _neighbours(vectors: Matrix, reference: Matrix, unseen: list[str]) -> Report:
    """(n, dim) each, of n texts; a text that is there twice is no neighbour of itself."""
    distinct = sorted({text: row for row, text in enumerate(unseen)}.values())
    overlap = neighbour_overlap(vectors[distinct], reference[distinct])
    return {"texts": len(distinct), "nearest": NEAREST, "overlap": round(overlap, 7)}


def _accuracy(vectors: Matrix, reference: Matrix, group_of: list[str], lengths: list[str]) -> Report:
    found = cosines(vectors, reference)
    return {
        **_figures(found),
        "pairwise_difference": round(pairwise_difference(vectors, reference), 6),
        "by_group": _by(group_of, found),
        "by_length": _by(lengths, found),
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


def _same_pieces(out: Path, draft: Manifest, unseen: list[str]) -> bool:
    """Whether characters and pieces give the ids of tokenizer.json, of all texts and of all pieces in a row."""
    if draft.tokenizer == TOKENIZER:
        return True
    whole, split = (Tokenizer.load(out / name) for name in (TOKENIZER, draft.tokenizer))
    vocabulary = [piece for piece, _ in json.loads((out / TOKENIZER).read_text(encoding="utf-8"))["model"]["vocab"]]
    rows = [
        "".join(vocabulary[start : start + PIECES_IN_A_ROW]) for start in range(0, len(vocabulary), PIECES_IN_A_ROW)
    ]
    return all(whole(text) == split(text) for text in [*unseen, *rows])


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
        "cpu": cpu.features(),
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
        "pairs": report["pairs"],
        "retrieval": report["retrieval"],
        "neighbours": report["neighbours"],
        "bytes": report["bytes"],
    }


def _write(out: Path, name: str, text: str) -> None:
    with files.replacing(out, name) as part:
        (part / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    from build.__main__ import main_verify

    sys.exit(main_verify())
