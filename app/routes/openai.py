"""OpenAI's API: POST /v1/embeddings and the list of models.

https://platform.openai.com/docs/api-reference/embeddings
"""

from typing import Any

from flask import Blueprint, Response

from app.errors import InvalidRequest, UnknownModel
from app.routes import manifest
from app.routes.body import json_body, json_type, strings
from app.routes.options import Options, encode, encode_vectors, options
from app.routes.rendering import json_response, list_response

TOKENS = (
    "input has token ids, and they are another tokenizer's than this model's: send strings "
    "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))."
)

blueprint = Blueprint("openai", __name__)


@blueprint.post("/v1/embeddings")
def embeddings() -> Response:
    body = json_body()
    texts, model = _texts(body), _model(body)
    given = options(body, Options(normalize=True))
    name = (lambda index: "input") if isinstance(body["input"], str) else (lambda index: f"input[{index}]")
    result = encode(texts, given, name)
    tokens = sum(result.tokens)

    def items(start: int, stop: int) -> list[dict[str, Any]]:
        vectors = encode_vectors(result.rows[start:stop], given)
        return [
            {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors, start)
        ]

    return list_response(
        items,
        len(texts),
        name="data",
        before={"object": "list"},
        after={"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}},
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


def _texts(body: dict[str, Any]) -> list[str]:
    if "input" not in body:
        raise InvalidRequest("The field input is missing: a string or a list of strings.", "input")
    texts = body["input"]
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, list) and texts and all(type(item) in (int, list) for item in texts):
        raise InvalidRequest(TOKENS, "input")
    if not isinstance(texts, list):
        raise InvalidRequest(f"input is {json_type(texts)}; it must be a string or a list of strings.", "input")
    return strings(texts, "input")


def _model(body: dict[str, Any]) -> str:
    """Return the client's own name for the model, since many clients compare it with what they asked for."""
    name = body.get("model")
    if name is None:
        return manifest().model
    if not isinstance(name, str):
        raise InvalidRequest(f"model is {json_type(name)}; it must be a string.", "model")
    return name


def _description() -> dict[str, Any]:
    return {"id": manifest().model, "object": "model", "created": 0, "owned_by": "embedding-api"}
