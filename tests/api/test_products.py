"""The requests of products that cannot run here, as their sources or documents have them: ../clients/README.md."""

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.engine.encoder import Encoder
from tests.support import ROOT
from tests.support.app import app_client, vectors
from tests.support.documents import blocks

TEXTS = ["東京は日本の首都です。", "猫が窓辺で寝ています。\n"]
OPENAI = "/v1/embeddings"
NO_KEY = {"Authorization": "Bearer "}
OF_A_USER = {"X-OpenWebUI-User-Name": "%E6%9D%B1", "X-OpenWebUI-User-Email": "a@example.com"}


def data(answer: Any) -> Any:
    """Return the vectors of OpenAI's answer, as products read them."""
    return [item["embedding"] for item in answer["data"]]


# Each: path, headers, body, and how the product reads the answer.
REQUESTS = {
    "Open WebUI": (OPENAI, {**NO_KEY, **OF_A_USER}, {"input": TEXTS, "model": "any"}, data),
    "Open WebUI, Azure": (
        "/openai/deployments/any/embeddings?api-version=2024-02-01",
        {"api-key": "", **OF_A_USER},
        {"input": TEXTS},
        data,
    ),
    "Open WebUI, Ollama": ("/api/embed", NO_KEY, {"input": TEXTS, "model": "any"}, lambda answer: answer["embeddings"]),
    "Dify": (OPENAI, {}, {"input": TEXTS, "model": "any", "user": "u-1", "encoding_format": "float"}, data),
    "Elasticsearch": (OPENAI, NO_KEY, {"input": TEXTS, "model": "any", "user": "u-1"}, data),
    "Milvus": (
        "/embed",
        {},
        {"inputs": TEXTS, "truncate": True, "truncation_direction": "Right"},
        lambda answer: answer,
    ),
}


@pytest.mark.parametrize("product", REQUESTS)
def test_vectors(client: FlaskClient, product: str) -> None:
    """A product finds the vectors of POST /embed where it looks for them."""
    path, headers, body, read = REQUESTS[product]
    answer = client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert read(answer.get_json()) == vectors(client, TEXTS)


def test_open_webui_names_a_prompt(client: FlaskClient) -> None:
    """With RAG_EMBEDDING_PREFIX_FIELD_NAME=prompt_name its prefix is the name of the model's prompt."""
    answer = client.post(OPENAI, json={"input": TEXTS, "model": "any", "prompt_name": "document"})
    assert data(answer.get_json()) == vectors(client, TEXTS, prompt_name="document")


def test_dify_checks_its_settings(client: FlaskClient) -> None:
    """Before it saves a model, Dify sends one text, and wants a model's name; later it wants the number of tokens."""
    answer = client.post(OPENAI, json={"input": "ping", "model": "any"}).get_json()
    assert answer["model"] == "any" and answer["usage"]["total_tokens"] > 0


def test_n8n(tiny_model: Path, tiny_encoder: Encoder) -> None:
    """n8n lists the models whose names contain `embed`, and sends what OpenAI's library for JavaScript sends."""
    client = app_client(tiny_model, tiny_encoder, served_model_name="my-embeddings")
    listed = [model["id"] for model in client.get("/v1/models").get_json()["data"]]
    assert [name for name in listed if "embed" in name] == ["my-embeddings"]
    body = {"model": "my-embeddings", "input": TEXTS, "encoding_format": "base64"}
    assert data(client.post(OPENAI, json=body).get_json()) == vectors(client, TEXTS, encoding_format="base64")


def test_opensearch(client: FlaskClient) -> None:
    """The documented connector's request, filled in as OpenSearch does it, gets vectors."""
    ((_, connector),) = blocks("docs/recipes.md", "json")
    (action,) = json.loads(connector)["actions"]
    body = action["request_body"].replace("${parameters.input}", json.dumps(TEXTS, ensure_ascii=False))
    body = body.replace("${parameters.model}", json.loads(connector)["parameters"]["model"])
    path = action["url"].removeprefix("http://HOST:8080")
    answer = client.open(path, method=action["method"], data=body.encode(), content_type="application/json")
    assert data(answer.get_json()) == vectors(client, TEXTS)


def test_elasticsearchs_settings(client: FlaskClient) -> None:
    """The documented URL is the route's."""
    assert f"http://HOST:8080{OPENAI}" in (ROOT / "docs/clients.md").read_text()
