"""The API of Hugging Face's text-embeddings-inference (TEI).

Specification: https://huggingface.github.io/text-embeddings-inference/. Unknown fields are ignored, as there.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Generic, Literal, TypeVar

from flask import Blueprint, Response
from msgspec import Raw, Struct

from app.context import RequestContext
from app.engine.dtypes import shape
from app.engine.tokenizer import Spans
from app.errors import EmptyList, TextTooLong, TooLarge
from app.routes import VERSION, context, encoder, manifest, served_name, settings, token_ids
from app.routes.body import ListField, TextList, decode, fields, json_data
from app.routes.body_errors import NOT_AN_OBJECT, Rule, Rules, text_rules
from app.routes.options import FLAG
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import OptionFields, Options, encode, encode_ids, one_or_many, resolve_options
from app.routes.rendering import dumps, json_response, list_response, parts_response
from app.routes.vectors import encode_vectors

# Status -> error_type: ErrorType in text-embeddings-inference's router/src/lib.rs.
ERROR_TYPES = {429: "Overloaded", 503: "Unhealthy"}
# Most characters in a request to /tokenize, and most ids in one to /decode. The response of /tokenize is 30 times as
# long as its texts; 8 MB of texts took 26 s and 2 GB.
MAX_TOKENIZED = 100_000
# Tokens that /tokenize renders in one slice: 2 ms.
SLICE_TOKENS = 1000

# Beginnings of the JSON of an object, and of a list of token ids.
OBJECT = re.compile(rb"\{")
IDS = re.compile(rb"\[\s*[-\dtf]")

T = TypeVar("T")

blueprint = Blueprint("tei", __name__)


class Parameters(OptionFields, kw_only=True):
    """The options, with TEI's truncation_direction."""

    truncation_direction: Literal["Right", "right"] | None = None


class Embed(Parameters, Generic[T], kw_only=True):
    """The body of POST /embed and POST /: texts, one text's token ids, or a list of these."""

    inputs: T


class Compared(Struct):
    """A sentence, and the sentences to compare it with."""

    source_sentence: str
    sentences: TextList


class Comparison(Struct):
    """The body of POST /similarity."""

    inputs: Compared
    parameters: Parameters | None = None


class Tokenize(OptionFields, kw_only=True):
    """The body of POST /tokenize. Of the options only prompt_name has an effect."""

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
TEXT_RULES = {**PARAMETER_RULES, **text_rules("inputs", or_text=True), "add_special_tokens": FLAG}
SIMILARITY_RULES = {
    **text_rules("inputs.sentences"),
    "inputs": Rule('{place} is {kind}; it must be {{"source_sentence": "…", "sentences": ["…"]}}.'),
    "inputs.source_sentence": Rule("{place} is {kind}; it must be a string.", "inputs"),
    "parameters": NOT_AN_OBJECT,
    **{f"parameters.{name}": rule for name, rule in PARAMETER_RULES.items()},
}
DECODE_RULES = {
    "ids": Rule("{place} is {kind}; it must be a list of token ids, or a list of such lists."),
    "skip_special_tokens": FLAG,
}
TEXTS = ListField("inputs", str, or_text=True)
SENTENCES = ListField("inputs.sentences", str)


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return error_type, which TEI's clients read."""
    if isinstance(request.exception, EmptyList):
        return {"error_type": "Empty"}
    return {"error_type": ERROR_TYPES.get(status, "Backend" if status >= 500 else "Validation")}


@blueprint.post("/")
def embed_or_compare() -> Response:
    """Embed or compare: huggingface_hub's clients post both here when they know only the server's URL."""
    data = json_data()
    inputs = fields(data, "inputs").get("inputs", Raw(b""))
    return _similarities(data) if OBJECT.match(inputs) else embed(data, inputs)


def embed(data: bytes, inputs: Raw, query: OptionFields | None = None) -> Response:
    """Return a response with a list of vectors, also for a single text.

    inputs: raw JSON of the field. query: options in the query.
    """
    defaults = Options(normalize=True)
    if IDS.match(inputs) or token_ids.LISTS.match(inputs):
        rows, body = _ids(data, inputs, "inputs", Embed, PARAMETER_RULES)
        options = resolve_options(body, defaults, query)
        result = encode_ids(rows, options).rows
    else:
        body = decode(data, Embed[str | TextList], TEXT_RULES, TEXTS)
        options = resolve_options(body, defaults, query)
        texts, name = one_or_many(body.inputs, "inputs")
        result = encode(texts, options, name).rows
    return list_response(lambda start, stop: encode_vectors(result[start:stop], options), len(result))


@blueprint.post("/similarity")
def similarity() -> Response:
    return _similarities(json_data())


@blueprint.post("/tokenize")
def tokenize() -> Response:
    body = decode(json_data(), Tokenize, TEXT_RULES, TEXTS)
    texts, _ = one_or_many(body.inputs, "inputs")
    prompt = encoder().prompt(None, resolve_options(body).prompt_name)
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
            "served_model_name": served_name(),
            "model_sha": manifest().revision,
            "model_dtype": encoder().model_folder.precision,
            "model_type": {"embedding": {"pooling": manifest().pooling}},
            "max_concurrent_requests": limits.max_queue + limits.capacity + 1,
            "max_input_length": length,
            "max_batch_tokens": length,  # one text at a time
            "max_batch_requests": 1,
            # number of the longest texts that are computed before the deadline: such a request is answered in time
            "max_client_batch_size": limits.max_texts if in_time is None else max(1, min(limits.max_texts, in_time)),
            "auto_truncate": True,
            "tokenization_workers": limits.capacity,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }
    )


def _ids(data: bytes, ids: Raw, name: str, body_type: Any, rules: Rules) -> tuple[list[list[int]], Any]:
    return token_ids.decode_ids(data, ids, name, body_type, rules, ID, encoder().tokenizer.vocabulary_size)


def _similarities(data: bytes) -> Response:
    """Return a response with the cosine of source_sentence to each of the sentences."""
    body = decode(data, Comparison, SIMILARITY_RULES, SENTENCES)
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    limit = settings().max_texts
    if len(texts) > limit:
        raise TooLarge(
            f"inputs has {len(texts)} texts, over the limit of {limit} (MAX_TEXTS): send fewer at once.", "inputs"
        )
    options = resolve_options(body.parameters or Parameters(), Options(normalize=True))
    rows = encode(texts, options, _name_of_compared).rows
    vectors = shape(rows, dimensions=options.dimensions, normalize=options.normalize)
    return json_response(vectors[1:] @ vectors[0])


def _name_of_compared(index: int) -> str:
    return f"inputs.sentences[{index - 1}]" if index else "inputs.source_sentence"


def _token_lists(texts: list[str], spans: list[Spans], special_names: dict[int, str]) -> Iterator[bytes]:
    """Yield the JSON of the tokens of each text, in slices."""
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
    """Return function(), called in a native thread: a second of work there blocks no other request."""
    runner = context().runner or encoder().runner
    runner.check_deadline(1)
    return runner.offload(function)
