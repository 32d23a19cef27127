"""GPTQ under the pair rule: quantizes the weights of a linear layer to int8 with a scale for each output.

On CPUs without VNNI, ONNX Runtime's kernels add products in pairs with 16 bits: u1 w1 + u2 w2 with activations
u <= 255, for adjacent weights w1, w2 (rows 2j and 2j+1 of the (inputs, outputs) matrix). The pair rule,
-128 <= w1 + w2 <= 128, excludes an overflow. The usual solution, `reduce_range`, halves the range of every weight. The
pair rule keeps most of it, with the same sums on every CPU.

GPTQ (arXiv 2210.17323) rounds the rows of the inputs one after the other, and distributes each row's error over the
following rows so that the layer's output on the calibration texts changes least.
"""

import numpy as np
from numpy.typing import NDArray

LARGEST = 127
PAIR_SUM = 128
# Scales to try for each output, as multiples of the one that maps its largest weight to 127. With the first, no pair
# breaks the rule; below 1 the largest weights are clipped.
SCALES = np.linspace(LARGEST / (PAIR_SUM // 2), 0.6, 29, dtype=np.float32)
# Damping, as a share of the mean of the Hessian's diagonal: the value of GPTQ's published code.
DAMPING = 0.01
# Rows between updates of all following rows; affects the speed only.
BLOCK = 64

Floats = NDArray[np.float32]


def quantize_weight(weight: Floats, moments: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return int8 weights, (inputs, outputs), and scales, (outputs,): weight ~ int8 * scale.

    weight: (inputs, outputs) float32. moments: (inputs, inputs), mean of x^T x over the calibration inputs x.
    """
    scale = _scales(weight, np.diag(moments))
    inputs, outputs = weight.shape
    curvature = moments.astype(np.float64)
    # A rotation in float32 leaves the moments a little asymmetric. Their inverse would be far more so, and not positive
    # definite.
    curvature = (curvature + curvature.T) / 2
    diagonal = np.arange(inputs)
    curvature[diagonal, diagonal] += DAMPING * np.mean(np.diag(curvature)) + 1e-12
    # row i of this factor is the best distribution of row i's error over the rows after it
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
    """Return a row of codes clipped to int8 and, with its partner row, to the pair rule."""
    low, high = np.full_like(row, -LARGEST), np.full_like(row, LARGEST)
    if partner is not None:
        low, high = np.maximum(low, -PAIR_SUM - partner), np.minimum(high, PAIR_SUM - partner)
    clipped: NDArray[np.float64] = np.clip(row, low, high)
    return clipped


def _scales(weight: Floats, importance: Floats) -> Floats:
    """Return the best scale of each output, (outputs,): least squared error weighted by the inputs' mean squares."""
    largest = np.maximum(np.abs(weight).max(0), 1e-12) / LARGEST
    best = np.full(weight.shape[1], np.inf)
    chosen: Floats = largest.copy()
    for multiple in SCALES:
        scale = largest * multiple
        codes = np.clip(np.round(weight / scale), -LARGEST, LARGEST)
        # the excess of a pair over the rule is taken from both weights
        pairs = codes[: len(codes) // 2 * 2].reshape(-1, 2, codes.shape[1])
        total = pairs.sum(1)
        over = np.sign(total) * np.maximum(np.abs(total) - PAIR_SUM, 0)
        pairs[:, 0] -= np.round(over / 2)
        pairs[:, 1] -= over - np.round(over / 2)
        error = (((codes * scale - weight) ** 2) * importance[:, None]).sum(0)
        better = error < best
        best[better], chosen[better] = error[better], scale[better]
    return chosen
