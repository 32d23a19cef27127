"""A sentence-transformers folder -> model_fp32.onnx, tokenizer/ and ModelFacts.

The graph takes token ids of texts of equal length, `input_ids (texts, seq) int64`, and gives `embedding (texts, dim)
float32`, with pooling, the layers after it and the model's own normalization. It has no padding and no mask, so a
text's vector cannot depend on other texts. build/graph.py writes it from the Network that build/architectures/ makes.

    python -m build.export_onnx [--model MODEL] [--revision REV] [--out DIR]
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from app.engine.manifest import TOKENIZER
from build import BuildError, architectures, cl100k, cli, files, graph, supported, unigram
from build.architectures import parts
from build.network import FACTS, Network
from build.source import Source, fetch

FP32 = "model_fp32.onnx"


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


def run_step(source: Source, out: Path, bar: Any) -> None:
    """Export as a step of the build, with its line of progress."""
    with cli.step("export", bar) as report:
        export(load(source.folder), out)
        report(cli.sizes(out, FP32, TOKENIZER))


def load(folder: Path) -> Any:
    """Return the folder as a SentenceTransformer on the CPU, in float32: the reference of export and verification.

    Raises:
        BuildError: it is not supported (build/supported.py), or sentence-transformers cannot load it.
    """
    import transformers
    from sentence_transformers import SentenceTransformer

    supported.check_folder(folder)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = {"dtype": torch.float32, "use_safetensors": True}
    try:
        supported.check_weights(folder)
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"sentence-transformers cannot load {folder}: {error}") from error


def inspect(model: Any) -> tuple[Network, ModelFacts]:
    """Return the network of a SentenceTransformer, and its facts.

    Raises:
        BuildError: a module, pooling, architecture, tokenizer or option is not supported; the message names it.
    """
    supported.check_model(model)
    transformer, pooling, *others = model
    dense = [module for module in others if hasattr(module, "linear")]
    network = replace(
        architectures.read(transformer.auto_model),
        pooling=pooling.pooling_mode,
        dense=tuple(parts.linear(module.linear) for module in dense),
        activations=tuple(type(module.activation_function).__name__ for module in dense),
        normalize=len(others) > len(dense),
        prompt=model.prompts[model.default_prompt_name] if model.default_prompt_name else "",
    )
    supported.check_network(network, model.tokenizer)
    return network, ModelFacts(
        dimension=network.dimension,
        max_positions=network.max_positions,
        max_seq_length=min(int(model.max_seq_length or network.max_positions), network.max_positions),
        pooling=network.pooling,
        normalize=network.normalize,
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
    )


def export(model: Any, out: Path) -> ModelFacts:
    """Write OUT/model_fp32.onnx (+ .data) and OUT/tokenizer/.

    Raises:
        BuildError: the model is not supported. Nothing was written.
    """
    network, facts = inspect(model)
    tokenizer = tokenizer_json(model)
    graph.save(graph.write(network, network.words, network.linears, {FACTS: network.facts()}), out, FP32)
    with files.replacing(out, TOKENIZER) as part:
        (part / TOKENIZER).write_text(tokenizer, encoding="utf-8")
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
