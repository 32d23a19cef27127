"""DistilBERT (arXiv 1910.01108)."""

from typing import Any

from build.architectures import parts
from build.architectures.parts import array, check, norm
from build.network import Linear, Network


def read(model: Any) -> Network:
    config, embeddings = model.config, model.embeddings
    check(config, activation="gelu")
    linears: dict[str, Linear] = {}
    norms = {"embedding_norm": norm(embeddings.LayerNorm)}
    for index, layer in enumerate(model.transformer.layer):
        attention = layer.attention
        found = parts.layer(
            index,
            parts.qkv(attention.q_lin, attention.k_lin, attention.v_lin, config.n_heads),
            attention.out_lin,
            layer.sa_layer_norm,
            layer.ffn.lin1,
            layer.ffn.lin2,
            layer.output_layer_norm,
        )
        linears, norms = linears | found[0], norms | found[1]
    positions = array(embeddings.position_embeddings.weight)
    return Network(
        words=array(embeddings.word_embeddings.weight),
        positions=positions,
        linears=linears,
        norms=norms,
        layers=config.n_layers,
        heads=config.n_heads,
        max_positions=len(positions),
    )
