"""model_fp32.onnx -> model_int8.onnx: INT8 weights, activations quantized at run time.

The error of INT8 is in the activations: a few channels are 10 to 50 times the others, and one
scale for all wastes most of its 256 steps. Each linear layer gets the cheapest form in which the
whole model's vectors stay near those of FP32:

- smoothed (SmoothQuant, arXiv 2211.10438): channels divided by s, the weight's rows multiplied;
- outlier channels computed in FP32 beside it (LLM.int8(), arXiv 2208.07339);
- a scale for each token, where tokens differ in size;
- rotated by a Hadamard matrix (QuaRot, arXiv 2404.00456), which spreads the spikes of GELU's output.

Weights are rounded by GPTQ (build/rounding.py). Everything is chosen by measuring on the
calibration texts of build/texts/, which the proof does not use.

    python -m build.quantize [--out DIR] [--effort fast|default|best]
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from build import BuildError, files, graph
from build.export_onnx import FP32
from build.graph import Floats, Linear, Network, QuantizedLinear, Table
from build.pieces import TOKENIZER
from build.rounding import rounded
from build.similarity import cosines, unit
from build.texts import calibration, calibration_sha256

INT8 = "model_int8.onnx"
CALIBRATION_TOKENS = 256  # as the server's MAX_LENGTH: of pages cut at 128 the outliers of long texts are not seen
SEARCH_EVERY = 3  # the search measures on every third calibration text

# The search goes on until 1 - cosine to FP32, table included, is as small as this. Where a model's
# vectors all lie close together, as E5's do, the same error turns more neighbours round: hence the
# share of their spread, 1 - the mean cosine of two texts.
MAX_MEAN_LOSS = 3e-4
MAX_MEAN_LOSS_OF_SPREAD = 1.3e-3
MAX_P99_LOSS = 7e-4

# The steps of the table of words to try, as multiples of the finest one that maps the largest
# value to 127, and the share of the allowed loss that the table may take. A coarser step has fewer values,
# which pack better: on the stand-in 1.5 into 58 MB at a loss of 0.8e-4, 2 into 54 MB at 1.2e-4, 2.5 into
# 51 MB at 1.8e-4. Where none will do each word gets a step of its own.
TABLE_STEPS = (3.0, 2.75, 2.5, 2.25, 2.0, 1.75, 1.5, 1.25, 1.0)
TABLE_SHARE = 0.55

ROTATION = 32  # the longest block; a power of two that divides the inputs

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Form:
    """How a linear layer may be quantized. cost: of its nodes, in thousandths of a short text's time with 12 layers.

    Measured with 14 tokens, one thread, with VNNI and with AVX2 alone; see docs/quantization.md.
    """

    outliers: int = 0
    rotated: bool = False
    per_token: bool = False
    fp32: bool = False
    cost: float = 0


# The first is the cheapest, the last the most exact.
FORMS = {
    "qkv": (Form(), Form(outliers=16, cost=3.5), Form(outliers=16, per_token=True, cost=7)),
    "attention_out": (Form(),),  # smoothed and rotated at no cost, in V's weights
    "feed_forward_in": (Form(), Form(outliers=16, cost=3.5)),
    "feed_forward_out": (Form(outliers=16), Form(outliers=16, rotated=True, cost=4)),
}
# Where INT8 does not do: the matrix product takes some 2.5 times as long.
IN_FP32 = {
    "qkv": Form(fp32=True, cost=30),
    "attention_out": Form(fp32=True, cost=10),
    "feed_forward_in": Form(fp32=True, cost=35),
    "feed_forward_out": Form(fp32=True, cost=35),
}
# How much of the channels' differences goes into the weights: s = peak^a / largest weight^(1-a).
SMOOTHING = {"qkv": 0.7, "attention_out": 0.7, "feed_forward_in": 0.7, "feed_forward_out": 0.5}
SMOOTHINGS = (0.4, 0.5, 0.6, 0.7, 0.8)  # tried by --effort best
MAX_OUTLIERS = 1 / 8  # of the inputs


@dataclass(frozen=True)
class Inputs:
    """What a linear layer's inputs x are like on the calibration texts, each text weighing the same.

    peaks: (inputs,) the largest |x|, before it was smoothed and rotated. moments: (inputs, inputs)
    the mean of x^T x.
    """

    peaks: Floats
    moments: Floats


def quantize(out: Path, effort: str = "default") -> str:
    """Write OUT/model_int8.onnx (+ .data) from OUT/model_fp32.onnx; returns the recipe, a line for people.

    effort: `fast` gives every layer its most exact form; `default` searches for the cheapest ones
    that are exact enough; `best` searches on all calibration texts and tries SMOOTHINGS.

    Raises:
        BuildError: there is no OUT/model_fp32.onnx, or a file of build/texts/ cannot be read.
    """
    if not (out / FP32).is_file():
        raise BuildError(f"There is no {out / FP32}: run python -m build.export_onnx --out {out} first.")
    network = graph.read(out / FP32)
    texts = [text for lines in calibration().values() for text in lines]
    ids = _ids(out / TOKENIZER, network, texts)
    bench = _Bench(network, ids if effort == "best" else ids[::SEARCH_EVERY])
    table, table_name = _table(bench)
    network, inputs = _folded(network, _inputs(network, ids))
    choice = _Search(network, inputs, table.rows(bench.words), bench).run(effort)
    recipe = _recipe(choice.linears, table_name)
    metadata = {
        "recipe": recipe,
        "effort": effort,
        "calibration_sha256": calibration_sha256(),
        "tools": ", ".join(f"{name} {version(name)}" for name in ("onnx", "onnxruntime", "numpy", "tokenizers")),
    }
    model = graph.write(network, table, choice.linears, metadata)
    with files.replacing(out, INT8, f"{INT8}.data") as part:
        # large tensors go beside the graph, where they are memory-mapped
        onnx.save_model(model, part / INT8, save_as_external_data=True, location=f"{INT8}.data", size_threshold=1024)
    return recipe


def effort_of(out: Path) -> str:
    """The effort that OUT/model_int8.onnx was made with.

    Raises:
        BuildError: there is no such file.
    """
    if not (out / INT8).is_file():
        raise BuildError(f"There is no {out / INT8}: run python -m build.quantize --out {out} first.")
    model = onnx.load(out / INT8, load_external_data=False)
    return next((item.value for item in model.metadata_props if item.key == "effort"), "")


def _ids(tokenizer_file: Path, network: Network, texts: list[str]) -> list[Ids]:
    """The texts as the server would see them, the model's default prompt before each."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(min(CALIBRATION_TOKENS, len(network.positions)))
    return [np.array(tokenizer.encode(network.prompt + text).ids, np.int64) for text in texts]


