"""Weights of a linear layer -> int8 and a scale for each output, by GPTQ under the pair rule.

On CPUs without VNNI ONNX Runtime's kernels add products two by two in 16 bits:
u1 w1 + u2 w2 with activations u <= 255, for neighbours w1, w2 (rows 2j and 2j+1 of the
(inputs, outputs) matrix). That cannot overflow while -128 <= w1 + w2 <= 128. The usual way out,
`reduce_range`, halves every weight's range; the pair rule keeps most of it, with the same sums on
every CPU.

GPTQ (arXiv 2210.17323) rounds the inputs' rows one after the other, and spreads each row's error
over the rows to come so that the layer's output on the calibration texts changes least.
"""

import numpy as np
from numpy.typing import NDArray

LARGEST = 127
PAIR_SUM = 128
# A scale to try for each output: the one that maps its largest weight to 127, times these. With the
# first no pair needs to be bent, and under 1 the largest weights are clipped.
SCALES = np.linspace(LARGEST / (PAIR_SUM // 2), 0.6, 29, dtype=np.float32)
DAMPING = 0.01  # of the mean of H's diagonal, as in GPTQ's own code
BLOCK = 64  # rows between updates of all the rows to come; changes the speed only

Floats = NDArray[np.float32]


def rounded(weight: Floats, moments: Floats) -> tuple[NDArray[np.int8], Floats]:
    """(inputs, outputs) float32 -> the same as int8, and (outputs,) scales: weight ~ int8 * scale.

    moments: (inputs, inputs), the mean of x^T x over calibration inputs x.
    """
    scale = _scales(weight, np.diag(moments))
    inputs, outputs = weight.shape
    curvature = moments.astype(np.float64)
    diagonal = np.arange(inputs)
    curvature[diagonal, diagonal] += DAMPING * np.mean(np.diag(curvature)) + 1e-12
    # the rows of this factor say how a row's error is best spread over the rows after it
    spread = np.linalg.cholesky(np.linalg.inv(curvature)).T
    rest = (weight / scale).astype(np.float64)
    codes = np.zeros_like(rest)
    for start in range(0, inputs, BLOCK):
        stop = min(inputs, start + BLOCK)
        errors = np.zeros((stop - start, outputs))
        for row in range(start, stop):
            codes[row] = _clipped(np.round(rest[row]), codes[row - 1] if row % 2 else None)
            error = (rest[row] - codes[row]) / spread[row, row]
            errors[row - start] = error
            rest[row + 1 : stop] -= np.outer(spread[row, row + 1 : stop], error)
        rest[stop:] -= spread[start:stop, stop:].T @ errors
    return codes.astype(np.int8), scale


def _clipped(row: NDArray[np.float64], partner: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """A row of codes within int8 and, beside its partner, within the pair rule."""
    low, high = np.full_like(row, -LARGEST), np.full_like(row, LARGEST)
    if partner is not None:
        low, high = np.maximum(low, -PAIR_SUM - partner), np.minimum(high, PAIR_SUM - partner)
    clipped: NDArray[np.float64] = np.clip(row, low, high)
    return clipped


def _scales(weight: Floats, importance: Floats) -> Floats:
    """For each output the one of SCALES whose rounded weights err least, by the inputs' mean squares."""
    largest = np.maximum(np.abs(weight).max(0), 1e-12) / LARGEST
    best = np.full(weight.shape[1], np.inf)
    chosen: Floats = largest.copy()
    for multiple in SCALES:
        scale = largest * multiple
        codes = np.clip(np.round(weight / scale), -LARGEST, LARGEST)
        # what a pair is over the limit is taken from both
        pairs = codes[: len(codes) // 2 * 2].reshape(-1, 2, codes.shape[1])
        total = pairs.sum(1)
        over = np.sign(total) * np.maximum(np.abs(total) - PAIR_SUM, 0)
        pairs[:, 0] -= np.round(over / 2)
        pairs[:, 1] -= over - np.round(over / 2)
        error = (((codes * scale - weight) ** 2) * importance[:, None]).sum(0)
        better = error < best
        best[better], chosen[better] = error[better], scale[better]
    return chosen
