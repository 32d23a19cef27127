"""Request bodies: their bytes, and from these straight to a dialect's type.

msgspec stops at the first value that does not fit the type, and skips unknown fields. Building a body's objects first
took seconds and 1 GB for 8 MiB of `[[],[],…`.
"""

import functools
import itertools
import re
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import msgspec
from flask import request
from msgspec import UNSET, Meta, Raw
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from app.errors import InvalidRequest, ServiceError, TooLarge, UnsupportedMedia
from app.routes import context, settings
from app.routes.misfits import Rules, misfit, not_json, quoted
from app.routes.parts import decoder, fields_type
from app.settings import RECEIVE_SECONDS

TextList = Annotated[list[str], Meta(min_length=1)]
# Largest body that is decoded without a look at the number of its items, bytes: at most 22,000 of them, 2 MB.
SMALL_BYTES = 65_536
# Highest MAX_TEXTS with such a look at large bodies: its type takes 30 ms to make, once.
MAX_LOOK_ITEMS = 10_000

T = TypeVar("T")


class Many(NamedTuple):
    """A body's list of at most MAX_TEXTS items. or_text: a string may stand instead of it."""

    place: str
    item: Any
    or_text: bool = False


class TooDeep(InvalidRequest):
    """Lists or objects are nested too deep."""


def json_data() -> bytes:
    """Return the body's bytes, UTF-8.

    Raises:
        UnsupportedMedia: by its headers it is not JSON.
        InvalidRequest: it did not arrive whole, or is not UTF-8.
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
        data.decode()  # msgspec does not look at the bytes of what it skips
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}.") from None
    return data


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


def decode(data: bytes, type_: type[T], rules: Rules, many: Many | None = None) -> T:
    """Decode a body.

    Raises:
        InvalidRequest: it is not JSON, or does not fit the type.
        TooDeep: what is nested too deep is in no field of the type, or in one that is taken unparsed.
        TooLarge: its list has more than MAX_TEXTS items.
    """
    try:
        if len(data) > SMALL_BYTES:
            if many:
                _look_at_number(data, type_, many)
            if runner := context().runner:
                runner.pause()
        body = cast(T, decoder(cast(Any, type_)).decode(data))
    except msgspec.ValidationError as error:
        raise misfit(data, error, rules) from None
    except msgspec.DecodeError as error:
        raise not_json(data, error) from None
    except RecursionError:
        raise TooDeep("The body is nested too deep: about 1000 lists or objects inside each other.") from None
    if many:
        items = functools.reduce(getattr, many.place.split("."), body)
        if not isinstance(items, str):
            check_count(cast(list[Any], items), many.place)
    return body


def fields(data: bytes, *names: str) -> dict[str, Raw]:
    """Return those of the fields that a body has, unparsed; each is empty if the body is nested too deep."""
    try:
        found = decode(data, fields_type(Raw, *names), {})
    except TooDeep:
        return {name: Raw(b"") for name in names if _has(data, name)}
    return {name: value for name in names if (value := getattr(found, name)) is not UNSET}


def check_count(items: list[Any], name: str) -> None:
    """Raise TooLarge if a list has more than MAX_TEXTS items."""
    limit = settings().max_texts
    if len(items) > limit:
        raise TooLarge(
            f"{name} has {len(items)} items, over the limit of {limit} (MAX_TEXTS): send fewer at once.", name
        )


def _look_at_number(data: bytes, type_: Any, many: Many) -> None:
    """Stop at a list's first item over MAX_TEXTS, before they are all built."""
    limit = settings().max_texts
    if limit > MAX_LOOK_ITEMS:
        return
    for name in many.place.split("."):
        _check_repeats(data, name, limit)
    try:
        decoder(_limited(type_, many, limit)).decode(data)
    except msgspec.ValidationError as error:
        if "`array` of at most length" not in str(error):
            raise
        raise TooLarge(
            f"{many.place} has more items than the limit of {limit} (MAX_TEXTS): send fewer at once.", many.place
        ) from None


def _check_repeats(data: bytes, name: str, limit: int) -> None:
    """Stop at a field that is there again and again: each time costs the type below 15 us.

    As many as a list's items are taken: these may all be the field's name.
    """
    found = itertools.islice(_spellings(name).finditer(data), limit + 2)
    if sum(1 for _ in found) > limit + 1:
        raise InvalidRequest(f'The body has "{name}" more than {limit + 1} times: send the field once.', name)


@functools.cache
def _spellings(name: str) -> re.Pattern[bytes]:
    """Return the pattern of a field's name in JSON, where any letter may be escaped."""
    letters = "".join(rf"(?:{letter}|\\u00(?i:{ord(letter):02x}))" for letter in name)
    return re.compile(f'"{letters}"'.encode())


@functools.cache
def _limited(type_: Any, many: Many, limit: int) -> Any:
    """Return a body's type whose list ends at a limit: msgspec compares max_length when it has built all items."""
    items = [(f"item{index}", many.item, UNSET) for index in range(limit)]
    kind: Any = msgspec.defstruct("Items", items, array_like=True, forbid_unknown_fields=True)
    if many.or_text:
        kind = str | kind
    field, *inner = many.place.split(".")
    for name in reversed(inner):
        kind = msgspec.defstruct("Inner", [(name, kind)])
    others = [(other.name, other.type, UNSET) for other in msgspec.structs.fields(type_) if other.name != field]
    return msgspec.defstruct("Body", [(field, kind, UNSET), *others])


def _has(data: bytes, name: str) -> bool:
    """Return whether a body that is nested too deep has a field, up to the place where it is too deep."""
    try:
        decoder(fields_type(bool, name)).decode(data)
    except msgspec.ValidationError:
        return True
    except RecursionError:
        return False
    return False
