"""Ollama's API: https://github.com/ollama/ollama/blob/main/docs/api.md

Vectors have length 1, as Ollama's. A model's name is repeated, not looked at; options and keep_alive have no effect.
"""

import time
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response
from msgspec import Struct

from app.routes import context, encoder, manifest, plain_error, served_name
from app.routes.body import ListField, decode, json_data
from app.routes.body_errors import NOT_A_STRING, text_rules
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import Dimensions, OptionFields, Options, encode, one_or_many, resolve_options
from app.routes.rendering import json_response, list_response
from app.routes.vectors import encode_vectors

# Version of Ollama whose API this is: clients ask for it before they send a list or dimensions.
API_VERSION = "0.11.11"

blueprint = Blueprint("ollama", __name__, url_prefix="/api")
error_fields = plain_error


class Embed(Struct, kw_only=True):
    """The body of POST /api/embed. Clients that only load a model send no input."""

    model: str | None = None
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: Dimensions | None = None


class Prompt(Struct, kw_only=True):
    """The body of POST /api/embeddings, the older form, for one text."""

    model: str | None = None
    prompt: str | None = None


class Show(Struct, kw_only=True):
    """The body of POST /api/show."""

    model: str | None = None


RULES = {**OPTION_RULES, **text_rules("input", or_text=True), "model": NOT_A_STRING, "prompt": NOT_A_STRING}
INPUT = ListField("input", str, or_text=True)


@blueprint.post("/embed")
def embed() -> Response:
    body = decode(json_data(), Embed, RULES, INPUT)
    options = resolve_options(OptionFields(truncate=body.truncate, dimensions=body.dimensions), Options(normalize=True))
    texts, name = one_or_many([] if body.input is None else body.input, "input")
    if not texts:
        return json_response({"model": served_name(body.model), "embeddings": []})
    result = encode(texts, options, name)
    return list_response(
        lambda start, stop: encode_vectors(result.rows[start:stop], options),
        len(texts),
        name="embeddings",
        before={"model": served_name(body.model)},
        after={"total_duration": _nanoseconds(), "load_duration": 0, "prompt_eval_count": sum(result.tokens)},
    )


@blueprint.post("/embeddings")
def embeddings() -> Response:
    body = decode(json_data(), Prompt, RULES)
    options = Options(normalize=True)
    if not body.prompt:
        return json_response({"embedding": []})
    result = encode([body.prompt], options, lambda index: "prompt")
    return json_response({"embedding": encode_vectors(result.rows, options)[0]})


@blueprint.get("/tags")
def tags() -> Response:
    return json_response(
        {"models": [{"name": served_name(), "model": served_name(), **_file(), "details": _details()}]}
    )


@blueprint.post("/show")
def show() -> Response:
    decode(json_data(), Show, RULES)
    architecture = "bert"
    return json_response(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(),
            "model_info": {
                "general.architecture": architecture,
                f"{architecture}.context_length": encoder().max_length,
                f"{architecture}.embedding_length": encoder().dimension,
            },
            "capabilities": ["embedding"],
        }
    )


@blueprint.get("/version")
def version() -> Response:
    return json_response({"version": API_VERSION})


def _nanoseconds() -> int:
    """Return the time since the request arrived."""
    return int((time.monotonic() - context().arrived) * 1e9)


def _file() -> dict[str, Any]:
    model_folder = encoder().model_folder
    names = [name for name in manifest().files if name.startswith(model_folder.model_file.name)]
    return {
        "size": sum((model_folder.model_file.parent / name).stat().st_size for name in names),
        "digest": manifest().files[model_folder.model_file.name],
        "modified_at": datetime.fromtimestamp(int(model_folder.model_file.stat().st_mtime), UTC).isoformat(),
    }


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "onnx",
        "family": "bert",
        "families": ["bert"],
        "parameter_size": "",
        "quantization_level": encoder().model_folder.precision.upper(),
    }
