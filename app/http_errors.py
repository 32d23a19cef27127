"""Errors as HTTP responses: the map from exceptions to statuses, and the JSON body of every error."""

import logging
from http import HTTPStatus
from typing import Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from app import errors
from app.context import CONTEXT, RequestContext
from app.errors import MAX_QUOTED_CHARACTERS, ServiceError

# Retry-After, seconds: when requests are waiting, and when the server is not ready.
QUEUE_RETRY_SECONDS = 1
RETRY_AFTER_SECONDS = 5
# nginx's status for a client that disconnected before its response; in logs and metrics only.
CLIENT_CLOSED_REQUEST = 499
INTERNAL_ERROR = "Something went wrong inside the server; its log says what."

# Exception -> status and code. A subclass that is not listed has those of its base class.
HTTP: dict[type[Exception], tuple[int, str]] = {
    errors.InvalidRequest: (HTTPStatus.BAD_REQUEST, "invalid_request"),
    errors.TextTooLong: (HTTPStatus.BAD_REQUEST, "text_too_long"),
    errors.Unauthorized: (HTTPStatus.UNAUTHORIZED, "invalid_api_key"),
    errors.UnknownModel: (HTTPStatus.NOT_FOUND, "model_not_found"),
    errors.TooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_many_texts"),
    errors.UnsupportedMedia: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
    errors.QueueFull: (HTTPStatus.TOO_MANY_REQUESTS, "queue_full"),
    errors.DeadlineExceeded: (HTTPStatus.SERVICE_UNAVAILABLE, "deadline_exceeded"),
    errors.ShuttingDown: (HTTPStatus.SERVICE_UNAVAILABLE, "shutting_down"),
    errors.ClientGone: (CLIENT_CLOSED_REQUEST, "client_gone"),
    errors.NotReady: (HTTPStatus.SERVICE_UNAVAILABLE, "not_ready"),
    Exception: (HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error"),
}
# Error code -> Retry-After, seconds.
RETRY_AFTER = {
    "queue_full": QUEUE_RETRY_SECONDS,
    "deadline_exceeded": QUEUE_RETRY_SECONDS,
    "shutting_down": RETRY_AFTER_SECONDS,
    "not_ready": RETRY_AFTER_SECONDS,
}

logger = logging.getLogger(__name__)


def status_and_code(error: Exception) -> tuple[int, str]:
    """Return the HTTP status of an exception, and the code in its body."""
    return next(HTTP[kind] for kind in type(error).__mro__ if kind in HTTP)


def error_body(context: RequestContext, status: int, message: str, code: str, param: str | None = None) -> bytes:
    """Return the JSON body of an error, with the fields that the dialect adds for its clients."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    if context.error_fields is not None:
        body |= context.error_fields(context, status, message)
    return orjson.dumps(body)


def register(app: Flask) -> None:
    """Register the handlers that answer every error with JSON."""

    @app.errorhandler(ServiceError)
    def service_error(error: ServiceError) -> Response:
        status, code = status_and_code(error)
        context: RequestContext = request.environ[CONTEXT]
        context.exception = error
        if status == CLIENT_CLOSED_REQUEST:
            return Response(status=status)
        response = _response(status, str(error), code, error.param)
        if status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        if code in RETRY_AFTER:
            response.headers["Retry-After"] = str(RETRY_AFTER[code])
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        # raised by werkzeug: 404, 405, 413, a redirect to the canonical URL, …
        original = error.get_response()
        status = HTTPStatus(error.code or 500)
        response = Response(original.get_data(), status, original.headers)
        if status >= HTTPStatus.BAD_REQUEST:
            answer = _response(status, _sentence(error, app), status.name.lower())
            response.data, response.mimetype = answer.data, answer.mimetype or ""
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.exception("unexpected error")
        status, code = status_and_code(error)
        return _response(status, INTERNAL_ERROR, code)


def _response(status: int, message: str, code: str, param: str | None = None) -> Response:
    context: RequestContext = request.environ[CONTEXT]
    context.error = code
    return Response(error_body(context, status, message, code, param), status=status, mimetype="application/json")


def _sentence(error: HTTPException, app: Flask) -> str:
    """Return a sentence for werkzeug's error that names the value sent and what is allowed."""
    path = request.path
    if len(path) > MAX_QUOTED_CHARACTERS:
        path = f"{path[:MAX_QUOTED_CHARACTERS]}…"
    match error:
        case NotFound():
            return f"There is nothing at {path}; /docs lists what there is."
        case MethodNotAllowed():
            allowed = ", ".join(sorted(error.valid_methods or ()))
            return f"{request.method[:MAX_QUOTED_CHARACTERS]} is not allowed at {path}, only {allowed}."
        case BadRequest() if error.description == BadRequest.description:
            return "The request cannot be read: its Host, or another header, is malformed."
        case RequestEntityTooLarge():
            limit = app.extensions["settings"].max_body_bytes
            length = f"has {request.content_length} bytes," if request.content_length else "is"
            return f"The body {length} over the limit of {limit} bytes (MAX_BODY_BYTES): send fewer texts at once."
    return error.description or error.name
