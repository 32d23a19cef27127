"""GET /embed and POST /embed: this service's own dialect."""

import string
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

from flask import Blueprint, Response, request

from app.context import RequestContext
from app.errors import InvalidRequest
from app.routes import context, tei
from app.routes.body import json_body, quoted, strings
from app.routes.options import OPTIONS, Options, encode, encode_vectors, options, parse_option
from app.routes.rendering import json_response, list_response

blueprint = Blueprint("native", __name__)


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Add TEI's fields where a request may be its dialect: POST /embed, until its body is read."""
    return tei.error_fields(request, status, message) if request.method == "POST" else {}


@blueprint.get("/embed")
def embed_one() -> Response:
    query = _query("q")
    if "q" not in query:
        raise InvalidRequest("The parameter q is missing: GET /embed?q=TEXT.", "q")
    text = query.pop("q")
    given = _merged(query, {})
    result = encode([text], given, lambda index: "q")
    vectors = encode_vectors(result.rows, given)
    return json_response(
        {
            "vector": vectors[0],
            "dimension": given.dimensions or result.dimension,
            "text": text,
            "tokens": result.tokens[0],
            "truncated": result.truncated[0],
        }
    )


@blueprint.post("/embed")
def embed_many() -> Response:
    body = json_body()
    if "inputs" in body and "texts" not in body:
        return tei.embed({**_in_both(_query(), body), "inputs": body["inputs"]})
    context().error_fields = None
    query = _query()
    for name in body:
        if name != "texts" and name not in OPTIONS:
            raise InvalidRequest(
                f"Unknown field {quoted(name)}; known are {', '.join(('texts', *OPTIONS))}.", name[:60]
            )
    if "texts" not in body:
        raise InvalidRequest('The field texts is missing: {"texts": ["…"]}.', "texts")
    texts = strings(body["texts"], "texts")
    given = _merged(query, body)
    result = encode(texts, given, lambda index: f"texts[{index}]")
    return list_response(
        lambda start, stop: encode_vectors(result.rows[start:stop], given),
        len(texts),
        name="vectors",
        after={
            "dimension": given.dimensions or result.dimension,
            "count": len(texts),
            "tokens": result.tokens,
            "truncated": result.truncated,
        },
    )


def _query(*names: str) -> dict[str, str]:
    """Return the query's parameters, strictly UTF-8 (werkzeug would let wrong bytes through)."""
    if not request.query_string:
        return {}
    # curl and others send UTF-8 as it is, without percent signs
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


def _merged(query: Mapping[str, str], body: Mapping[str, Any]) -> Options:
    return options(_in_both(query, body))


def _in_both(query: Mapping[str, str], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body's fields and the query's; a null in the body counts as not given."""
    found = {name: parse_option(name, text) for name, text in query.items()}
    options(found)  # what the query has is wrong or right by itself
    for name, value in body.items():
        if value is not None and found.setdefault(name, value) != value:
            raise InvalidRequest(
                f"{name} is {quoted(found[name])} in the query and {quoted(value)} in the body: give it once.", name
            )
    return found
