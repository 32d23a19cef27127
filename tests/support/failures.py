"""A failure of one request, and what every error response must look like."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support import ROOT
from tests.support.http import Answer
from tests.support.routes import DOCUMENTED, REQUESTS, Route

# Statuses that any request may get before its route is known.
ANYWHERE = {400, 404, 405, 408, 414, 417, 429, 431}
# Statuses of requests whose body is not read.
UNREAD = {401, 408, 415, 429}
TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
# Header that a status brings with it.
HEADERS = {401: "www-authenticate", 405: "allow", 429: "retry-after", 503: "retry-after"}
TEI_ROUTES = ("/", "/similarity", "/tokenize", "/decode", "/info")
TEI_TYPES = {429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
UNAUTHORIZED = "The API key is missing or wrong: send one of the server's with Authorization: Bearer KEY."


@dataclass(frozen=True)
class Failure:
    """A request and the failure that it must get; "…" in the message stands for anything.

    body: bytes are sent as they are, everything else as JSON. client: name of the fixture that gets the request.
    """

    route: Route
    message: str
    param: str | None = None
    body: Any = None
    status: int = 400
    code: str = "invalid_request"
    path: str = ""
    headers: Mapping[str, str] | None = None
    client: str = "plain"

    @property
    def sent(self) -> bytes:
        body = REQUESTS[self.route][1] if self.body is None and self.route in REQUESTS else self.body
        return body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()

    @property
    def target(self) -> str:
        return self.path or REQUESTS[self.route][0]


def check(answer: Answer, failure: Failure, *, is_parsed: bool = True) -> None:
    """Check that the answer is this failure, in the one shape, with the fields that the route's clients need.

    is_parsed: whether the server could know the route.
    """
    status = failure.status
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer.body
    assert re.fullmatch(r"[\w.:+/=-]{1,128}", answer.headers["x-request-id"])
    assert HEADERS.get(status, "content-type") in answer.headers
    error = answer.json["error"]
    if is_parsed and has_plain_error(failure.route[1]):
        message = error
        assert list(answer.json) == ["error"]
    else:
        assert list(error) == ["message", "type", "param", "code"]
        message = error["message"]
        assert (error["param"], error["code"]) == (failure.param, failure.code)
        assert error["type"] == TYPES.get(status, "invalid_request_error")
        extra = extra_fields(failure, message) if is_parsed else {}
        assert {**answer.json, "error": None} == {"error": None, **extra}
    assert re.fullmatch(re.escape(failure.message).replace("…", ".*"), message), message
    assert re.fullmatch(r"[A-Za-z].*\.", message) and len(message) <= 300, message
    for not_for_clients in ("Traceback", "<", "Error:", " object at ", "\n", str(ROOT)):
        assert not_for_clients not in message
    if failure.route in DOCUMENTED:
        assert status in DOCUMENTED[failure.route] | ANYWHERE


def has_plain_error(path: str) -> bool:
    """Return whether a route's clients expect the sentence itself as error."""
    return path.startswith("/api/") or path.endswith(":predict") or path in ("/vectors", "/meta")


def extra_fields(failure: Failure, message: str) -> dict[str, str]:
    """Return the fields that a dialect adds to the error body."""
    # POST /embed is TEI's, too: until its body is read, and if it has inputs
    is_tei_embed = failure.route == ("POST", "/embed") and (
        b'{"inputs"' in failure.sent or failure.status in UNREAD or " body " in message
    )
    if failure.route[1] in TEI_ROUTES or is_tei_embed:
        is_empty = " is an empty list; " in message
        return {"error_type": "Empty" if is_empty else TEI_TYPES.get(failure.status, "Validation")}
    if failure.route[1] == "/v2/embed":
        return {"message": message}
    return {"errorMessage": message} if failure.route[1] == "/bigquery" else {}
