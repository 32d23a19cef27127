"""GET /embed and POST /embed: this service's own dialect."""

import string
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

from flask import Blueprint, Response, request

from app.errors import InvalidRequest
from app.record import TEI
from app.routes import json_response, record, tei
from app.routes.parsing import OPTIONS, Options, encode, from_text, json_body, options, render, shown, strings

blueprint = Blueprint("native", __name__)


@blueprint.get("/embed")
def embed_one() -> Response:
    query = _query("q")
    if "q" not in query:
        raise InvalidRequest("The parameter q is missing: GET /embed?q=TEXT.", "q")
    text = query.pop("q")
    wanted = _merged(query, {})
    result = encode([text], wanted, lambda index: "q")
    return json_response(
        {
            "vector": render(result.vectors, wanted)[0],
            "dimension": result.vectors.shape[1],
            "text": text,
            "tokens": result.tokens[0],
            "truncated": result.truncated[0],
        }
    )


@blueprint.post("/embed")
def embed_many() -> Response:
    query, body = _query(), json_body()
    if "inputs" in body and "texts" not in body:
        record().dialect = TEI
        return tei.embed({**_in_both(query, body), "inputs": body["inputs"]})
    for name in body:
        if name != "texts" and name not in OPTIONS:
            raise InvalidRequest(f"Unknown field {shown(name)}; known are {', '.join(('texts', *OPTIONS))}.", name[:60])
    if "texts" not in body:
        raise InvalidRequest('The field texts is missing: {"texts": ["…"]}.', "texts")
    texts = strings(body["texts"], "texts")
    wanted = _merged(query, body)
    result = encode(texts, wanted, lambda index: f"texts[{index}]")
    return json_response(
        {
            "vectors": render(result.vectors, wanted),
            "dimension": result.vectors.shape[1],
            "count": len(texts),
            "tokens": result.tokens,
            "truncated": result.truncated,
        }
    )


def _query(*names: str) -> dict[str, str]:
    """The query's parameters, strictly UTF-8 (werkzeug would let wrong bytes through)."""
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
                f"Unknown parameter {shown(name)}; known are {', '.join((*names, *OPTIONS))}.", name[:60]
            )
        if query.setdefault(name, value) != value:
            raise InvalidRequest(
                f"The parameter {name} is given twice, as {shown(query[name])} and {shown(value)}.", name
            )
    return query


def _merged(query: Mapping[str, str], body: Mapping[str, Any]) -> Options:
    return options(_in_both(query, body))


def _in_both(query: Mapping[str, str], body: Mapping[str, Any]) -> dict[str, Any]:
    """The body's fields and the query's; a null in the body counts as not given."""
    found = {name: from_text(name, text) for name, text in query.items()}
    options(found)  # what the query has is wrong or right by itself
    for name, value in body.items():
        if value is not None and found.setdefault(name, value) != value:
            raise InvalidRequest(
                f"{name} is {shown(found[name])} in the query and {shown(value)} in the body: give it once.", name
            )
    return found
