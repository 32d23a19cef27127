"""The API of Hugging Face's text-embeddings-inference (TEI).

https://huggingface.github.io/text-embeddings-inference/ has it; fields that are unknown here are ignored, as there.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from flask import Blueprint, Response

from app.context import RequestContext
from app.engine.embeddings import Embeddings
from app.engine.tokenizer import Spans
from app.errors import InvalidRequest, TextTooLong, TooLarge
from app.routes import VERSION, context, encoder, manifest, settings
from app.routes.body import check_count, json_body, json_type, quoted, strings
from app.routes.options import Options, encode, encode_ids, encode_vectors, options, shape_vectors
from app.routes.rendering import dumps, json_response, list_response, parts_response

# Names of errors: ErrorType in text-embeddings-inference's router/src/lib.rs.
ERROR_TYPES = {429: "Overloaded", 503: "Unhealthy"}
# Most characters that /tokenize takes at once, and ids that /decode does: its answer is 30 times as long as the texts,
# and 8 MB of them took 26 s and 2 GB.
MAX_TOKENIZED = 100_000
# Tokens that /tokenize renders at once: 2 ms.
SLICE_TOKENS = 1000

T = TypeVar("T")

blueprint = Blueprint("tei", __name__)


def error_fields(request: RequestContext, status: int, message: str) -> dict[str, Any]:
    """Return the error's name, which TEI's clients read."""
    return {"error_type": ERROR_TYPES.get(status, "Backend" if status >= 500 else "Validation")}


@blueprint.post("/")
def embed_or_compare() -> Response:
    """Where huggingface_hub's clients post, given the server's URL alone."""
    body = json_body()
    return _similarities(body) if isinstance(body.get("inputs"), dict) else embed(body)


def embed(body: dict[str, Any]) -> Response:
    """Return a bare list of vectors; of one, for one text."""
    given = _options(body)
    inputs = _required(body, "inputs")
    ids = _ids(inputs, "inputs")
    rows = (_of_texts(inputs, given) if ids is None else encode_ids(ids, given)).rows
    return list_response(lambda start, stop: encode_vectors(rows[start:stop], given), len(rows))


@blueprint.post("/similarity")
def similarity() -> Response:
    return _similarities(json_body())


@blueprint.post("/tokenize")
def tokenize() -> Response:
    body = json_body()
    texts = _texts(_required(body, "inputs"))
    special = _flag(body, "add_special_tokens")
    prompt = encoder().prompt(None, options(body).prompt_name)
    characters = sum(map(len, texts))
    if characters > MAX_TOKENIZED:
        raise TooLarge(
            f"inputs has {characters} characters, over the limit of {MAX_TOKENIZED} for /tokenize: send fewer at once.",
            "inputs",
        )
    tokenizer = encoder().tokenizer
    prompted = [prompt + text for text in texts]
    try:
        spans = _offload(lambda: [tokenizer.spans(text, add_special_tokens=special) for text in prompted])
    except TextTooLong as error:
        raise error.with_name("One of inputs") from None
    special_names = {token: tokenizer.decode([token], skip_special_tokens=False) for token in tokenizer.specials}
    return parts_response(lambda: _token_lists(prompted, spans, special_names))


@blueprint.post("/decode")
def decode() -> Response:
    body = json_body()
    given = _required(body, "ids")
    rows = _ids(given, "ids")
    if rows is None:
        if isinstance(given, list) and given:
            _row(given, "ids", "ids")
        found = "an empty list" if given == [] else json_type(given)
        raise InvalidRequest(f"ids is {found}; it must be a list of token ids, or a list of such lists.", "ids")
    count = sum(map(len, rows))
    if count > MAX_TOKENIZED:
        raise TooLarge(f"ids has {count} token ids, over the limit of {MAX_TOKENIZED}: send fewer at once.", "ids")
    skip = _flag(body, "skip_special_tokens")
    tokenizer = encoder().tokenizer
    return json_response(_offload(lambda: [tokenizer.decode(row, skip_special_tokens=skip) for row in rows]))


@blueprint.get("/info")
def info() -> Response:
    limits = settings()
    return json_response(
        {
            "model_id": manifest().model,
            "model_sha": manifest().revision,
            "model_dtype": encoder().model_folder.precision,
            "model_type": {"embedding": {"pooling": manifest().pooling}},
            "max_concurrent_requests": limits.max_queue + limits.capacity + 1,
            "max_input_length": encoder().max_length,
            "max_batch_tokens": encoder().max_length,  # one text at a time
            "max_batch_requests": 1,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": True,
            "tokenization_workers": limits.capacity,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }
    )


def _options(body: dict[str, Any]) -> Options:
    direction = body.get("truncation_direction")
    if direction is not None and (not isinstance(direction, str) or direction.lower() != "right"):
        raise InvalidRequest(
            f"truncation_direction is {quoted(direction)}; only Right is possible: a text keeps its beginning.",
            "truncation_direction",
        )
    return options(body, Options(normalize=True))


def _required(body: dict[str, Any], name: str) -> Any:
    if name not in body:
        raise InvalidRequest(f"The field {name} is missing.", name)
    return body[name]


def _ids(value: Any, name: str) -> list[list[int]] | None:
    """Return one text's token ids or many texts', as many; None for what begins with something else."""
    if not isinstance(value, list) or not value or not isinstance(value[0], (int, float, list)):
        return None
    if not isinstance(value[0], list):
        return [_row(value, name, name)]
    check_count(value, name)
    return [_row(row, f"{name}[{index}]", name) for index, row in enumerate(value)]


def _row(row: Any, place: str, param: str) -> list[int]:
    if not isinstance(row, list) or not row:
        found = "an empty list" if row == [] else json_type(row)
        raise InvalidRequest(f"{place} is {found}; it must be a list of token ids.", param)
    size = encoder().tokenizer.vocabulary_size
    for index, item in enumerate(row):
        if type(item) is not int or not 0 <= item < size:
            raise InvalidRequest(
                f"{place}[{index}] is {quoted(item)}; it must be a token id, a whole number from 0 to {size - 1}.",
                param,
            )
    return row


def _texts(inputs: Any) -> list[str]:
    if isinstance(inputs, str):
        return [inputs]
    if not isinstance(inputs, list):
        raise InvalidRequest(f"inputs is {json_type(inputs)}; it must be a string or a list of strings.", "inputs")
    return strings(inputs, "inputs")


def _of_texts(inputs: Any, given: Options) -> Embeddings:
    name = (lambda index: "inputs") if isinstance(inputs, str) else (lambda index: f"inputs[{index}]")
    return encode(_texts(inputs), given, name)


def _similarities(body: dict[str, Any]) -> Response:
    """Return the cosine of one sentence to each of others."""
    inputs = _required(body, "inputs")
    if not isinstance(inputs, dict):
        raise InvalidRequest(
            f'inputs is {json_type(inputs)}; it must be {{"source_sentence": "…", "sentences": ["…"]}}.', "inputs"
        )
    source, sentences = (inputs.get(name) for name in ("source_sentence", "sentences"))
    if not isinstance(source, str):
        raise InvalidRequest(f"inputs.source_sentence is {json_type(source)}; it must be a string.", "inputs")
    texts = [source, *strings(sentences, "inputs.sentences")]
    limit = settings().max_texts
    if len(texts) > limit:
        raise TooLarge(
            f"inputs has {len(texts)} texts, over the limit of {limit} (MAX_TEXTS): send fewer at once.", "inputs"
        )
    parameters = body.get("parameters")
    if not isinstance(parameters, (dict, type(None))):
        raise InvalidRequest(f"parameters is {json_type(parameters)}; it must be an object.", "parameters")
    given = _options(parameters or {})
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


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {quoted(value)}; it must be true or false.", name)
    return value is not False
