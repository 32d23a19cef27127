"""The API of Hugging Face's text-embeddings-inference (TEI).

https://huggingface.github.io/text-embeddings-inference/ has it; fields that are unknown here are ignored, as there.
"""

from typing import Any

from flask import Blueprint, Response

from app.encoder import Embeddings, Token
from app.errors import InvalidRequest
from app.routes import VERSION, encoder, json_response, settings
from app.routes.parsing import (
    Options,
    check_count,
    encode,
    encode_ids,
    items,
    json_body,
    kind,
    options,
    render,
    shown,
    strings,
)

blueprint = Blueprint("tei", __name__)


@blueprint.post("/")
def embed_or_compare() -> Response:
    """Where huggingface_hub's clients post, given the server's URL alone."""
    body = json_body()
    return _similarities(body) if isinstance(body.get("inputs"), dict) else embed(body)


def embed(body: dict[str, Any]) -> Response:
    """A bare list of vectors; of one, for one text."""
    wanted = _options(body)
    return json_response(render(_encoded(_inputs(body), wanted).vectors, wanted))


@blueprint.post("/similarity")
def similarity() -> Response:
    return _similarities(json_body())


@blueprint.post("/tokenize")
def tokenize() -> Response:
    body = json_body()
    texts = _texts(_inputs(body), "inputs")
    special = _flag(body, "add_special_tokens")
    prompt = encoder().prompt(None, options(body).prompt_name)
    return json_response([_tokens(prompt + text, special) for text in texts])


@blueprint.post("/decode")
def decode() -> Response:
    body = json_body()
    rows = _ids(_listed(body.get("ids"), "ids"), "ids")
    if rows is None:
        raise InvalidRequest("ids must be a list of token ids, or a list of such lists.", "ids")
    skip = _flag(body, "skip_special_tokens")
    return json_response([encoder().decode(row, skip_special_tokens=skip) for row in rows])


@blueprint.get("/info")
def info() -> Response:
    manifest, limits = encoder().artifact.manifest, settings()
    return json_response(
        {
            "model_id": manifest.model,
            "model_sha": manifest.revision,
            "model_dtype": encoder().artifact.precision,
            "model_type": {"embedding": {"pooling": manifest.pooling}},
            "max_concurrent_requests": limits.max_queue + limits.slots + 1,
            "max_input_length": encoder().max_length,
            "max_batch_tokens": encoder().max_length,  # one text at a time
            "max_batch_requests": 1,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": True,
            "tokenization_workers": limits.slots,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }
    )


def _options(body: dict[str, Any]) -> Options:
    direction = body.get("truncation_direction")
    if direction is not None and (not isinstance(direction, str) or direction.lower() != "right"):
        raise InvalidRequest(
            f"truncation_direction is {shown(direction)}; only Right is possible: a text keeps its beginning.",
            "truncation_direction",
        )
    return options(body, Options(normalize=True))


def _inputs(body: dict[str, Any]) -> Any:
    """What there is to compute, as a list."""
    if "inputs" not in body:
        raise InvalidRequest("The field inputs is missing: a string or a list of strings.", "inputs")
    inputs = body["inputs"]
    if isinstance(inputs, str):
        return [inputs]
    return _listed(inputs, "inputs")


def _listed(value: Any, name: str) -> list[Any]:
    """A list; a single text's token ids as a list of that one."""
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    return items(value, name)


def _ids(rows: list[Any], name: str) -> list[list[int]] | None:
    """Lists of token ids, if the first one is such a list."""
    if not isinstance(rows[0], list):
        return None
    for index, row in enumerate(rows):
        if not isinstance(row, list) or not all(type(item) is int for item in row):
            raise InvalidRequest(f"{name}[{index}] is not a list of token ids, as {name}[0] is.", name)
    return rows


def _texts(inputs: list[Any], name: str) -> list[str]:
    return strings(inputs, name)


def _encoded(inputs: list[Any], wanted: Options) -> Embeddings:
    rows = _ids(inputs, "inputs")
    return encode(strings(inputs, "inputs"), wanted) if rows is None else encode_ids(rows, wanted)


def _similarities(body: dict[str, Any]) -> Response:
    """The cosine of one sentence to each of others."""
    inputs = body.get("inputs")
    if not isinstance(inputs, dict) or not isinstance(inputs.get("source_sentence"), str):
        raise InvalidRequest('inputs must be {"source_sentence": "…", "sentences": ["…"]}.', "inputs")
    sentences = strings(inputs.get("sentences"), "sentences")
    check_count([None, *sentences], "sentences with source_sentence")
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters is {kind(parameters)}; it must be an object.", "parameters")
    wanted = _options(parameters)
    vectors = encode([inputs["source_sentence"], *sentences], wanted).vectors
    return json_response(vectors[1:] @ vectors[0])


def _tokens(text: str, add_special_tokens: bool) -> list[dict[str, Any]]:
    return [_token(text, token) for token in encoder().tokens(text, add_special_tokens=add_special_tokens)]


def _token(text: str, token: Token) -> dict[str, Any]:
    special = token.start is None
    name = encoder().decode([token.id], skip_special_tokens=False) if special else text[token.start : token.stop]
    return {"id": token.id, "text": name, "special": special, "start": token.start, "stop": token.stop}


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be true or false.", name)
    return value is not False
