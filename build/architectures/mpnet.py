"""MPNet (arXiv 2004.09297): BERT's layers, and scores that also depend on the distance of two tokens."""

from typing import Any

import torch

from build.architectures.parts import array, check, linear, norm, qkv
from build.network import Linear, Network


def read(model: Any) -> Network:
    config, embeddings, encoder = model.config, model.embeddings, model.encoder
    check(config, hidden_act="gelu")
    linears: dict[str, Linear] = {}
    norms = {"embedding_norm": norm(embeddings.LayerNorm)}
    for index, layer in enumerate(encoder.layer):
        name, attention = f"layers.{index}", layer.attention.attn
        linears |= {
            f"{name}.qkv": qkv(attention.q, attention.k, attention.v, config.num_attention_heads),
            f"{name}.attention_out": linear(attention.o),
            f"{name}.feed_forward_in": linear(layer.intermediate.dense),
            f"{name}.feed_forward_out": linear(layer.output.dense),
        }
        norms |= {
            f"{name}.attention_norm": norm(layer.attention.LayerNorm),
            f"{name}.feed_forward_norm": norm(layer.output.LayerNorm),
        }
    uncounted = embeddings.padding_idx
    positions = array(embeddings.position_embeddings.weight)[uncounted:]
    most = len(positions) - 1
    # by the distance of key to query, from -(most - 1) to most - 1, as MPNetEncoder.compute_position_bias
    buckets = encoder.relative_position_bucket(torch.arange(1 - most, most), num_buckets=32)
    return Network(
        words=array(embeddings.word_embeddings.weight),
        positions=positions,
        uncounted=uncounted,
        relative=array(encoder.relative_attention_bias(buckets).T),
        linears=linears,
        norms=norms,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        max_positions=most,
    )
