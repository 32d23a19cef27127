"""The native dialect: GET /embed and POST /embed."""

import string
from typing import Any
from urllib.parse import parse_qsl, quote

from flask import Blueprint, Response, request

from app.context import RequestContext
from app.errors import InvalidRequest, ServiceError
from app.routes import context, tei
from app.routes.body import ListField, TextList, decode, fields, json_data
from app.routes.body_errors import Rule, quoted, text_rules
from app.routes.options import OPTIONS
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import OptionFields, encode, from_strings, resolve_options
from app.routes.rendering import json_response, list_response
from app.routes.vectors import encode_vectors

blueprint = Blueprint("native", __name__)


class Texts(OptionFields, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /embed."""

    texts: TextList


TEXTS = ListField("texts", str)
RULES = {
    **OPTION_RULES,
    **text_rules("texts"),
    "texts missing": Rule('The field texts is missing: {{"texts": ["…"]}}.'),
    "unknown": Rule(f"Unknown field {{field}}; known are {', '.join(('texts', *OPTIONS))}."),
}


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return TEI's error fields for POST /embed, which is TEI's route, too, until the body shows the dialect."""
    return tei.error_fields(request, status, message) if request.method == "POST" else {}


@blueprint.get("/embed")
def embed_one() -> Response:
    query = _query("q")
    if "q" not in query:
        raise InvalidRequest("The parameter q is missing: GET /embed?q=TEXT.", "q")
    text = query.pop("q")
    options = resolve_options(from_strings(query))
    result = encode([text], options, lambda index: "q")
    vectors = encode_vectors(result.rows, options)
    return json_response(
        {
            "vector": vectors[0],
            "dimension": options.dimensions or result.dimension,
            "text": text,
            "tokens": result.tokens[0],
            "truncated": result.truncated[0],
        }
    )


@blueprint.post("/embed")
def embed_many() -> Response:
    data = json_data()
    try:
        body = decode(data, Texts, RULES, TEXTS)
    except ServiceError:
        raw_fields = fields(data, "texts", "inputs")
        if "inputs" in raw_fields and "texts" not in raw_fields:
            return tei.embed(data, raw_fields["inputs"], from_strings(_query()))
        context().error_fields = None
        raise
    context().error_fields = None
    texts, options = body.texts, resolve_options(body, query=from_strings(_query()))
    result = encode(texts, options, lambda index: f"texts[{index}]")
    return list_response(
        lambda start, stop: encode_vectors(result.rows[start:stop], options),
        len(texts),
        name="vectors",
        after={
            "dimension": options.dimensions or result.dimension,
            "count": len(texts),
            "tokens": result.tokens,
            "truncated": result.truncated,
        },
    )


def _query(*names: str) -> dict[str, str]:
    """Return the query's parameters, decoded as strict UTF-8 (werkzeug replaces wrong bytes)."""
    if not request.query_string:
        return {}
    # curl and others send UTF-8 without percent-encoding
    encoded = quote(request.query_string, safe=string.punctuation)
    try:
        pairs = parse_qsl(encoded, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The query is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}."
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"The query cannot be read: {error}.") from None
    query: dict[str, str] = {}
    for name, value in pairs:
        if name not in names and name not in OPTIONS:
            raise InvalidRequest(
                f"Unknown parameter {quoted(name)}; known are {', '.join((*names, *OPTIONS))}.", name[:60]
            )
        if query.setdefault(name, value) != value:
            raise InvalidRequest(
                f"The parameter {name} is given twice, as {quoted(query[name])} and {quoted(value)}.", name
            )
    return query