class _Bench:
    """Measures what a quantization costs: 1 - cosine to FP32, on some texts, with only their words' rows."""

    def __init__(self, network: Network, ids: list[Ids]) -> None:
        self.words, inverse = np.unique(np.concatenate(ids), return_inverse=True)
        self.ids = np.split(inverse.astype(np.int64), np.cumsum([len(item) for item in ids])[:-1])
        self.network = network
        self.reference = self._embed(graph.write(network, network.words[self.words], network.linears))
        spread = 1 - float(np.sum(unit(self.reference).mean(0) ** 2))
        self.allowed_loss = min(MAX_MEAN_LOSS, MAX_MEAN_LOSS_OF_SPREAD * spread)

    def losses(
        self, network: Network, table: Table, linears: Mapping[str, Linear | QuantizedLinear]
    ) -> NDArray[np.float64]:
        """table: of self.words."""
        return 1 - cosines(self._embed(graph.write(network, table, linears)), self.reference)

    def _embed(self, model: onnx.ModelProto) -> Floats:
        session = _session(model)
        return np.array([session.run(None, {"input_ids": item})[0] for item in self.ids], np.float32)


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _table(bench: _Bench) -> tuple[Table, str]:
    """The coarsest table that costs at most its share of the allowed loss, or the finest; and what to call it."""
    words = bench.network.words
    finest = max(float(np.abs(words).max()), 1e-12) / 127
    for multiple in TABLE_STEPS:
        step = np.array(finest * multiple, np.float32)
        losses = bench.losses(bench.network, _coded(words[bench.words], step), bench.network.linears)
        if losses.mean() <= TABLE_SHARE * bench.allowed_loss:
            return _coded(words, step), f"one step, {multiple:g} x the finest"
    return _coded(words, np.maximum(np.abs(words).max(1, keepdims=True), 1e-12) / 127), "a step for each word"


def _coded(words: Floats, step: Floats) -> Table:
    return Table(np.round(words / step).astype(np.int8), step)


def _inputs(network: Network, ids: list[Ids]) -> dict[str, Inputs]:
    """Run the texts in FP32 and sum up what comes into each linear layer."""
    words, inverse = np.unique(np.concatenate(ids), return_inverse=True)
    session = _session(graph.write(network, network.words[words], network.linears, show_inputs=True))
    names = [output.name for output in session.get_outputs()][1:]
    sizes = {name: len(network.linears[name].weight) for name in names}
    peaks = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    moments = {name: np.zeros((size, size), np.float32) for name, size in sizes.items()}
    for item in np.split(inverse.astype(np.int64), np.cumsum([len(item) for item in ids])[:-1]):
        for name, x in zip(names, session.run(names, {"input_ids": item}), strict=True):
            peaks[name] = np.maximum(peaks[name], np.abs(x).max(0))
            moments[name] += x.T @ x / len(x)
    return {name: Inputs(peaks[name], moments[name] / np.float32(len(ids))) for name in names}


