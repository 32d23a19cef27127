"""What all dialects share: checking options, texts to vectors. Messages name the value and the limit."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.engine.embeddings import Embeddings, Vector
from app.errors import InvalidRequest, InvalidText
from app.routes import context, encoder
from app.routes.body import quoted


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
# Longest prompt, characters. It is put before each text: 4 MB of it before 2,048 texts would be 8 GB.
MAX_PROMPT_CHARACTERS = 1000


def options(given: Mapping[str, Any], defaults: Options = Options()) -> Options:
    """Check the values of OPTIONS; null counts as not given, and other names are left alone.

    Raises:
        InvalidRequest: a wrong value, or two that contradict each other.
    """
    found = {name: given[name] for name in OPTIONS if given.get(name) is not None}
    for name, value in found.items():
        _check(name, value)
    if "prompt" in found and "prompt_name" in found:
        raise InvalidRequest("prompt and prompt_name contradict each other: give one of them.", "prompt")
    return replace(defaults, **found) if found else defaults


def parse_option(name: str, text: str) -> Any:
    """Return an option's value from a query or another place that has only strings."""
    if name in ("normalize", "truncate"):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if name == "dimensions" and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return text


def _check(name: str, value: Any) -> None:
    dimension = encoder().dimension
    if name in ("normalize", "truncate"):
        wrong, allowed = not isinstance(value, bool), "true or false"
    elif name == "dimensions":
        whole = isinstance(value, int) and not isinstance(value, bool)
        wrong, allowed = not whole or not 1 <= value <= dimension, f"a whole number from 1 to {dimension}"
    elif name == "encoding_format":
        wrong, allowed = value not in ENCODING_FORMATS, " or ".join(ENCODING_FORMATS)
    else:
        wrong = not isinstance(value, str) or len(value) > MAX_PROMPT_CHARACTERS
        allowed = f"a string of at most {MAX_PROMPT_CHARACTERS} characters"
    if wrong:
        raise InvalidRequest(f"{name} is {quoted(value)}; it must be {allowed}.", name)


def encode(texts: Sequence[str], options: Options, name: Callable[[int], str]) -> Embeddings:
    """Compute the vectors of texts, raw: `encode_vectors` shapes them.

    name: index -> the client's name of that text, for errors.
    """
    try:
        result = encoder().encode(
            texts,
            prompt=options.prompt,
            prompt_name=options.prompt_name,
            truncate=options.truncate,
            runner=context().runner,
        )
    except InvalidText as error:
        raise error.with_name(name(error.index)) from None
    context().add(result)
    return result


def encode_ids(rows: Sequence[Sequence[int]], options: Options) -> Embeddings:
    """Compute the vectors of token ids, TEI's `inputs`."""
    try:
        result = encoder().encode_ids(rows, truncate=options.truncate, runner=context().runner)
    except InvalidText as error:
        raise error.with_name(f"inputs[{error.index}]") from None
    context().add(result)
    return result


def shape_vectors(rows: Sequence[Vector], options: Options) -> Vector:
    """Stack rows of (dim,) to (n, dimensions) float32, each cut and then, if asked for, scaled to length 1."""
    vectors = np.array(rows, np.float32)
    if options.dimensions is None and not options.normalize:
        return vectors
    vectors = vectors[:, : options.dimensions]
    if options.normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return np.ascontiguousarray(vectors, np.float32)


def encode_vectors(rows: Sequence[Vector], options: Options) -> Any:
    """Return what JSON has for vectors: (n, dimensions) numbers, or n strings of base64 (little-endian float32)."""
    vectors = shape_vectors(rows, options)
    if options.encoding_format == "float":
        return vectors
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
