"""Requests of other servers' clients: other paths, fields and names, broken Unicode, no Content-Type."""

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.errors import BootError
from app.settings import Settings
from tests.support.app import app_client, vectors
from tests.support.routes import READS_JSON, REQUESTS, Route, as_parameters
from tests.support.tiny_model import PROMPTS


def openai(client: FlaskClient, **fields: Any) -> Any:
    answer = client.post("/v1/embeddings", json={"input": ["the cat"], **fields})
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.get_json()["data"]]


@pytest.mark.parametrize(
    "path",
    [
        "/embeddings",
        "/v1/embeddings/",
        "/v1//embeddings",
        "//v1/embeddings//",
        "/openai/v1/embeddings",
        "/openai/deployments/my-name/embeddings?api-version=2024-10-21",
        "/v1/engines/text-embedding-ada-002/embeddings",
    ],
)
def test_paths_of_openai(client: FlaskClient, path: str) -> None:
    """The paths of OpenAI's older API, Azure, Infinity and others, and needless slashes, lead to /v1/embeddings."""
    body = {"input": ["the cat", "東京"]}
    expected = client.post("/v1/embeddings", json=body).get_json()
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.get_json()) == (200, expected)


@pytest.mark.parametrize("path", ["/models", "/v1/models/", "/v1//models", "/openai/v1/models"])
def test_paths_of_the_models(client: FlaskClient, path: str) -> None:
    """The list of models is found at the same paths."""
    assert client.get(path).get_json() == client.get("/v1/models").get_json()


@pytest.mark.parametrize("route", as_parameters(list(REQUESTS)))
def test_needless_slashes(client: FlaskClient, route: Route) -> None:
    """A slash too many changes no answer."""
    path, body = REQUESTS[route]
    start, question, query = path.partition("?")
    for other in (start.replace("/", "//").removeprefix("/"), f"{start}/", f"{start}//"):
        answer = client.open(other + question + query, method=route[0], json=body)
        if path == "/docs" and other != path:  # the page's own links are relative
            assert (answer.status_code, answer.headers["Location"]) == (308, "../docs")
        else:
            assert answer.status_code == 200, other


@pytest.mark.parametrize(
    "path", ["/openai/deployments//embeddings", "/openai/deployments/a/b/embeddings", "/v2/models"]
)
def test_paths_that_are_no_alias(client: FlaskClient, path: str) -> None:
    """Similar paths lead nowhere."""
    assert client.post(path, json={"input": "cat"}).status_code == 404


@pytest.mark.parametrize("route", as_parameters(READS_JSON))
def test_a_missing_content_type(client: FlaskClient, route: Route) -> None:
    """A body without a Content-Type is JSON."""
    path, body = REQUESTS[route]
    expected = client.post(path, json=body)
    answer = client.post(path, data=json.dumps(body))
    assert answer.status_code == 200
    if path not in ("/api/embed", "/v2/embed"):  # one has the time, one a new id
        assert answer.get_json() == expected.get_json()


# Text in JSON, as a client with broken Unicode sends it -> the text that is computed.
BROKEN = {
    r"cut \ud83d": "cut \ufffd",
    r"\ude00 cut": "\ufffd cut",
    r"\uD83D\uD83D\uDE00": "\ufffd😀",
    r"\ud83d\ude00\ude00": "😀\ufffd",
    r"\ude00\ud83d": "\ufffd\ufffd",
    r"\ud83d\n": "\ufffd\n",
    r"\ud83d\u6771": "\ufffd東",
    r"\\ud83d \ud83d": "\\ud83d \ufffd",
    r"\\\ud83d": "\\\ufffd",
    r"\\\\\udfff": "\\\\\ufffd",
    r"\\ud83d\ude00": "\\ud83d\ufffd",
}


