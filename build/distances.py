"""Distances: the parts of attention that depend on the places of two tokens."""

import numpy as np

from build.network import Floats, Network
from build.nodes import Nodes

# Score of a token outside the window: its weight is 0.
OUTSIDE = -1e9


def add_distances(graph: Nodes, network: Network) -> None:
    """Add what depends on the places of two tokens: rotary positions, windows, and MPNet's relative positions."""
    for theta in sorted(set(network.thetas)):
        angles = np.outer(np.arange(network.max_positions, dtype=np.float32), rotary_frequencies(network, theta))
        for name, values in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            table = graph.constant(f"{name}.{theta:g}", values.astype(np.float32))
            graph.node("Slice", [table, "first", "length", "first"], f"{table}.rows")  # (seq, head_dim / 2)
    if network.relative is None and not any(network.windows):
        return
    graph.constant("places", np.arange(network.max_positions))
    graph.node("Slice", ["places", "first", "length", "first"], "keys")
    graph.node("Unsqueeze", ["keys", "one"], "queries")
    graph.node("Sub", ["keys", "queries"], "distances")  # (seq, seq), of each query's keys
    if network.relative is not None:
        graph.constant("most", np.array(network.max_positions - 1))
        graph.node("Add", ["distances", "most"], "columns")
        graph.node("Gather", [graph.constant("relative", network.relative), "columns"], "relative_scores", axis=1)
    if any(network.windows):
        graph.node("Abs", ["distances"], "far")
        graph.constant("outside", np.array(OUTSIDE, np.float32))
        graph.constant("inside", np.array(0, np.float32))
    for window in sorted({window for window in network.windows if window}):
        limit = graph.constant(f"window.{window}", np.array(window))
        graph.node("Greater", ["far", limit], f"outside.{window}")
        graph.node("Where", [f"outside.{window}", "outside", "inside"], f"window_scores.{window}")


def rotary_frequencies(network: Network, theta: float) -> Floats:
    """Return the angle by which each pair of channels turns from one position to the next, (head_dim / 2,).

    arXiv 2104.09864, section 3.2.2, in float32 as transformers computes it.
    """
    exponents = np.arange(0, network.head_dim, 2, dtype=np.float32) / np.float32(network.head_dim)
    frequencies: Floats = (1 / np.float32(theta) ** exponents).astype(np.float32)
    return frequencies
