"""Request bodies: reading their bytes, and decoding them straight to a dialect's msgspec type.

msgspec stops at the first value of a wrong type, and skips unknown fields. Building all objects of a body first took
seconds and 1 GB for 8 MiB of `[[],[],…`.
"""

import functools
import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import msgspec
from flask import request
from msgspec import UNSET, Meta, Raw
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout
from werkzeug.sansio.utils import get_content_length

from app.errors import InvalidRequest, ServiceError, TooLarge, UnsupportedMedia
from app.routes import context, settings
from app.routes.body_errors import Rules, quoted, syntax_error, validation_error
from app.routes.raw_json import decoder, fields_type
from app.settings import RECEIVE_SECONDS

JSON = "application/json"
TextList = Annotated[list[str], Meta(min_length=1)]
# Largest body that is decoded without a check of its list's length before, bytes: at most 22,000 items, 2 MB.
SMALL_BYTES = 65_536
# Highest MAX_TEXTS with that check for larger bodies: creating its type takes 30 ms, once.
MAX_CHECKED_ITEMS = 10_000

# An escaped half of a surrogate pair, with all backslashes before it: an even number of them is escaped itself. The
# pattern begins with a plain byte, which is found fast, and never goes back: 8 MiB take 0.2 s at most.
HALF = re.compile(rb"\\(?<!\\\\)\\*+u[dD][89a-fA-F][0-9a-fA-F]{2}")
LOW_HALF = re.compile(rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}")
HALF_BYTES = len(rb"\ud83d")

T = TypeVar("T")


class ListField(NamedTuple):
    """The list of a body that may have MAX_TEXTS items. place: its path. or_text: a single string is allowed, too."""

    place: str
    item: Any
    or_text: bool = False


class TooDeep(InvalidRequest):
    """Lists or objects are nested too deeply."""


def json_data() -> bytes:
    """Return the body's bytes: valid UTF-8, with U+FFFD for each escaped half of a surrogate pair.

    Raises:
        UnsupportedMedia: the headers say that the body is not JSON.
        InvalidRequest: the body is incomplete, or is not UTF-8.
    """
    environ = request.environ
    if environ.get("CONTENT_TYPE") != JSON:  # parsing it takes as long as decoding a short body
        mimetype = request.mimetype or JSON
        if mimetype != JSON and not (mimetype.startswith("application/") and mimetype.endswith("+json")):
            raise UnsupportedMedia(f"The Content-Type is {quoted(mimetype)}: send JSON with Content-Type: {JSON}.")
    encoding = environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"The Content-Encoding is {quoted(encoding)}: send the JSON uncompressed.")
    data = _data(environ)
    try:
        data.decode()  # msgspec does not check the bytes of skipped fields
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}.") from None
    return _replace_lone_surrogates(data)


