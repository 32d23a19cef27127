"""How alike vectors are: what quantization is steered by and the proof measures."""

import numpy as np
from numpy.typing import NDArray

NEAREST = 10  # neighbours compared

Matrix = NDArray[np.float32]


def unit(vectors: Matrix) -> NDArray[np.float64]:
    """(n, dim) -> the same in length 1."""
    wide = vectors.astype(np.float64)
    scaled: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def cosines(a: Matrix, b: Matrix) -> NDArray[np.float64]:
    """(n, dim), (n, dim) -> (n,) cosine of each pair of rows."""
    rows: NDArray[np.float64] = np.sum(unit(a) * unit(b), axis=1)
    return rows


def pairwise_difference(a: Matrix, b: Matrix) -> float:
    """Mean absolute difference of all pairs' cosine similarities, (n, dim) against (n, dim)."""
    upper = np.triu_indices(len(a), 1)
    unit_a, unit_b = unit(a), unit(b)
    return float(np.mean(np.abs(unit_a @ unit_a.T - unit_b @ unit_b.T)[upper]))


def translation_accuracy(a: Matrix, b: Matrix) -> float:
    """How often the nearest row on the other side, by cosine, is the translation; both directions' mean.

    (n, dim) and (n, dim): row i of one is the translation of row i of the other.
    """
    similarities = unit(a) @ unit(b).T
    own = np.arange(len(a))
    return float(np.mean([similarities.argmax(axis=axis) == own for axis in (0, 1)]))


def neighbour_overlap(a: Matrix, b: Matrix, nearest: int = NEAREST) -> float:
    """Mean share of a row's nearest other rows, by cosine, that are the same in (n, dim) and in (n, dim)."""
    rows = zip(_nearest(a, nearest), _nearest(b, nearest), strict=True)
    return float(np.mean([len(np.intersect1d(one, other)) / nearest for one, other in rows]))


def _nearest(a: Matrix, nearest: int) -> NDArray[np.intp]:
    """(n, dim) -> (n, nearest) the indexes of each row's nearest other rows."""
    rows = unit(a)
    similarities = rows @ rows.T
    similarities = similarities.round(12)  # so that equal vectors tie, whatever the order of the sums
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, :nearest]
