"""The exceptions of this service and the one place that maps them to HTTP.

BootError                 the server cannot start (no HTTP: one line on stderr)
ServiceError              a request cannot be answered
├── InvalidRequest   400  the request itself is wrong
│   └── WrongText    400  one of the texts is wrong
│       └── TextTooLong   over MAX_LENGTH with truncate false, or a book without a space
├── Unauthorized     401  no API key, or a wrong one
├── UnknownModel     404  another model than the one that is served
├── TooLarge         413  more texts than MAX_TEXTS
├── UnsupportedMedia 415  the body is not JSON by its headers
├── QueueFull        429  too many requests wait already
├── DeadlineExceeded 503  the time for the request was up before its work was done
│   └── ShuttingDown      the same, because the server ends
└── NotReady         503  the model has not proved itself on this CPU (yet)
"""

import logging
from http import HTTPStatus
from typing import Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from app.record import BIGQUERY, RECORD, TEI, Record

# What a refused client is told to wait: until the queue is shorter, and until another instance or worker is ready.
QUEUE_RETRY_SECONDS = 1
RETRY_AFTER_SECONDS = 5
# A client that stops in the middle of a request or of its answer is let go.
RECEIVE_SECONDS = 10
FAULT = "Something went wrong inside the server; its log says what."
# Of what a client chooses, in a message.
MAX_SHOWN_CHARACTERS = 60

# text-embeddings-inference's names of errors (ErrorType in its router/src/lib.rs).
TEI_TYPES: dict[int, str] = {HTTPStatus.TOO_MANY_REQUESTS: "Overloaded", HTTPStatus.SERVICE_UNAVAILABLE: "Unhealthy"}
# https://cloud.google.com/bigquery/docs/remote-functions#output_format: less than 1 KB
BIGQUERY_BYTES = 1000

logger = logging.getLogger(__name__)


class BootError(RuntimeError):
    """The server cannot start; the message is one line that says why and what to do.

    A RuntimeError, since Gunicorn prints the line of these and leaves the stack trace out.
    """


class ServiceError(Exception):
    """A request cannot be answered; the message is a sentence for the client.

    param is the field or parameter that is wrong, if it is one.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(ServiceError):
    status = HTTPStatus.BAD_REQUEST
    code = "invalid_request"


class WrongText(InvalidRequest):
    """index: of the text that is wrong. reason: the rest of the sentence."""

    def __init__(self, index: int, reason: str, param: str | None = None) -> None:
        super().__init__(f"Text {index} {reason}", param)
        self.index = index
        self.reason = reason

    def named(self, name: str) -> "WrongText":
        """The same with the client's own name for the text."""
        self.args = (f"{name} {self.reason}",)
        return self


class TextTooLong(WrongText):
    code = "text_too_long"


class Unauthorized(ServiceError):
    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_api_key"


class UnknownModel(ServiceError):
    status = HTTPStatus.NOT_FOUND
    code = "model_not_found"


class TooLarge(ServiceError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "too_many_texts"


class UnsupportedMedia(ServiceError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"


class QueueFull(ServiceError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "queue_full"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The queue is full: {limit} requests wait already (MAX_QUEUE). Try again later.")


class DeadlineExceeded(ServiceError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "deadline_exceeded"

    def __init__(self, begun: int, texts: int) -> None:
        super().__init__(
            f"The request's time was up (REQUEST_DEADLINE, or the server is shutting down) after {begun} of {texts} "
            "texts: try again, with fewer texts at once."
        )


class ShuttingDown(DeadlineExceeded):
    code = "shutting_down"


class NotReady(ServiceError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "not_ready"


def error_body(status: int, message: str, code: str, param: str | None = None, *, dialect: str = "") -> bytes:
    """The one shape of an error, as JSON, with what the clients of a dialect look for beside it."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    if dialect == TEI:
        body["error_type"] = TEI_TYPES.get(status, "Backend" if status >= 500 else "Validation")
    elif dialect == BIGQUERY:
        body["errorMessage"] = message.encode()[:BIGQUERY_BYTES].decode(errors="ignore")
    return orjson.dumps(body)


def _sentence(error: HTTPException, app: Flask) -> str:
    """werkzeug's error, with what was sent and what is allowed."""
    path = request.path
    if len(path) > MAX_SHOWN_CHARACTERS:
        path = f"{path[:MAX_SHOWN_CHARACTERS]}…"
    match error:
        case NotFound():
            return f"There is nothing at {path}; /docs lists what there is."
        case MethodNotAllowed():
            allowed = ", ".join(sorted(error.valid_methods or ()))
            return f"{request.method[:MAX_SHOWN_CHARACTERS]} is not allowed at {path}, only {allowed}."
        case BadRequest() if error.description == BadRequest.description:
            return "The request cannot be read: its Host, or another header, is malformed."
        case RequestEntityTooLarge():
            limit = app.extensions["settings"].max_body_bytes
            length = f"has {request.content_length} bytes," if request.content_length else "is"
            return f"The body {length} over the limit of {limit} bytes (MAX_BODY_BYTES): send fewer texts at once."
    return error.description or error.name


def _answer(status: int, message: str, code: str, param: str | None = None) -> Response:
    record: Record = request.environ[RECORD]
    record.error = code
    body = error_body(status, message, code, param, dialect=record.dialect)
    return Response(body, status=status, mimetype="application/json")


def register(app: Flask) -> None:
    """Answer every error of every route as JSON."""

    @app.errorhandler(ServiceError)
    def service_error(error: ServiceError) -> Response:
        response = _answer(error.status, str(error), error.code, error.param)
        if error.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
            response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        # werkzeug's own: 404, 405, 413, a redirect to the canonical URL, …
        original = error.get_response()
        status = HTTPStatus(error.code or 500)
        response = Response(original.get_data(), status, original.headers)
        if status >= HTTPStatus.BAD_REQUEST:
            answer = _answer(status, _sentence(error, app), status.name.lower())
            response.data, response.mimetype = answer.data, answer.mimetype or ""
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.exception("unexpected error")
        return _answer(500, FAULT, "internal_error")
