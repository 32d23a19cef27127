"""MPNet (arXiv 2004.09297): BERT's layers, and scores that also depend on the distance of two tokens."""

from typing import Any

import torch

from build.architectures import parts
from build.architectures.parts import array, check, norm
from build.network import Linear, Network

# Number of kinds of distances, which MPNetEncoder.compute_position_bias does not read from the configuration.
BUCKETS = 32


def read(model: Any) -> Network:
    config, embeddings, encoder = model.config, model.embeddings, model.encoder
    check(config, hidden_act="gelu", relative_attention_num_buckets=BUCKETS)
    linears: dict[str, Linear] = {}
    norms = {"embedding_norm": norm(embeddings.LayerNorm)}
    for index, layer in enumerate(encoder.layer):
        attention = layer.attention.attn
        found = parts.layer(
            index,
            parts.qkv(attention.q, attention.k, attention.v, config.num_attention_heads),
            attention.o,
            layer.attention.LayerNorm,
            layer.intermediate.dense,
            layer.output.dense,
            layer.output.LayerNorm,
        )
        linears, norms = linears | found[0], norms | found[1]
    uncounted = embeddings.padding_idx
    positions = array(embeddings.position_embeddings.weight)[uncounted:]
    most = len(positions) - 1
    # by the distance of key to query, from -(most - 1) to most - 1, as MPNetEncoder.compute_position_bias
    buckets = encoder.relative_position_bucket(torch.arange(1 - most, most), num_buckets=BUCKETS)
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
