"""A sentence-transformers folder -> model_fp32.onnx, tokenizer/ and ModelFacts.

The exported graph computes one text: `input_ids (seq,) int64` in, `embedding (dim,) float32` out, with pooling and
the model's own normalization. It has no batch axis, no padding and no mask, so a text's vector cannot depend on other
texts. Arithmetic that does not depend on the text is done once, at export.

    python -m build.export_onnx [--model MODEL] [--revision REV] [--out DIR]
"""

import argparse
import json
import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.engine.manifest import TOKENIZER
from build import BuildError, cl100k, cli, files, unigram
from build.source import Source, fetch

OPSET = 17  # the first opset with LayerNormalization
FP32 = "model_fp32.onnx"
POOLING_MODES = ("mean", "cls")


def main() -> int:
    """Run `python -m build.export_onnx`: source and export alone; return the exit code."""
    parser = cli.parser("python -m build.export_onnx")
    cli.add_model(parser)
    return cli.run(_main, parser.parse_args())


def _main(options: argparse.Namespace) -> None:
    with cli.no_progress_bar() as bar:
        source = fetch(options.model, options.revision, options.fallback)
        cli.warn(source.warning)
        run_step(source, options.out, bar)


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model that the server needs and that are not in its graph.

    dimension: length of a vector. max_positions: longest input, tokens, special tokens included. max_seq_length: length
    at which sentence-transformers truncates, tokens.
    """

    dimension: int
    max_positions: int
    max_seq_length: int
    pooling: str
    normalize: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None


class OneText(nn.Module):
    """BertModel + pooling (+ normalization) for one unpadded text.

    Equal to the original in exact arithmetic. Folded at export: the token type's row into the positions,
    1/sqrt(head dimension) into Q, and Q, K and V into one matrix.
    """

    def __init__(self, bert: Any, pooling: str, normalize: bool) -> None:
        super().__init__()
        config = bert.config
        self.heads: int = config.num_attention_heads
        self.hidden: int = config.hidden_size
        self.pooling, self.normalize = pooling, normalize
        embeddings = bert.embeddings
        self.words = embeddings.word_embeddings.weight  # (vocabulary, hidden)
        self.positions = nn.Parameter(
            embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        )  # (max_positions, hidden)
        self.embedding_norm = embeddings.LayerNorm
        self.layers = nn.ModuleList(_Layer(layer, self.heads) for layer in bert.encoder.layer)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(seq,) int64 -> (hidden,) float32."""
        x: Tensor = nn.functional.embedding(input_ids, self.words) + self.positions[: input_ids.shape[0]]
        x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x)  # (seq, hidden)
        x = x.mean(0) if self.pooling == "mean" else x[0]
        if self.normalize:
            x = nn.functional.normalize(x, dim=0)
        return x


class _Layer(nn.Module):
    def __init__(self, layer: Any, heads: int) -> None:
        super().__init__()
        attention = layer.attention.self
        self.heads = heads
        self.head_dim: int = attention.query.in_features // heads
        scale = 1 / math.sqrt(self.head_dim)
        self.qkv = _Linear(
            torch.cat([attention.query.weight * scale, attention.key.weight, attention.value.weight]),
            torch.cat([attention.query.bias * scale, attention.key.bias, attention.value.bias]),
        )
        self.attention_out = _Linear.of(layer.attention.output.dense)
        self.attention_norm = layer.attention.output.LayerNorm
        self.feed_forward_in = _Linear.of(layer.intermediate.dense)
        self.feed_forward_out = _Linear.of(layer.output.dense)
        self.feed_forward_norm = layer.output.LayerNorm

    def forward(self, x: Tensor) -> Tensor:
        """(seq, hidden) -> (seq, hidden)."""
        # constant shapes (-1 for seq) need no shape arithmetic in the graph
        q, k, v = self.qkv(x).view(-1, 3, self.heads, self.head_dim).permute(1, 2, 0, 3)  # (heads, seq, head_dim)
        weights = torch.softmax(q @ k.transpose(1, 2), dim=-1)  # (heads, seq, seq)
        context = (weights @ v).transpose(0, 1).reshape(-1, self.heads * self.head_dim)
        x = self.attention_norm(x + self.attention_out(context))
        x = self.feed_forward_norm(x + self.feed_forward_out(nn.functional.gelu(self.feed_forward_in(x))))
        return x


