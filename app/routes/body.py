"""Request bodies: reading JSON and its lists of texts. Messages name the value and the limit."""

from collections.abc import Sequence
from typing import Any

import orjson
from flask import request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from app.errors import MAX_QUOTED_CHARACTERS, InvalidRequest, ServiceError, TooLarge, UnsupportedMedia
from app.routes import settings
from app.settings import RECEIVE_SECONDS


def json_body() -> dict[str, Any]:
    """Return the body, a JSON object.

    Raises:
        UnsupportedMedia: by its headers it is not JSON.
        InvalidRequest: it is not a JSON object in UTF-8.
    """
    mimetype = request.mimetype
    if mimetype != "application/json" and not (mimetype.startswith("application/") and mimetype.endswith("+json")):
        said = quoted(mimetype) if mimetype else "missing"
        raise UnsupportedMedia(f"The Content-Type is {said}: send JSON with Content-Type: application/json.")
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"The Content-Encoding is {quoted(encoding)}: send the JSON uncompressed.")
    data = _data()
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(_not_json(data, error)) from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body is {json_type(body)}; it must be an object.")
    return body


def _data() -> bytes:
    """Return all bytes of the body."""
    limit, length = settings().max_body_bytes, request.content_length
    if (length or 0) > limit:
        raise RequestEntityTooLarge
    try:
        # Gunicorn's own stream: werkzeug's around it costs a fifth of the app's time, and cuts chunked bodies silently.
        data: bytes = request.environ["wsgi.input"].read(limit + 1 if length is None else length)
    except ServiceError:  # the server's own refusal
        raise
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive: no more of it came within {RECEIVE_SECONDS} s.") from None
    except OSError:
        raise InvalidRequest("The body ends before its last chunk.") from None
    except Exception as error:  # the server's own, e.g. of a wrong chunk size
        raise InvalidRequest(f"The body cannot be read: {error}.") from None
    if len(data) > limit:
        raise RequestEntityTooLarge
    if len(data) < (length or 0):
        raise InvalidRequest(f"The body ends after {len(data)} of {length} bytes (Content-Length).")
    return data


def _not_json(data: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        return f"The body is not UTF-8: byte 0x{data[wrong.start]:02x} at {wrong.start}."
    return f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."


def check_count(value: Sequence[Any], name: str) -> None:
    """Raise TooLarge if a list has more than MAX_TEXTS items."""
    limit = settings().max_texts
    if len(value) > limit:
        raise TooLarge(
            f"{name} has {len(value)} items, over the limit of {limit} (MAX_TEXTS): send fewer at once.", name
        )


def strings(value: Any, name: str) -> list[str]:
    """Return a list of strings, at least one and at most MAX_TEXTS.

    Raises:
        InvalidRequest: it is not.
        TooLarge: it is longer.
    """
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} is {json_type(value)}; it must be a list of strings.", name)
    if not value:
        raise InvalidRequest(f"{name} is an empty list; at least one text is needed.", name)
    check_count(value, name)
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise InvalidRequest(f"{name}[{index}] is {json_type(text)}; every item must be a string.", name)
    return value


def quoted(value: Any) -> str:
    """Return a client's value for a message, never long."""
    if isinstance(value, (list, dict)):
        return json_type(value)
    if isinstance(value, str) and len(value) > MAX_QUOTED_CHARACTERS:
        value = f"{value[:MAX_QUOTED_CHARACTERS]}…"
    return orjson.dumps(value).decode()


def json_type(value: Any) -> str:
    """Return a JSON value's type in JSON's words."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]
