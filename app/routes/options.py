"""Shared by all dialects: the options, and texts to vectors."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from msgspec import Meta, Struct

from app.engine.embeddings import Embeddings, Vector
from app.errors import InvalidRequest, InvalidText
from app.routes import context, encoder
from app.routes.body import decode
from app.routes.misfits import Rule, quoted


@dataclass(frozen=True)
class Options:
    """Options of a request for vectors; each field is a parameter of the query or a field of the body."""

    normalize: bool = False
    dimensions: int | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    truncate: bool = True
    encoding_format: str = "float"


OPTIONS = tuple(Options.__dataclass_fields__)
# Longest prompt, characters. It is put before each text: 4 MB of it before 2,048 texts would be 8 GB.
MAX_PROMPT_CHARACTERS = 1000
Prompt = Annotated[str, Meta(max_length=MAX_PROMPT_CHARACTERS)]
Dimensions = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class OptionFields(Struct, kw_only=True):
    """The options as fields of a body; null counts as not given."""

    normalize: bool | None = None
    dimensions: Dimensions | None = None
    prompt_name: Prompt | None = None
    prompt: Prompt | None = None
    truncate: bool | None = None
    encoding_format: Literal["float", "base64"] | None = None


FLAG = Rule("{place} is {value}; it must be true or false.")
RULES = {
    name: Rule(f"{name} is {{value}}; it must be {allowed}.", name)
    for name, allowed in {
        "normalize": "true or false",
        "dimensions": "a whole number from 1 to {dimension}",
        "prompt_name": f"a string of at most {MAX_PROMPT_CHARACTERS} characters",
        "prompt": f"a string of at most {MAX_PROMPT_CHARACTERS} characters",
        "truncate": "true or false",
        "encoding_format": "float or base64",
    }.items()
}


def options(given: OptionFields, defaults: Options = Options(), query: OptionFields | None = None) -> Options:
    """Return the options of a body, and of a query beside it.

    Raises:
        InvalidRequest: more dimensions than the model has, or two values that contradict each other.
    """
    found = _given(query) if query else {}
    for name, value in _given(given).items():
        if found.setdefault(name, value) != value:
            raise InvalidRequest(
                f"{name} is {quoted(found[name])} in the query and {quoted(value)} in the body: give it once.", name
            )
    dimension = encoder().dimension
    if found.get("dimensions", 1) > dimension:
        sentence = RULES["dimensions"].sentence.format(value=found["dimensions"], dimension=dimension)
        raise InvalidRequest(sentence, "dimensions")
    if "prompt" in found and "prompt_name" in found:
        raise InvalidRequest("prompt and prompt_name contradict each other: give one of them.", "prompt")
    return replace(defaults, **found) if found else defaults


def _given(fields: OptionFields) -> dict[str, Any]:
    return {name: value for name in OPTIONS if (value := getattr(fields, name)) is not None}


def from_strings(values: Mapping[str, Any]) -> OptionFields:
    """Return the options of a query, or of another place that has only strings."""
    if not values:
        return OptionFields()
    parsed = {name: parse_option(name, value) if isinstance(value, str) else value for name, value in values.items()}
    return decode(orjson.dumps(parsed), OptionFields, RULES)


def parse_option(name: str, text: str) -> Any:
    """Return what JSON would have for an option's value."""
    if name in ("normalize", "truncate"):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if name == "dimensions" and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return text


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


def encode_ids(rows: Sequence[list[int]], options: Options) -> Embeddings:
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
