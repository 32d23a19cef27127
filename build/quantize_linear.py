"""Quantization of one linear layer in a given form, from the statistics of its inputs on the calibration texts."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from build import graph
from build.forms import SMOOTHING, Form
from build.gptq import quantize_weight
from build.graph import Floats, Linear, Network, QuantizedLinear

# Longest rotated block of channels; a power of two.
ROTATION = 32
# Largest share of a layer's input channels that are outliers.
MAX_OUTLIERS = 1 / 8

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a linear layer's inputs x over the calibration texts, each text with the same weight.

    peaks: (inputs,) largest |x|, before smoothing and rotation. moments: (inputs, inputs) mean of x^T x.
    """

    peaks: Floats
    moments: Floats


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Return an ONNX Runtime session on a model in memory."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure_inputs(network: Network, ids: list[Ids]) -> dict[str, InputStatistics]:
    """Run texts, (seq,) ids each, in FP32 and return the input statistics of each linear layer."""
    words, inverse = np.unique(np.concatenate(ids), return_inverse=True)
    session = open_session(graph.write(network, network.words[words], network.linears, show_inputs=True))
    names = [output.name for output in session.get_outputs()][1:]
    sizes = {name: len(network.linears[name].weight) for name in names}
    peaks = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    moments = {name: np.zeros((size, size), np.float32) for name, size in sizes.items()}
    for item in np.split(inverse.astype(np.int64), np.cumsum([len(item) for item in ids])[:-1]):
        for name, x in zip(names, session.run(names, {"input_ids": item}), strict=True):
            peaks[name] = np.maximum(peaks[name], np.abs(x).max(0))
            moments[name] += x.T @ x / len(x)
    return {name: InputStatistics(peaks[name], moments[name] / np.float32(len(ids))) for name in names}


def fold_smoothing(network: Network, inputs: dict[str, InputStatistics]) -> tuple[Network, dict[str, InputStatistics]]:
    """Smooth and rotate each attention_out's input within V's weights, at no cost at run time.

    Attention takes weighted means of V's rows, so a change of V's columns changes its output's columns alike.
    """
    linears, statistics = dict(network.linears), dict(inputs)
    block = rotation_length(network.head_dim)
    for index in range(network.layers):
        qkv, out = f"layers.{index}.qkv", f"layers.{index}.attention_out"
        divisor = _divisor(linears[out].weight, inputs[out].peaks, SMOOTHING["attention_out"])
        weight, bias = linears[qkv].weight.copy(), linears[qkv].bias.copy()
        weight[:, -network.hidden :] = _rotate(weight[:, -network.hidden :] / divisor, block)
        bias[-network.hidden :] = _rotate(bias[None, -network.hidden :] / divisor, block)[0]
        linears[qkv] = Linear(weight, bias)
        rotated_out = _rotate((linears[out].weight * divisor[:, None]).T, block).T
        linears[out] = Linear(np.ascontiguousarray(rotated_out), linears[out].bias)
        moments = inputs[out].moments / divisor[:, None] / divisor
        statistics[out] = InputStatistics(inputs[out].peaks, _rotate(_rotate(moments, block).T, block))
    return replace(network, linears=linears), statistics


def quantize_linear(
    linear: Linear, inputs: InputStatistics, form: Form, smoothing: float, is_folded: bool
) -> QuantizedLinear:
    """Quantize a linear layer in a form.

    smoothing: exponent of the smoothing. is_folded: fold_smoothing has smoothed and rotated the input already; the
    peaks are then unknown and no outliers can be chosen.
    """
    assert not (is_folded and form.outliers)
    size = len(linear.weight)
    divisor = np.ones(size, np.float32) if is_folded else _divisor(linear.weight, inputs.peaks, smoothing)
    smooth = np.reciprocal(divisor)
    weight: Floats = linear.weight * divisor[:, None]
    # outliers: the channels that are still the largest, and those with the largest weights
    importance = inputs.peaks * smooth * np.sqrt(np.abs(weight).max(1))
    outliers = np.sort(np.argsort(-importance, kind="stable")[: min(form.outliers, int(size * MAX_OUTLIERS))])
    smooth[outliers], weight[outliers] = 0, 0
    moments: Floats = inputs.moments * smooth[:, None] * smooth
    block = rotation_length(size) if form.rotated else 1
    if block > 1:
        weight = _rotate(weight.T, block).T
        moments = _rotate(_rotate(moments, block).T, block)
    codes, scale = quantize_weight(weight, moments)
    return QuantizedLinear(
        weight=codes,
        scale=scale,
        bias=linear.bias,
        smooth=None if is_folded else smooth,
        outliers=outliers.astype(np.int64),
        outlier_weight=linear.weight[outliers],
        rotation=block,
        per_token=form.per_token,
    )


def rotation_length(size: int) -> int:
    """Return the largest power of two up to ROTATION that divides a number of channels."""
    block = ROTATION
    while size % block:
        block //= 2
    return block


def _divisor(weight: Floats, peaks: Floats, smoothing: float) -> Floats:
    """Return the smoothing divisor of each input channel, (inputs,); their geometric mean is 1."""
    largest_weights = np.maximum(np.abs(weight).max(1), 1e-6)
    divisor = np.maximum(peaks, 1e-6) ** smoothing / largest_weights ** (1 - smoothing)
    scaled: Floats = (divisor / np.exp(np.mean(np.log(divisor)))).astype(np.float32)
    return scaled


def _rotate(x: Floats, block: int) -> Floats:
    """Return (n, size) with each block of columns multiplied by the Hadamard matrix."""
    rotated: Floats = (x.reshape(-1, block) @ graph.hadamard(block)).reshape(x.shape)
    return rotated
