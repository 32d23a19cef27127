"""Quantization of one linear layer in a given form, from the statistics of its inputs on the calibration texts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort

from build import graph
from build.forms import SMOOTHING, Form, kind_of
from build.gptq import quantize_weight
from build.network import Floats, Ids, Linear, Network, QuantizedLinear

# Longest rotated block of channels; a power of two.
ROTATION = 32
# Largest share of a layer's input channels that are outliers.
MAX_OUTLIERS = 1 / 8
# Tokens of each calibration text in the sample from which the range of the activations is chosen.
SAMPLED_TOKENS = 8
# Tokens whose products x^T x are summed by one product of matrices: with 4096 inputs each of these costs 0.1 s.
TOKENS_AT_ONCE = 512
# Share of the tokens that a constant scale clips at either end: the steps of all others are finer.
TOKENS_CLIPPED = 0.005


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a linear layer's inputs x over the calibration texts.

    low, high: (inputs,) least and largest x. moments: (inputs, inputs) mean of x^T x, each text with the same weight.
    sample: (rows, inputs) the x of some tokens of each text.
    """

    low: Floats
    high: Floats
    moments: Floats
    sample: Floats

    @property
    def peaks(self) -> Floats:
        """Largest |x| of each input, (inputs,)."""
        return np.maximum(-self.low, self.high)


def open_session(model: bytes) -> ort.InferenceSession:
    """Return an ONNX Runtime session on a serialized model. Its ModelProto is freed then, which saves memory."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure_inputs(network: Network, ids: list[Ids]) -> dict[str, InputStatistics]:
    """Run texts, (seq,) ids each, in FP32 and return the input statistics of each linear layer."""
    names = list(network.linears)
    sizes = {name: len(network.linears[name].weight) for name in names}
    low = {name: np.full(size, np.inf, np.float32) for name, size in sizes.items()}
    high = {name: np.full(size, -np.inf, np.float32) for name, size in sizes.items()}
    moments = {name: np.zeros((size, size), np.float32) for name, size in sizes.items()}
    samples: dict[str, list[Floats]] = {name: [] for name in names}
    waiting: dict[str, list[Floats]] = {name: [] for name in names}

    def add_waiting() -> None:
        for name, texts in waiting.items():
            rows = np.concatenate(texts)
            moments[name] += rows.T @ rows
            texts.clear()

    tokens = 0
    for number, inputs in enumerate(_inputs(network, ids, names), start=1):
        length = len(ids[number - 1])
        for name, x in inputs.items():
            low[name], high[name] = np.minimum(low[name], x.min(0)), np.maximum(high[name], x.max(0))
            samples[name].append(x[np.linspace(0, length - 1, SAMPLED_TOKENS).astype(int)])
            waiting[name].append(x / np.sqrt(np.float32(length * len(ids))))
        tokens += length
        if tokens >= TOKENS_AT_ONCE or number == len(ids):
            add_waiting()
            tokens = 0
    return {
        name: InputStatistics(low[name], high[name], moments[name], np.concatenate(samples.pop(name))) for name in names
    }


def measure_peaks(network: Network, ids: list[Ids]) -> dict[str, Floats]:
    """Run texts, (seq,) ids each, in FP32 and return the largest |x| of each input of each attention_out, (inputs,)."""
    names = [name for name in network.linears if kind_of(name) == "attention_out"]
    peaks = {name: np.zeros(len(network.linears[name].weight), np.float32) for name in names}
    for inputs in _inputs(network, ids, names):
        peaks = {name: np.maximum(peaks[name], np.abs(x).max(0)) for name, x in inputs.items()}
    return peaks


def _inputs(network: Network, ids: list[Ids], names: list[str]) -> Iterator[dict[str, Floats]]:
    """Yield the inputs of the named linear layers for each text, (seq, inputs) each, in FP32."""
    of_words, _, texts = network.of_words(ids)
    session = open_session(graph.write(of_words, of_words.words, network.linears, show_inputs=True).SerializeToString())
    for item in texts:
        yield dict(zip(names, session.run(names, {"input_ids": item[None]}), strict=True))


def fold_smoothing(network: Network, peaks: Mapping[str, Floats]) -> Network:
    """Smooth and rotate each attention_out's input within V's weights, at no cost at run time.

    Attention takes weighted means of V's rows, so a change of V's columns changes its output's columns alike.
    """
    linears = dict(network.linears)
    block = rotation_length(network.head_dim)
    for index in range(network.layers):
        qkv, out = f"layers.{index}.qkv", f"layers.{index}.attention_out"
        divisor = _divisor(linears[out].weight, peaks[out], SMOOTHING["attention_out"])
        weight, bias = linears[qkv].weight.copy(), linears[qkv].bias.copy()
        weight[:, -network.hidden :] = _rotate(weight[:, -network.hidden :] / divisor, block)
        bias[-network.hidden :] = _rotate(bias[None, -network.hidden :] / divisor, block)[0]
        linears[qkv] = Linear(weight, bias)
        rotated_out = _rotate((linears[out].weight * divisor[:, None]).T, block).T
        linears[out] = Linear(np.ascontiguousarray(rotated_out), linears[out].bias)
    return replace(network, linears=linears)


def quantize_linear(linear: Linear, inputs: InputStatistics, form: Form, smoothing: float) -> QuantizedLinear:
    """Quantize a linear layer in a form.

    smoothing: exponent of the smoothing, if the form is smoothed.
    """
    size = len(linear.weight)
    divisor = _divisor(linear.weight, inputs.peaks, smoothing) if form.smoothed else np.ones(size, np.float32)
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
    step, zero = _activation_codes(inputs, form, smooth, block)
    return QuantizedLinear(
        weight=codes,
        scale=scale,
        bias=linear.bias,
        smooth=smooth if form.smoothed else None,
        outliers=outliers.astype(np.int64),
        outlier_weight=linear.weight[outliers],
        rotation=block,
        per_token=form.per_token,
        step=step,
        zero=zero,
    )


def _activation_codes(inputs: InputStatistics, form: Form, smooth: Floats, block: int) -> tuple[float, int]:
    """Return step and zero point of the activations' 8-bit codes."""
    if form.per_token:
        return 1 / 127, 128
    rows = _rotate(inputs.sample * smooth, block)
    if not form.headroom:
        low, high = np.quantile(rows.min(1), TOKENS_CLIPPED), np.quantile(rows.max(1), 1 - TOKENS_CLIPPED)
    elif block > 1:
        low, high = form.headroom * rows.min(), form.headroom * rows.max()
    else:
        low, high = form.headroom * (inputs.low * smooth).min(), form.headroom * (inputs.high * smooth).max()
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    step = max((high - low) / 255, 1e-12)
    return step, round(-low / step)


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
    if block == 1:
        return x
    rotated: Floats = (x.reshape(-1, block) @ graph.hadamard(block)).reshape(x.shape)
    return rotated
