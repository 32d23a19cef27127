"""The graphs of model_fp32.onnx and model_int8.onnx, written node by node from a Network.

The graph is written, not transformed: every node has a reason, the same input gives the same bytes, and each layer can
have its own form. docs/quantization.md lists the forms that were tried and the cost of each node.

It takes texts of equal length, so it needs neither padding nor a mask. A text's vector does not depend on the others,
bit for bit: each operator used here computes a row, or a text, in an order of its own, and the scales of the
activations are constants. It is also the same on every x86-64 CPU with AVX2: Softmax is not used, since ONNX Runtime's
adds its terms in another order with AVX-512 than with AVX2, and the integer sums do not overflow (see build/gptq.py).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from build import files
from build.distances import add_distances
from build.network import LINEARS, Floats, Linear, Network, QuantizedLinear, Table
from build.nodes import Nodes
from build.pooling import add_pooling

OPSET = 17
MICROSOFT = "com.microsoft"  # domain of ONNX Runtime's own operators
IR_VERSION = 10


def write(
    network: Network,
    table: Table | Floats,
    linears: Mapping[str, Linear | QuantizedLinear],
    metadata: Mapping[str, str] | None = None,
    show_inputs: bool = False,
) -> onnx.ModelProto:
    """Return the graph `input_ids (texts, seq) int64` -> `embedding (texts, dimension) float32`.

    table: INT8, or FP32 to measure the linear layers alone. linears: by name, each INT8 or FP32.
    show_inputs: add each linear layer's input, (texts * seq, inputs), as an output named like the layer.
    """
    graph = _Graph(network)
    graph.shapes()
    add_distances(graph, network)
    graph.embed(table)
    inputs = {}
    for index in range(network.layers):
        for name, tensor in graph.layer(index, linears):
            inputs[name] = tensor
    add_pooling(graph, network, graph.norm(graph.x, "final_norm"))
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", network.dimension])]
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
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=IR_VERSION,
        producer_name="build.quantize",
    )
    for name, array in graph.tensors.items():  # one by one: make_graph and make_model copy what they get
        model.graph.initializer.add().CopyFrom(numpy_helper.from_array(array, name))
    helper.set_model_props(model, dict(metadata or {}))
    return model


def save(model: onnx.ModelProto, out: Path, name: str) -> None:
    """Write OUT/name; large tensors are stored beside the graph, in OUT/name.data, so that they are memory-mapped."""
    with files.replacing(out, name, f"{name}.data") as part:
        onnx.save_model(model, part / name, save_as_external_data=True, location=f"{name}.data", size_threshold=1024)


def hadamard(length: int) -> Floats:
    """Return the Hadamard matrix of a power of two, scaled to be orthogonal: it is its own inverse."""
    matrix = np.ones((1, 1))
    while len(matrix) < length:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: Floats = (matrix / np.sqrt(length)).astype(np.float32)
    return scaled


class _Graph(Nodes):
    """Graph under construction.

    x: name of the hidden states' tensor, (tokens, hidden), the tokens of all texts one after the other.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.x = ""

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
        self.constant("first", np.array([0]))  # start of a text, and axis of the positions

    def embed(self, table: Table | Floats) -> None:
        network = self.network
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
        embedded = "word_rows"
        if network.positions is not None:
            self.constant("positions", network.positions)
            if network.uncounted is None:
                self.node("Slice", ["positions", "first", "length", "first"], "position_rows")
            else:  # the rows are counted from 1, and the row of an uncounted token is 0
                self.node("Equal", ["input_ids", self.constant("uncounted", np.array(network.uncounted))], "skipped")
                self.node("Cast", [self.node("Not", ["skipped"], "is_counted")], "counted", to=TensorProto.INT64)
                self.node("CumSum", ["counted", self.constant("along", np.array(1))], "counts")
                self.node("Gather", ["positions", self.node("Mul", ["counts", "counted"], "ranks")], "position_rows")
            embedded = self.node("Add", ["word_rows", "position_rows"], "embedded")  # (texts, seq, size)
        shape = "rows_shape"
        if network.projection:
            shape = self.constant("embedded_shape", np.array([-1, len(network.projection.weight)]))
        self.x = self.norm(self.node("Reshape", [embedded, shape], "rows"), "embedding_norm")
        if network.projection:
            self.x = self.linear("projection", self.x, network.projection)

    def norm(self, tensor: str, name: str) -> str:
        """Add a norm, if the network has it; return the tensor after it."""
        norm = self.network.norms.get(name)
        if norm is None:
            return tensor
        scale, bias = self.constant(f"{name}.scale", norm.scale), self.constant(f"{name}.bias", norm.bias)
        return self.node("LayerNormalization", [tensor, scale, bias], name, axis=-1, epsilon=norm.epsilon)

    def layer(self, index: int, linears: Mapping[str, Linear | QuantizedLinear]) -> list[tuple[str, str]]:
        """Add attention and feed-forward; return (name, input tensor) of each linear layer."""
        name = f"layers.{index}"
        first = self.network.norms_first
        qkv, attention_out, feed_forward_in, feed_forward_out = (f"{name}.{linear}" for linear in LINEARS)
        x = self.norm(self.x, f"{name}.attention_norm") if first else self.x
        inputs = [(qkv, x)]
        context = self.attend(index, self.linear(qkv, x, linears[qkv]))
        inputs.append((attention_out, context))
        y = self.linear(attention_out, context, linears[attention_out])
        self.x = self.node("Add", [self.x, y], f"{name}.attended")
        if not first:
            self.x = self.norm(self.x, f"{name}.attention_norm")
        x = self.norm(self.x, f"{name}.feed_forward_norm") if first else self.x
        inputs.append((feed_forward_in, x))
        activated = self.activate(name, self.linear(feed_forward_in, x, linears[feed_forward_in]))
        inputs.append((feed_forward_out, activated))
        y = self.linear(feed_forward_out, activated, linears[feed_forward_out])
        self.x = self.node("Add", [self.x, y], f"{name}.fed")
        if not first:
            self.x = self.norm(self.x, f"{name}.feed_forward_norm")
        return inputs

    def activate(self, name: str, y: str) -> str:
        """Add GELU or GeGLU to feed_forward_in's output."""
        if not self.network.gated:
            return self.node("Gelu", [y], f"{name}.gelu", MICROSOFT)
        size = len(self.network.linears[f"{name}.feed_forward_out"].weight)
        self.split(y, self.constant("halves", np.array([size, size])), [f"{name}.half", f"{name}.gate"], axis=1)
        activated = self.node("Gelu", [f"{name}.half"], f"{name}.gelu", MICROSOFT)
        return self.node("Mul", [activated, f"{name}.gate"], f"{name}.gated")

    def attend(self, index: int, qkv: str) -> str:
        """Add softmax(Q K^T) V: (tokens, 3 x hidden) -> (tokens, hidden). Q's weights hold 1/sqrt(head dimension)."""
        network, name = self.network, f"layers.{index}"
        split = self.node("Reshape", [qkv, "qkv_shape"], f"{name}.split")
        # (3, texts, heads, seq, head_dim)
        split = self.node("Transpose", [split], f"{name}.heads", perm=[2, 0, 3, 1, 4])
        q, k, v = f"{name}.q", f"{name}.k", f"{name}.v"
        if network.thetas:
            self.split(split, self.constant("two_and_one", np.array([2, 1])), [f"{name}.qk", v], axis=0)
            rotated = self.rotate_positions(name, f"{name}.qk", network.thetas[index])
            self.split(rotated, self.constant("ones_each", np.array([1, 1])), [q, k], axis=0)
        else:
            self.split(split, self.constant("thirds", np.array([1, 1, 1])), [q, k, v], axis=0)
        scores = self.node("FusedMatMul", [q, k], f"{name}.scores", MICROSOFT, transB=1)
        if network.relative is not None:
            scores = self.node("Add", [scores, "relative_scores"], f"{name}.placed")
        if network.windows and network.windows[index]:
            scores = self.node("Add", [scores, f"window_scores.{network.windows[index]}"], f"{name}.windowed")
        # Softmax from operators whose bits depend neither on the CPU nor on the place in memory, as ReduceSum's do.
        highest = self.node("ReduceMax", [scores], f"{name}.highest", axes=[-1], keepdims=1)
        powers = self.node("Exp", [self.node("Sub", [scores, highest], f"{name}.shifted")], f"{name}.powers")
        total = self.node("MatMul", [powers, "ones_of_heads"], f"{name}.total")
        weights = self.node("Div", [powers, total], f"{name}.weights")
        context = self.node("MatMul", [weights, v], f"{name}.context")  # (1, texts, heads, seq, head_dim)
        context = self.node("Transpose", [context], f"{name}.joined", perm=[0, 1, 3, 2, 4])
        return self.node("Reshape", [context, "rows_shape"], f"{name}.flat")

    def rotate_positions(self, name: str, qk: str, theta: float) -> str:
        """Add rotary positions: each pair (a, b) of channels i and i + head_dim / 2 turns by its angle."""
        half = self.network.head_dim // 2
        cos, sin = f"cos.{theta:g}.rows", f"sin.{theta:g}.rows"
        a, b = f"{name}.a", f"{name}.b"
        self.split(qk, self.constant("half_heads", np.array([half, half])), [a, b], axis=4)
        left = [self.node("Mul", [a, cos], f"{name}.a_cos"), self.node("Mul", [b, sin], f"{name}.b_sin")]
        right = [self.node("Mul", [b, cos], f"{name}.b_cos"), self.node("Mul", [a, sin], f"{name}.a_sin")]
        halves = [self.node("Sub", left, f"{name}.turned_a"), self.node("Add", right, f"{name}.turned_b")]
        return self.node("Concat", halves, f"{name}.turned", axis=4)

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
