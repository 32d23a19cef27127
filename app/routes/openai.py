"""OpenAI's API: POST /v1/embeddings and the list of models.

https://platform.openai.com/docs/api-reference/embeddings
"""

from typing import Any

from flask import Blueprint, Response

from app.errors import InvalidRequest, UnknownModel
from app.routes import encoder, json_response
from app.routes.parsing import Options, encode, json_body, kind, options, render, strings

TOKENS = (
    "input has token ids, and they are another tokenizer's than this model's: send strings "
    "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))."
)

blueprint = Blueprint("openai", __name__)


@blueprint.post("/v1/embeddings")
def embeddings() -> Response:
    body = json_body()
    texts, model = _texts(body), _model(body)
    wanted = options(body, Options(normalize=True))
    name = (lambda index: "input") if isinstance(body["input"], str) else (lambda index: f"input[{index}]")
    result = encode(texts, wanted, name)
    tokens = sum(result.tokens)
    return json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector}
                for index, vector in enumerate(render(result.vectors, wanted))
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@blueprint.get("/v1/models")
def models() -> Response:
    return json_response({"object": "list", "data": [_described()]})


@blueprint.get("/v1/models/<path:model>")
def model(model: str) -> Response:
    own = encoder().artifact.manifest.model
    if model != own:
        raise UnknownModel(f"There is no model {model[:60]!r} here; the one that is served is {own!r}.", "model")
    return json_response(_described())


def _texts(body: dict[str, Any]) -> list[str]:
    if "input" not in body:
        raise InvalidRequest("The field input is missing: a string or a list of strings.", "input")
    given = body["input"]
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given and all(type(item) in (int, list) for item in given):
        raise InvalidRequest(TOKENS, "input")
    if not isinstance(given, list):
        raise InvalidRequest(f"input is {kind(given)}; it must be a string or a list of strings.", "input")
    return strings(given, "input")


def _model(body: dict[str, Any]) -> str:
    """The client's own name for the model, since many clients compare it with what they asked for."""
    name = body.get("model")
    if name is None:
        return encoder().artifact.manifest.model
    if not isinstance(name, str):
        raise InvalidRequest(f"model is {kind(name)}; it must be a string.", "model")
    return name


def _described() -> dict[str, Any]:
    return {"id": encoder().artifact.manifest.model, "object": "model", "created": 0, "owned_by": "embedding-api"}
