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
from build import BuildError, architectures, cl100k, cli, files, unigram
from build.architectures import parts
from build.graph import write
from build.network import FACTS, Network
from build.source import Source, fetch

FP32 = "model_fp32.onnx"
# Activations of Dense modules: classes of torch.nn, and operators of ONNX.
ACTIVATIONS = ("Identity", "Tanh")
# Where modules read and store vectors.
EMBEDDING = "sentence_embedding"


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


def run_step(source: Source, out: Path, bar: Any) -> tuple[Any, ModelFacts]:
    """Export as a step of the build, with its line of progress; return the SentenceTransformer and its facts."""
    with cli.step("export", bar) as report:
        model = load(source.folder)
        facts = export(model, out)
        report(cli.sizes(out, FP32, TOKENIZER))
    return model, facts


def load(folder: Path) -> Any:
    """Return the folder as a SentenceTransformer on the CPU, in float32: the reference of export and verification.

    Raises:
        BuildError: sentence-transformers cannot load it, it has no safetensors, or code of its own would have to be
            run.
    """
    import transformers
    from sentence_transformers import SentenceTransformer

    _check_files(folder)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = {"dtype": torch.float32, "use_safetensors": True}
    try:
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
    except Exception as error:
        raise BuildError(f"sentence-transformers cannot load {folder}: {error}") from error


def _check_files(folder: Path) -> None:
    """Raise BuildError if a folder has modules of its own, or weights in pickles only, which can run code."""
    modules = folder / "modules.json"
    try:
        kinds = [module["type"] for module in json.loads(modules.read_text())] if modules.is_file() else []
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BuildError(f"sentence-transformers cannot load {folder}: modules.json: {error}") from error
    for kind in kinds:
        if not str(kind).startswith("sentence_transformers."):
            raise BuildError(f"The model's modules.json names {kind}; only sentence-transformers' own modules are run.")
    if list(folder.rglob("*.bin")) and not list(folder.rglob("*.safetensors")):
        raise BuildError(f"{folder} has its weights as .bin, which can run code; supported is .safetensors.")


def inspect(model: Any) -> tuple[Network, ModelFacts]:
    """Return the network of a SentenceTransformer, and its facts.

    Raises:
        BuildError: a module, pooling, architecture or option is not supported; the message names it.
    """
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.base.modules.normalize import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = list(model)
    kinds = [type(module) for module in modules]
    after = kinds[2:-1] if kinds[-1] is Normalize else kinds[2:]
    if kinds[:2] != [Transformer, Pooling] or any(kind is not Dense for kind in after):
        raise BuildError(
            f"The model's modules are {' -> '.join(kind.__name__ for kind in kinds)}; "
            "supported are Transformer -> Pooling, then Dense and Normalize if there are any."
        )
    pooling, dense = modules[1], modules[2 : 2 + len(after)]
    if not isinstance(pooling.pooling_mode, str):
        raise BuildError(f"The model's pooling is {' + '.join(pooling.pooling_mode)}; supported is one of them.")
    if not pooling.include_prompt:
        raise BuildError("The model's pooling leaves the prompt's tokens out (include_prompt: false); not supported.")
    activations = tuple(type(module.activation_function).__name__ for module in dense)
    for module, activation in zip(dense, activations, strict=True):
        parts.check(module, use_residual=False, module_input_name=EMBEDDING, module_output_name=EMBEDDING)
        if activation not in ACTIVATIONS:
            raise BuildError(
                f"The activation of a Dense module is {activation}; supported are {' and '.join(ACTIVATIONS)}."
            )
    network = replace(
        architectures.read(modules[0].auto_model),
        pooling=pooling.pooling_mode,
        dense=tuple(parts.linear(module.linear) for module in dense),
        activations=activations,
        normalize=kinds[-1] is Normalize,
        prompt=model.prompts[model.default_prompt_name] if model.default_prompt_name else "",
    )
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
    import onnx

    network, facts = inspect(model)
    graph = write(network, network.words, network.linears, {FACTS: network.facts()})
    with files.replacing(out, FP32, f"{FP32}.data") as part:
        # Large tensors are stored beside the graph, so that they are memory-mapped.
        onnx.save_model(graph, part / FP32, save_as_external_data=True, location=f"{FP32}.data", size_threshold=1024)
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
