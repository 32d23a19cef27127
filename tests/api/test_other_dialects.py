"""Ollama's, Weaviate's, Vertex AI's, KServe's and SageMaker's APIs: requests as their clients send them."""

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.errors import BootError
from app.settings import Settings
from tests.support.app import app_client, post, vectors


def test_ollama(client: FlaskClient) -> None:
    """Answers have the client's model name, the token count and a duration."""
    body = {"model": "nomic-embed-text", "input": ["the cat", "cat"], "options": {"num_ctx": 8192}, "keep_alive": "5m"}
    answer = post(client, "/api/embed", body)
    assert list(answer) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert (answer["model"], answer["prompt_eval_count"]) == ("nomic-embed-text", 7)
    assert 0 < answer["total_duration"] < 60e9
    assert answer["embeddings"] == vectors(client, ["the cat", "cat"])
    assert post(client, "/api/embed", {"input": "cat"})["embeddings"] == vectors(client, ["cat"])
    assert post(client, "/api/embeddings", {"model": "m", "prompt": "cat"}) == {
        "embedding": vectors(client, ["cat"])[0]
    }


@pytest.mark.parametrize("body", [{"model": "m"}, {"model": "m", "input": []}, {"model": "m", "input": None}])
def test_ollama_loads_a_model(client: FlaskClient, body: Any) -> None:
    """A request without input, by which clients load a model, has no vectors."""
    assert post(client, "/api/embed", body) == {"model": "m", "embeddings": []}


def test_ollama_finds_the_model(client: FlaskClient) -> None:
    """Clients find one model, its facts and a version that has /api/embed with dimensions."""
    (model,) = client.get("/api/tags").get_json()["models"]
    assert (model["name"], model["model"]) == ("tiny", "tiny")
    assert model["size"] > 10_000 and len(model["digest"]) == 64 and model["modified_at"] > "2025"
    shown = post(client, "/api/show", {"model": "tiny"})
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["bert.embedding_length"] == 32
    assert tuple(map(int, client.get("/api/version").get_json()["version"].split("."))) >= (0, 11, 0)


def test_weaviate(client: FlaskClient) -> None:
    """Weaviate's bodies, one text or many, pick the prompt for their task; its Go client sends no Content-Type."""
    one = b'{"text":"cat","dims":0,"vector":null,"error":"","config":{"pooling_strategy":"cls","task_type":"query"}}'
    expected = vectors(client, ["cat"], prompt_name="query")
    assert client.post("/vectors", data=one).get_json() == {"text": "cat", "vector": expected[0], "dim": 32}
    assert client.post("/vectors/", data=one).status_code == 200
    many = {"texts": ["cat", "the cat"], "config": {"task_type": "passage", "dimensions": 8}}
    expected = vectors(client, ["cat", "the cat"], prompt_name="document", dimensions=8)
    assert post(client, "/vectors", many) == {"vectors": expected, "dims": 8}
    assert post(client, "/vectors", {"text": ""})["vector"] == vectors(client, [""])[0]
    assert client.get("/meta").get_json()["dimension"] == 32
    for path in ("/.well-known/live", "/.well-known/ready"):
        assert client.get(path).status_code == 200


def test_predictions(client: FlaskClient) -> None:
    """Instances are strings or objects; each may name its kind, which picks the prompt."""
    instances = ["cat", {"content": "cat", "task_type": "RETRIEVAL_QUERY"}, {"inputs": "the cat"}, {"input": ""}]
    answer = post(client, "/v1/models/any/name:predict", {"instances": instances})
    query = vectors(client, ["cat"], prompt_name="query")
    assert answer == {"predictions": [*vectors(client, ["cat"]), *query, *vectors(client, ["the cat", ""])]}
    body = {"instances": ["cat"], "parameters": {"task_type": "RETRIEVAL_QUERY", "dimensions": 8, "normalize": False}}
    expected = vectors(client, ["cat"], prompt_name="query", dimensions=8, normalize=False)
    assert post(client, "/v1/models/m:predict", body)["predictions"] == expected
    assert post(client, "/v1/models/m:predict", {"instances": []}) == {"predictions": []}


def test_kserve_finds_the_model(client: FlaskClient) -> None:
    """GET /v1/models and /v1/models/{model} have KServe's fields beside OpenAI's, GET / has its status."""
    assert client.get("/").get_json()["status"] == "alive"
    assert client.get("/v1/models").get_json()["models"] == ["tiny"]
    model = client.get("/v1/models/tiny").get_json()
    assert (model["name"], model["ready"]) == ("tiny", True)


def test_vertex_chooses_paths_and_port(tiny_model: Path, tiny_encoder: Encoder) -> None:
    """AIP_PREDICT_ROUTE and AIP_HEALTH_ROUTE are served beside the others; AIP_HTTP_PORT is the port without PORT."""
    variables = {
        "AIP_PREDICT_ROUTE": "/v1/endpoints/12/deployedModels/34:predict",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/12/deployedModels/34",
        "AIP_HTTP_PORT": "9090",
        "API_KEY": "secret",
    }
    settings = Settings.from_env(variables)
    assert settings.port == 9090
    assert Settings.from_env({**variables, "PORT": "7070"}).port == 7070
    client = create_app(settings, tiny_encoder).test_client()
    assert client.get(variables["AIP_HEALTH_ROUTE"]).status_code == 200  # without a key
    body = {"instances": ["cat"]}
    answer = client.post(variables["AIP_PREDICT_ROUTE"], json=body, headers={"X-API-Key": "secret"})
    assert len(answer.get_json()["predictions"][0]) == 32
    refused = client.post(variables["AIP_PREDICT_ROUTE"], json=body)
    assert refused.status_code == 401 and refused.get_json()["error"].startswith("The API key is missing")
    simple = app_client(tiny_model, tiny_encoder, aip_predict_route="/predict", aip_health_route="/health")
    assert simple.get("/health").status_code == 200
    assert post(simple, "/predict", body)["predictions"] == vectors(simple, ["cat"])
    with pytest.raises(BootError, match="^AIP_PREDICT_ROUTE is 'predict'; it must be a path like /predict.$"):
        Settings.from_env({"AIP_PREDICT_ROUTE": "predict"})


def test_sagemaker(client: FlaskClient) -> None:
    """/ping is 200, and /invocations takes the bodies of /embed: the native ones and text-embeddings-inference's."""
    assert client.get("/ping").status_code == 200
    assert post(client, "/invocations", {"inputs": ["cat"]}) == vectors(client, ["cat"])
    assert post(client, "/invocations", {"texts": ["cat"], "normalize": True})["vectors"] == vectors(client, ["cat"])
