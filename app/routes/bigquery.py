"""POST /bigquery: a remote function of BigQuery. https://cloud.google.com/bigquery/docs/remote-functions"""

from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Response

from app.context import RequestContext
from app.errors import InvalidRequest
from app.routes.body import check_count, json_body, json_type, quoted
from app.routes.options import OPTIONS, Options, encode, encode_vectors, options, parse_option
from app.routes.rendering import list_response

blueprint = Blueprint("bigquery", __name__)
# Replies are JSON arrays of numbers.
CONTEXT = tuple(name for name in OPTIONS if name != "encoding_format")
# Longest errorMessage, bytes: https://cloud.google.com/bigquery/docs/remote-functions#output_format: less than 1 KB
MAX_ERROR_BYTES = 1000


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return what BigQuery shows of an error."""
    return {"errorMessage": message.encode()[:MAX_ERROR_BYTES].decode(errors="ignore")}


@blueprint.post("/bigquery")
def bigquery() -> Response:
    """{"calls": [[text or null], …]} -> {"replies": [vector or null, …]}; what else BigQuery sends is not needed."""
    body = json_body()
    calls, given = _calls(body), _options(body)
    places = [index for index, text in enumerate(calls) if text is not None]
    texts = [text for text in calls if text is not None]
    name: Callable[[int], str] = lambda index: f"calls[{places[index]}]"
    rows = encode(texts, given, name).rows if texts else []
    row_of = dict(zip(places, rows, strict=True))

    def replies(start: int, stop: int) -> list[Any]:
        found = [index for index in range(start, stop) if index in row_of]
        vectors = iter(encode_vectors([row_of[index] for index in found], given) if found else ())
        return [next(vectors) if index in row_of else None for index in range(start, stop)]

    return list_response(replies, len(calls), name="replies")


def _calls(body: dict[str, Any]) -> Sequence[str | None]:
    if "calls" not in body:
        raise InvalidRequest("The field calls is missing.", "calls")
    calls = body["calls"]
    if not isinstance(calls, list):
        raise InvalidRequest(f"calls is {json_type(calls)}; it must be a list of the arguments of each call.", "calls")
    check_count(calls, "calls")
    for index, arguments in enumerate(calls):
        if not isinstance(arguments, list) or len(arguments) != 1:
            found = f"{len(arguments)} arguments" if isinstance(arguments, list) else json_type(arguments)
            raise InvalidRequest(
                f"calls[{index}] has {found}; the function takes one argument: FUNCTION(text STRING).", "calls"
            )
        if not isinstance(arguments[0], (str, type(None))):
            raise InvalidRequest(
                f"calls[{index}] has {json_type(arguments[0])}; the argument must be a STRING or NULL.", "calls"
            )
    return [arguments[0] for arguments in calls]


def _options(body: dict[str, Any]) -> Options:
    """What CREATE FUNCTION has in user_defined_context; all values are strings there."""
    context = body.get("userDefinedContext")
    if context is None:
        return Options()
    if not isinstance(context, dict):
        raise InvalidRequest(f"userDefinedContext is {json_type(context)}; it must be an object.", "userDefinedContext")
    for name in context:
        if name not in CONTEXT:
            raise InvalidRequest(
                f"user_defined_context has {quoted(name)}; known are {', '.join(CONTEXT)}.", "userDefinedContext"
            )
    return options({name: parse_option(name, v) if isinstance(v, str) else v for name, v in context.items()})