def _folded(network: Network, inputs: dict[str, Inputs]) -> tuple[Network, dict[str, Inputs]]:
    """Smooth and rotate each attention_out's input in V's weights, which costs nothing at run time.

    Attention takes weighted means of V's rows, so what is done to V's columns is done to its output.
    """
    linears, seen = dict(network.linears), dict(inputs)
    block = _rotation(network.head_dim)
    for index in range(network.layers):
        qkv, out = f"layers.{index}.qkv", f"layers.{index}.attention_out"
        divisor = _divisor(linears[out].weight, inputs[out].peaks, SMOOTHING["attention_out"])
        weight, bias = linears[qkv].weight.copy(), linears[qkv].bias.copy()
        weight[:, -network.hidden :] = _rotated(weight[:, -network.hidden :] / divisor, block)
        bias[-network.hidden :] = _rotated(bias[None, -network.hidden :] / divisor, block)[0]
        linears[qkv] = Linear(weight, bias)
        rotated_out = _rotated((linears[out].weight * divisor[:, None]).T, block).T
        linears[out] = Linear(np.ascontiguousarray(rotated_out), linears[out].bias)
        moments = inputs[out].moments / divisor[:, None] / divisor
        seen[out] = Inputs(inputs[out].peaks, _rotated(_rotated(moments, block).T, block))
    return replace(network, linears=linears), seen


class _Search:
    """Chooses each linear layer's form by measuring the whole model with that layer changed."""

    def __init__(self, network: Network, inputs: dict[str, Inputs], table: Table, bench: _Bench) -> None:
        self._network, self._inputs, self._table, self._bench = network, inputs, table, bench
        self._smoothing = dict(SMOOTHING)
        self._made: dict[tuple[str, Form, float], Linear | QuantizedLinear] = {}

    def run(self, effort: str) -> "_Choice":
        if effort == "best":
            self._tune()
        exact = self._choice(self._most_exact())
        if effort == "fast":
            return exact
        if self._enough(exact):
            # down from the most exact forms, what harms least for what it saves first
            steps = self._steps(exact, {kind: forms[:-1] for kind, forms in FORMS.items()})
            return self._walk(exact, steps, wanted=True)
        # up to FP32, what helps most for what it costs first
        steps = self._steps(exact, {kind: (form,) for kind, form in IN_FP32.items()})
        everything = self._choice({name: IN_FP32[_kind(name)] for name in exact.forms})
        # where even that is not enough the table is to blame, and FP32 would only be slower
        return self._walk(exact, steps, wanted=False) if self._enough(everything) else exact

    def _tune(self) -> None:
        """Of SMOOTHINGS take the one that is best for all layers of a kind."""
        for kind in graph.LINEARS:
            if kind == "attention_out":
                continue  # folded already
            losses = {}
            for smoothing in SMOOTHINGS:
                self._smoothing[kind] = smoothing
                losses[smoothing] = float(self._choice(self._most_exact()).losses.mean())
            self._made.clear()  # all but one of each are not needed any more
            self._smoothing[kind] = min(SMOOTHINGS, key=losses.__getitem__)

    def _most_exact(self) -> dict[str, Form]:
        return {name: FORMS[_kind(name)][-1] for name in self._network.linears}

    def _steps(self, start: "_Choice", forms: Mapping[str, tuple[Form, ...]]) -> list[tuple[str, Form]]:
        """Single changes of a choice: first those that harm least, or help most, for each unit of cost."""
        ratios = []
        for name in self._network.linears:
            for form in forms[_kind(name)]:
                changed = self._choice({**start.forms, name: form})
                difference = float(changed.losses.mean() - start.losses.mean())
                ratios.append((difference / abs(form.cost - start.forms[name].cost), name, form))
        ratios.sort(key=lambda item: (item[0], item[1]))
        return [(name, form) for _, name, form in ratios]

    def _walk(self, start: "_Choice", steps: list[tuple[str, Form]], wanted: bool) -> "_Choice":
        """Take the most steps down that are still exact enough (wanted), or the fewest up that are."""

        def taken(count: int) -> _Choice:
            forms = dict(start.forms)
            for name, form in steps[:count]:
                if not wanted or form.cost < forms[name].cost:
                    forms[name] = form
            return self._choice(forms)

        low, high = 0, len(steps)
        while low < high:
            middle = (low + high + wanted) // 2
            if self._enough(taken(middle)) == wanted:
                low = middle if wanted else middle + 1
            else:
                high = middle - 1 if wanted else middle
        return taken(low)

    def _enough(self, choice: "_Choice") -> bool:
        losses = choice.losses
        return bool(losses.mean() <= self._bench.allowed_loss and np.percentile(losses, 99) <= MAX_P99_LOSS)

    def _choice(self, forms: Mapping[str, Form]) -> "_Choice":
        linears = {name: self._linear(name, form) for name, form in forms.items()}
        return _Choice(dict(forms), linears, self._bench.losses(self._network, self._table, linears))

    def _linear(self, name: str, form: Form) -> Linear | QuantizedLinear:
        smoothing = self._smoothing[_kind(name)]
        key = name, form, smoothing
        if key not in self._made:
            linear = self._network.linears[name]
            free = _kind(name) == "attention_out"
            self._made[key] = linear if form.fp32 else _quantized(linear, self._inputs[name], form, smoothing, free)
        return self._made[key]


