"""Network: the weights and facts of a transformer, and its layers in INT8.

build/architectures/ makes a Network of a model, build/graph.py writes graphs of it, and the quantization changes its
linear layers. model_fp32.onnx keeps it: its graph has the tensors under their names, and its metadata the facts.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from build import BuildError

# Linear layers of a transformer layer, in the order in which they are computed.
LINEARS = ("qkv", "attention_out", "feed_forward_in", "feed_forward_out")
# Key of the facts in the metadata of model_fp32.onnx.
FACTS = "network"

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Linear:
    """A linear layer y = x @ weight + bias, (seq, inputs) -> (seq, outputs), weight (inputs, outputs)."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear layer in INT8: y = q(rotate(x * smooth)) @ (weight * scale) + bias + x[:, outliers] @ outlier_weight.

    weight: (inputs, outputs) int8. scale: (outputs,) float32. bias: (outputs,).
    smooth: (inputs,), 0 for the outliers; None: all 1. outliers: (k,) int64, channels computed in FP32.
    rotation: length of the blocks of inputs rotated by a Hadamard matrix; 1: no rotation.
    per_token: each token is divided by its largest value before q, and multiplied by it afterwards.
    step, zero: constants of q(x) = round(x / step) + zero, limited to 0 to 255.
    """

    weight: NDArray[np.int8]
    scale: Floats
    bias: Floats
    smooth: Floats | None
    outliers: NDArray[np.int64]
    outlier_weight: Floats
    rotation: int
    per_token: bool
    step: float
    zero: int


@dataclass(frozen=True)
class Norm:
    """A layer normalization. scale, bias: (hidden,)."""

    scale: Floats
    bias: Floats
    epsilon: float


@dataclass(frozen=True)
class Table:
    """The word embeddings (rows, size) as int8: value = code * step.

    step: one for the whole table, float32 (), or one for each row, (rows, 1).
    """

    codes: NDArray[np.int8]
    step: Floats

    def rows(self, ids: Ids) -> "Table":
        """Return the table with the rows of these ids only."""
        return Table(self.codes[ids], self.step[ids] if self.step.ndim else self.step)


@dataclass(frozen=True)
class Network:
    """A transformer with its pooling.

    words: (vocabulary, size); size is `hidden` unless there is a projection.
    linears, norms: by name, such as `layers.0.qkv`, `layers.0.attention_norm`, `embedding_norm` and `final_norm`. Q's
        weights hold 1/sqrt(head dimension). A norm that does not exist is left out.
    layers, heads: their numbers. max_positions: longest text, tokens.
    positions: (max_positions, size), added to the words; None: positions are rotary. If some tokens are uncounted,
        there is one more row, the first, for these.
    uncounted: id of a token that is not counted as a position (RoBERTa's <pad>); None: every token counts.
    projection: linear layer from words and positions to the hidden size (ELECTRA); None: there is none.
    relative: (heads, 2 * max_positions - 1), added to the scores by the distance of key to query; None: nothing is.
    thetas: base of the rotary positions of each layer; (): there are none.
    windows: how far a token of each layer sees to either side, tokens; 0: everything. (): no layer has a window.
    norms_first: norms before attention and feed-forward (ModernBERT), not after them.
    gated: the feed-forward multiplies GELU's outputs by a second half of feed_forward_in's (GeGLU).
    pooling: a mode of sentence-transformers. dense: layers after it, and their activations. normalize: to length 1.
    prompt: the model's default prompt.
    """

    words: Floats
    linears: dict[str, Linear]
    norms: dict[str, Norm]
    layers: int
    heads: int
    max_positions: int
    positions: Floats | None = None
    uncounted: int | None = None
    projection: Linear | None = None
    relative: Floats | None = None
    thetas: tuple[float, ...] = ()
    windows: tuple[int, ...] = ()
    norms_first: bool = False
    gated: bool = False
    pooling: str = "mean"
    dense: tuple[Linear, ...] = ()
    activations: tuple[str, ...] = ()
    normalize: bool = False
    prompt: str = ""

    @property
    def hidden(self) -> int:
        return len(self.linears["layers.0.qkv"].weight)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return len(self.dense[-1].bias) if self.dense else self.hidden

    def facts(self) -> str:
        """Return the fields that are no tensors, as JSON."""
        epsilon = {name: norm.epsilon for name, norm in self.norms.items()}
        return json.dumps({**{name: getattr(self, name) for name in _FACTS}, "epsilon": epsilon}, ensure_ascii=False)

    def of_words(self, ids: list[Ids]) -> tuple["Network", Ids, list[Ids]]:
        """Return the network with the words of these texts only, their ids, and the texts as indexes of these words.

        ids: (seq,) each.
        """
        words, inverse = np.unique(np.concatenate(ids), return_inverse=True)
        texts = np.split(inverse.astype(np.int64), np.cumsum([len(item) for item in ids])[:-1])
        uncounted = self.uncounted
        if uncounted is not None:
            places = np.flatnonzero(words == uncounted)
            uncounted = int(places[0]) if len(places) else -1
        return replace(self, words=self.words[words], uncounted=uncounted), words, texts


# Fields of a Network that are facts, not tensors.
_FACTS = [
    item.name
    for item in dataclasses.fields(Network)
    if item.name not in ("words", "linears", "norms", "positions", "projection", "relative", "dense")
]


def read(path: Path) -> Network:
    """Read a file of build/export_onnx.py.

    Raises:
        BuildError: the file was written by an older version.
    """
    model = onnx.load(path)
    found = {item.key: item.value for item in model.metadata_props}
    if FACTS not in found:
        raise BuildError(f"{path} was made by an older version: run python -m build.export_onnx --out {path.parent}.")
    facts: dict[str, Any] = json.loads(found[FACTS])
    epsilon: Mapping[str, float] = facts.pop("epsilon")
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    tensors: dict[str, Floats] = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}

    def linear(name: str) -> Linear:
        return Linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    names = [f"layers.{index}.{kind}" for index in range(facts["layers"]) for kind in LINEARS]
    return Network(
        words=tensors["words"],
        positions=tensors.get("positions"),
        relative=tensors.get("relative"),
        projection=linear("projection") if "projection.weight" in tensors else None,
        linears={name: linear(name) for name in names},
        norms={name: Norm(tensors[f"{name}.scale"], tensors[f"{name}.bias"], epsilon[name]) for name in epsilon},
        dense=tuple(linear(f"dense.{index}") for index in range(len(facts["activations"]))),
        **facts,
    )
