"""DistilBERT (arXiv 1910.01108)."""

from typing import Any

from build.architectures.parts import array, check, linear, norm, qkv
from build.network import Linear, Network


def read(model: Any) -> Network:
    config, embeddings = model.config, model.embeddings
    check(config, activation="gelu")
    linears: dict[str, Linear] = {}
    norms = {"embedding_norm": norm(embeddings.LayerNorm)}
    for index, layer in enumerate(model.transformer.layer):
        name, attention = f"layers.{index}", layer.attention
        linears |= {
            f"{name}.qkv": qkv(attention.q_lin, attention.k_lin, attention.v_lin, config.n_heads),
            f"{name}.attention_out": linear(attention.out_lin),
            f"{name}.feed_forward_in": linear(layer.ffn.lin1),
            f"{name}.feed_forward_out": linear(layer.ffn.lin2),
        }
        norms |= {
            f"{name}.attention_norm": norm(layer.sa_layer_norm),
            f"{name}.feed_forward_norm": norm(layer.output_layer_norm),
        }
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
