"""ModernBERT (arXiv 2412.13663): rotary positions, windows in most layers, GeGLU, norms first."""

import math
from types import SimpleNamespace
from typing import Any

from build.architectures.parts import array, check, linear, norm
from build.network import Linear, Network

LOCAL = "sliding_attention"


def read(model: Any) -> Network:
    config = model.config
    check(config, hidden_activation="gelu")
    heads = config.num_attention_heads
    linears: dict[str, Linear] = {}
    norms = {"embedding_norm": norm(model.embeddings.norm), "final_norm": norm(model.final_norm)}
    for index, layer in enumerate(model.layers):
        name = f"layers.{index}"
        linears |= {
            f"{name}.qkv": _scaled(linear(layer.attn.Wqkv), heads),
            f"{name}.attention_out": linear(layer.attn.Wo),
            f"{name}.feed_forward_in": linear(layer.mlp.Wi),
            f"{name}.feed_forward_out": linear(layer.mlp.Wo),
        }
        if hasattr(layer.attn_norm, "weight"):  # the first layer has none
            norms[f"{name}.attention_norm"] = norm(layer.attn_norm)
        norms[f"{name}.feed_forward_norm"] = norm(layer.mlp_norm)
    rotary = [config.rope_parameters[kind] for kind in config.layer_types]
    for parameters in rotary:
        check(SimpleNamespace(**parameters), rope_type="default")
    return Network(
        words=array(model.embeddings.tok_embeddings.weight),
        linears=linears,
        norms=norms,
        layers=config.num_hidden_layers,
        heads=heads,
        max_positions=config.max_position_embeddings,
        thetas=tuple(float(parameters["rope_theta"]) for parameters in rotary),
        windows=tuple(config.sliding_window if kind == LOCAL else 0 for kind in config.layer_types),
        norms_first=True,
        gated=True,
    )


def _scaled(linear: Linear, heads: int) -> Linear:
    """Return Q, K and V with 1/sqrt(head dimension) in Q's weights."""
    hidden = len(linear.weight)
    weight, bias = linear.weight.copy(), linear.bias.copy()
    weight[:, :hidden] /= math.sqrt(hidden // heads)
    bias[:hidden] /= math.sqrt(hidden // heads)
    return Linear(weight, bias)
