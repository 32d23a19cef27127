"""One encoder, several dialects: the same text with the same options has the same floats in all of them."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app import create_app
from app.engine.encoder import Encoder
from app.settings import Settings
from tests.support.app import post
from tests.support.tiny_model import PROMPTS

Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def client(tiny_model: Path, tiny_encoder: Encoder) -> FlaskClient:
    return create_app(Settings(model_dir=tiny_model, max_length=64), tiny_encoder).test_client()


def native(client: FlaskClient, texts: list[str], **options: Any) -> Vectors:
    return np.array(post(client, "/embed", {"texts": texts, **options})["vectors"], np.float32)


def from_base64(rows: list[str]) -> list[Vectors]:
    return [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.one_of(st.sampled_from(["cat", "東京 は", ""]), st.text(st.characters(exclude_categories=["Cs"]))),
        min_size=1,
        max_size=6,
    ),
    dimensions=st.one_of(st.none(), st.integers(1, 32)),
    prompt_name=st.sampled_from([None, *PROMPTS]),
)
def test_the_same_floats(
    client: FlaskClient, texts: list[str], dimensions: int | None, prompt_name: str | None
) -> None:
    """All dialects return the same floats for any texts and options, as numbers or base64, alone or together."""
    options = {"dimensions": dimensions, "prompt_name": prompt_name}
    given = {name: value for name, value in options.items() if value is not None}
    expected = native(client, texts, normalize=True, **given)
    openai = post(client, "/v1/embeddings", {"input": texts, **given})["data"]
    encoded = post(client, "/v1/embeddings", {"input": texts, "encoding_format": "base64", **given})["data"]
    context = {name: str(value) for name, value in {"normalize": True, **given}.items()}
    found = [
        [item["embedding"] for item in openai],
        from_base64([item["embedding"] for item in encoded]),
        post(client, "/embed", {"inputs": texts, **given}),
        post(client, "/", {"inputs": texts, **given}),
        post(client, "/bigquery", {"calls": [[text] for text in texts], "userDefinedContext": context})["replies"],
        post(client, "/v1/models/a/b:predict", {"instances": texts, "parameters": given})["predictions"],
        post(client, "/v1/models/m:predict", {"instances": [{"text": text} for text in texts], "parameters": given})[
            "predictions"
        ],
        post(client, "/vectors", {"texts": texts, "config": {"dimensions": dimensions, "task_type": prompt_name}})[
            "vectors"
        ],
        post(client, "/v1/embeddings", {"input": texts[0], **given})["data"][0]["embedding"],
        post(client, "/", {"inputs": texts[0], **given})[0],
    ]
    if prompt_name is None:  # Ollama has no field for it
        found.insert(0, post(client, "/api/embed", {"input": texts, "dimensions": dimensions})["embeddings"])
    for vectors in found[:-2]:
        assert np.array_equal(np.array(vectors, np.float32), expected)
    for vector in found[-2:]:
        assert np.array_equal(np.array(vector, np.float32), expected[0])
    raw = post(client, "/embed", {"inputs": texts, "normalize": False, **given})
    assert np.array_equal(np.array(raw, np.float32), native(client, texts, **given))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.sampled_from(["cat", "the cat sat on a mat", "東京 は 日本", "", "the " * 100]), min_size=1))
def test_tokens_are_the_texts(client: FlaskClient, texts: list[str]) -> None:
    """The ids of /tokenize have the vectors and token counts of their texts, and are truncated like them."""
    tokens = post(client, "/tokenize", {"inputs": texts})
    ids = [[token["id"] for token in row] for row in tokens]
    answer = post(client, "/embed", {"texts": texts, "normalize": True})
    assert [len(row) for row in ids] == answer["tokens"]
    assert post(client, "/embed", {"inputs": ids}) == answer["vectors"]
    assert post(client, "/", {"inputs": ids[0]}) == answer["vectors"][:1]


def test_positions_of_tokens(client: FlaskClient) -> None:
    """start and stop cut each token out of the text; special tokens have neither."""
    text = "the cat 東京"
    (tokens,) = post(client, "/tokenize", {"inputs": text})
    assert [token["text"] for token in tokens if token["special"]] == ["[CLS]", "[SEP]"]
    assert [token for token in tokens if token["special"] != (token["start"] is None)] == []
    inner = [token for token in tokens if not token["special"]]
    assert [text[token["start"] : token["stop"]] for token in inner] == [token["text"] for token in inner]
    assert "".join(token["text"] for token in inner) == text.replace(" ", "")
    without = post(client, "/tokenize", {"inputs": [text], "add_special_tokens": False})
    assert without == [inner]


def test_decode(client: FlaskClient) -> None:
    """/decode returns the text of one or many lists of ids, with special tokens if asked for."""
    rows = [[token["id"] for token in row] for row in post(client, "/tokenize", {"inputs": ["the cat", "a"]})]
    assert post(client, "/decode", {"ids": rows}) == ["the cat", "a"]
    assert post(client, "/decode", {"ids": rows[0]}) == ["the cat"]
    assert post(client, "/decode", {"ids": rows[0], "skip_special_tokens": False}) == ["[CLS] the cat [SEP]"]


def test_similarity(client: FlaskClient) -> None:
    """/similarity and / return the cosines of the vectors; parameters are allowed."""
    texts = ["the cat", "a dog", "東京"]
    vectors = native(client, texts, normalize=True)
    inputs = {"source_sentence": texts[0], "sentences": texts[1:]}
    for path in ("/similarity", "/"):
        found = post(client, path, {"inputs": inputs, "parameters": {"truncate": None}})
        assert np.allclose(found, vectors[1:] @ vectors[0], atol=1e-6)


def test_model_and_usage_of_openai(client: FlaskClient) -> None:
    """OpenAI's answer has the client's model name, or the server's if there is none, and the true token counts."""
    answer = post(client, "/v1/embeddings", {"input": ["the cat", "cat"], "model": "text-embedding-3-small"})
    assert (answer["model"], answer["usage"]) == ("text-embedding-3-small", {"prompt_tokens": 7, "total_tokens": 7})
    own = client.get("/v1/models").get_json()["data"][0]["id"]
    assert post(client, "/v1/embeddings", {"input": "cat", "model": None, "user": "me"})["model"] == own
    assert client.get(f"/v1/models/{own}").get_json()["id"] == own


def test_info(client: FlaskClient) -> None:
    """/info has the model and the limits of GET /."""
    info, about = client.get("/info").get_json(), client.get("/").get_json()
    assert (info["model_id"], info["model_dtype"]) == (about["model"]["id"], about["model"]["precision"])
    assert (info["max_input_length"], info["max_client_batch_size"]) == (64, about["limits"]["max_texts"])


@pytest.mark.parametrize(("in_time", "expected"), [(None, 2048), (5000, 2048), (300, 300), (1, 1), (0, 1)])
def test_info_advertises_a_batch_that_fits(
    client: FlaskClient, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch, in_time: int | None, expected: int
) -> None:
    """/info advertises as many of the longest texts as meet the deadline, at least 1; MAX_TEXTS until that is known."""

    def texts_in_time(tokens: int) -> int | None:
        assert tokens == tiny_encoder.max_length
        return in_time

    monkeypatch.setattr(tiny_encoder.runner, "texts_in_time", texts_in_time)
    assert client.get("/info").get_json()["max_client_batch_size"] == expected
