"""The API of Hugging Face's text-embeddings-inference (TEI).

https://huggingface.github.io/text-embeddings-inference/ has it; fields that are unknown here are ignored, as there.
"""

from typing import Any

from flask import Blueprint, Response

from app.encoder import Embeddings, Token
from app.errors import InvalidRequest, TextTooLong, TooLarge
from app.routes import VERSION, encoder, json_response, settings
from app.routes.parsing import (
    Options,
    check_count,
    encode,
    encode_ids,
    json_body,
    kind,
    options,
    render,
    shown,
    strings,
)

# Characters that /tokenize takes at once, and ids that /decode does: its answer is 30 times as long as the texts, and
# 8 MB of them took 26 s and 2 GB.
MAX_TOKENIZED = 100_000

blueprint = Blueprint("tei", __name__)


@blueprint.post("/")
def embed_or_compare() -> Response:
    """Where huggingface_hub's clients post, given the server's URL alone."""
    body = json_body()
    return _similarities(body) if isinstance(body.get("inputs"), dict) else embed(body)


def embed(body: dict[str, Any]) -> Response:
    """A bare list of vectors; of one, for one text."""
    wanted = _options(body)
    inputs = _required(body, "inputs")
    rows = _ids(inputs, "inputs")
    return json_response(
        render((_of_texts(inputs, wanted) if rows is None else encode_ids(rows, wanted)).vectors, wanted)
    )


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
    try:
        return json_response([_tokens(prompt + text, special) for text in texts])
    except TextTooLong as error:
        raise error.named("One of inputs") from None


@blueprint.post("/decode")
def decode() -> Response:
    body = json_body()
    given = _required(body, "ids")
    rows = _ids(given, "ids")
    if rows is None:
        if isinstance(given, list) and given:
            _row(given, "ids", "ids")
        found = "an empty list" if given == [] else kind(given)
        raise InvalidRequest(f"ids is {found}; it must be a list of token ids, or a list of such lists.", "ids")
    count = sum(map(len, rows))
    if count > MAX_TOKENIZED:
        raise TooLarge(f"ids has {count} token ids, over the limit of {MAX_TOKENIZED}: send fewer at once.", "ids")
    skip = _flag(body, "skip_special_tokens")
    return json_response([encoder().decode(row, skip_special_tokens=skip) for row in rows])


@blueprint.get("/info")
def info() -> Response:
    manifest, limits = encoder().artifact.manifest, settings()
    return json_response(
        {
            "model_id": manifest.model,
            "model_sha": manifest.revision,
            "model_dtype": encoder().artifact.precision,
            "model_type": {"embedding": {"pooling": manifest.pooling}},
            "max_concurrent_requests": limits.max_queue + limits.slots + 1,
            "max_input_length": encoder().max_length,
            "max_batch_tokens": encoder().max_length,  # one text at a time
            "max_batch_requests": 1,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": True,
            "tokenization_workers": limits.slots,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }
    )


def _options(body: dict[str, Any]) -> Options:
    direction = body.get("truncation_direction")
    if direction is not None and (not isinstance(direction, str) or direction.lower() != "right"):
        raise InvalidRequest(
            f"truncation_direction is {shown(direction)}; only Right is possible: a text keeps its beginning.",
            "truncation_direction",
        )
    return options(body, Options(normalize=True))


def _required(body: dict[str, Any], name: str) -> Any:
    if name not in body:
        raise InvalidRequest(f"The field {name} is missing.", name)
    return body[name]


def _ids(value: Any, name: str) -> list[list[int]] | None:
    """One text's token ids or many texts', as many; None for what begins with something else."""
    if not isinstance(value, list) or not value or not isinstance(value[0], (int, float, list)):
        return None
    if not isinstance(value[0], list):
        return [_row(value, name, name)]
    check_count(value, name)
    return [_row(row, f"{name}[{index}]", name) for index, row in enumerate(value)]


def _row(row: Any, place: str, param: str) -> list[int]:
    if not isinstance(row, list) or not row:
        found = "an empty list" if row == [] else kind(row)
        raise InvalidRequest(f"{place} is {found}; it must be a list of token ids.", param)
    size = encoder().vocabulary_size
    for index, item in enumerate(row):
        if type(item) is not int or not 0 <= item < size:
            raise InvalidRequest(
                f"{place}[{index}] is {shown(item)}; it must be a token id, a whole number from 0 to {size - 1}.", param
            )
    return row


def _texts(inputs: Any) -> list[str]:
    if isinstance(inputs, str):
        return [inputs]
    if not isinstance(inputs, list):
        raise InvalidRequest(f"inputs is {kind(inputs)}; it must be a string or a list of strings.", "inputs")
    return strings(inputs, "inputs")


def _of_texts(inputs: Any, wanted: Options) -> Embeddings:
    name = (lambda index: "inputs") if isinstance(inputs, str) else (lambda index: f"inputs[{index}]")
    return encode(_texts(inputs), wanted, name)


def _similarities(body: dict[str, Any]) -> Response:
    """The cosine of one sentence to each of others."""
    inputs = _required(body, "inputs")
    if not isinstance(inputs, dict):
        raise InvalidRequest(
            f'inputs is {kind(inputs)}; it must be {{"source_sentence": "…", "sentences": ["…"]}}.', "inputs"
        )
    source, sentences = (inputs.get(name) for name in ("source_sentence", "sentences"))
    if not isinstance(source, str):
        raise InvalidRequest(f"inputs.source_sentence is {kind(source)}; it must be a string.", "inputs")
    texts = [source, *strings(sentences, "inputs.sentences")]
    limit = settings().max_texts
    if len(texts) > limit:
        raise TooLarge(
            f"inputs has {len(texts)} texts, over the limit of {limit} (MAX_TEXTS): send fewer at once.", "inputs"
        )
    parameters = body.get("parameters")
    if not isinstance(parameters, (dict, type(None))):
        raise InvalidRequest(f"parameters is {kind(parameters)}; it must be an object.", "parameters")
    vectors = encode(texts, _options(parameters or {}), _name_of_compared).vectors
    return json_response(vectors[1:] @ vectors[0])


def _name_of_compared(index: int) -> str:
    return f"inputs.sentences[{index - 1}]" if index else "inputs.source_sentence"


def _tokens(text: str, add_special_tokens: bool) -> list[dict[str, Any]]:
    return [_token(text, token) for token in encoder().tokens(text, add_special_tokens=add_special_tokens)]


def _token(text: str, token: Token) -> dict[str, Any]:
    special = token.start is None
    name = encoder().decode([token.id], skip_special_tokens=False) if special else text[token.start : token.stop]
    return {"id": token.id, "text": name, "special": special, "start": token.start, "stop": token.stop}


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be true or false.", name)
    return value is not False
