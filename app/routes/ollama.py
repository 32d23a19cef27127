"""Ollama's API: https://github.com/ollama/ollama/blob/main/docs/api.md

Vectors have length 1, as Ollama's. A model's name is repeated, not looked at; options and keep_alive have no effect.
"""

import time
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response
from msgspec import Struct

from app.context import RequestContext
from app.routes import context, encoder, manifest, served_name
from app.routes.body import ListField, decode, json_data
from app.routes.body_errors import Rule, text_rules
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import Dimensions, OptionFields, Options, encode, resolve_options
from app.routes.rendering import json_response, list_response
from app.routes.vectors import encode_vectors

# Version of Ollama whose API this is: clients ask for it before they send a list or dimensions.
API_VERSION = "0.11.11"

blueprint = Blueprint("ollama", __name__, url_prefix="/api")


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


MODEL = Rule("{place} is {kind}; it must be a string.")
RULES = {**OPTION_RULES, **text_rules("input", or_text=True), "model": MODEL, "prompt": MODEL}
INPUT = ListField("input", str, or_text=True)


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return the sentence as error, which Ollama's clients show."""
    return {"error": message}


@blueprint.post("/embed")
def embed() -> Response:
    body = decode(json_data(), Embed, RULES, INPUT)
    options = resolve_options(OptionFields(truncate=body.truncate, dimensions=body.dimensions), Options(normalize=True))
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    if not texts:
        return json_response({"model": _name(body.model), "embeddings": []})
    name = "input" if isinstance(body.input, str) else "input[{}]"
    result = encode(texts, options, name.format)
    return list_response(
        lambda start, stop: encode_vectors(result.rows[start:stop], options),
        len(texts),
        name="embeddings",
        before={"model": _name(body.model)},
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


def _name(sent: str | None) -> str:
    return served_name() if sent is None else sent


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
