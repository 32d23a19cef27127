"""OpenAI's API: POST /v1/embeddings and the list of models.

https://platform.openai.com/docs/api-reference/embeddings

Other servers with this API have further fields. Those that can be honoured are; those that would change the vectors and
cannot are refused by name; all others are ignored.
"""

import re
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from flask import Blueprint, Response, current_app
from msgspec import Meta, Raw

from app.engine.cl100k import Cl100k, OverLimit, UnknownToken
from app.engine.dtypes import SMALL_DTYPES, SmallDtype
from app.errors import InvalidRequest, TooLarge, UnknownModel
from app.routes import context, encoder, manifest, not_ready_reason, served_name, settings, token_ids
from app.routes.body import ListField, TextList, decode, fields, json_data
from app.routes.body_errors import NOT_A_STRING, Rule, text_rules, wrong_value
from app.routes.options import FLAG
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import Dimensions, OptionFields, Options, encode, one_or_many, resolve_options
from app.routes.prompts import prompt_name_for
from app.routes.rendering import json_response, list_response
from app.routes.vectors import encode_vectors

NO_TABLE = (
    "input has token ids, and this model folder has no table of OpenAI's: send strings (LangChain: "
    "OpenAIEmbeddings(check_embedding_ctx_length=False)), or build the folder again."
)
# Beginning of the JSON of a list of token ids, or of a list of such lists.
IDS = re.compile(rb"\[\s*(\[\s*)?[-\d]")
NOT_AN_ID = Rule(
    "{place} is {value}; it must be one of OpenAI's token ids (cl100k_base). This model's own ids go to POST /embed as "
    "inputs."
)

T = TypeVar("T")

blueprint = Blueprint("openai", __name__)


class Input(OptionFields, Generic[T], kw_only=True):
    """The body of POST /v1/embeddings: texts, one text's token ids, or a list of these.

    dimensions: infinity_client sends 0 for all.
    """

    input: T
    model: str | None = None
    dimensions: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    # NVIDIA's: https://docs.nvidia.com/nim/nemo-retriever/text-embedding/latest/reference.html
    truncate: bool | Literal["NONE", "END"] | None = None  # type: ignore[assignment]  # wider than the base class's
    input_type: str | None = None
    # Voyage's and Mistral's: https://docs.voyageai.com/reference/embeddings-api
    truncation: bool | None = None
    output_dimension: Dimensions | None = None
    output_dtype: Literal["float", SmallDtype] | None = None
    # Jina's: https://api.jina.ai/redoc#tag/embeddings
    task: str | None = None
    late_chunking: bool | None = None
    embedding_type: Literal["float", "base64", "binary", "ubinary"] | None = None
    # vLLM's: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#embeddings-api
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    embed_dtype: Literal["float32", "float"] | None = None
    endianness: Literal["native", "little"] | None = None
    # Infinity's: https://github.com/michaelfeil/infinity
    modality: Literal["text"] | None = None


INPUT = ListField("input", str, or_text=True)
# Fields that have one possible value -> what that is.
POSSIBLE = {
    "late_chunking": "false",
    "embedding_type": "float, base64, binary or ubinary",
    "truncate_prompt_tokens": "-1, or MAX_LENGTH or more,",
    "add_special_tokens": "true",
    "embed_dtype": "float32",
    "endianness": "native or little",
    "output_dtype": "float, int8, uint8, binary or ubinary",
    "modality": "text",
}
RULES = {
    **OPTION_RULES,
    **text_rules("input", or_text=True),
    "input missing": Rule("The field input is missing: a string or a list of strings."),
    **dict.fromkeys(("model", "input_type", "task"), NOT_A_STRING),
    "output_dimension": Rule("{place} is {value}; it must be a whole number from 1 to {dimension}."),
    "truncate": Rule('{place} is {value}; it must be true, false, "END" or "NONE".'),
    "truncation": FLAG,
    "use_activation": FLAG,
    **{
        name: Rule(f"{name} is {{value}}; only {possible} is possible here.", name)
        for name, possible in POSSIBLE.items()
    },
}


