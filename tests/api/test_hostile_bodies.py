"""Bodies of junk, as large as MAX_BODY_BYTES: refused at the first mistake, before objects are built."""

import json
import re
import tracemalloc
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.routes.body import SMALL_BYTES
from app.settings import Settings

BODY_BYTES = Settings.max_body_bytes
MOST_MEMORY = 50_000_000
# Path, and the parts of a body before and after a list.
FIELDS: list[tuple[str, bytes, bytes]] = [
    ("/embed", b'{"texts":', b"}"),
    ("/embed", b'{"inputs":', b"}"),
    ("/", b'{"inputs":', b"}"),
    ("/tokenize", b'{"inputs":', b"}"),
    ("/decode", b'{"ids":', b"}"),
    ("/similarity", b'{"inputs":', b"}"),
    ("/similarity", b'{"inputs":{"source_sentence":"a","sentences":', b"}}"),
    ("/similarity", b'{"inputs":{"source_sentence":"a","sentences":["b"]},"parameters":', b"}"),
    ("/v1/embeddings", b'{"input":', b"}"),
    ("/bigquery", b'{"calls":', b"}"),
    ("/bigquery", b'{"calls":[["a"]],"userDefinedContext":', b"}"),
]
OPTIONS = [
    ("/embed", b'{"texts":["a"],"%s":' % name, b"}")
    for name in (b"normalize", b"dimensions", b"prompt_name", b"prompt", b"truncate", b"encoding_format")
]
# Items that no field accepts in its list, or only the first of them.
ITEMS = {
    "lists": b"[],",
    "lists of lists": b"[[]],",
    "objects": b'{"a":1},',
    "numbers": b"1e9,",
    "whole numbers": b"1000000000,",
    "booleans": b"true,",
    "lists and strings": b'[],"a",',
    "strings and lists": b'"a",[],',
    "strings and numbers": b'"a",1.5,',
    "two strings in a list": b'["a","a"],',
}
# Fields with valid items, of which there are far too many.
TOO_MANY = [(*field, b'"a",') for field in [*FIELDS[:4], FIELDS[6], FIELDS[8]]] + [
    (*FIELDS[1], b"[1],"),
    (*FIELDS[4], b"[1],"),
    (*FIELDS[9], b'["a"],'),
    (*FIELDS[9], b"[null],"),
]
# Path, and a field whose second item is invalid.
WRONG = [
    ("/embed", b'"texts":["a",5]'),
    ("/", b'"inputs":["a",5]'),
    ("/tokenize", b'"inputs":["a",5]'),
    ("/decode", b'"ids":[1,"a"]'),
    ("/similarity", b'"inputs":5'),
    ("/v1/embeddings", b'"input":["a",5]'),
    ("/bigquery", b'"calls":[["a"],[5]]'),
]
DEPTHS = (1000, 100_000, BODY_BYTES // 2 - 100)


def list_of(item: bytes, room: int = BODY_BYTES - 100) -> bytes:
    return b"[" + (item * (room // len(item)))[:-1] + b"]"


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.fixture(scope="module")
def client(tiny_model: Path, tiny_encoder: Encoder) -> FlaskClient:
    return create_app(Settings(model_dir=tiny_model, max_length=64), tiny_encoder).test_client()


def send(client: FlaskClient, path: str, body: bytes) -> tuple[int, str]:
    """Send a body, check that it took little memory, and return status and error message."""
    assert len(body) <= BODY_BYTES
    tracemalloc.start()
    try:
        response = client.post(path, data=body, content_type="application/json")
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    return response.status_code, response.get_json()["error"]["message"]


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS)
@pytest.mark.parametrize(("path", "before", "after"), FIELDS + OPTIONS)
def test_a_list_of_junk(client: FlaskClient, path: str, before: bytes, after: bytes, item: bytes) -> None:
    """A list of junk gets 400, and the message names the place."""
    status, message = send(client, path, before + list_of(item) + after)
    assert status == 400
    assert re.match(rf"{place(before)}(\[[01]\])* (is|has) ", message), message


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("path", "before", "after"), FIELDS + OPTIONS)
def test_deep_junk(client: FlaskClient, path: str, before: bytes, after: bytes, depth: int) -> None:
    """Deeply nested junk gets 400 for its type, before its depth matters, and the message names the place."""
    status, message = send(client, path, before + nested(depth) + after)
    assert status == 400
    assert re.match(rf"{place(before)}(\[0\])* (is|has) ", message), message


@pytest.mark.parametrize("item", [*ITEMS.values(), b'"a",', b"null,"])
@pytest.mark.parametrize(("path", "right"), WRONG)
def test_junk_in_an_unknown_field(client: FlaskClient, path: str, right: bytes, item: bytes) -> None:
    """Junk in an unknown field is skipped, or the field is named; a later mistake is still found."""
    status, message = send(client, path, b'{"u":' + list_of(item) + b"," + right + b"}")
    assert status == 400
    assert re.match(r'\w+\[1\] (is|has) |Unknown field "u"|inputs is a number', message), message


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("path", "right"), WRONG)
def test_a_deep_unknown_field(client: FlaskClient, path: str, right: bytes, depth: int) -> None:
    """Deep junk in an unknown field gets 400 for its depth, or for the field."""
    status, message = send(client, path, b'{"u":' + nested(depth) + b"," + right + b"}")
    assert status == 400
    assert re.match(r'The body is nested too deep: |Unknown field "u"', message), message


