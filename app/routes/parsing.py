"""What all dialects share: reading JSON, checking options, texts to vectors. Messages name the value and the limit."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from flask import request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from app.encoder import Embeddings, Vector
from app.errors import (
    MAX_SHOWN_CHARACTERS,
    RECEIVE_SECONDS,
    InvalidRequest,
    TooLarge,
    UnsupportedMedia,
    WrongText,
)
from app.routes import encoder, record, settings


@dataclass(frozen=True)
class Options:
    """How vectors are asked for; each field is a parameter of the query or a field of the body."""

    normalize: bool = False
    dimensions: int | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    truncate: bool = True
    encoding_format: str = "float"


OPTIONS = tuple(Options.__dataclass_fields__)
ENCODING_FORMATS = ("float", "base64")
# A prompt is put before each text: 4 MB of it before 2,048 texts would be 8 GB.
MAX_PROMPT_CHARACTERS = 1000


def json_body() -> dict[str, Any]:
    """The body, a JSON object.

    Raises:
        UnsupportedMedia: by its headers it is not JSON.
        InvalidRequest: it is not a JSON object in UTF-8.
    """
    mimetype = request.mimetype
    if mimetype != "application/json" and not (mimetype.startswith("application/") and mimetype.endswith("+json")):
        said = shown(mimetype) if mimetype else "missing"
        raise UnsupportedMedia(f"The Content-Type is {said}: send JSON with Content-Type: application/json.")
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"The Content-Encoding is {shown(encoding)}: send the JSON uncompressed.")
    data = _data()
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(_not_json(data, error)) from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body is {kind(body)}; it must be an object.")
    return body


def _data() -> bytes:
    """The body's bytes, all of them."""
    limit, length = settings().max_body_bytes, request.content_length
    if (length or 0) > limit:
        raise RequestEntityTooLarge
    try:
        # Gunicorn's own stream: werkzeug's around it costs a fifth of the app's time, and cuts chunked bodies silently.
        data: bytes = request.environ["wsgi.input"].read(limit + 1 if length is None else length)
    except (BlockingIOError, TimeoutError):
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
    """
    Raises:
        TooLarge: it has more than MAX_TEXTS items.
    """
    limit = settings().max_texts
    if len(value) > limit:
        raise TooLarge(
            f"{name} has {len(value)} items, over the limit of {limit} (MAX_TEXTS): send fewer at once.", name
        )


def strings(value: Any, name: str) -> list[str]:
    """A list of strings, at least one and at most MAX_TEXTS.

    Raises:
        InvalidRequest: it is not.
        TooLarge: it is longer.
    """
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} is {kind(value)}; it must be a list of strings.", name)
    if not value:
        raise InvalidRequest(f"{name} is an empty list; at least one text is needed.", name)
    check_count(value, name)
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise InvalidRequest(f"{name}[{index}] is {kind(text)}; every item must be a string.", name)
    return value


def options(given: Mapping[str, Any], defaults: Options = Options()) -> Options:
    """Check what is given of OPTIONS; null counts as not given, and what is no option is left alone.

    Raises:
        InvalidRequest: a wrong value, or two that contradict each other.
    """
    found = {name: given[name] for name in OPTIONS if given.get(name) is not None}
    for name, value in found.items():
        _check(name, value)
    if "prompt" in found and "prompt_name" in found:
        raise InvalidRequest("prompt and prompt_name contradict each other: give one of them.", "prompt")
    return replace(defaults, **found) if found else defaults


def from_text(name: str, text: str) -> Any:
    """An option's value from a query or another place that has only strings."""
    if name in ("normalize", "truncate"):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if name == "dimensions" and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return text


def _check(name: str, value: Any) -> None:
    dimension = encoder().dimension
    if name in ("normalize", "truncate"):
        wrong, wanted = not isinstance(value, bool), "true or false"
    elif name == "dimensions":
        whole = isinstance(value, int) and not isinstance(value, bool)
        wrong, wanted = not whole or not 1 <= value <= dimension, f"a whole number from 1 to {dimension}"
    elif name == "encoding_format":
        wrong, wanted = value not in ENCODING_FORMATS, " or ".join(ENCODING_FORMATS)
    else:
        wrong = not isinstance(value, str) or len(value) > MAX_PROMPT_CHARACTERS
        wanted = f"a string of at most {MAX_PROMPT_CHARACTERS} characters"
    if wrong:
        raise InvalidRequest(f"{name} is {shown(value)}; it must be {wanted}.", name)


def encode(texts: Sequence[str], options: Options, name: Callable[[int], str]) -> Embeddings:
    """Texts to vectors as the options say; (n, dimensions).

    name: index -> what the client calls that text, for errors.
    """
    try:
        result = encoder().encode(
            texts, prompt=options.prompt, prompt_name=options.prompt_name, truncate=options.truncate
        )
    except WrongText as error:
        raise error.named(name(error.index)) from None
    return _shaped(result, options)


def encode_ids(rows: Sequence[Sequence[int]], options: Options) -> Embeddings:
    """The same for token ids, TEI's `inputs`."""
    try:
        result = encoder().encode_ids(rows, truncate=options.truncate)
    except WrongText as error:
        raise error.named(f"inputs[{error.index}]") from None
    return _shaped(result, options)


def _shaped(result: Embeddings, options: Options) -> Embeddings:
    """(n, dim) -> (n, dimensions), each row cut and then, if asked for, of length 1."""
    record().add(result)
    if options.dimensions is None and not options.normalize:
        return result
    vectors = result.vectors[:, : options.dimensions]
    if options.normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return replace(result, vectors=np.ascontiguousarray(vectors, np.float32))


def render(vectors: Vector, options: Options) -> Any:
    """What JSON has for the vectors: numbers, or strings of base64."""
    if options.encoding_format == "float":
        return vectors
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]


def shown(value: Any) -> str:
    """A client's value for a message, never long."""
    if isinstance(value, (list, dict)):
        return kind(value)
    if isinstance(value, str) and len(value) > MAX_SHOWN_CHARACTERS:
        value = f"{value[:MAX_SHOWN_CHARACTERS]}…"
    return orjson.dumps(value).decode()


def kind(value: Any) -> str:
    """A JSON value's type in JSON's words."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return kinds[type(value)]
