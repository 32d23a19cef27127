"""The API of Hugging Face's text-embeddings-inference (TEI).

https://huggingface.github.io/text-embeddings-inference/ has it; fields that are unknown here are ignored, as there.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar

from flask import Blueprint, Response
from msgspec import Meta, Raw, Struct

from app.context import RequestContext
from app.engine.embeddings import Vector
from app.engine.tokenizer import Spans
from app.errors import TextTooLong, TooLarge
from app.routes import VERSION, context, encoder, manifest, settings
from app.routes.body import Many, TextList, decode, fields, json_data
from app.routes.misfits import Rule, Rules, text_rules
from app.routes.options import FLAG
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import OptionFields, Options, encode, encode_ids, encode_vectors, options, shape_vectors
from app.routes.rendering import dumps, json_response, list_response, parts_response

# Names of errors: ErrorType in text-embeddings-inference's router/src/lib.rs.
ERROR_TYPES = {429: "Overloaded", 503: "Unhealthy"}
# Most characters that /tokenize takes at once, and ids that /decode does: its answer is 30 times as long as the texts,
# and 8 MB of them took 26 s and 2 GB.
MAX_TOKENIZED = 100_000
# Tokens that /tokenize renders at once: 2 ms.
SLICE_TOKENS = 1000

# The JSON of an object, of a list of token ids, and of a list of lists, by its beginning.
OBJECT = re.compile(rb"\{")
IDS = re.compile(rb"\[\s*[-\dtf]")
LISTS = re.compile(rb"\[\s*\[")

T = TypeVar("T")

blueprint = Blueprint("tei", __name__)


class Parameters(OptionFields, kw_only=True):
    """The options, as TEI has them."""

    truncation_direction: Literal["Right", "right"] | None = None


class Embed(Parameters, Generic[T], kw_only=True):
    """The body of POST /embed and POST /: texts, one text's token ids, or a list of these."""

    inputs: T


class Compared(Struct):
    """One sentence and those that it is compared with."""

    source_sentence: str
    sentences: TextList


class Comparison(Struct):
    """The body of POST /similarity."""

    inputs: Compared
    parameters: Parameters | None = None


class Tokenize(OptionFields, kw_only=True):
    """The body of POST /tokenize. Of the options only prompt_name has an effect here."""

    inputs: str | TextList
    add_special_tokens: bool | None = None


class Decode(Struct, Generic[T], kw_only=True):
    """The body of POST /decode: one text's token ids, or a list of these."""

    ids: T
    skip_special_tokens: bool | None = None


PARAMETER_RULES = {
    **OPTION_RULES,
    "truncation_direction": Rule(
        "truncation_direction is {value}; only Right is possible: a text keeps its beginning.", "truncation_direction"
    ),
}
ID = Rule("{place} is {value}; it must be a token id, a whole number from 0 to {last_id}.")
ID_LIST = Rule("{place} is {kind}; it must be a list of token ids.")
TEXT_RULES = {**PARAMETER_RULES, **text_rules("inputs", or_text=True), "add_special_tokens": FLAG}
SIMILARITY_RULES = {
    **text_rules("inputs.sentences"),
    "inputs": Rule('{place} is {kind}; it must be {{"source_sentence": "…", "sentences": ["…"]}}.'),
    "inputs.source_sentence": Rule("{place} is {kind}; it must be a string.", "inputs"),
    "parameters": Rule("{place} is {kind}; it must be an object."),
    **{f"parameters.{name}": rule for name, rule in PARAMETER_RULES.items()},
}
DECODE_RULES = {
    "ids": Rule("{place} is {kind}; it must be a list of token ids, or a list of such lists."),
    "skip_special_tokens": FLAG,
}
TEXTS = Many("inputs", str, or_text=True)
SENTENCES = Many("inputs.sentences", str)


