"""Weaviate's module text2vec-transformers, which asks such a server for vectors. They have length 1.

https://github.com/weaviate/weaviate/blob/main/usecases/modulecomponents/clients/transformers/transformers.go
https://github.com/weaviate/t2v-transformers-models

Weaviate asks /.well-known/live and /.well-known/ready for its health, see app/paths.py.
"""

from flask import Blueprint, Response
from msgspec import Struct

from app.errors import InvalidRequest
from app.routes import encoder, manifest, plain_error, served_name
from app.routes.body import ListField, decode, json_data
from app.routes.body_errors import NOT_A_STRING, NOT_AN_OBJECT, text_rules
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import Dimensions, OptionFields, Options, encode, resolve_options
from app.routes.prompts import prompt_name_for
from app.routes.rendering import json_response, list_response
from app.routes.vectors import encode_vectors

blueprint = Blueprint("weaviate", __name__)
error_fields = plain_error


class Config(Struct):
    """Options of the module. task_type: query or passage. The pooling is the model's own."""

    task_type: str | None = None
    dimensions: Dimensions | None = None


class Vectors(Struct):
    """The body of POST /vectors: one text, or texts, as newer versions of Weaviate send them."""

    text: str | None = None
    texts: list[str] | None = None
    config: Config | None = None


TEXTS = ListField("texts", str)
RULES = {
    **text_rules("texts"),
    "text": NOT_A_STRING,
    "config": NOT_AN_OBJECT,
    "config.task_type": NOT_A_STRING,
    "config.dimensions": OPTION_RULES["dimensions"],
}


@blueprint.post("/vectors")
def vectors() -> Response:
    body = decode(json_data(), Vectors, RULES, TEXTS)
    config = body.config or Config()
    fields = OptionFields(dimensions=config.dimensions, prompt_name=prompt_name_for(config.task_type))
    options = resolve_options(fields, Options(normalize=True))
    dimension = options.dimensions or encoder().dimension
    if body.texts is not None:
        rows = encode(body.texts, options, "texts[{}]".format).rows
        return list_response(
            lambda start, stop: encode_vectors(rows[start:stop], options),
            len(rows),
            name="vectors",
            after={"dims": dimension},
        )
    if body.text is None:
        raise InvalidRequest("The field text is missing: a string; or texts, a list of strings.", "text")
    result = encode([body.text], options, lambda index: "text")
    return json_response({"text": body.text, "vector": encode_vectors(result.rows, options)[0], "dim": dimension})


@blueprint.get("/meta")
def meta() -> Response:
    return json_response(
        {
            "model": served_name(),
            "dimension": encoder().dimension,
            "max_length": encoder().max_length,
            "pooling": manifest().pooling,
        }
    )
