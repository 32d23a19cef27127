"""Similarity of vectors: the measures that the quantization optimizes and the verification reports."""

import numpy as np
from numpy.typing import NDArray

# Number of nearest neighbours compared.
NEAREST = 10

Matrix = NDArray[np.float32]


def unit(vectors: Matrix) -> NDArray[np.float64]:
    """Return (n, dim) vectors scaled to length 1, float64."""
    wide = vectors.astype(np.float64)
    scaled: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def cosines(a: Matrix, b: Matrix) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows: (n, dim), (n, dim) -> (n,)."""
    rows: NDArray[np.float64] = np.sum(unit(a) * unit(b), axis=1)
    return rows


def pairwise_difference(a: Matrix, b: Matrix) -> float:
    """Return the mean absolute difference of all pairs' cosine similarities, (n, dim) against (n, dim)."""
    upper = np.triu_indices(len(a), 1)
    unit_a, unit_b = unit(a), unit(b)
    return float(np.mean(np.abs(unit_a @ unit_a.T - unit_b @ unit_b.T)[upper]))


def translation_accuracy(a: Matrix, b: Matrix) -> float:
    """Return the share of rows whose nearest row of the other language, by cosine, is their translation.

    It is the mean of both directions. Row i of a, (n, dim), is the translation of row i of b, (n, dim).
    """
    similarities = unit(a) @ unit(b).T
    own = np.arange(len(a))
    return float(np.mean([similarities.argmax(axis=axis) == own for axis in (0, 1)]))


def neighbour_overlap(a: Matrix, b: Matrix, nearest: int = NEAREST) -> float:
    """Return the mean share of a row's nearest other rows, by cosine, that are the same in a and b, (n, dim) each."""
    return overlap(_nearest(a, nearest), _nearest(b, nearest))


def overlap(a: NDArray[np.intp], b: NDArray[np.intp]) -> float:
    """Return the mean share of a row's indexes that are the same in a and b, (n, nearest) each."""
    return float(np.mean([len(np.intersect1d(one, other)) / len(one) for one, other in zip(a, b, strict=True)]))


def _nearest(a: Matrix, nearest: int) -> NDArray[np.intp]:
    """Return the indexes of each row's nearest other rows: (n, dim) -> (n, nearest)."""
    rows = unit(a)
    similarities = rows @ rows.T
    similarities = similarities.round(12)  # equal vectors must tie whatever the order of the sums
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, :nearest]
