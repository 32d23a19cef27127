"""Small vectors: chooses the range of int8 vectors, and measures what int8 and binary vectors lose."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine.dtypes import quantize
from build.similarity import NEAREST, Matrix, overlap, unit

# Share of the numbers of calibration vectors that int8 holds without clipping: of 1 to 0.98 the one with the highest
# mean cosine on both models of docs/quantization.md, and within 0.001 of the most equal neighbours.
HELD = 0.9999
# Texts that are found by their binary vectors and then ranked with float32, as a multiple of those wanted.
RESCORED = 10

Report = dict[str, Any]


def int8_range(vectors: Matrix) -> tuple[float, float]:
    """Return the numbers of the lowest and of the highest code of int8, from (n, dim) calibration vectors.

    One range for all numbers, with code 0 for zero: floor((x - low) / step) - 128 is then round(x / step).
    """
    step = float(np.quantile(np.abs(unit(vectors)), HELD)) / 127
    return -128.5 * step, 126.5 * step


def measure(vectors: Matrix, texts: list[str], pairs: int, range_: tuple[float, float]) -> Report:
    """Return what int8 and binary vectors find of what float32 finds: nearest neighbours and translations.

    Args:
        vectors: (n, dim), of texts. pairs: the last 2 * pairs texts are sentences and then their translations.
    """
    rows = unit(vectors)
    codes = unit(quantize(rows.astype(np.float32), "int8", range_).astype(np.float32))
    stored = {"float32": rows, "int8": codes, "binary": np.where(rows > 0, 1.0, -1.0)}
    distinct = np.array(sorted({text: row for row, text in enumerate(texts)}.values()))
    english, japanese = np.split(np.arange(len(rows) - 2 * pairs, len(rows)), 2)
    nearest = {name: _found(rows, kept, distinct, distinct, name == "binary") for name, kept in stored.items()}
    right = {
        name: np.mean(
            [
                _found(rows, kept, queries, documents, name == "binary")[:, 0] == np.arange(pairs)
                for queries, documents in ((english, japanese), (japanese, english))
            ]
        )
        for name, kept in stored.items()
    }
    return {
        name: {
            "retrieval_difference": round(float(right[name] - right["float32"]), 7),
            "neighbours": round(overlap(nearest[name], nearest["float32"]), 7),
        }
        for name in ("int8", "binary")
    }


def _found(
    rows: NDArray[np.float64],
    stored: NDArray[np.float64],
    queries: NDArray[np.intp],
    documents: NDArray[np.intp],
    is_binary: bool,
) -> NDArray[np.intp]:
    """Return the NEAREST documents of each query, the best first: indexes into `documents`, without the query itself.

    rows: float32 vectors, (n, dim), which the queries have. stored: the documents' vectors in another dtype, (n, dim).
    is_binary: whether these are signs; the nearest RESCORED * NEAREST are then ranked again with float32.
    """
    others = queries[:, None] != documents[None, :]
    similarities = (stored if is_binary else rows)[queries] @ stored[documents].T
    ranked = _best(similarities, others)
    if is_binary:
        candidates = np.zeros_like(others)
        np.put_along_axis(candidates, ranked[:, : RESCORED * NEAREST], True, axis=1)
        ranked = _best(rows[queries] @ rows[documents].T, candidates & others)
    return ranked[:, :NEAREST]


def _best(similarities: NDArray[np.float64], allowed: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the order of the allowed columns in each row, the most similar first; equal ones keep their order."""
    return np.argsort(-np.where(allowed, similarities.round(12), -np.inf), axis=1, kind="stable")
