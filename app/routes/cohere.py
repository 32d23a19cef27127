"""Cohere's API, version 2: https://docs.cohere.com/reference/embed

Vectors have length 1. A model's name is not looked at.
"""

import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from flask import Blueprint, Response
from msgspec import Meta, Struct

from app.context import RequestContext
from app.engine.dtypes import SMALL_DTYPES, SmallDtype
from app.routes import encoder
from app.routes.body import ListField, TextList, decode, json_data
from app.routes.body_errors import NOT_A_STRING, Rule, text_rules, wrong_value
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import Dimensions, OptionFields, Options, encode, resolve_options
from app.routes.prompts import prompt_name_for
from app.routes.rendering import dumps, parts_response, slices
from app.routes.vectors import encode_vectors

# Type of embeddings -> options for it.
TYPES: dict[str, dict[str, Any]] = {
    "float": {},
    "base64": {"encoding_format": "base64"},
    **{dtype: {"dtype": dtype} for dtype in SMALL_DTYPES},
}
Type = Literal["float", "base64", SmallDtype]

blueprint = Blueprint("cohere", __name__)


class Embed(Struct, kw_only=True):
    """The body of POST /v2/embed; other fields are ignored."""

    texts: TextList
    model: str | None = None
    input_type: str | None = None
    embedding_types: Annotated[list[Type], Meta(max_length=100)] | None = None
    truncate: Literal["NONE", "END"] | None = None
    output_dimension: Dimensions | None = None
    max_tokens: int | None = None
    images: None = None
    inputs: None = None


TEXTS = ListField("texts", str)
NO_IMAGES = Rule("{place} is {kind}; only texts are possible here.")
RULES = {
    **text_rules("texts"),
    "model": NOT_A_STRING,
    "input_type": NOT_A_STRING,
    "embedding_types": Rule("{place} is {kind}; it must be a list of types."),
    "embedding_types length": Rule("{place} has {count} types; at most 100 are possible."),
    "embedding_types[]": Rule(f"{{place}} is {{value}}; it must be one of {', '.join(TYPES)}."),
    "truncate": Rule("{place} is {value}; only NONE or END is possible here: a text keeps its beginning."),
    "output_dimension": OPTION_RULES["dimensions"],
    "max_tokens": Rule("{place} is {value}; only MAX_LENGTH or more is possible here."),
    "images": NO_IMAGES,
    "inputs": NO_IMAGES,
}


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return message, which Cohere's clients show."""
    return {"message": message}


@blueprint.post("/v2/embed")
def embed() -> Response:
    body = decode(json_data(), Embed, RULES, TEXTS)
    if body.max_tokens is not None and body.max_tokens < encoder().max_length:
        raise wrong_value(RULES["max_tokens"], "max_tokens", body.max_tokens)
    types = list(dict.fromkeys(body.embedding_types or ["float"]))
    fields: dict[str, Any] = {
        "dimensions": body.output_dimension,
        "truncate": None if body.truncate is None else body.truncate == "END",
        "prompt_name": prompt_name_for(body.input_type),
    }
    options = [resolve_options(OptionFields(**fields, **TYPES[name]), Options(normalize=True)) for name in types]
    result = encode(body.texts, options[0], "texts[{}]".format)
    head = dumps({"id": str(uuid.uuid4()), "embeddings": {}})[:-2]
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": sum(result.tokens)}}
    tail = b"," + dumps({"meta": meta, "response_type": "embeddings_by_type"})[1:]

    count = len(body.texts)

    def parts() -> Iterator[bytes]:
        yield head
        for number, (name, its_options) in enumerate(zip(types, options, strict=True)):
            yield (b"," if number else b"") + dumps(name) + b":["
            yield from slices(lambda start, stop: encode_vectors(result.rows[start:stop], its_options), count)
            yield b"]"
        yield b'},"texts":['
        yield from slices(lambda start, stop: body.texts[start:stop], count)
        yield b"]" + tail

    return parts_response(parts)
