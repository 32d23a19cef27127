"""Evaluation: the figures of report.json and speed.json, from vectors of the shipped encoder and of the original."""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine import cpu
from app.engine.encoder import Encoder
from app.engine.manifest import TOKENIZER
from app.engine.tokenizer import Tokenizer
from build.export_onnx import FP32
from build.quantize import INT8
from build.similarity import NEAREST, Matrix, cosines, neighbour_overlap, pairwise_difference, translation_accuracy

# Upper limits of the report's groups by length, tokens.
LENGTHS = (16, 64, 256)
# Tokens of the vocabulary that are joined to one text when both tokenizers are compared.
TOKENS_IN_A_ROW = 20
SPEED_TEXTS = 24
SPEED_ROUNDS = 3

Report = dict[str, Any]


def reference_vectors(model: Any, texts: list[str]) -> Matrix:
    """Return SentenceTransformer.encode of the texts one by one, without padding: (n, dim).

    It runs in one thread: the order of sums then does not depend on the number of CPUs, and several threads make short
    texts ten times as slow where the CPUs are busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return np.concatenate([model.encode([text]) for text in texts])
    finally:
        torch.set_num_threads(threads)


def accuracy(vectors: Matrix, reference: Matrix, group_of: list[str], length_of: list[str]) -> Report:
    """Return the figures of n vectors against their reference, (n, dim) each, also by group and by length."""
    rows = cosines(vectors, reference)
    return {
        **figures_by_group(rows, group_of),
        "pairwise_difference": round(pairwise_difference(vectors, reference), 6),
        "by_length": _by_label(length_of, rows),
    }


def figures_by_group(cosines: NDArray[np.float64], group_of: list[str]) -> Report:
    """Return the figures of cosines, (n,), also by group."""
    return {**cosine_figures(cosines), "by_group": _by_label(group_of, cosines)}


def cosine_figures(cosines: NDArray[np.float64]) -> Report:
    """Return mean, 1st percentile and minimum of cosines, (n,)."""
    return {
        "mean": round(float(cosines.mean()), 7),
        "p1": round(float(np.percentile(cosines, 1)), 7),
        "min": round(float(cosines.min()), 7),
    }


def _by_label(labels: list[str], cosines: NDArray[np.float64]) -> Report:
    keys = np.array(labels)
    return {
        str(key): {"texts": int((keys == key).sum()), **cosine_figures(cosines[keys == key])}
        for key in dict.fromkeys(labels)
    }


def length_group(tokens: int, is_truncated: bool) -> str:
    """Return the name of a text's group by length."""
    if is_truncated:
        return "truncated"
    return next((f"up to {n} tokens" for n in LENGTHS if tokens <= n), f"over {LENGTHS[-1]} tokens")


def retrieval(vectors: Matrix, reference: Matrix) -> Report:
    """Return the accuracy of finding translations. (2 n, dim) each: n sentences, then their translations."""
    int8, original = (translation_accuracy(*np.split(side, 2)) for side in (vectors, reference))
    return {
        "queries": len(vectors),
        "reference": round(original, 7),
        "int8": round(int8, 7),
        "difference": round(int8 - original, 7),
    }


def neighbours(vectors: Matrix, reference: Matrix, texts: list[str]) -> Report:
    """Return the overlap of nearest neighbours of n texts, (n, dim) each. Equal texts count once."""
    distinct = sorted({text: row for row, text in enumerate(texts)}.values())
    overlap = neighbour_overlap(vectors[distinct], reference[distinct])
    return {"texts": len(distinct), "nearest": NEAREST, "overlap": round(overlap, 7)}


def length_difference(vectors: Matrix, reference: Matrix) -> float:
    """Return the largest relative difference of a vector's length, (n, dim) against (n, dim)."""
    lengths, wanted = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (vectors, reference))
    return round(float(np.abs(lengths / wanted - 1).max()), 7)


def tokens_equal(model: Any, encoder: Encoder, texts: list[str]) -> bool:
    """Return whether the encoder's token ids are those of the model's own tokenizer.

    The texts are also joined to one long text, which the encoder cuts into chunks, and there are texts with the
    tokenizer's special tokens.
    """
    every = [*texts, " ".join(texts), *(f"a {token} b{token}" for token in model.tokenizer.all_special_tokens)]
    return all(
        encoder.tokenizer.encode(text, sys.maxsize, encoder.runner).ids.tolist()
        == model.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        for text in every
    )


def token_ids_equal(out: Path, tokenizer: str, texts: list[str]) -> bool:
    """Return whether the mapped tokenizer gives the ids of tokenizer.json for all texts and all tokens.

    tokenizer: name of the file that the server reads.
    """
    if tokenizer == TOKENIZER:
        return True
    original, mapped = (Tokenizer.load(out / name) for name in (TOKENIZER, tokenizer))
    vocabulary = [token for token, _ in json.loads((out / TOKENIZER).read_text(encoding="utf-8"))["model"]["vocab"]]
    rows = [
        "".join(vocabulary[start : start + TOKENS_IN_A_ROW]) for start in range(0, len(vocabulary), TOKENS_IN_A_ROW)
    ]
    return all(original(text) == mapped(text) for text in [*texts, *rows])


def speed(encoders: dict[str, Encoder], texts: list[str]) -> Report:
    """Return texts/s of FP32 and INT8, measured in alternation, and their ratio (medians of the rounds)."""
    some = texts[:: max(1, len(texts) // SPEED_TEXTS)]
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
