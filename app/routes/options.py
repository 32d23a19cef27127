"""Options that all dialects share, and computing and encoding vectors with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import orjson
from msgspec import Meta, Struct

from app.engine.dtypes import DTYPES, WITH_RANGE, Dtype
from app.engine.embeddings import Embeddings
from app.engine.options import VectorOptions
from app.errors import InvalidRequest, InvalidText
from app.routes import context, encoder, manifest
from app.routes.body import decode
from app.routes.body_errors import Rule, quoted, wrong_value


@dataclass(frozen=True)
class Options(VectorOptions):
    """Options of a request: those of OptionFields, with their defaults."""

    encoding_format: str = "float"


# Longest prompt, characters. It is put before each text: a prompt of 4 MB before 2,048 texts would be 8 GB.
MAX_PROMPT_CHARACTERS = 1000
Prompt = Annotated[str, Meta(max_length=MAX_PROMPT_CHARACTERS)]
Dimensions = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class OptionFields(Struct, kw_only=True):
    """The options as fields of a body; null means not set."""

    normalize: bool | None = None
    dimensions: Dimensions | None = None
    prompt_name: Prompt | None = None
    prompt: Prompt | None = None
    truncate: bool | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dtype: Dtype | None = None


# Each is a query parameter or a field of the body.
OPTIONS = OptionFields.__struct_fields__
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
        "dtype": "one of " + ", ".join(DTYPES),
    }.items()
}


def resolve_options(body: OptionFields, defaults: Options = Options(), query: OptionFields | None = None) -> Options:
    """Return the options of a body and of the query beside it.

    Raises:
        InvalidRequest: dimensions is over the model's, or two values contradict each other.
    """
    values = _set_options(query) if query else {}
    for name, value in _set_options(body).items():
        if values.setdefault(name, value) != value:
            raise InvalidRequest(
                f"{name} is {quoted(values[name])} in the query and {quoted(value)} in the body: give it once.", name
            )
    if values.get("dimensions", 1) > encoder().dimension:
        raise wrong_value(RULES["dimensions"], "dimensions", values["dimensions"])
    if values.get("dtype") in WITH_RANGE:
        values["int8_range"] = manifest().int8_range
        if values["int8_range"] is None:
            raise InvalidRequest(
                f"dtype is {values['dtype']}, and this model folder has no range for it: build it again.", "dtype"
            )
    if "prompt" in values and "prompt_name" in values:
        raise InvalidRequest("prompt and prompt_name contradict each other: give one of them.", "prompt")
    return replace(defaults, **values) if values else defaults


def _set_options(fields: OptionFields) -> dict[str, Any]:
    return {name: value for name in OPTIONS if (value := getattr(fields, name)) is not None}


def from_strings(values: Mapping[str, Any]) -> OptionFields:
    """Return the options of a query, or of another source of strings."""
    if not values:
        return OptionFields()
    parsed = {name: parse_option(name, value) if isinstance(value, str) else value for name, value in values.items()}
    return decode(orjson.dumps(parsed), OptionFields, RULES)


def parse_option(name: str, text: str) -> Any:
    """Return an option's string as the value that JSON would have."""
    if name in ("normalize", "truncate"):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if name == "dimensions" and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return text


def one_or_many(texts: str | list[str], name: str) -> tuple[list[str], Callable[[int], str]]:
    """Return the texts of a field that is one text or a list, and the function index -> name of that text."""
    return ([texts], lambda index: name) if isinstance(texts, str) else (texts, f"{name}[{{}}]".format)


def encode(texts: Sequence[str], options: Options, name: Callable[[int], str]) -> Embeddings:
    """Compute the raw vectors of texts; vectors.py applies the options that shape and encode them.

    name: index -> name of that text in the request, for errors.
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
    """Compute the raw vectors of token ids (TEI's `inputs`)."""
    try:
        result = encoder().encode_ids(rows, truncate=options.truncate, runner=context().runner)
    except InvalidText as error:
        raise error.with_name(f"inputs[{error.index}]") from None
    context().add(result)
    return result