@pytest.mark.parametrize("sent", BROKEN)
def test_lone_surrogates(client: FlaskClient, sent: str) -> None:
    """Half of a surrogate pair is computed as U+FFFD in every dialect, and the texts beside it are left alone."""
    expected = vectors(client, ["the cat", BROKEN[sent]])
    texts = f'["the cat", "{sent}"]'
    bodies = {
        "/embed": f'{{"texts": {texts}, "normalize": true}}',
        "/": f'{{"inputs": {texts}}}',
        "/v1/embeddings": f'{{"input": {texts}}}',
        "/bigquery": f'{{"calls": [["the cat"], ["{sent}"]], "userDefinedContext": {{"normalize": "true"}}}}',
    }
    for path, body in bodies.items():
        answer = client.post(path, data=body).get_json()
        found = answer if isinstance(answer, list) else answer.get("vectors") or answer.get("replies")
        assert (found or [item["embedding"] for item in answer["data"]]) == expected, path


def test_lone_surrogates_of_tei(client: FlaskClient) -> None:
    """The other routes for texts accept them, too."""
    for path, body in {
        "/embed": rb'{"inputs": "a \ud83d"}',
        "/tokenize": rb'{"inputs": ["a", "b \ud83d"]}',
        "/similarity": rb'{"inputs": {"source_sentence": "a \ud83d", "sentences": ["b \ude00"]}}',
    }.items():
        assert client.post(path, data=body).status_code == 200


def test_what_infinity_and_nvidia_send(client: FlaskClient) -> None:
    """Fields that change nothing are ignored, others are understood."""
    expected = vectors(client, ["the cat"])
    changes_nothing: list[dict[str, Any]] = [
        {"dimensions": 0},
        {"truncate": "END"},
        {"truncation": True},
        {"truncate_prompt_tokens": -1},
        {"truncate_prompt_tokens": 512},
        {"use_activation": True, "add_special_tokens": True, "embed_dtype": "float32", "endianness": "little"},
        {"modality": "text", "user": {"id": 5}, "keep_alive": "5m", "options": {}, "priority": 1},
        {"output_dtype": "float", "embedding_type": "float", "late_chunking": False},
        {"encoding_format": None, "input_type": None, "task": None, "dimensions": None, "truncate": None},
        {"input_type": "classification", "task": "text-matching"},
    ]
    for fields in changes_nothing:
        assert openai(client, **fields) == expected, fields
    assert (
        openai(client, output_dimension=8) == openai(client, dimensions=8) == vectors(client, ["the cat"], dimensions=8)
    )
    assert openai(client, embedding_type="base64") == openai(client, encoding_format="base64")
    assert openai(client, use_activation=False) == vectors(client, ["the cat"], normalize=False)


@pytest.mark.parametrize(
    ("field", "value", "prompt_name"),
    [
        ("input_type", "query", "query"),
        ("input_type", "search_query", "query"),
        ("input_type", "passage", "document"),
        ("input_type", "document", "document"),
        ("input_type", "search_document", "document"),
        ("task", "retrieval.query", "query"),
        ("task", "retrieval.passage", "document"),
        ("task", "RETRIEVAL_DOCUMENT", "document"),
    ],
)
def test_kinds_of_texts(client: FlaskClient, field: str, value: str, prompt_name: str) -> None:
    """A client's name for questions and documents picks the model's prompt for them."""
    expected = vectors(client, ["the cat"], prompt_name=prompt_name)
    assert expected != vectors(client, ["the cat"])
    assert openai(client, **{field: value}) == expected
    assert openai(client, **{field: value, "prompt": ""}) == vectors(client, ["the cat"], prompt="")


def test_the_served_name(tiny_model: Path, tiny_encoder: Encoder) -> None:
    """SERVED_MODEL_NAME is the model's name in every answer; its id is still found."""
    client = app_client(tiny_model, tiny_encoder, served_model_name="my-embeddings")
    assert [model["id"] for model in client.get("/v1/models").get_json()["data"]] == ["my-embeddings"]
    for name in ("my-embeddings", "tiny"):
        assert client.get(f"/v1/models/{name}").get_json()["id"] == "my-embeddings"
    assert "'my-embeddings'" in client.get("/v1/models/other").get_json()["error"]["message"]
    assert client.post("/v1/embeddings", json={"input": "cat"}).get_json()["model"] == "my-embeddings"
    assert client.get("/info").get_json()["served_model_name"] == "my-embeddings"
    model = client.get("/").get_json()["model"]
    assert (model["id"], model["served_name"]) == ("tiny", "my-embeddings")