@dataclass(frozen=True)
class _Choice:
    """A form for each linear layer, the layers in it, and (texts,) what it costs in 1 - cosine."""

    forms: dict[str, Form]
    linears: dict[str, Linear | QuantizedLinear]
    losses: NDArray[np.float64]


def _kind(name: str) -> str:
    """`layers.0.qkv` -> `qkv`."""
    return name.rpartition(".")[2]


def _quantized(linear: Linear, inputs: Inputs, form: Form, smoothing: float, free: bool) -> QuantizedLinear:
    """A linear layer in a form. free: its input is smoothed and rotated already, so its peaks are not known."""
    assert not (free and form.outliers)
    size = len(linear.weight)
    divisor = np.ones(size, np.float32) if free else _divisor(linear.weight, inputs.peaks, smoothing)
    smooth = np.reciprocal(divisor)
    weight: Floats = linear.weight * divisor[:, None]
    # the channels that are the largest still, and the ones with the largest weights
    importance = inputs.peaks * smooth * np.sqrt(np.abs(weight).max(1))
    outliers = np.sort(np.argsort(-importance, kind="stable")[: min(form.outliers, int(size * MAX_OUTLIERS))])
    smooth[outliers], weight[outliers] = 0, 0
    moments: Floats = inputs.moments * smooth[:, None] * smooth
    block = _rotation(size) if form.rotated else 1
    if block > 1:
        weight = _rotated(weight.T, block).T
        moments = _rotated(_rotated(moments, block).T, block)
    codes, scale = rounded(weight, moments)
    return QuantizedLinear(
        weight=codes,
        scale=scale,
        bias=linear.bias,
        smooth=None if free else smooth,
        outliers=outliers.astype(np.int64),
        outlier_weight=linear.weight[outliers],
        rotation=block,
        per_token=form.per_token,
    )


def _divisor(weight: Floats, peaks: Floats, smoothing: float) -> Floats:
    """(inputs,) what each input channel is divided by; their geometric mean is 1."""
    largest_weights = np.maximum(np.abs(weight).max(1), 1e-6)
    divisor = np.maximum(peaks, 1e-6) ** smoothing / largest_weights ** (1 - smoothing)
    scaled: Floats = (divisor / np.exp(np.mean(np.log(divisor)))).astype(np.float32)
    return scaled


def _rotation(size: int) -> int:
    """The largest power of two up to ROTATION that divides a number of channels."""
    block = ROTATION
    while size % block:
        block //= 2
    return block


def _rotated(x: Floats, block: int) -> Floats:
    """(n, size) -> the same with each block of columns rotated."""
    rotated: Floats = (x.reshape(-1, block) @ graph.hadamard(block)).reshape(x.shape)
    return rotated


def _recipe(linears: Mapping[str, Linear | QuantizedLinear], table_name: str) -> str:
    """A line that says how a model was quantized."""
    int8 = [linear for linear in linears.values() if isinstance(linear, QuantizedLinear)]
    outliers = sum(len(linear.outliers) > 0 for linear in int8)
    rotated = sum(linear.rotation > 1 for linear in int8)
    per_token = sum(linear.per_token for linear in int8)
    return (
        f"GPTQ under the pair rule, smoothing; of {len(linears)} linear layers {outliers} have outlier channels in "
        f"FP32, {rotated} are rotated, {per_token} have a scale for each token, {len(linears) - len(int8)} are in "
        f"FP32; the words' table has {table_name}"
    )


if __name__ == "__main__":
    from build.__main__ import main_quantize

    sys.exit(main_quantize())