@functools.cache
def ids_types(size: int) -> tuple[Any, Any]:
    """Return the types of one text's token ids and of many texts', for the size of a vocabulary."""
    ids = Annotated[list[Annotated[int, Meta(ge=0, le=size - 1)]], Meta(min_length=1)]
    return ids, Annotated[list[ids], Meta(min_length=1)]


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return the error's name, which TEI's clients read."""
    return {"error_type": ERROR_TYPES.get(status, "Backend" if status >= 500 else "Validation")}


@blueprint.post("/")
def embed_or_compare() -> Response:
    """Embed or compare: huggingface_hub's clients post here, given the server's URL alone."""
    data = json_data()
    inputs = fields(data, "inputs").get("inputs", Raw(b""))
    return _similarities(data) if OBJECT.match(inputs) else embed(data, inputs)


def embed(data: bytes, inputs: Raw, query: OptionFields | None = None) -> Response:
    """Return a bare list of vectors; of one, for one text.

    inputs: the field's JSON. query: options in the query.
    """
    defaults = Options(normalize=True)
    if IDS.match(inputs) or LISTS.match(inputs):
        rows, body = _ids(data, inputs, "inputs", Embed, PARAMETER_RULES)
        given = options(body, defaults, query)
        result = encode_ids(rows, given).rows
    else:
        texts = decode(data, Embed[str | TextList], TEXT_RULES, TEXTS)
        given = options(texts, defaults, query)
        result = _of_texts(texts.inputs, given)
    return list_response(lambda start, stop: encode_vectors(result[start:stop], given), len(result))


@blueprint.post("/similarity")
def similarity() -> Response:
    return _similarities(json_data())


@blueprint.post("/tokenize")
def tokenize() -> Response:
    body = decode(json_data(), Tokenize, TEXT_RULES, TEXTS)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    prompt = encoder().prompt(None, options(body).prompt_name)
    characters = sum(map(len, texts))
    if characters > MAX_TOKENIZED:
        raise TooLarge(
            f"inputs has {characters} characters, over the limit of {MAX_TOKENIZED} for /tokenize: send fewer at once.",
            "inputs",
        )
    tokenizer, special = encoder().tokenizer, body.add_special_tokens is not False
    prompted = [prompt + text for text in texts]
    try:
        spans = _offload(lambda: [tokenizer.spans(text, add_special_tokens=special) for text in prompted])
    except TextTooLong as error:
        raise error.with_name("One of inputs") from None
    special_names = {token: tokenizer.decode([token], skip_special_tokens=False) for token in tokenizer.specials}
    return parts_response(lambda: _token_lists(prompted, spans, special_names))


@blueprint.post("/decode")
def decode_ids() -> Response:
    data = json_data()
    rows, body = _ids(data, fields(data, "ids").get("ids", Raw(b"")), "ids", Decode, DECODE_RULES)
    count = sum(map(len, rows))
    if count > MAX_TOKENIZED:
        raise TooLarge(f"ids has {count} token ids, over the limit of {MAX_TOKENIZED}: send fewer at once.", "ids")
    tokenizer, skip = encoder().tokenizer, body.skip_special_tokens is not False
    return json_response(_offload(lambda: [tokenizer.decode(row, skip_special_tokens=skip) for row in rows]))


@blueprint.get("/info")
def info() -> Response:
    limits = settings()
    runner, length = context().runner or encoder().runner, encoder().max_length
    in_time = runner.texts_in_time(length)
    return json_response(
        {
            "model_id": manifest().model,
            "model_sha": manifest().revision,
            "model_dtype": encoder().model_folder.precision,
            "model_type": {"embedding": {"pooling": manifest().pooling}},
            "max_concurrent_requests": limits.max_queue + limits.capacity + 1,
            "max_input_length": length,
            "max_batch_tokens": length,  # one text at a time
            "max_batch_requests": 1,
            # of the longest texts as many as are computed in time: a client that fills it gets its answer
            "max_client_batch_size": limits.max_texts if in_time is None else max(1, min(limits.max_texts, in_time)),
            "auto_truncate": True,
            "tokenization_workers": limits.capacity,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }
    )


def _ids(data: bytes, ids: Raw, name: str, body_type: Any, rules: Rules) -> tuple[list[list[int]], Any]:
    """Return many texts' token ids, or one's as many's, and the body that has them.

    ids: the JSON of the body's field of that name.
    """
    one, many = ids_types(encoder().tokenizer.vocabulary_size)
    if LISTS.match(ids):
        rules = {**rules, f"{name}[]": ID_LIST, f"{name}[][]": ID}
        body = decode(data, body_type[many], rules, Many(name, one))
        return getattr(body, name), body
    body = decode(data, body_type[one], {**rules, f"{name}[]": ID})
    return [getattr(body, name)], body


def _of_texts(inputs: str | list[str], given: Options) -> list[Vector]:
    texts, name = ([inputs], "inputs") if isinstance(inputs, str) else (inputs, "inputs[{}]")
    return encode(texts, given, name.format).rows


def _similarities(data: bytes) -> Response:
    """Return the cosine of one sentence to each of others."""
    body = decode(data, Comparison, SIMILARITY_RULES, SENTENCES)
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    limit = settings().max_texts
    if len(texts) > limit:
        raise TooLarge(
            f"inputs has {len(texts)} texts, over the limit of {limit} (MAX_TEXTS): send fewer at once.", "inputs"
        )
    given = options(body.parameters or Parameters(), Options(normalize=True))
    vectors = shape_vectors(encode(texts, given, _name_of_compared).rows, given)
    return json_response(vectors[1:] @ vectors[0])


def _name_of_compared(index: int) -> str:
    return f"inputs.sentences[{index - 1}]" if index else "inputs.source_sentence"


def _token_lists(texts: list[str], spans: list[Spans], special_names: dict[int, str]) -> Iterator[bytes]:
    """Render the tokens of each text, some at a time."""
    yield b"["
    for index, (text, rows) in enumerate(zip(texts, spans, strict=True)):
        yield b",[" if index else b"["
        for start in range(0, len(rows), SLICE_TOKENS):
            part = rows[start : start + SLICE_TOKENS].tolist()
            rendered = dumps([_description(text, special_names, *row) for row in part])[1:-1]
            yield b"," + rendered if start else rendered
        yield b"]"
    yield b"]"


def _description(text: str, special_names: dict[int, str], token: int, start: int, stop: int) -> dict[str, Any]:
    if start < 0:
        return {"id": token, "text": special_names[token], "special": True, "start": None, "stop": None}
    return {"id": token, "text": text[start:stop], "special": False, "start": start, "stop": stop}


def _offload(function: Callable[[], T]) -> T:
    """Return function(), called where a second of work holds up nobody else."""
    runner = context().runner or encoder().runner
    runner.check_deadline(1)
    return runner.offload(function)
