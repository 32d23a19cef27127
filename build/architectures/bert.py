"""BERT (arXiv 1810.04805) and those with its layers: RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA."""

from typing import Any

from build.architectures import parts
from build.architectures.parts import array, check, linear, norm
from build.network import Linear, Network


def read(model: Any) -> Network:
    config, embeddings = model.config, model.embeddings
    check(config, hidden_act="gelu", is_decoder=False, position_embedding_type="absolute")
    linears: dict[str, Linear] = {}
    norms = {"embedding_norm": norm(embeddings.LayerNorm)}
    for index, layer in enumerate(model.encoder.layer):
        attention = layer.attention.self
        found = parts.layer(
            index,
            parts.qkv(attention.query, attention.key, attention.value, config.num_attention_heads),
            layer.attention.output.dense,
            layer.attention.output.LayerNorm,
            layer.intermediate.dense,
            layer.output.dense,
            layer.output.LayerNorm,
        )
        linears, norms = linears | found[0], norms | found[1]
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
