"""BERT (arXiv 1810.04805) and those with its layers: RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA."""

from typing import Any

from build.architectures.parts import array, check, linear, norm, qkv
from build.network import Linear, Network


def read(model: Any) -> Network:
    config, embeddings = model.config, model.embeddings
    check(config, hidden_act="gelu", is_decoder=False, position_embedding_type="absolute")
    linears: dict[str, Linear] = {}
    norms = {"embedding_norm": norm(embeddings.LayerNorm)}
    for index, layer in enumerate(model.encoder.layer):
        name, attention = f"layers.{index}", layer.attention.self
        linears |= {
            f"{name}.qkv": qkv(attention.query, attention.key, attention.value, config.num_attention_heads),
            f"{name}.attention_out": linear(layer.attention.output.dense),
            f"{name}.feed_forward_in": linear(layer.intermediate.dense),
            f"{name}.feed_forward_out": linear(layer.output.dense),
        }
        norms |= {
            f"{name}.attention_norm": norm(layer.attention.output.LayerNorm),
            f"{name}.feed_forward_norm": norm(layer.output.LayerNorm),
        }
    # All tokens have the first type, so its row belongs to the positions.
    positions = array(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])
    # RoBERTa counts its positions from padding_idx + 1, and not the tokens <pad>, which all have position padding_idx.
    uncounted = getattr(embeddings, "padding_idx", None)
    projection = getattr(model, "embeddings_project", None)
    return Network(
        words=array(embeddings.word_embeddings.weight),
        positions=positions if uncounted is None else positions[uncounted:],
        uncounted=uncounted,
        projection=linear(projection) if projection is not None else None,
        linears=linears,
        norms=norms,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        max_positions=len(positions) if uncounted is None else len(positions) - uncounted - 1,
    )
