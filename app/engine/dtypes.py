"""Dtypes: vectors cut and scaled, as float32, or as int8, uint8 or packed bits: a quarter or a thirty-second of that.

The formulas are those of sentence_transformers.util.quantize_embeddings (version 5.6), with one range for all numbers:
codes of int8 can then be compared as they are, by cosine, dot product or distance.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from app.engine.embeddings import Vector

SmallDtype = Literal["int8", "uint8", "binary", "ubinary"]
Dtype = Literal["float32", SmallDtype]
SMALL_DTYPES: tuple[SmallDtype, ...] = get_args(SmallDtype)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
# Dtypes for which int8_range is needed.
WITH_RANGE = ("int8", "uint8")


def shape(
    rows: Sequence[Vector],
    *,
    dimensions: int | None = None,
    normalize: bool = False,
    dtype: Dtype = "float32",
    int8_range: tuple[float, float] | None = None,
) -> NDArray[Any]:
    """Return n vectors of (dim,) as one array: cut to `dimensions`, then as `dtype`.

    float32: scaled to length 1 after the cut if normalize is set. int8 and uint8: scaled to length 1 before it, so that
    int8_range fits. binary and ubinary: the scale does not matter.
    """
    vectors = np.array(rows, np.float32)
    if dtype == "float32":
        if dimensions is None and not normalize:
            return vectors
        vectors = vectors[:, :dimensions]
        return _unit(vectors) if normalize else np.ascontiguousarray(vectors)
    if dtype in WITH_RANGE:
        vectors = _unit(vectors)
    return quantize(vectors[:, :dimensions], dtype, int8_range)


def _unit(vectors: Vector) -> Vector:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def quantize(vectors: Vector, dtype: str, int8_range: tuple[float, float] | None) -> NDArray[Any]:
    """Return (n, dim) float32 vectors as another dtype.

    Args:
        dtype: one of SMALL_DTYPES. int8 and uint8: (n, dim) codes; vectors have length 1, or are the beginnings
            of such. binary and ubinary: (n, ceil(dim / 8)) bytes, int8 and uint8, with the signs as bits.
        int8_range: the numbers of the lowest and of the highest code; others are clipped.
    """
    if dtype in ("binary", "ubinary"):
        bits: NDArray[Any] = np.packbits(vectors > 0, axis=-1)
        return bits if dtype == "ubinary" else (bits - 128).astype(np.int8)
    assert int8_range
    low, high = np.array(int8_range, np.float32)
    codes: NDArray[Any] = np.clip(np.floor((vectors - low) / ((high - low) / np.float32(255))), 0, 255)
    return codes.astype(np.uint8) if dtype == "uint8" else (codes - 128).astype(np.int8)