@pytest.mark.parametrize("name", ["plain", "escaped"])
@pytest.mark.parametrize(
    ("path", "before", "item"),
    [
        ("/embed", b"{", b'"texts":[],'),
        ("/embed", b"{", b'"inputs":[],'),
        ("/v1/embeddings", b"{", b'"input":[],'),
        ("/bigquery", b"{", b'"calls":[],'),
        ("/similarity", b'{"inputs":{', b'"sentences":[],'),
        ("/similarity", b"{", b'"inputs":{"source_sentence":"a","sentences":[]},'),
    ],
)
def test_a_repeated_field(client: FlaskClient, path: str, before: bytes, item: bytes, name: str) -> None:
    """A field that is repeated thousands of times gets 400, without building it each time, which took seconds."""
    if name == "escaped":
        item = re.sub(rb'^"(\w)', lambda found: b'"\\u%04x' % ord(found[1]), item)
    body = before + item * ((BODY_BYTES - 1000) // len(item))
    body = body[:-1] + b"}" * before.count(b"{")
    status, message = send(client, path, body)
    assert status == 400
    assert re.fullmatch(r'The body has "\w+" more than 2049 times: send the field once\.', message), message


def test_texts_that_equal_the_field(client: FlaskClient) -> None:
    """Texts that contain the name of the field, quoted or escaped, don't count as repeated fields."""
    texts = ["texts"] * (Settings.max_texts - 2) + [" " * SMALL_BYTES]
    escaped = r"\\u0074exts \u0060 \u007f \\\"texts\\\" \"texts\" " * 3000
    body = f'{{"texts": {json.dumps(texts)[:-1]}, "{escaped}"]}}'
    response = client.post("/embed", data=body, content_type="application/json")
    assert response.status_code == 200, response.get_json()
    assert response.get_json()["count"] == Settings.max_texts


@pytest.mark.parametrize(("path", "before", "after", "item"), TOO_MANY)
def test_far_too_many(client: FlaskClient, path: str, before: bytes, after: bytes, item: bytes) -> None:
    """A million valid items get 413, and no more than MAX_TEXTS are built."""
    status, message = send(client, path, before + list_of(item) + after)
    assert status == 413
    assert message == f"{place(before)} has more items than the limit of 2048 (MAX_TEXTS): send fewer at once."


@pytest.mark.parametrize("data", ["a", "é", "東", "😀a"])
def test_one_long_string(client: FlaskClient, data: str) -> None:
    """A string of the maximum size takes little memory, although Python needs up to four bytes a character."""
    text = data.encode() * ((BODY_BYTES - 100) // len(data.encode()))
    status, message = send(client, "/embed", b'{"u":"' + text + b'"}')
    assert (status, message[:17]) == (400, 'Unknown field "u"')


def place(before: bytes) -> str:
    """Return the name of the place in error messages; options have their name alone."""
    names = re.findall(r'"(\w+)":', before.decode())
    return "inputs.sentences" if names[-1] == "sentences" else names[-1]
