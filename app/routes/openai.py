"""OpenAI's API: POST /v1/embeddings and the list of models.

https://platform.openai.com/docs/api-reference/embeddings
"""

import re
from typing import Any

from flask import Blueprint, Response

from app.errors import InvalidRequest, UnknownModel
from app.routes import manifest
from app.routes.body import ListField, TextList, decode, fields, json_data
from app.routes.body_errors import Rule, text_rules
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import OptionFields, Options, encode, encode_vectors, resolve_options
from app.routes.rendering import json_response, list_response

TOKENS = (
    "input has token ids, and they are another tokenizer's than this model's: send strings "
    "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)), or this model's own ids to POST /embed as inputs."
)
# Beginning of the JSON of a list of token ids, or of a list of such lists.
IDS = re.compile(rb"\[\s*(\[\s*)?[-\d]")

blueprint = Blueprint("openai", __name__)


class Input(OptionFields, kw_only=True):
    """The body of POST /v1/embeddings; other fields are ignored."""

    input: str | TextList
    model: str | None = None


INPUT = ListField("input", str, or_text=True)
RULES = {
    **OPTION_RULES,
    **text_rules("input", or_text=True),
    "input missing": Rule("The field input is missing: a string or a list of strings."),
    "model": Rule("{place} is {kind}; it must be a string."),
}


@blueprint.post("/v1/embeddings")
def embeddings() -> Response:
    data = json_data()
    if IDS.match(fields(data, "input").get("input", b"")):
        raise InvalidRequest(TOKENS, "input")
    body = decode(data, Input, RULES, INPUT)
    options = resolve_options(body, Options(normalize=True))
    texts, name = ([body.input], "input") if isinstance(body.input, str) else (body.input, "input[{}]")
    result = encode(texts, options, name.format)
    tokens = sum(result.tokens)
    # repeats the client's model name: many clients compare it with the one they sent
    name_of_model = manifest().model if body.model is None else body.model

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
        after={"model": name_of_model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}},
    )


@blueprint.get("/v1/models")
def models() -> Response:
    return json_response({"object": "list", "data": [_description()]})


@blueprint.get("/v1/models/<path:model>")
def model(model: str) -> Response:
    own = manifest().model
    if model != own:
        raise UnknownModel(f"There is no model {model[:60]!r} here; the one that is served is {own!r}.", "model")
    return json_response(_description())


def _description() -> dict[str, Any]:
    return {"id": manifest().model, "object": "model", "created": 0, "owned_by": "embedding-api"}
