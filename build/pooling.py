"""Pooling: the hidden states of texts -> their vectors, with the layers after it and the normalization."""

import numpy as np
from onnx import TensorProto

from build.network import Network
from build.nodes import Nodes


def add_pooling(graph: Nodes, network: Network, x: str) -> None:
    """Add what makes `embedding (texts, dimension)`, the last node, of the hidden states x, (tokens, hidden)."""
    graph.node("Reshape", [x, "states_shape"], "states")  # (texts, seq, hidden)
    graph.constant("first_row", np.array(0))
    vectors = "pooled"
    if network.pooling == "cls":
        graph.node("Gather", ["states", "first_row"], vectors, axis=1)
    elif network.pooling == "lasttoken":
        graph.node("Gather", ["states", graph.constant("last_row", np.array(-1))], vectors, axis=1)
    elif network.pooling == "max":
        graph.node("ReduceMax", ["states"], vectors, axes=[1], keepdims=0)
    else:
        _add_mean(graph, network, vectors)
    if network.dense:
        vectors = _add_dense(graph, network, vectors)
    if network.normalize:
        # as torch.nn.functional.normalize, also for a vector of zeros
        length = graph.node("ReduceL2", [vectors], "norm", axes=[1], keepdims=1)
        limit = graph.constant("least_norm", np.array(1e-12, np.float32))
        graph.node("Div", [vectors, graph.node("Max", [length, limit], "divisor")], "normalized")
    last = graph.nodes[-1]
    last.output[0] = last.name = "embedding"


def _add_mean(graph: Nodes, network: Network, output: str) -> None:
    """Add a sum over the tokens, weighted by their ranks or not, divided by a function of their number n."""
    # A product adds up the tokens of one text and of several in the same order, ReduceMean does not. With one row
    # instead of two, ONNX Runtime would take another kernel for one text.
    weights = np.ones((2, network.max_positions), np.float32)
    if network.pooling == "weightedmean":
        weights = weights.cumsum(1, dtype=np.float32)
    graph.constant("ones", weights)
    graph.node("Slice", ["ones", "first", "length", "one"], "ones_of_text")
    graph.node("MatMul", ["ones_of_text", "states"], "sums")
    graph.node("Gather", ["sums", "first_row"], "sum", axis=1)
    divisor = graph.node("Cast", ["length"], "tokens", to=TensorProto.FLOAT)
    if network.pooling == "mean_sqrt_len_tokens":
        divisor = graph.node("Sqrt", [divisor], "root")
    elif network.pooling == "weightedmean":  # 1 + 2 + … + n = n (n + 1) / 2
        following = graph.node("Add", [divisor, graph.constant("float_one", np.array(1, np.float32))], "following")
        product = graph.node("Mul", [divisor, following], "product")
        divisor = graph.node("Mul", [product, graph.constant("half", np.array(0.5, np.float32))], "ranks_sum")
    graph.node("Div", ["sum", divisor], output)


def _add_dense(graph: Nodes, network: Network, x: str) -> str:
    """Add the layers after pooling. Each text has two rows: ONNX Runtime has another kernel for one row."""
    x = graph.node("Concat", [x, x], "twice", axis=0)
    for index, (linear, activation) in enumerate(zip(network.dense, network.activations, strict=True)):
        name = f"dense.{index}"
        weight, bias = graph.constant(f"{name}.weight", linear.weight), graph.constant(f"{name}.bias", linear.bias)
        x = graph.node("Gemm", [x, weight, bias], f"{name}.y")
        if activation != "Identity":
            x = graph.node(activation, [x], f"{name}.activated")
    return graph.node("Slice", [x, "first", "texts", "first"], "once")
