"""The native dialect: its fields and options. Its errors are in test_errors.py."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from app.engine.encoder import Encoder


def post(client: FlaskClient, body: Any, query: str = "") -> TestResponse:
    return client.post(f"/embed{query}", json=body)


def error_of(response: TestResponse) -> dict[str, Any]:
    """Return the error, and check its shape."""
    assert response.is_json
    body = response.get_json()
    assert {*body} - {"error_type"} == {"error"}  # where a body is not read it may be TEI's dialect
    assert list(body["error"]) == ["message", "type", "param", "code"]
    return dict(body["error"], status=response.status_code)


def test_get_answers_one_vector(client: FlaskClient, tiny_encoder: Encoder) -> None:
    """GET /embed?q= has exactly the documented fields, and its numbers survive the JSON bit for bit."""
    body = client.get("/embed?q=%E6%9D%B1%E4%BA%AC").get_json()
    assert list(body) == ["vector", "dimension", "text", "tokens", "truncated"]
    assert (body["text"], body["dimension"], body["tokens"], body["truncated"]) == ("東京", 32, 4, False)
    assert np.array_equal(np.float32(body["vector"]), tiny_encoder.encode(["東京"]).vectors[0])


def test_post_answers_many_vectors_in_order(client: FlaskClient, tiny_encoder: Encoder) -> None:
    """POST /embed has exactly the documented fields, duplicates and the empty string included."""
    texts = ["cat", "", "mat", "cat"]
    body = post(client, {"texts": texts}).get_json()
    assert list(body) == ["vectors", "dimension", "count", "tokens", "truncated"]
    assert (body["dimension"], body["count"]) == (32, 4)
    assert (body["tokens"], body["truncated"]) == ([3, 2, 3, 3], [False] * 4)
    assert np.array_equal(np.float32(body["vectors"]), tiny_encoder.encode(texts).vectors)


@pytest.mark.parametrize("where", ["query", "body"])
def test_options_in_the_query_or_the_body(client: FlaskClient, tiny_encoder: Encoder, where: str) -> None:
    """dimensions cuts the vector, normalize then scales it to length 1, and base64 is little-endian float32."""
    options: dict[str, Any] = {"normalize": True, "dimensions": 5, "encoding_format": "base64", "prompt_name": "query"}
    query = "?" + "&".join(f"{name}={value}" for name, value in options.items())
    texts = ["cat", "mat"]
    response = post(client, {"texts": texts, **options}) if where == "body" else post(client, {"texts": texts}, query)
    body = response.get_json()
    got = np.array([np.frombuffer(base64.b64decode(text), "<f4") for text in body["vectors"]])
    cut = tiny_encoder.encode(texts, prompt_name="query").vectors[:, :5]
    np.testing.assert_allclose(got, cut / np.linalg.norm(cut, axis=1, keepdims=True), rtol=1e-6)
    assert body["dimension"] == 5


def test_options_of_get(client: FlaskClient, tiny_encoder: Encoder) -> None:
    """GET /embed takes the same options."""
    body = client.get("/embed?q=cat&prompt=the%20&dimensions=3&normalize=0").get_json()
    expected = tiny_encoder.encode(["the cat"]).vectors[0][:3]
    assert np.array_equal(np.float32(body["vector"]), expected)
    assert body["text"] == "cat"


def test_null_counts_as_not_sent(client: FlaskClient) -> None:
    """An option that is null has no effect: some clients send every field."""
    nulls = dict.fromkeys(["normalize", "dimensions", "prompt", "prompt_name", "truncate", "encoding_format"])
    assert post(client, {"texts": ["cat"], **nulls}).get_json() == post(client, {"texts": ["cat"]}).get_json()


def test_truncation(client: FlaskClient) -> None:
    """A long text is cut and marked as truncated; truncate=false refuses it, with its place and length."""
    texts = ["cat", "the " * 100]
    body = post(client, {"texts": texts}).get_json()
    assert (body["tokens"], body["truncated"]) == ([3, 102], [False, True])
    error = error_of(post(client, {"texts": texts, "truncate": False}))
    assert (error["status"], error["param"], error["code"]) == (400, "truncate", "text_too_long")
    assert "texts[1] has 102 tokens, over the limit of 64" in error["message"]


@pytest.mark.parametrize("query", ["q=東京", "q=%E6%9D%B1%E4%BA%AC", "q=%e6%9d%b1%e4%ba%ac&normalize=false"])
def test_utf8_in_the_query(client: FlaskClient, query: str) -> None:
    """UTF-8 arrives with percent signs and, as curl sends it, without."""
    response = client.get("/embed", environ_overrides={"QUERY_STRING": query.encode().decode("latin-1")})
    assert response.get_json()["text"] == "東京"


def test_a_plus_is_a_space(client: FlaskClient) -> None:
    """A + in the query is a space, as forms write it; a plus sign comes as %2B."""
    assert client.get("/embed?q=a+b%2Bc").get_json()["text"] == "a b+c"


def test_query_and_body_contradict(client: FlaskClient) -> None:
    """An option may be in both query and body, but not with different values."""
    assert post(client, {"texts": ["a"], "dimensions": 3}, "?dimensions=3").status_code == 200
    error = error_of(post(client, {"texts": ["a"], "dimensions": 3}, "?dimensions=4"))
    assert error["message"] == "dimensions is 4 in the query and 3 in the body: give it once."


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.api+json"])
def test_json_content_types(client: FlaskClient, content_type: str) -> None:
    """A body is read under any content type of JSON."""
    assert client.post("/embed", data=b'{"texts": ["a"]}', content_type=content_type).status_code == 200


def test_the_most_texts(client: FlaskClient) -> None:
    """A request may have exactly MAX_TEXTS texts."""
    assert post(client, {"texts": ["a"] * 8}).status_code == 200


def test_an_unexpected_error_shows_nothing(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error gets 500 in the one shape; the log has the stack trace, and nothing has the text."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken inside")

    monkeypatch.setattr(Encoder, "encode", broken)
    response = client.get("/embed?q=secret")
    error = error_of(response)
    assert (error["status"], error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "broken inside" not in response.text
    assert "broken inside" in caplog.text
    assert "secret" not in caplog.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
fields = st.sampled_from(["texts", "normalize", "dimensions", "prompt", "prompt_name", "truncate", "encoding_format"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(fields, json_values | st.lists(st.text(max_size=20), max_size=3)))
def test_any_json_gets_an_answer_or_a_clear_error(client: FlaskClient, body: dict[str, Any]) -> None:
    """Whatever the fields hold, the answer is 200, or 400 or 413 in the one shape."""
    response = client.post("/embed", data=json.dumps(body), content_type="application/json")
    if response.status_code != 200:
        assert error_of(response)["status"] in (400, 413)