def _data(environ: Mapping[str, Any]) -> bytes:
    """Return all bytes of the body, at most MAX_BODY_BYTES."""
    limit = settings().max_body_bytes
    length = get_content_length(environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING"))
    if (length or 0) > limit:
        raise RequestEntityTooLarge
    try:
        # Gunicorn's stream: werkzeug's wrapper takes a fifth of the app's time and silently truncates chunked bodies.
        data: bytes = environ["wsgi.input"].read(limit + 1 if length is None else length)
    except ServiceError:  # raised by app/server/
        raise
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive: no more of it came within {RECEIVE_SECONDS} s.") from None
    except OSError:
        raise InvalidRequest("The body ends before its last chunk.") from None
    except Exception as error:  # Gunicorn's, e.g. for a wrong chunk size
        raise InvalidRequest(f"The body cannot be read: {error}.") from None
    if len(data) > limit:
        raise RequestEntityTooLarge
    if len(data) < (length or 0):
        raise InvalidRequest(f"The body ends after {len(data)} of {length} bytes (Content-Length).")
    return data


def _replace_lone_surrogates(data: bytes) -> bytes:
    r"""Return JSON with \ufffd for each half of a surrogate pair without its other half.

    JavaScript's strings may have such halves, after a cut in the middle of an emoji. Browsers replace them in the same
    way: https://tc39.es/ecma262/#sec-string.prototype.towellformed
    """
    replaced: bytearray | None = None
    runner = context().runner
    count = end_of_pair = 0
    for number, match in enumerate(HALF.finditer(data)):
        if number % 1000 == 999 and runner:
            runner.pause()
        start, end = match.end() - HALF_BYTES, match.end()
        if start < end_of_pair or (start - match.start()) % 2:
            continue
        if data[start + 3] in b"89abAB" and LOW_HALF.match(data, end):
            end_of_pair = end + HALF_BYTES
            continue
        replaced = replaced or bytearray(data)
        replaced[start:end] = rb"\ufffd"
        count += 1
    context().surrogates = count
    return bytes(replaced) if replaced else data


def decode(data: bytes, type_: type[T], rules: Rules, list_field: ListField | None = None) -> T:
    """Decode a body to a type. rules: sentences for values of a wrong type. list_field: its list of texts.

    Raises:
        InvalidRequest: the body is not JSON, or does not fit the type.
        TooDeep: the nesting is too deep in a field that is unknown or taken unparsed.
        TooLarge: the list has more than MAX_TEXTS items.
    """
    try:
        if len(data) > SMALL_BYTES:
            if list_field:
                _check_list_length(data, type_, list_field)
            if runner := context().runner:
                runner.pause()
        body = cast(T, decoder(cast(Any, type_)).decode(data))
    except msgspec.ValidationError as error:
        raise validation_error(data, error, rules) from None
    except msgspec.DecodeError as error:
        raise syntax_error(data, error) from None
    except RecursionError:
        raise TooDeep("The body is nested too deep: about 1000 lists or objects inside each other.") from None
    if list_field:
        items = functools.reduce(getattr, list_field.place.split("."), body)
        if isinstance(items, list):
            check_count(items, list_field.place)
    return body


def fields(data: bytes, *names: str) -> dict[str, Raw]:
    """Return those of the named fields that a body has, as raw JSON; empty if the body is nested too deeply."""
    try:
        raw_fields = decode(data, fields_type(Raw, *names), {})
    except TooDeep:
        return {name: Raw(b"") for name in names if _has_field(data, name)}
    return {name: value for name in names if (value := getattr(raw_fields, name)) is not UNSET}


def check_count(items: list[Any], name: str) -> None:
    """Raise TooLarge if a list has more than MAX_TEXTS items."""
    limit = settings().max_texts
    if len(items) > limit:
        raise TooLarge(
            f"{name} has {len(items)} items, over the limit of {limit} (MAX_TEXTS): send fewer at once.", name
        )


def _check_list_length(data: bytes, type_: Any, list_field: ListField) -> None:
    """Raise TooLarge at the first item over MAX_TEXTS, before all items are built."""
    limit = settings().max_texts
    if limit > MAX_CHECKED_ITEMS:
        return
    for name in list_field.place.split("."):
        _check_repeats(data, name, limit)
    try:
        decoder(_with_limited_list(type_, list_field, limit)).decode(data)
    except msgspec.ValidationError as error:
        if "`array` of at most length" not in str(error):
            raise
        raise TooLarge(
            f"{list_field.place} has more items than the limit of {limit} (MAX_TEXTS): send fewer at once.",
            list_field.place,
        ) from None


def _check_repeats(data: bytes, name: str, limit: int) -> None:
    """Raise InvalidRequest for a field that is repeated very often: each time costs the type below 15 µs.

    Up to `limit` + 1 are accepted, since the items of the list may be strings equal to the name.
    """
    repeats = itertools.islice(_spellings(name).finditer(data), limit + 2)
    if sum(1 for _ in repeats) > limit + 1:
        raise InvalidRequest(f'The body has "{name}" more than {limit + 1} times: send the field once.', name)


@functools.cache
def _spellings(name: str) -> re.Pattern[bytes]:
    """Return the pattern of a field's name in JSON; each letter may be escaped."""
    letters = "".join(rf"(?:{letter}|\\u00(?i:{ord(letter):02x}))" for letter in name)
    return re.compile(f'"{letters}"'.encode())


@functools.cache
def _with_limited_list(type_: Any, list_field: ListField, limit: int) -> Any:
    """Return a body's type whose list ends at a limit. msgspec checks max_length only after building all items."""
    items = [(f"item{index}", list_field.item, UNSET) for index in range(limit)]
    kind: Any = msgspec.defstruct("Items", items, array_like=True, forbid_unknown_fields=True)
    if list_field.or_text:
        kind = str | kind
    field, *inner = list_field.place.split(".")
    for name in reversed(inner):
        kind = msgspec.defstruct("Inner", [(name, kind)])
    others = [(other.name, other.type, UNSET) for other in msgspec.structs.fields(type_) if other.name != field]
    return msgspec.defstruct("Body", [(field, kind, UNSET), *others])


def _has_field(data: bytes, name: str) -> bool:
    """Return whether a body that is nested too deeply has a field before that place."""
    try:
        decoder(fields_type(bool, name)).decode(data)
    except msgspec.ValidationError:
        return True
    except RecursionError:
        return False
    return False
