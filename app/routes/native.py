"""GET /embed and POST /embed: this service's own dialect."""

import base64
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

import numpy as np
import orjson
from flask import Blueprint, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout

from app.encoder import Embeddings, Vector
from app.errors import InvalidRequest, TooLarge, UnsupportedMedia
from app.routes import encoder, json_response, settings

blueprint = Blueprint("native", __name__)


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


@blueprint.get("/embed")
def embed_one() -> Response:
    query = _query("q")
    if "q" not in query:
        raise InvalidRequest("The parameter q is missing: GET /embed?q=TEXT.", "q")
    text = query.pop("q")
    options = _options(query, {})
    result = _encode([text], options)
    return json_response(
        {
            "vector": _render(result.vectors, options)[0],
            "dimension": result.vectors.shape[1],
            "text": text,
            "tokens": result.tokens[0],
            "truncated": result.truncated[0],
        }
    )


@blueprint.post("/embed")
def embed_many() -> Response:
    query, body = _query(), _body()
    texts = _texts(body)
    options = _options(query, {name: value for name, value in body.items() if name != "texts"})
    result = _encode(texts, options)
    return json_response(
        {
            "vectors": _render(result.vectors, options),
            "dimension": result.vectors.shape[1],
            "count": len(texts),
            "tokens": result.tokens,
            "truncated": result.truncated,
        }
    )


def _query(*names: str) -> dict[str, str]:
    """The query's parameters, strictly UTF-8 (werkzeug would let wrong bytes through)."""
    if not request.query_string:
        return {}
    # curl and others send UTF-8 as it is, without percent signs
    encoded = quote(request.query_string, safe=string.punctuation)
    try:
        pairs = parse_qsl(encoded, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The query is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}."
        ) from None
    except ValueError as error:
        raise InvalidRequest(f"The query cannot be read: {error}.") from None
    query: dict[str, str] = {}
    for name, value in pairs:
        if name not in names and name not in OPTIONS:
            raise InvalidRequest(
                f"Unknown parameter {_shown(name)}; known are {', '.join((*names, *OPTIONS))}.", name[:60]
            )
        if query.setdefault(name, value) != value:
            raise InvalidRequest(
                f"The parameter {name} is given twice, as {_shown(query[name])} and {_shown(value)}.", name
            )
    return query


def _body() -> dict[str, Any]:
    mimetype = request.mimetype
    if mimetype != "application/json" and not (mimetype.startswith("application/") and mimetype.endswith("+json")):
        shown = _shown(mimetype) if mimetype else "missing"
        raise UnsupportedMedia(f"The Content-Type is {shown}: send JSON with Content-Type: application/json.")
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"The Content-Encoding is {_shown(encoding)}: send the JSON uncompressed.")
    data = _data()
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(_not_json(data, error)) from None
    if not isinstance(body, dict):
        raise InvalidRequest(f'The body is {_kind(body)}; it must be an object: {{"texts": ["…"]}}.')
    for name in body:
        if name != "texts" and name not in OPTIONS:
            raise InvalidRequest(
                f"Unknown field {_shown(name)}; known are {', '.join(('texts', *OPTIONS))}.", name[:60]
            )
    return body


def _data() -> bytes:
    """The body's bytes, all of them."""
    limit, length = settings().max_body_bytes, request.content_length
    if (length or 0) > limit:
        raise RequestEntityTooLarge
    try:
        # Gunicorn's own stream: werkzeug's around it is for chunked bodies, and costs a fifth of the app's time
        data: bytes = request.get_data(cache=False) if length is None else request.environ["wsgi.input"].read(length)
    except HTTPException:
        raise
    except OSError:
        raise RequestTimeout("The body did not arrive in time.") from None
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


def _texts(body: Mapping[str, Any]) -> list[str]:
    texts = body.get("texts")
    if "texts" not in body:
        raise InvalidRequest('The field texts is missing: {"texts": ["…"]}.', "texts")
    if not isinstance(texts, list):
        raise InvalidRequest(f"texts is {_kind(texts)}; it must be a list of strings.", "texts")
    if not texts:
        raise InvalidRequest("texts is an empty list; at least one text is needed.", "texts")
    limit = settings().max_texts
    if len(texts) > limit:
        raise TooLarge(
            f"texts has {len(texts)} items, over the limit of {limit} (MAX_TEXTS): send fewer at once.", "texts"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"texts[{index}] is {_kind(text)}; every item must be a string.", "texts")
    return texts


def _options(query: Mapping[str, str], body: Mapping[str, Any]) -> Options:
    """Merge and check; a null in the body counts as not given."""
    given = {name: _from_text(name, value) for name, value in query.items()}
    for name, value in body.items():
        if value is None:
            continue
        _check(name, value)
        if given.setdefault(name, value) != value:
            raise InvalidRequest(
                f"{name} is {_shown(given[name])} in the query and {_shown(value)} in the body: give it once.", name
            )
    if "prompt" in given and "prompt_name" in given:
        raise InvalidRequest("prompt and prompt_name contradict each other: give one of them.", "prompt")
    return Options(**given)


def _from_text(name: str, text: str) -> Any:
    value: Any = text
    if name in ("normalize", "truncate"):
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    elif name == "dimensions" and text.isascii() and text.isdigit() and len(text) < 10:
        value = int(text)
    _check(name, value)
    return value


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
        raise InvalidRequest(f"{name} is {_shown(value)}; it must be {wanted}.", name)


def _encode(texts: list[str], options: Options) -> Embeddings:
    result = encoder().encode(texts, prompt=options.prompt, prompt_name=options.prompt_name, truncate=options.truncate)
    return Embeddings(_shape(result.vectors, options), result.tokens, result.truncated)


def _shape(vectors: Vector, options: Options) -> Vector:
    """(n, dim) -> (n, dimensions), each row cut and then, if asked for, of length 1."""
    vectors = vectors[:, : options.dimensions]
    if options.normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return np.ascontiguousarray(vectors, np.float32)


def _render(vectors: Vector, options: Options) -> Any:
    if options.encoding_format == "float":
        return vectors
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]


def _shown(value: Any) -> str:
    """A client's value for a message, never long."""
    if isinstance(value, (list, dict)):
        return _kind(value)
    text = orjson.dumps(value[:60] if isinstance(value, str) else value).decode()
    return text if len(text) <= 60 else text[:57] + "…"


def _kind(value: Any) -> str:
    """A JSON value's type in JSON's words."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return kinds[type(value)]