@blueprint.post("/v1/embeddings")
def embeddings() -> Response:
    data = json_data()
    raw = fields(data, "input").get("input", Raw(b""))
    body: Any
    if IDS.match(raw):
        given, body = _of_ids(data, raw)
    else:
        body = decode(data, Input[str | TextList], RULES, INPUT)
        given = body.input
    options = _options(body)
    texts, name = one_or_many(given, "input")
    result = encode(texts, options, name)
    tokens = sum(result.tokens)

    def items(start: int, stop: int) -> list[dict[str, Any]]:
        vectors = encode_vectors(result.rows[start:stop], options)
        return [
            {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors, start)
        ]

    return list_response(
        items,
        len(texts),
        name="data",
        before={"object": "list"},
        after={"model": served_name(body.model), "usage": {"prompt_tokens": tokens, "total_tokens": tokens}},
    )


def _of_ids(data: bytes, raw: Raw) -> tuple[list[str], Any]:
    """Return the texts of a body with OpenAI's token ids, and the decoded body. raw: JSON of its field input."""
    table = cast(Cl100k | None, current_app.extensions["cl100k"])
    if table is None:
        raise InvalidRequest(NO_TABLE, "input")
    rows, body = token_ids.decode_ids(data, raw, "input", Input, RULES, NOT_AN_ID, table.size)
    runner = context().runner or encoder().runner
    limit = left = settings().max_body_bytes
    texts = []
    for index, row in enumerate(rows):
        try:
            text = table.decode(row, left, runner.pause)
        except UnknownToken as error:
            place = f"input[{index}][{error.index}]" if token_ids.LISTS.match(raw) else f"input[{error.index}]"
            raise wrong_value(NOT_AN_ID, place, row[error.index]) from None
        except OverLimit:
            raise TooLarge(
                f"input has token ids for more than {limit} bytes of text (MAX_BODY_BYTES): send fewer at once.",
                "input",
            ) from None
        left -= len(text)
        texts.append(text.decode(errors="replace"))
    return texts, body


def _options(body: Any) -> Options:
    """Return the options of a body, whose names are several servers'."""
    limit = encoder().max_length
    cut = body.truncate_prompt_tokens
    for name, is_possible in (
        ("late_chunking", not body.late_chunking),
        ("add_special_tokens", body.add_special_tokens is not False),
        ("truncate_prompt_tokens", cut is None or cut == -1 or cut >= limit),
    ):
        if not is_possible:
            raise wrong_value(RULES[name], name, getattr(body, name))
    if body.truncate is None:
        body.truncate = body.truncation
    elif isinstance(body.truncate, str):
        body.truncate = body.truncate == "END"
    body.dimensions = body.dimensions or body.output_dimension
    if body.embedding_type in ("float", "base64"):
        body.encoding_format = body.encoding_format or body.embedding_type
    small = body.output_dtype or body.embedding_type
    if small in SMALL_DTYPES:
        body.dtype = body.dtype or small
    if body.normalize is None:
        body.normalize = body.use_activation
    if body.prompt is None and body.prompt_name is None:
        body.prompt_name = prompt_name_for(body.input_type or body.task)
    return resolve_options(body, Options(normalize=True))


@blueprint.get("/v1/models")
def models() -> Response:
    return json_response({"object": "list", "data": [_description()], "models": [served_name()]})


@blueprint.get("/v1/models/<path:model>")
def model(model: str) -> Response:
    if model not in (served_name(), manifest().model):
        raise UnknownModel(
            f"There is no model {model[:60]!r} here; the one that is served is {served_name()!r}.", "model"
        )
    return json_response(_description())


def _description() -> dict[str, Any]:
    """Return a model's description for OpenAI's clients, with the fields of KServe's: name, ready."""
    own = {"id": served_name(), "object": "model", "created": 0, "owned_by": "embedding-api"}
    return {**own, "name": served_name(), "ready": not_ready_reason() is None}
