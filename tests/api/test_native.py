"""The native dialect: every option, every error, the shapes of wire.md."""

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
    """The error, after a look at its shape."""
    assert response.is_json
    body = response.get_json()
    assert {*body} - {"error_type"} == {"error"}  # where a body is not read it may be TEI's dialect
    assert list(body["error"]) == ["message", "type", "param", "code"]
    return dict(body["error"], status=response.status_code)


def test_get_answers_one_vector(client: FlaskClient, tiny_encoder: Encoder) -> None:
    """GET /embed?q= has exactly the documented fields; numbers survive the JSON bit for bit."""
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
    """dimensions cuts, normalize then scales to length 1, base64 is little-endian float32."""
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


def test_null_is_not_given(client: FlaskClient) -> None:
    """Clients that send every field, with null for what they don't set, are answered."""
    nulls = dict.fromkeys(["normalize", "dimensions", "prompt", "prompt_name", "truncate", "encoding_format"])
    assert post(client, {"texts": ["cat"], **nulls}).get_json() == post(client, {"texts": ["cat"]}).get_json()


def test_truncation_is_told_or_refused(client: FlaskClient) -> None:
    """A long text is cut and said to be; truncate=false refuses it, naming the text and its length."""
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
    """Forms write a space as +; a plus sign comes as %2B."""
    assert client.get("/embed?q=a+b%2Bc").get_json()["text"] == "a b+c"


BAD_BODIES = [
    ({}, "The field texts is missing", "texts"),
    ([], "The body is a list; it must be an object", None),
    ("cat", "The body is a string; it must be an object", None),
    (None, "The body is null; it must be an object", None),
    ({"texts": "cat"}, "texts is a string; it must be a list of strings", "texts"),
    ({"texts": None}, "texts is null; it must be a list of strings", "texts"),
    ({"texts": []}, "texts is an empty list; at least one text is needed", "texts"),
    ({"texts": ["cat", 1]}, "texts[1] is a number; every item must be a string", "texts"),
    ({"texts": [["cat"]]}, "texts[0] is a list; every item must be a string", "texts"),
    ({"texts": [True]}, "texts[0] is a boolean; every item must be a string", "texts"),
    ({"texts": ["cat"], "normalise": True}, 'Unknown field "normalise"; known are texts, normalize', "normalise"),
    ({"texts": ["cat"], "normalize": "yes"}, 'normalize is "yes"; it must be true or false', "normalize"),
    ({"texts": ["cat"], "truncate": 0}, "truncate is 0; it must be true or false", "truncate"),
    ({"texts": ["cat"], "dimensions": 0}, "dimensions is 0; it must be a whole number from 1 to 32", "dimensions"),
    ({"texts": ["cat"], "dimensions": 33}, "dimensions is 33; it must be a whole number from 1 to 32", "dimensions"),
    ({"texts": ["cat"], "dimensions": 1.0}, "dimensions is 1.0; it must be a whole number", "dimensions"),
    ({"texts": ["cat"], "dimensions": True}, "dimensions is true; it must be a whole number", "dimensions"),
    ({"texts": ["cat"], "encoding_format": "hex"}, 'encoding_format is "hex"; it must be float or', "encoding_format"),
    ({"texts": ["cat"], "prompt": 1}, "prompt is 1; it must be a string", "prompt"),
    ({"texts": ["cat"], "prompt": "a" * 1001}, 'prompt is "aaaa', "prompt"),
    ({"texts": ["cat"], "prompt_name": "nope"}, "prompt_name is 'nope'; the model's prompts are", "prompt_name"),
    ({"texts": ["cat"], "prompt": "a", "prompt_name": "query"}, "prompt and prompt_name contradict", "prompt"),
    ({"texts": ["cat"], "prompt": [1, 2]}, "prompt is a list; it must be a string", "prompt"),
    ({"texts": ["cat"], "normalize": {"a": 1}}, "normalize is an object; it must be true or false", "normalize"),
    ({"texts": ["cat"], "x" * 5000: 1}, "Unknown field", "x" * 60),
]


