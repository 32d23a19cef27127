"""HTTP outside the app: additions to Gunicorn's parser and response, and errors for requests that it cannot parse."""

import re
import time
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import gunicorn
import gunicorn.http.message
import gunicorn.http.wsgi
import gunicorn.util
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)

from app import access
from app.context import RequestContext
from app.http_errors import INTERNAL_ERROR, RETRY_AFTER, error_body
from app.server.connection import MAX_HEAD_BYTES
from app.server.connections import SMALL_BODY_BYTES
from app.settings import RECEIVE_SECONDS

# Headers that are read before a request is admitted -> their keys in the WSGI environ.
KEYS = {"CONTENT-LENGTH": "CONTENT_LENGTH"} | {
    name: f"HTTP_{name.replace('-', '_')}"
    for name in (
        "ORIGIN",
        "TRACEPARENT",
        "TRANSFER-ENCODING",
        "USER-AGENT",
        "X-CLOUD-TRACE-CONTEXT",
        "X-FORWARDED-FOR",
        "X-REQUEST-ID",
    )
}

# Longest reason from Gunicorn in an error, characters: it may quote a whole line of the request.
MAX_REASON_CHARACTERS = 200


class Response(gunicorn.http.wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's response. Head and beginning of the body go out in one packet, which wakes the client once."""

    head = b""
    headers_sent: bool

    def send_headers(self) -> None:
        if not self.headers_sent:
            lines = [*self.default_headers(), *(f"{name}: {value}\r\n" for name, value in self.headers), "\r\n"]
            self.head = "".join(lines).encode("latin-1")
            self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        if self.chunked:
            self.sock.sendall(self.head)
            gunicorn.util.write_chunk(self.sock, data)
        else:
            self.sock.sendall(self.head + data)
        self.head = b""

    def close(self) -> None:
        self.send_headers()
        if self.head:  # response without a body
            self.sock.sendall(self.head)
        super().close()


def check(request: Any) -> None:
    """Apply two rules of HTTP that Gunicorn lacks: Host is required, and `Connection: close` is obeyed.

    https://www.rfc-editor.org/rfc/rfc9112#section-3.2-5 and #section-9.6

    Raises:
        ParseException: the Host header is missing.
    """
    names = {name for name, _ in request.headers}
    if request.version >= (1, 1) and "HOST" not in names:
        raise ParseException("it has no Host header")
    options = ",".join(value for name, value in request.headers if name == "CONNECTION").lower().split(",")
    if "close" in (option.strip(" \t") for option in options):
        request.force_close()


def client_address(address: Any) -> tuple[str, int]:
    """Return host and port of a client. A socket for IPv6 and IPv4 gives ::ffff:192.0.2.1 for 192.0.2.1."""
    host, port = str(address[0]), int(address[1])
    return host.removeprefix("::ffff:") if "." in host else host, port


def head_environ(request: Any, address: tuple[str, int]) -> dict[str, str]:
    """Return the part of the WSGI environ that is read before admission: the whole environ takes longer."""
    environ = {
        "REQUEST_METHOD": request.method,
        "PATH_INFO": unquote_to_bytes(request.path.encode("latin-1")).decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{request.version[0]}.{request.version[1]}",
        "REMOTE_ADDR": address[0],
    }
    for name, value in request.headers:
        if key := KEYS.get(name):
            environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def has_small_body(environ: dict[str, str]) -> bool:
    """Return whether the unread rest of the body is small enough to be read, which keeps the connection."""
    return "HTTP_TRANSFER_ENCODING" not in environ and int(environ.get("CONTENT_LENGTH") or 0) <= SMALL_BODY_BYTES


def unreadable(error: Exception, config: Any) -> tuple[HTTPStatus, str]:
    """Return status and message for a request that cannot be parsed."""
    match error:
        case LimitRequestLine():
            limit = f"The URL is over the limit of {config.limit_request_line} bytes: send long texts with POST /embed."
            return HTTPStatus.REQUEST_URI_TOO_LONG, limit
        case LimitRequestHeaders():
            fields, size = config.limit_request_fields, config.limit_request_field_size
            limits = f"{fields} fields, or of {size} bytes in one of them, or of {MAX_HEAD_BYTES} bytes in all"
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The headers are over the limit of {limits}."
        case TimeoutError():
            return HTTPStatus.REQUEST_TIMEOUT, f"The request did not arrive within {RECEIVE_SECONDS} s."
        case NoMoreData():
            return HTTPStatus.BAD_REQUEST, "The request ends before its head does."
        case UnsupportedTransferCoding():
            status = HTTPStatus.NOT_IMPLEMENTED
        case ExpectationFailed():
            status = HTTPStatus.EXPECTATION_FAILED
        case InvalidResponseHeader():
            return HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR
        case ParseException():
            status = HTTPStatus.BAD_REQUEST
        case _:
            return HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR
    reason = str(error).rstrip(".")
    if len(reason) > MAX_REASON_CHARACTERS:
        reason = f"{reason[:MAX_REASON_CHARACTERS]}…"
    return status, f"The request cannot be read: {reason}."


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return str(gunicorn.util.http_date(second))


def error_response(
    context: RequestContext, status: int, message: str, cors_origins: tuple[str, ...], keeps: bool
) -> tuple[bytes, int]:
    """Return the complete error response without calling the app, and the length of its body.

    context: `context.error` is the error's code. keeps: whether the connection is kept.
    """
    body = error_body(context, status, message, context.error)
    headers = {
        "Server": gunicorn.SERVER,
        "Date": _date(int(time.time())),
        "Connection": "keep-alive" if keeps else "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Request-Id": context.request_id,
        access.CSP: access.CSP_DENY_ALL,
        **access.SECURITY_HEADERS,
        **(access.cors(cors_origins, context.origin) if cors_origins else {}),
    }
    if context.error in RETRY_AFTER:
        headers["Retry-After"] = str(RETRY_AFTER[context.error])
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *map(": ".join, headers.items()), "\r\n"]
    if context.method == "HEAD":
        body = b""
    return "\r\n".join(lines).encode("latin-1") + body, len(body)


# Gunicorn rejects UTF-8 without percent-encoding in a request target, as `curl 'host/embed?q=日本語'` sends it, and has
# no setting for that.
gunicorn.http.message.RFC9112_TARGET_INVALID = re.compile(r"[^\x21-\x7e\x80-\xff]")
