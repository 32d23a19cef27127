"""The graph of model_int8.onnx, written node by node from FP32 weights and quantized linear layers.

The graph is written, not transformed: every node has a reason, the same input gives the same bytes, and each layer can
have its own form. docs/quantization.md lists the forms that were tried and the cost of each node.

It takes texts of equal length, so it needs neither padding nor a mask. A text's vector does not depend on the others,
bit for bit: each operator used here computes a row, or a text, in an order of its own, and the scales of the
activations are constants. It is also the same on every x86-64 CPU with AVX2: Softmax is not used, since ONNX Runtime's
adds its terms in another order with AVX-512 than with AVX2, and the integer sums do not overflow (see build/gptq.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from build import BuildError

OPSET = 17
MICROSOFT = "com.microsoft"  # domain of ONNX Runtime's own operators
IR_VERSION = 10
LINEARS = ("qkv", "attention_out", "feed_forward_in", "feed_forward_out")

Floats = NDArray[np.float32]


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
    """The word embeddings (rows, hidden) as int8: value = code * step.

    step: one for the whole table, float32 (), or one for each row, (rows, 1).
    """

    codes: NDArray[np.int8]
    step: Floats

    def rows(self, ids: NDArray[np.int64]) -> "Table":
        """Return the table with the rows of these ids only."""
        return Table(self.codes[ids], self.step[ids] if self.step.ndim else self.step)


@dataclass(frozen=True)
class Network:
    """The contents of model_fp32.onnx.

    words: (vocabulary, hidden). positions: (max positions, hidden). linears, norms: by name, such as `layers.0.qkv` and
    `layers.0.attention_norm`. prompt: the model's default prompt.
    """

    words: Floats
    positions: Floats
    linears: dict[str, Linear]
    norms: dict[str, Norm]
    layers: int
    heads: int
    pooling: str
    normalize: bool
    prompt: str

    @property
    def hidden(self) -> int:
        return int(self.words.shape[1])

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def read(path: Path) -> Network:
    """Read a file of build/export_onnx.py. Tensors are found through the nodes, which carry the modules' names.

    Raises:
        BuildError: the file was written by an older version.
    """
    model = onnx.load(path)
    tensors = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in tensors:  # the exporter stores equal tensors once
            tensors[node.output[0]] = tensors[node.input[0]]
    facts = {item.key: item.value for item in model.metadata_props}
    if "heads" not in facts:
        raise BuildError(f"{path} was made by an older version: run python -m build.export_onnx --out {path.parent}.")

    def tensor(node: Any, index: int) -> Floats:
        array: Floats = numpy_helper.to_array(tensors[node.input[index]])
        return array

    weights: dict[str, Floats] = {}
    biases: dict[str, Floats] = {}
    norms: dict[str, Norm] = {}
    embeddings: dict[str, Floats] = {}
    for node in model.graph.node:
        module = node.name.strip("/").replace("/", ".").rpartition(".")[0]
        is_linear = module.rpartition(".")[2] in LINEARS
        if node.op_type == "MatMul" and is_linear:
            weights[module] = tensor(node, 1)
        elif node.op_type == "Add" and is_linear:
            biases[module] = tensor(node, 1 if node.input[1] in tensors else 0)
        elif node.op_type == "LayerNormalization":
            epsilon = next(item.f for item in node.attribute if item.name == "epsilon")
            norms[module] = Norm(tensor(node, 1), tensor(node, 2), epsilon)
        elif node.op_type in ("Gather", "Slice") and node.input[0] in tensors:
            embeddings.setdefault(node.op_type, tensor(node, 0))
    return Network(
        words=embeddings["Gather"],
        positions=embeddings["Slice"],
        linears={name: Linear(weight, biases[name]) for name, weight in weights.items()},
        norms=norms,
        layers=len(weights) // len(LINEARS),
        heads=int(facts["heads"]),
        pooling=facts["pooling"],
        normalize=facts["normalize"] == "True",
        prompt=facts["prompt"],
    )


def write(
    network: Network,
    table: Table | Floats,
    linears: Mapping[str, Linear | QuantizedLinear],
    metadata: Mapping[str, str] | None = None,
    show_inputs: bool = False,
) -> onnx.ModelProto:
    """Return the graph `input_ids (texts, seq) int64` -> `embedding (texts, hidden) float32`.

    table: INT8, or FP32 to measure the linear layers alone. linears: by name, each INT8 or FP32.
    show_inputs: add each linear layer's input, (texts * seq, inputs), as an output named like the layer.
    """
    graph = _Graph(network)
    graph.shapes()
    graph.embed(table)
    inputs = {}
    for index in range(network.layers):
        for name, tensor in graph.layer(f"layers.{index}", linears):
            inputs[name] = tensor
    graph.pool()
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", network.hidden])]
    if show_inputs:
        for name, tensor in inputs.items():
            graph.node("Identity", [tensor], name)
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", None]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "texts of equal length",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["texts", "seq"])],
            outputs,
            [numpy_helper.from_array(array, name) for name, array in graph.tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=IR_VERSION,
        producer_name="build.quantize",
    )
    helper.set_model_props(model, dict(metadata or {}))
    return model


def hadamard(length: int) -> Floats:
    """Return the Hadamard matrix of a power of two, scaled to be orthogonal: it is its own inverse."""
    matrix = np.ones((1, 1))
    while len(matrix) < length:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: Floats = (matrix / np.sqrt(length)).astype(np.float32)
    return scaled


class _Graph:
    """Graph under construction: its nodes and tensors.

    x: name of the hidden states' tensor, (tokens, hidden), the tokens of all texts one after the other.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, NDArray[Any]] = {}
        self.x = ""

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.tensors[name] = array
        return name

    def node(self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def shapes(self) -> None:
        """Add the shapes that depend on the number of texts and on their length, and ones for softmax's sums."""
        network = self.network
        self.constant("any", np.array([-1]))
        self.constant("one", np.array([1]))
        self.constant("heads", np.array([network.heads]))
        self.constant("heads_shape", np.array([3, network.heads, network.head_dim]))
        self.constant("hidden", np.array([network.hidden]))
        self.constant("rows_shape", np.array([-1, network.hidden]))
        self.node("Shape", ["input_ids"], "texts", end=1)
        self.node("Shape", ["input_ids"], "length", start=1)
        self.node("Concat", ["any", "length", "heads_shape"], "qkv_shape", axis=0)
        self.node("Concat", ["any", "length", "hidden"], "states_shape", axis=0)
        self.node("Concat", ["one", "texts", "heads", "length", "one"], "total_shape", axis=0)
        value = numpy_helper.from_array(np.ones(1, np.float32))
        self.node("ConstantOfShape", ["total_shape"], "ones_of_heads", value=value)

    def embed(self, table: Table | Floats) -> None:
        if isinstance(table, Table):
            self.constant("words", table.codes)
            self.node("Gather", ["words", "input_ids"], "word_codes")
            self.node("Cast", ["word_codes"], "word_floats", to=TensorProto.FLOAT)
            step = self.constant("words.step", table.step)
            if table.step.ndim:
                step = self.node("Gather", [step, "input_ids"], "word_steps")
            self.node("Mul", ["word_floats", step], "word_rows")
        else:
            self.node("Gather", [self.constant("words", table), "input_ids"], "word_rows")
        self.constant("positions", self.network.positions)
        self.constant("first", np.array([0]))  # start of a text, and axis of the positions
        self.node("Slice", ["positions", "first", "length", "first"], "position_rows")
        self.node("Add", ["word_rows", "position_rows"], "embedded")  # (texts, seq, hidden)
        self.node("Reshape", ["embedded", "rows_shape"], "rows")
        self.norm("rows", "embedding_norm")

    def norm(self, tensor: str, name: str) -> None:
        norm = self.network.norms[name]
        scale, bias = self.constant(f"{name}.scale", norm.scale), self.constant(f"{name}.bias", norm.bias)
        self.x = self.node("LayerNormalization", [tensor, scale, bias], name, axis=-1, epsilon=norm.epsilon)

    def layer(self, name: str, linears: Mapping[str, Linear | QuantizedLinear]) -> list[tuple[str, str]]:
        """Add attention and feed-forward; return (name, input tensor) of each linear layer."""
        qkv, attention_out, feed_forward_in, feed_forward_out = (f"{name}.{linear}" for linear in LINEARS)
        inputs = [(qkv, self.x)]
        context = self.attend(name, self.linear(qkv, self.x, linears[qkv]))
        inputs.append((attention_out, context))
        y = self.linear(attention_out, context, linears[attention_out])
        self.norm(self.node("Add", [self.x, y], f"{name}.attended"), f"{name}.attention_norm")
        inputs.append((feed_forward_in, self.x))
        y = self.linear(feed_forward_in, self.x, linears[feed_forward_in])
        activated = self.node("Gelu", [y], f"{name}.gelu", MICROSOFT)
        inputs.append((feed_forward_out, activated))
        y = self.linear(feed_forward_out, activated, linears[feed_forward_out])
        self.norm(self.node("Add", [self.x, y], f"{name}.fed"), f"{name}.feed_forward_norm")
        return inputs

    def attend(self, name: str, qkv: str) -> str:
        """Add softmax(Q K^T) V: (tokens, 3 x hidden) -> (tokens, hidden). Q's weights hold 1/sqrt(head dimension)."""
        self.constant("thirds", np.array([1, 1, 1]))
        split = self.node("Reshape", [qkv, "qkv_shape"], f"{name}.split")
        # (3, texts, heads, seq, head_dim)
        split = self.node("Transpose", [split], f"{name}.heads", perm=[2, 0, 3, 1, 4])
        q, k, v = f"{name}.q", f"{name}.k", f"{name}.v"
        self.nodes.append(helper.make_node("Split", [split, "thirds"], [q, k, v], name=q, axis=0))
        scores = self.node("FusedMatMul", [q, k], f"{name}.scores", MICROSOFT, transB=1)
        # Softmax from operators whose bits depend neither on the CPU nor on the place in memory, as ReduceSum's do.
        highest = self.node("ReduceMax", [scores], f"{name}.highest", axes=[-1], keepdims=1)
        powers = self.node("Exp", [self.node("Sub", [scores, highest], f"{name}.shifted")], f"{name}.powers")
        total = self.node("MatMul", [powers, "ones_of_heads"], f"{name}.total")
        weights = self.node("Div", [powers, total], f"{name}.weights")
        context = self.node("MatMul", [weights, v], f"{name}.context")  # (1, texts, heads, seq, head_dim)
        context = self.node("Transpose", [context], f"{name}.joined", perm=[0, 1, 3, 2, 4])
        return self.node("Reshape", [context, "rows_shape"], f"{name}.flat")

    def linear(self, name: str, x: str, linear: Linear | QuantizedLinear) -> str:
        bias = self.constant(f"{name}.bias", linear.bias)
        weight = self.constant(f"{name}.weight", linear.weight)
        if isinstance(linear, Linear):
            return self.node("Gemm", [x, weight, bias], f"{name}.y")
        scale = self.constant(f"{name}.scale", linear.scale)
        codes = x
        if linear.smooth is not None:
            codes = self.node("Mul", [x, self.constant(f"{name}.smooth", linear.smooth)], f"{name}.smoothed")
        if linear.rotation > 1:
            matrix = self.constant(f"hadamard_{linear.rotation}", hadamard(linear.rotation))
            blocks = self.constant(f"blocks_{linear.rotation}", np.array([-1, linear.rotation]))
            inputs = self.constant(f"{name}.inputs", np.array([-1, len(linear.weight)]))
            codes = self.node("Reshape", [codes, blocks], f"{name}.blocks")
            codes = self.node("MatMul", [codes, matrix], f"{name}.rotated")
            codes = self.node("Reshape", [codes, inputs], f"{name}.whole")
        if linear.per_token:
            size = self.node("Abs", [codes], f"{name}.size")
            largest = self.node("ReduceMax", [size], f"{name}.largest", axes=[1], keepdims=1)
            codes = self.node("Div", [codes, largest], f"{name}.per_token")
        step = self.constant(f"{name}.step", np.array(linear.step, np.float32))
        zero = self.constant(f"{name}.zero", np.array(linear.zero, np.uint8))
        codes = self.node("QuantizeLinear", [codes, step, zero], f"{name}.codes")
        product = [codes, weight, step, scale, zero, ""]
        if linear.per_token:
            y = self.node("MatMulIntegerToFloat", product, f"{name}.scaled", MICROSOFT)
            y = self.node("Mul", [y, largest], f"{name}.unscaled")
            y = self.node("Add", [y, bias], f"{name}.y")
        else:
            y = self.node("MatMulIntegerToFloat", [*product, bias], f"{name}.y", MICROSOFT)
        if len(linear.outliers):
            columns = self.constant(f"{name}.outliers", linear.outliers)
            largest_columns = self.node("Gather", [x, columns], f"{name}.outlier_inputs", axis=1)
            outlier_weight = self.constant(f"{name}.outlier_weight", linear.outlier_weight)
            y = self.node("Gemm", [largest_columns, outlier_weight, y], f"{name}.with_outliers")
        return y

    def pool(self) -> None:
        pooling, normalize = self.network.pooling, self.network.normalize
        output = "pooled" if normalize else "embedding"
        self.node("Reshape", [self.x, "states_shape"], "states")  # (texts, seq, hidden)
        self.constant("first_row", np.array(0))
        if pooling == "mean":
            # A product adds up the tokens of one text and of several in the same order, ReduceMean does not. With one
            # row instead of two, ONNX Runtime would take another kernel for one text.
            self.constant("ones", np.ones((2, len(self.network.positions)), np.float32))
            self.node("Slice", ["ones", "first", "length", "one"], "ones_of_text")
            self.node("MatMul", ["ones_of_text", "states"], "sums")
            self.node("Gather", ["sums", "first_row"], "sum", axis=1)
            self.node("Cast", ["length"], "tokens", to=TensorProto.FLOAT)
            self.node("Div", ["sum", "tokens"], output)
        else:
            self.node("Gather", ["states", "first_row"], output, axis=1)
        if normalize:
            # as torch.nn.functional.normalize, also for a vector of zeros
            length = self.node("ReduceL2", ["pooled"], "norm", axes=[1], keepdims=1)
            limit = self.constant("least_norm", np.array(1e-12, np.float32))
            self.node("Div", ["pooled", self.node("Max", [length, limit], "divisor")], "embedding")