@pytest.mark.parametrize(("body", "message", "param"), BAD_BODIES)
def test_bad_body(client: FlaskClient, body: Any, message: str, param: str | None) -> None:
    """400, with a sentence that holds the value and what is allowed."""
    response = client.post("/embed", data=json.dumps(body), content_type="application/json")
    error = error_of(response)
    assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(message)
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "The body is not JSON: "),
        (b"{", "The body is not JSON: unexpected end of data (line 1, column 2)."),
        (b'{"texts": ["\xff"]}', "The body is not UTF-8: byte 0xff at 12."),
        ('{"texts": ["東京"]}'.encode("shift_jis"), "The body is not UTF-8: byte 0x93 at 12."),
        (b'{"texts": ["\\ud83d"]}', "The body is not JSON: "),
        (b'{"texts": ["a"], "dimensions": NaN}', "The body is not JSON: "),
        (b"[" * 10_000, "The body is a list; it must be an object."),
        (b'{"texts": ["a"], "prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}", "prompt is a list; it must be"),
    ],
)
def test_not_json(client: FlaskClient, data: bytes, message: str) -> None:
    """400 for what is not JSON in UTF-8, lone surrogates and other encodings included."""
    error = error_of(client.post("/embed", data=data, content_type="application/json"))
    assert (error["status"], error["code"]) == (400, "invalid_request")
    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "The parameter q is missing"),
        ("text=a", 'Unknown parameter "text"; known are q, normalize'),
        ("q=a&q=b", 'The parameter q is given twice, as "a" and "b"'),
        ("q=%83e", "The query is not UTF-8: byte 0x83 at 0"),
        ("q=a&normalize=yes", 'normalize is "yes"; it must be true or false'),
        ("q=a&dimensions=1e1", 'dimensions is "1e1"; it must be a whole number from 1 to 32'),
        ("q=a&dimensions=" + "9" * 5000, "dimensions is "),
        ("q=a&encoding_format=", 'encoding_format is ""; it must be float or base64'),
        ("q=a" + "&normalize=1" * 200, "The query cannot be read: Max number of fields exceeded"),
    ],
)
def test_bad_query(client: FlaskClient, query: str, message: str) -> None:
    """400 for a bad query."""
    error = error_of(client.get(f"/embed?{query}"))
    assert error["status"] == 400
    assert error["message"].startswith(message)


def test_query_and_body_contradict(client: FlaskClient) -> None:
    """The same option twice is fine, with two values it is refused."""
    assert post(client, {"texts": ["a"], "dimensions": 3}, "?dimensions=3").status_code == 200
    error = error_of(post(client, {"texts": ["a"], "dimensions": 3}, "?dimensions=4"))
    assert error["message"] == "dimensions is 4 in the query and 3 in the body: give it once."


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_wrong_content_type(client: FlaskClient, content_type: str | None) -> None:
    """415, naming what was sent and what is needed."""
    error = error_of(client.post("/embed", data=b'{"texts": ["a"]}', content_type=content_type))
    assert (error["status"], error["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in error["message"]


def test_compressed_body(client: FlaskClient) -> None:
    """A Content-Encoding is refused rather than misread."""
    response = client.post("/embed", json={"texts": ["a"]}, headers={"Content-Encoding": "gzip"})
    assert error_of(response)["status"] == 415


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.api+json"])
def test_json_content_types(client: FlaskClient, content_type: str) -> None:
    """JSON by any of its names is read."""
    assert client.post("/embed", data=b'{"texts": ["a"]}', content_type=content_type).status_code == 200


def test_too_many_texts(client: FlaskClient) -> None:
    """413 over MAX_TEXTS, with the count and the limit; exactly MAX_TEXTS is fine."""
    assert post(client, {"texts": ["a"] * 8}).status_code == 200
    error = error_of(post(client, {"texts": ["a"] * 9}))
    assert (error["status"], error["param"], error["code"]) == (413, "texts", "too_many_texts")
    assert "9 items, over the limit of 8 (MAX_TEXTS)" in error["message"]


def test_body_over_the_limit(client: FlaskClient) -> None:
    """413 over MAX_BODY_BYTES."""
    error = error_of(post(client, {"texts": ["a" * 20_000]}))
    assert (error["status"], error["code"]) == (413, "request_entity_too_large")
    assert "20000 bytes (MAX_BODY_BYTES)" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nope", 404, "There is nothing at /nope; /docs lists what there is."),
        ("PUT", "/embed", 405, "PUT is not allowed at /embed, only "),
        ("POST", "/health", 405, "POST is not allowed at /health, only "),
    ],
)
def test_werkzeugs_own_errors(client: FlaskClient, method: str, path: str, status: int, message: str) -> None:
    """404 and 405 have the one shape, too, and 405 still says what is allowed."""
    response = client.open(path, method=method)
    error = error_of(response)
    assert error["status"] == status
    assert error["message"].startswith(message)
    assert ("Allow" in response.headers) == (status == 405)


def test_an_unexpected_error_shows_nothing(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with the one shape; the stack trace goes to the log, the text nowhere."""

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