def test_the_default_prompt(tiny_model: Path) -> None:
    """DEFAULT_PROMPT_NAME is the prompt of texts without one; none stands for no prompt."""
    for name, prompt in (("document", PROMPTS["document"]), ("none", "")):
        settings = Settings(model_dir=tiny_model, max_length=64, default_prompt_name=name)
        client = create_app(settings).test_client()
        assert vectors(client, ["the cat"]) == vectors(client, ["the cat"], prompt=prompt)
        assert vectors(client, ["the cat"], prompt_name="query") == vectors(
            client, ["the cat"], prompt=PROMPTS["query"]
        )
        shown = client.get("/").get_json()["model"]["default_prompt_name"]
        assert shown == (None if name == "none" else name)


def test_an_unknown_default_prompt(tiny_model: Path) -> None:
    """A prompt that the model does not have stops the start."""
    with pytest.raises(
        BootError, match="^DEFAULT_PROMPT_NAME is 'nope'; the model's prompts are: 'query', 'document', 'none'"
    ):
        create_app(Settings(model_dir=tiny_model, max_length=64, default_prompt_name="nope"))


def test_truncation_shows(client: FlaskClient) -> None:
    """Every dialect says in a header how many texts were cut."""
    long = "the " * 100
    bodies = {
        "/embed": {"texts": [long, "cat", long]},
        "/": {"inputs": [long, "cat", long]},
        "/v1/embeddings": {"input": [long, "cat", long]},
        "/bigquery": {"calls": [[long], [None], [long]]},
        "/similarity": {"inputs": {"source_sentence": long, "sentences": [long, "cat"]}},
    }
    for path, body in bodies.items():
        assert client.post(path, json=body).headers["X-Truncated-Texts"] == "2", path
    assert "X-Truncated-Texts" not in client.post("/embed", json={"texts": ["cat"]}).headers
    assert client.get(f"/embed?q={long}").headers["X-Truncated-Texts"] == "1"


# Texts with their ids in OpenAI's cl100k_base.
IDS = {"hello world": [15339, 1917], "東京": [14276, 109, 47653], "<|endoftext|>": [100257], "hello": [15339]}


def test_openais_token_ids(client: FlaskClient) -> None:
    """Token ids of OpenAI's have the vectors and the usage of their texts, one or many, of any length."""
    for text, ids in IDS.items():
        expected = client.post("/v1/embeddings", json={"input": [text]}).get_json()
        for sent in (ids, [ids]):
            assert client.post("/v1/embeddings", json={"input": sent}).get_json() == expected
    many = client.post("/v1/embeddings", json={"input": list(IDS), "encoding_format": "base64"}).get_json()
    body = {"input": list(IDS.values()), "encoding_format": "base64"}
    assert client.post("/v1/embeddings", json=body).get_json() == many
    long = client.post("/v1/embeddings", json={"input": [IDS["hello world"][1:] * 3000, IDS["hello"]]})
    assert (long.status_code, long.headers.get("X-Truncated-Texts")) == (200, "1"), long.text
    assert long.get_json()["data"][1]["embedding"] == openai(client, input="hello")[0]


def test_no_table_of_openais(tiny_model: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    """A folder that was built without the table refuses token ids, and says what to do."""
    app = create_app(Settings(model_dir=tiny_model, max_length=64), tiny_encoder)
    app.extensions["cl100k"] = None
    answer = app.test_client().post("/v1/embeddings", json={"input": [15339]})
    assert answer.status_code == 400
    assert "no table of OpenAI's: send strings" in answer.get_json()["error"]["message"]
