"""Supported: what of a sentence-transformers folder can be built. Everything else is refused by its name.

What is refused here would change the vectors, or would have to run code of the model.
"""

import json
from pathlib import Path
from typing import Any

import torch

from build import BuildError
from build.architectures import parts
from build.network import Network

# Classes of modules, in the order in which a model has them.
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
# Activations of Dense modules: classes of torch.nn, and operators of ONNX.
ACTIVATIONS = ("Identity", "Tanh")
# Names under which modules read and store the tokens' vectors and the text's.
TOKENS, TEXT = "token_embeddings", "sentence_embedding"
# Weights that a model of transformers may lack: sentence-transformers does not use its pooler.
UNUSED = "pooler."
# Shortest limit of a text: a special token before and after one of the text, tokens.
LEAST_LIMIT = 3


def check_folder(folder: Path) -> None:
    """Check a folder before anything of it is loaded.

    Raises:
        BuildError: a file is malformed or for another library, has weights as pickles, or names a class of its own.
    """
    config = _json(folder / "config_sentence_transformers.json", {})
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise BuildError(f"The model is a {kind}; supported is SentenceTransformer.")
    if config.get("truncate_dim") is not None:
        raise BuildError(f"The model's truncate_dim is {config['truncate_dim']}; not supported: ask for `dimensions`.")
    for module in _json(folder / "modules.json", []):
        name = str(module["type"]) if isinstance(module, dict) and "type" in module else repr(module)
        if not name.startswith("sentence_transformers.") or name.rpartition(".")[2] not in MODULES:
            raise BuildError(f"The model's modules.json names {name}; supported are {', '.join(MODULES)}.")
        if name.endswith(".Dense"):
            _check_activation(_json(folder / str(module.get("path", "")) / "config.json", {}))
    for pickle in folder.rglob("pytorch_model*.bin"):
        if not list(pickle.parent.glob("*.safetensors")):
            raise BuildError(f"{pickle} has weights that can run code; supported is .safetensors.")


def check_weights(folder: Path) -> None:
    """Check that no weight is missing: transformers would take random numbers.

    Raises:
        BuildError: a weight is missing, or has another shape.
    """
    from transformers import AutoModel

    modules = _json(folder / "modules.json", [{"path": ""}])
    backbone = folder / str(modules[0]["path"])
    options = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    _, found = AutoModel.from_pretrained(backbone, output_loading_info=True, **options)
    wrong = [str(key) for name in ("missing_keys", "mismatched_keys") for key in found[name]]
    wrong = sorted(key for key in wrong if not key.startswith(UNUSED))
    if wrong:
        raise BuildError(f"{backbone} has no weights, or others, for {len(wrong)} tensors, such as {wrong[0]}.")


def check_model(model: Any) -> None:
    """Check the modules and the tokenizer of a SentenceTransformer.

    Raises:
        BuildError: something is not supported.
    """
    names = [type(module).__name__ for module in model]
    after = names[2:-1] if names[-1] == "Normalize" else names[2:]
    if names[:2] != ["Transformer", "Pooling"] or set(after) - {"Dense"}:
        raise BuildError(
            f"The model's modules are {' -> '.join(names)}; "
            "supported are Transformer -> Pooling, then Dense and Normalize if there are any."
        )
    transformer, pooling, *others = model
    modality = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    parts.check(transformer, module_output_name=TOKENS, modality_config=modality, processing_kwargs={})
    parts.check(transformer, query_length=None, document_length=None, query_expansion=None)
    if not isinstance(pooling.pooling_mode, str):
        raise BuildError(f"The model's pooling is {' + '.join(pooling.pooling_mode)}; supported is one of them.")
    if not pooling.include_prompt:
        raise BuildError("The model's pooling leaves the prompt's tokens out (include_prompt: false); not supported.")
    for module in others:
        parts.check(module, use_residual=False, module_input_name=TEXT, module_output_name=TEXT)
    if model.max_seq_length is not None and model.max_seq_length < LEAST_LIMIT:
        raise BuildError(f"The model's max_seq_length is {model.max_seq_length}; it must be at least {LEAST_LIMIT}.")
    _check_tokenizer(model.tokenizer)


def check_network(network: Network, tokenizer: Any) -> None:
    """Check the sizes of a network, and that it has every token of the tokenizer.

    Raises:
        BuildError: they do not fit.
    """
    if network.layers < 1:
        raise BuildError("The model has no layers.")
    if network.hidden % network.heads:
        raise BuildError(f"The model's {network.hidden} channels are not divisible into {network.heads} heads.")
    most = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values())
    if most >= len(network.words):
        raise BuildError(f"The tokenizer has the token id {most}, the model only 0 to {len(network.words) - 1}.")


def _check_activation(config: dict[str, Any]) -> None:
    """Check a Dense module's configuration: sentence-transformers takes Tanh for an activation that is not torch's."""
    name = str(config.get("activation_function", ""))
    name = name.rpartition(".")[2] if name.startswith("torch.") else name
    if name not in ACTIVATIONS:
        raise BuildError(f"The activation of a Dense module is {name}; supported are {' and '.join(ACTIVATIONS)}.")


def _check_tokenizer(tokenizer: Any) -> None:
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise BuildError(f"The model's tokenizer is a {name}, which the tokenizers library does not have.")
    parts.check(tokenizer, split_special_tokens=False, truncation_side="right")
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise BuildError(f"The model's tokenizer, a {name}, has no tokens but the special ones: its files are missing.")
    if not tokenizer("")["input_ids"]:
        raise BuildError(
            "The model's tokenizer puts no special token around a text: an empty one would have no tokens."
        )


def _json(file: Path, default: Any) -> Any:
    """Return the contents of a JSON file with an object, or a list like the default."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default
    except (OSError, ValueError) as error:
        raise BuildError(f"sentence-transformers cannot load {file.parent}: {file.name}: {error}") from error
    if type(content) is not type(default) or (default and not content):
        raise BuildError(f"{file} has no {'list' if isinstance(default, list) else 'object'} of JSON.")
    return content
