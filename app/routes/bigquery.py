"""POST /bigquery: a remote function for BigQuery. https://cloud.google.com/bigquery/docs/remote-functions"""

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Blueprint, Response
from msgspec import Struct

from app.context import RequestContext
from app.engine.dtypes import Dtype
from app.routes.body import ListField, decode, json_data
from app.routes.body_errors import NOT_AN_OBJECT, Rule
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import Dimensions, Prompt, encode, from_strings, resolve_options
from app.routes.rendering import list_response
from app.routes.vectors import encode_vectors

blueprint = Blueprint("bigquery", __name__)
# Longest errorMessage, bytes; 1 KB is too long: https://cloud.google.com/bigquery/docs/remote-functions#output_format
MAX_ERROR_BYTES = 1000
# Arguments of one call: the text, or None for NULL.
Call = tuple[str | None]


class Context(Struct, forbid_unknown_fields=True):
    """user_defined_context of CREATE FUNCTION: the options, as strings; without encoding_format."""

    normalize: bool | str | None = None
    dimensions: Dimensions | str | None = None
    prompt_name: Prompt | None = None
    prompt: Prompt | None = None
    truncate: bool | str | None = None
    dtype: Dtype | None = None


class Calls(Struct):
    """The body of POST /bigquery. Other fields are ignored."""

    calls: list[Call]
    userDefinedContext: Context | None = None


CALLS = ListField("calls", Call)
NOT_ONE = "; the function takes one argument: FUNCTION(text STRING)."
RULES = {
    "calls": Rule("calls is {kind}; it must be a list of the arguments of each call."),
    "calls[]": Rule("{place} has {kind}" + NOT_ONE),
    "calls[] length": Rule("{place} has {count} arguments" + NOT_ONE),
    "calls[][]": Rule("{parent} has {kind}; the argument must be a STRING or NULL."),
    "userDefinedContext": NOT_AN_OBJECT,
    "unknown": Rule(
        f"user_defined_context has {{field}}; known are {', '.join(Context.__struct_fields__)}.", "userDefinedContext"
    ),
    **{f"userDefinedContext.{name}": rule for name, rule in OPTION_RULES.items()},
}


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return errorMessage, which BigQuery shows."""
    return {"errorMessage": message.encode()[:MAX_ERROR_BYTES].decode(errors="ignore")}


@blueprint.post("/bigquery")
def bigquery() -> Response:
    """{"calls": [[text or null], …]} -> {"replies": [vector or null, …]}"""
    body = decode(json_data(), Calls, RULES, CALLS)
    options = resolve_options(from_strings(msgspec.structs.asdict(body.userDefinedContext or Context())))
    calls = [text for text, in body.calls]
    places = [index for index, text in enumerate(calls) if text is not None]
    texts = [text for text in calls if text is not None]
    name: Callable[[int], str] = lambda index: f"calls[{places[index]}]"
    rows = encode(texts, options, name).rows if texts else []
    row_of = dict(zip(places, rows, strict=True))

    def replies(start: int, stop: int) -> list[Any]:
        present = [index for index in range(start, stop) if index in row_of]
        vectors = iter(encode_vectors([row_of[index] for index in present], options) if present else ())
        return [next(vectors) if index in row_of else None for index in range(start, stop)]

    return list_response(replies, len(calls), name="replies")