class _Linear(nn.Module):
    """x @ weight + bias with weight (in, out): exported as MatMul and Add, which build/graph.py reads."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.T.contiguous())
        self.bias = nn.Parameter(bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> "_Linear":
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x @ self.weight + self.bias
        return y


def run_step(source: Source, out: Path, bar: Any) -> tuple[Any, ModelFacts]:
    """Export as a step of the build, with its line of progress; return the SentenceTransformer and its facts."""
    with cli.step("export", bar) as report:
        model = load(source.folder)
        facts = export(model, out)
        report(cli.sizes(out, FP32, TOKENIZER))
    return model, facts


def load(folder: Path) -> Any:
    """Return the folder as a SentenceTransformer on the CPU: the reference of export and verification.

    Raises:
        BuildError: sentence-transformers cannot load it.
    """
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    except Exception as error:
        raise BuildError(f"sentence-transformers cannot load {folder}: {error}") from error


def inspect(model: Any) -> ModelFacts:
    """Return a model's facts. Refuse what the one-text graph does not support.

    Raises:
        BuildError: a module, pooling, architecture or option is not supported; the message names it.
    """
    from sentence_transformers.base.modules.normalize import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = list(model)
    names = [type(module).__name__ for module in modules]
    wanted = [Transformer, Pooling, Normalize]
    if len(modules) not in (2, 3) or any(type(m) is not w for m, w in zip(modules, wanted, strict=False)):
        raise BuildError(
            f"The model's modules are {' -> '.join(names)}; "
            "supported are Transformer -> Pooling, with or without Normalize."
        )
    bert, pooling = modules[0].auto_model, modules[1]
    config = bert.config
    if type(bert).__name__ != "BertModel":
        raise BuildError(f"The model's architecture is {type(bert).__name__}; supported is BertModel.")
    if pooling.pooling_mode not in POOLING_MODES:
        modes = pooling.pooling_mode if isinstance(pooling.pooling_mode, str) else " + ".join(pooling.pooling_mode)
        raise BuildError(f"The model's pooling is {modes}; supported are {' and '.join(POOLING_MODES)}.")
    if not pooling.include_prompt:
        raise BuildError("The model's pooling leaves the prompt's tokens out (include_prompt: false); not supported.")
    for option, supported in (("hidden_act", "gelu"), ("is_decoder", False), ("position_embedding_type", "absolute")):
        value = getattr(config, option, supported)
        if value != supported:
            raise BuildError(f"The model's {option} is {value!r}; supported is {supported!r}.")
    max_positions = int(config.max_position_embeddings)
    return ModelFacts(
        dimension=int(config.hidden_size),
        max_positions=max_positions,
        max_seq_length=min(int(model.max_seq_length or max_positions), max_positions),
        pooling=pooling.pooling_mode,
        normalize=len(modules) == 3,
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
    )


def export(model: Any, out: Path) -> ModelFacts:
    """Write OUT/model_fp32.onnx (+ .data) and OUT/tokenizer/.

    Raises:
        BuildError: the model is not supported. Nothing was written.
    """
    import onnx

    facts = inspect(model)
    graph = OneText(model[0].auto_model, facts.pooling, facts.normalize).eval()
    with files.replacing(out, FP32, f"{FP32}.data") as part, torch.no_grad(), warnings.catch_warnings():
        # The TorchScript exporter, whose graph was measured; it warns that it is deprecated.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (torch.zeros(5, dtype=torch.int64),),
            str(part / FP32),
            input_names=["input_ids"],
            output_names=["embedding"],
            dynamic_axes={"input_ids": {0: "seq"}},
            opset_version=OPSET,
            dynamo=False,
        )
        # Large tensors are stored beside the graph, so that they are memory-mapped.
        proto = onnx.load(part / FP32)
        (part / FP32).unlink()
        # facts that the quantization needs and that are not in the graph
        prompt = facts.prompts[facts.default_prompt_name] if facts.default_prompt_name else ""
        known = {"heads": graph.layers[0].heads, "pooling": facts.pooling, "normalize": facts.normalize}
        onnx.helper.set_model_props(proto, {**{key: str(value) for key, value in known.items()}, "prompt": prompt})
        onnx.save_model(proto, part / FP32, save_as_external_data=True, location=f"{FP32}.data", size_threshold=1024)
    with files.replacing(out, TOKENIZER) as part:
        (part / TOKENIZER).write_text(tokenizer_json(model), encoding="utf-8")
    unigram.write(out)
    cl100k.write(out)
    return facts


def tokenizer_json(model: Any) -> str:
    """Return the tokenizer as compact JSON, without padding and truncation, which are set at load."""
    content = json.loads(model.tokenizer.backend_tokenizer.to_str())
    content["padding"] = content["truncation"] = None
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    sys.exit(main())
