"""POST /bigquery: a remote function of BigQuery. https://cloud.google.com/bigquery/docs/remote-functions"""

from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Response

from app.errors import InvalidRequest
from app.routes import json_response
from app.routes.parsing import OPTIONS, Options, check_count, encode, from_text, json_body, kind, options, shown

blueprint = Blueprint("bigquery", __name__)
# Replies are JSON arrays of numbers.
CONTEXT = tuple(name for name in OPTIONS if name != "encoding_format")


@blueprint.post("/bigquery")
def bigquery() -> Response:
    """{"calls": [[text or null], …]} -> {"replies": [vector or null, …]}; what else BigQuery sends is not needed."""
    body = json_body()
    calls, wanted = _calls(body), _options(body)
    places = [index for index, text in enumerate(calls) if text is not None]
    texts = [text for text in calls if text is not None]
    name: Callable[[int], str] = lambda index: f"calls[{places[index]}]"
    vectors = iter(encode(texts, wanted, name).vectors) if texts else iter(())
    return json_response({"replies": [None if text is None else next(vectors) for text in calls]})


def _calls(body: dict[str, Any]) -> Sequence[str | None]:
    if "calls" not in body:
        raise InvalidRequest("The field calls is missing.", "calls")
    calls = body["calls"]
    if not isinstance(calls, list):
        raise InvalidRequest(f"calls is {kind(calls)}; it must be a list of the arguments of each call.", "calls")
    check_count(calls, "calls")
    for index, arguments in enumerate(calls):
        if not isinstance(arguments, list) or len(arguments) != 1:
            found = f"{len(arguments)} arguments" if isinstance(arguments, list) else kind(arguments)
            raise InvalidRequest(
                f"calls[{index}] has {found}; the function takes one argument: FUNCTION(text STRING).", "calls"
            )
        if not isinstance(arguments[0], (str, type(None))):
            raise InvalidRequest(
                f"calls[{index}] has {kind(arguments[0])}; the argument must be a STRING or NULL.", "calls"
            )
    return [arguments[0] for arguments in calls]


def _options(body: dict[str, Any]) -> Options:
    """What CREATE FUNCTION has in user_defined_context; all values are strings there."""
    context = body.get("userDefinedContext")
    if context is None:
        return Options()
    if not isinstance(context, dict):
        raise InvalidRequest(f"userDefinedContext is {kind(context)}; it must be an object.", "userDefinedContext")
    for name in context:
        if name not in CONTEXT:
            raise InvalidRequest(
                f"user_defined_context has {shown(name)}; known are {', '.join(CONTEXT)}.", "userDefinedContext"
            )
    return options({name: from_text(name, v) if isinstance(v, str) else v for name, v in context.items()})
