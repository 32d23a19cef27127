"""Every route is asked for every failure that it can have: the right status, the one shape, a sentence that helps."""

import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.engine.model_folder import sha256
from app.settings import Settings
from tests.server.test_load import MANY, clients, connect
from tests.support import ROOT
from tests.support.model import open_encoder
from tests.support.server import Server

Start = Callable[..., Server]
Route = tuple[str, str]

OPENAPI = yaml.safe_load((ROOT / "app/openapi.yml").read_text())
DOCUMENTED: dict[Route, set[int]] = {
    (method.upper(), path): {int(status) for status in operation["responses"]}
    for path, operations in OPENAPI["paths"].items()
    for method, operation in operations.items()
}
# A right request for every route.
RIGHT: dict[Route, tuple[str, Any]] = {
    ("GET", "/embed"): ("/embed?q=cat", None),
    ("POST", "/embed"): ("/embed", {"texts": ["cat"]}),
    ("POST", "/v1/embeddings"): ("/v1/embeddings", {"input": ["cat"]}),
    ("GET", "/v1/models"): ("/v1/models", None),
    ("GET", "/v1/models/{model}"): ("/v1/models/tiny", None),
    ("POST", "/similarity"): ("/similarity", {"inputs": {"source_sentence": "cat", "sentences": ["cat"]}}),
    ("POST", "/tokenize"): ("/tokenize", {"inputs": ["cat"]}),
    ("POST", "/decode"): ("/decode", {"ids": [5, 6]}),
    ("GET", "/info"): ("/info", None),
    ("POST", "/bigquery"): ("/bigquery", {"calls": [["cat"]]}),
    ("POST", "/"): ("/", {"inputs": ["cat"]}),
    **{("GET", path): (path, None) for path in "/ /healthz /health /readyz /metrics /docs /openapi.json".split()},
}
READS_JSON = [route for route in RIGHT if route[0] == "POST"]
WAITS_FOR_A_SLOT = [("GET", "/embed"), *READS_JSON]
# Without a key, as OPENAPI has them.
OPEN = [
    (method.upper(), path)
    for path, operations in OPENAPI["paths"].items()
    for method, operation in operations.items()
    if operation.get("security") == [{}]
]
# What any request may get before it is known for which route it is.
ANYWHERE = {400, 404, 405, 408, 414, 417, 429, 431}
# Documented, and asked for by no row: ids are checked, and there is no vocabulary that the library fails to decode.
NEVER = {(("POST", "/decode"), 500)}
# /readyz answers 503 in its own shape: tests/api/test_ops.py.
OWN_SHAPE = {(("GET", "/readyz"), 503)}

TEI_ROUTES = ("/", "/similarity", "/tokenize", "/decode", "/info")
TEI_TYPES = {429: "Overloaded", 500: "Backend", 503: "Unhealthy"}
TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
HEADERS = {401: "www-authenticate", 405: "allow", 429: "retry-after", 503: "retry-after"}
JSON = {"Content-Type": "application/json"}
UNREAD = {401, 408, 415, 429}
LONG = "the " * 100
TOO_LONG = "has 102 tokens, over the limit of 64 (MAX_LENGTH), and truncate is false: shorten it, or allow truncation."
SNOWMAN = "☃"


@dataclass(frozen=True)
class Row:
    """A request and the failure that it must get; "…" in the message stands for anything.

    body: bytes are sent as they are, everything else as JSON. client: the fixture that is asked.
    """

    route: Route
    message: str
    param: str | None = None
    body: Any = None
    status: int = 400
    code: str = "invalid_request"
    path: str = ""
    headers: Mapping[str, str] | None = None
    client: str = "plain"

    @property
    def sent(self) -> bytes:
        body = RIGHT[self.route][1] if self.body is None and self.route in RIGHT else self.body
        return body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()

    @property
    def url(self) -> str:
        return self.path or RIGHT[self.route][0]


@dataclass
class Answer:
    """headers: their names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


def check(answer: Answer, row: Row, *, is_parsed: bool = True) -> None:
    """The answer is the row's failure, in the one shape with what the route's clients need, and says nothing else.

    is_parsed: whether the server could know the route.
    """
    assert (answer.status, answer.headers["content-type"]) == (row.status, "application/json"), answer.body
    assert re.fullmatch(r"[\w.:+/=-]{1,128}", answer.headers["x-request-id"])
    assert HEADERS.get(row.status, "content-type") in answer.headers
    content = json.loads(answer.body)
    error = content["error"]
    assert list(error) == ["message", "type", "param", "code"]
    message = error["message"]
    assert re.fullmatch(re.escape(row.message).replace("…", ".*"), message), message
    assert (error["param"], error["code"]) == (row.param, row.code)
    assert error["type"] == TYPES.get(row.status, "invalid_request_error")
    extra: dict[str, str] = {}
    # POST /embed is TEI's, too: until its body is read, and if it has inputs.
    is_embed = row.route == ("POST", "/embed") and (
        b'{"inputs"' in row.sent or row.status in UNREAD or " body " in message
    )
    if is_parsed and (row.route[1] in TEI_ROUTES or is_embed):
        extra["error_type"] = TEI_TYPES.get(row.status, "Validation")
    elif is_parsed and row.route[1] == "/bigquery":
        extra["errorMessage"] = message
    assert {**content, "error": None} == {"error": None, **extra}
    assert re.fullmatch(r"[A-Za-z].*\.", message) and len(message) <= 300, message
    for not_for_clients in ("Traceback", "<", "Error:", " object at ", "\n", str(ROOT)):
        assert not_for_clients not in message
    if row.route in DOCUMENTED:
        assert row.status in DOCUMENTED[row.route] | ANYWHERE


# -- What one request is wrong with


def rows() -> list[Any]:
    """All rows that need no real server, as parameters of a test."""
    tables = (not_json, texts, options, ids, named_twice, others, queries, elsewhere, without_a_key, not_ready, faults)
    return [
        pytest.param(row, id=f"{table.__name__}-{''.join(row.route)}-{number}")
        for table in tables
        for number, row in enumerate(table())
    ]


def not_json() -> Iterator[Row]:
    """Bodies that are no JSON object, by their bytes or by their headers."""
    bodies: list[tuple[bytes, str]] = [
        (b"", "The body is not JSON: unexpected end of data (line 1, column 1)."),
        (b"{", "The body is not JSON: unexpected end of data (line 1, column 2)."),
        (b'{"a": NaN}', "The body is not JSON: … (line 1, column 7)."),
        (b'{"a": ["\\ud83d"]}', "The body is not JSON: half of a surrogate pair in a string (line 1, column 9)."),
        (b'{"a": ["\\udc00"]}', "The body is not JSON: …surrogate… (line 1, column …)."),
        (b"[" * 10_000, "The body is a list; it must be an object."),
        (b"\xef\xbb\xbf{}", "The body is not JSON: … (line 1, column 1)."),
        (b'{"a": ["\xff"]}', "The body is not UTF-8: byte 0xff at 8."),
        ('{"a": ["東京"]}'.encode("shift_jis"), "The body is not UTF-8: byte 0x93 at 8."),
        ("{}".encode("utf-16"), "The body is not UTF-8: byte 0xff at 0."),
        (b"[]", "The body is a list; it must be an object."),
        (b'"cat"', "The body is a string; it must be an object."),
        (b"5.5", "The body is a number; it must be an object."),
        (b"true", "The body is a boolean; it must be an object."),
        (b"null", "The body is null; it must be an object."),
    ]
    types = {
        "": "The Content-Type is missing: send JSON with Content-Type: application/json.",
        "text/plain": 'The Content-Type is "text/plain": send JSON with Content-Type: application/json.',
        "multipart/form-data; boundary=a": 'The Content-Type is "multipart/form-data": send JSON with …',
        "x" * 5000: 'The Content-Type is "xxx…: send JSON with Content-Type: application/json.',
    }
    for route in READS_JSON:
        for data, message in bodies:
            yield Row(route, message, body=data)
        for kind, message in types.items():
            headers = {"Content-Type": kind} if kind else {}
            yield Row(route, message, status=415, code="unsupported_media_type", headers=headers)
        for encoding, data in (("gzip", gzip.compress(b"{}")), ("br", b"{}")):
            message = f'The Content-Encoding is "{encoding}": send the JSON uncompressed.'
            headers = {**JSON, "Content-Encoding": encoding}
            yield Row(route, message, body=data, status=415, code="unsupported_media_type", headers=headers)
        message = "The body has 20001 bytes, over the limit of 20000 bytes (MAX_BODY_BYTES): send fewer texts at once."
        yield Row(route, message, body=b" " * 20_001, status=413, code="request_entity_too_large")


# Where a list of texts may stand: the route, the list's name, what else is allowed, the request's body.
TEXTS: list[tuple[str, str, str, Callable[[Any], Any]]] = [
    ("/embed", "texts", "", lambda value: {"texts": value}),
    ("/embed", "inputs", "a string or ", lambda value: {"inputs": value}),
    ("/", "inputs", "a string or ", lambda value: {"inputs": value}),
    ("/tokenize", "inputs", "a string or ", lambda value: {"inputs": value}),
    ("/v1/embeddings", "input", "a string or ", lambda value: {"input": value}),
    ("/similarity", "inputs.sentences", "", lambda value: {"inputs": {"source_sentence": "a", "sentences": value}}),
]


def texts() -> Iterator[Row]:
    """Lists of texts that are none."""
    kinds: list[tuple[Any, str]] = [(5, "a number"), (True, "a boolean"), (None, "null"), ({"b": 1}, "an object")]
    for path, name, alternative, body in TEXTS:
        route = ("POST", path)
        for value, kind in kinds + ([] if alternative else [("cat", "a string")]):
            if path != "/" or not isinstance(value, dict):  # these are similarities
                yield Row(route, f"{name} is {kind}; it must be {alternative}a list of strings.", name, body(value))
        for value, kind in [*kinds, (["a"], "a list")]:
            yield Row(route, f"{name}[1] is {kind}; every item must be a string.", name, body(["a", value]))
        yield Row(route, f"{name} is an empty list; at least one text is needed.", name, body([]))
        message = f"{name} has 9 items, over the limit of 8 (MAX_TEXTS): send fewer at once."
        yield Row(route, message, name, body(["a"] * 9), 413, "too_many_texts")
        if path == "/tokenize":  # it truncates nothing
            continue
        option = {"truncate": False}
        given = body(["a", LONG]) | ({"parameters": option} if path == "/similarity" else option)
        yield Row(route, f"{name}[1] {TOO_LONG}", "truncate", given, code="text_too_long")
    for route in READS_JSON:
        (name,) = RIGHT[route][1]
        yield Row(route, f"The field {name} is missing….", name, {})


# Where options may stand: the route, a right request, and the field that has them.
OPTIONS: list[tuple[str, Any, str | None]] = [
    ("/embed", {"texts": ["a"]}, None),
    ("/embed", {"inputs": ["a"]}, None),
    ("/", {"inputs": "a"}, None),
    ("/v1/embeddings", {"input": "a"}, None),
    ("/tokenize", {"inputs": "a"}, None),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "parameters"),
    ("/bigquery", {"calls": [["a"]]}, "userDefinedContext"),
]


def options() -> Iterator[Row]:
    """Options with wrong values."""
    known = "the model's prompts are: 'query', 'document'."
    wrong: list[tuple[str, Any, str]] = [
        ("normalize", "yes", 'normalize is "yes"; it must be true or false.'),
        ("normalize", 1, "normalize is 1; it must be true or false."),
        ("truncate", [True], "truncate is a list; it must be true or false."),
        ("dimensions", 0, "dimensions is 0; it must be a whole number from 1 to 32."),
        ("dimensions", -1, "dimensions is -1; it must be a whole number from 1 to 32."),
        ("dimensions", 33, "dimensions is 33; it must be a whole number from 1 to 32."),
        ("dimensions", 1.5, "dimensions is 1.5; it must be a whole number from 1 to 32."),
        ("dimensions", True, "dimensions is true; it must be a whole number from 1 to 32."),
        ("dimensions", "all", 'dimensions is "all"; it must be a whole number from 1 to 32.'),
        ("dimensions", 10**30, "dimensions is 1e+30; it must be a whole number from 1 to 32."),
        ("prompt", {"a": 1}, "prompt is an object; it must be a string of at most 1000 characters."),
        ("prompt", "a" * 1001, 'prompt is "aaa…; it must be a string of at most 1000 characters.'),
        ("prompt_name", 5, "prompt_name is 5; it must be a string of at most 1000 characters."),
        ("prompt_name", "nope", f"prompt_name is 'nope'; {known}"),
        ("prompt_name", "n" * 999, f"prompt_name is '{'n' * 60}…'; {known}"),
        ("encoding_format", "hex", 'encoding_format is "hex"; it must be float or base64.'),
        ("encoding_format", 64, "encoding_format is 64; it must be float or base64."),
    ]
    left = "; only Right is possible: a text keeps its beginning."
    tei = [
        ("truncation_direction", "Left", f'truncation_direction is "Left"{left}'),
        ("truncation_direction", 5, f"truncation_direction is 5{left}"),
    ]
    for path, body, place in OPTIONS:
        route = ("POST", path)
        has_direction = "inputs" in body and path != "/tokenize"
        for name, value, message in wrong + (tei if has_direction else []):
            if path == "/bigquery" and name == "encoding_format":
                continue
            given = {name: value}
            yield Row(route, message, name, {**body, **({place: given} if place else given)})
        both = {"prompt": "a", "prompt_name": "query"}
        message = "prompt and prompt_name contradict each other: give one of them."
        yield Row(route, message, "prompt", {**body, **({place: both} if place else both)})
    message = 'Unknown field "inputs"; known are texts, normalize, …'
    yield Row(("POST", "/embed"), message, "inputs", {"texts": ["a"], "inputs": ["a"]})
    message = f'Unknown field "{"x" * 40}…; known are texts, normalize, …'
    yield Row(("POST", "/embed"), message, "x" * 60, {"texts": ["a"], "x" * 5000: 1})
    message = 'Unknown field "a"; known are texts, normalize, …'
    yield Row(("POST", "/embed"), message, "a", {"texts": ["a"], "a` - at `$.b": 1})
    yield Row(("POST", "/embed"), message, "a", {"texts": ["a"], "a - at `$.b": 1})
    message = 'Unknown parameter "q"; known are normalize, …'
    yield Row(("POST", "/embed"), message, "q", path="/embed?q=a")
    message = "dimensions is 4 in the query and 3 in the body: give it once."
    body = {"texts": ["a"], "dimensions": 3}
    yield Row(("POST", "/embed"), message, "dimensions", body, path="/embed?dimensions=4")


def ids() -> Iterator[Row]:
    """Token ids that are none, or none of the model's."""
    for path, name in (("/", "inputs"), ("/embed", "inputs"), ("/decode", "ids")):
        route = ("POST", path)
        one: list[tuple[Any, str]] = [(-1, "-1"), (210, "210"), (2**63, str(2**63)), (2**64, "1.8446744073709552e+19")]
        for value, shown in [*one, (2.5, "2.5"), (True, "true"), ("a", '"a"'), (None, "null"), ([5], "a list")]:
            message = f"[1] is {shown}; it must be a token id, a whole number from 0 to 209."
            yield Row(route, name + message, name, {name: [5, value]})
            yield Row(route, f"{name}[1]{message}", name, {name: [[5], [5, value]]})
        for value, kind in (([], "an empty list"), ("a", "a string"), (5, "a number"), (None, "null")):
            message = f"{name}[1] is {kind}; it must be a list of token ids."
            yield Row(route, message, name, {name: [[5], value]})
        message = f"{name} has 9 items, over the limit of 8 (MAX_TEXTS): send fewer at once."
        yield Row(route, message, name, {name: [[5]] * 9}, 413, "too_many_texts")
        if path != "/decode":
            for value, place in (([5] * 102, "inputs[0]"), ([[5], [5] * 102], "inputs[1]")):
                given = {name: value, "truncate": False}
                yield Row(route, f"{place} {TOO_LONG}", "truncate", given, code="text_too_long")
    for value, kind in ((None, "null"), (5, "a number"), ("a", "a string"), ([], "an empty list"), ({}, "an object")):
        message = f"ids is {kind}; it must be a list of token ids, or a list of such lists."
        yield Row(("POST", "/decode"), message, "ids", {"ids": value})
    openai = (
        "input has token ids, and they are another tokenizer's than this model's: send strings (LangChain: …), or …."
    )
    for value in ([5], [[5]]):
        yield Row(("POST", "/v1/embeddings"), openai, "input", {"input": value})
    for value in ([[]], [["a"]], [["a"], [5]]):
        message = "input[0] is a list; every item must be a string."
        yield Row(("POST", "/v1/embeddings"), message, "input", {"input": value})
    message = "inputs[0] is a number; every item must be a string."
    yield Row(("POST", "/tokenize"), message, "inputs", {"inputs": [5, 6]})


def named_twice() -> Iterator[Row]:
    """Fields that come twice: the first value is wrong, the last one is another or no value at all."""
    token = "it must be a token id, a whole number from 0 to 209."
    yield Row(("POST", "/"), f"inputs[1] is a string; {token}", "inputs", b'{"inputs":[5,"a"],"inputs":[5]}')
    yield Row(("POST", "/"), f"inputs[1] is null; {token}", "inputs", b'{"inputs":[5,null],"inputs":[5,[6]]}')
    inputs = b'{"inputs":{"source_sentence":"a","sentences":["b"]},'
    for last in (b"{}", b"[]", b"5", b'{"normalize":[5]}'):
        body = inputs + b'"parameters":{"normalize":5},"parameters":' + last + b"}"
        yield Row(("POST", "/similarity"), "normalize is a number; it must be true or false.", "normalize", body)
    message = "calls[0] has many arguments; the function takes one argument: FUNCTION(text STRING)."
    yield Row(("POST", "/bigquery"), message, "calls", b'{"calls":[[]],"calls":5}')


def others() -> Iterator[Row]:
    """What only one route has."""
    flags = {"/tokenize": "add_special_tokens", "/decode": "skip_special_tokens"}
    for path, flag in flags.items():
        for value, shown in (("no", '"no"'), (0, "0"), ({}, "an object")):
            body = {**RIGHT["POST", path][1], flag: value}
            yield Row(("POST", path), f"{flag} is {shown}; it must be true or false.", flag, body)

    openai = ("POST", "/v1/embeddings")
    yield Row(openai, "model is a number; it must be a string.", "model", {"input": "a", "model": 5})

    given: list[tuple[Any, str]] = [(None, "null"), (5, "a number"), (["a"], "a list")]
    for value, kind in given:
        message = f'inputs is {kind}; it must be {{"source_sentence": "…", "sentences": ["…"]}}.'
        yield Row(("POST", "/similarity"), message, "inputs", {"inputs": value})
        for path in ("/similarity", "/"):
            message = f"inputs.source_sentence is {kind}; it must be a string."
            yield Row(("POST", path), message, "inputs", {"inputs": {"source_sentence": value, "sentences": ["a"]}})
    many = {"inputs": {"source_sentence": "a", "sentences": ["a"] * 8}}
    message = "inputs has 9 texts, over the limit of 8 (MAX_TEXTS): send fewer at once."
    yield Row(("POST", "/similarity"), message, "inputs", many, 413, "too_many_texts")
    body = {"inputs": {"source_sentence": LONG, "sentences": ["a"]}, "parameters": {"truncate": False}}
    yield Row(("POST", "/similarity"), f"inputs.source_sentence {TOO_LONG}", "truncate", body, code="text_too_long")

    falsy: list[tuple[Any, str]] = [([], "a list"), (0, "a number"), ("", "a string"), (False, "a boolean")]
    for path, name in (("/similarity", "parameters"), ("/bigquery", "userDefinedContext")):
        for value, kind in falsy:
            body = RIGHT["POST", path][1] | {name: value}
            yield Row(("POST", path), f"{name} is {kind}; it must be an object.", name, body)

    bigquery = ("POST", "/bigquery")
    for calls, kind in ((None, "null"), (5, "a number"), ({}, "an object")):
        message = f"calls is {kind}; it must be a list of the arguments of each call."
        yield Row(bigquery, message, "calls", {"calls": calls})
    for call, found in (("a", "a string"), ([], "0 arguments"), (["a", "b"], "2 arguments"), (None, "null")):
        message = f"calls[1] has {found}; the function takes one argument: FUNCTION(text STRING)."
        yield Row(bigquery, message, "calls", {"calls": [["a"], call]})
    for argument, kind in ((5, "a number"), (["a"], "a list"), (True, "a boolean")):
        message = f"calls[1] has {kind}; the argument must be a STRING or NULL."
        yield Row(bigquery, message, "calls", {"calls": [[None], [argument]]})
    message = "calls has 9 items, over the limit of 8 (MAX_TEXTS): send fewer at once."
    yield Row(bigquery, message, "calls", {"calls": [["a"]] * 9}, 413, "too_many_texts")
    for name in ("mode", "encoding_format"):
        message = f'user_defined_context has "{name}"; known are normalize, dimensions, prompt_name, prompt, truncate.'
        body = {"calls": [["a"]], "userDefinedContext": {name: "a"}}
        yield Row(bigquery, message, "userDefinedContext", body)
    for first in ("a", None):
        body = {"calls": [[first], [LONG]], "userDefinedContext": {"truncate": "false"}}
        yield Row(bigquery, f"calls[1] {TOO_LONG}", "truncate", body, code="text_too_long")


def queries() -> Iterator[Row]:
    """GET /embed's parameters; POST /embed has the same but q."""
    known = "known are q, normalize, dimensions, prompt_name, prompt, truncate, encoding_format."
    for query, param, message in (
        ("", "q", "The parameter q is missing: GET /embed?q=TEXT."),
        ("text=a", "text", f'Unknown parameter "text"; {known}'),
        ("q=a&" + "x" * 999 + "=1", "x" * 60, f'Unknown parameter "{"x" * 40}…; {known}'),
        ("q=a&q=b", "q", 'The parameter q is given twice, as "a" and "b".'),
        ("q=%83e", None, "The query is not UTF-8: byte 0x83 at 0."),
        ("q=%ed%a0%bd", None, "The query is not UTF-8: byte 0xed at 0."),
        ("q=a" + "&normalize=1" * 100, None, "The query cannot be read: …."),
        ("q=a&normalize=yes", "normalize", 'normalize is "yes"; it must be true or false.'),
        ("q=a&truncate=", "truncate", 'truncate is ""; it must be true or false.'),
        ("q=a&dimensions=33", "dimensions", "dimensions is 33; it must be a whole number from 1 to 32."),
        ("q=a&dimensions=-1", "dimensions", 'dimensions is "-1"; it must be a whole number from 1 to 32.'),
        ("q=a&dimensions=" + "9" * 999, "dimensions", 'dimensions is "999…; it must be a whole number from 1 to 32.'),
        ("q=a&encoding_format=hex", "encoding_format", 'encoding_format is "hex"; it must be float or base64.'),
        ("q=a&prompt=" + "a" * 1001, "prompt", 'prompt is "aaa…; it must be a string of at most 1000 characters.'),
        ("q=a&prompt_name=nope", "prompt_name", "prompt_name is 'nope'; the model's prompts are: 'query', 'document'."),
        ("q=a&prompt=a&prompt_name=query", "prompt", "prompt and prompt_name contradict each other: give one of them."),
    ):
        yield Row(("GET", "/embed"), message, param, path=f"/embed?{query}")
    path = f"/embed?truncate=0&q={LONG.replace(' ', '+')}"
    yield Row(("GET", "/embed"), f"q {TOO_LONG}", "truncate", path=path, code="text_too_long")
    message = "q has 100001 characters without white space, over the limit of 100000: split it into several."
    yield Row(("GET", "/embed"), message, path=f"/embed?q={'a' * 100_001}", code="text_too_long")


def elsewhere() -> Iterator[Row]:
    """Paths and methods that are none."""
    for path in (
        "/nope",
        "/embed/",
        "/v1",
        "/bigquery/a",
        "/docs/assets/nope",
        "/docs/assets/../docs.py",
        "/EMBED",
        "/docs//embed",
    ):
        message = f"There is nothing at {path}; /docs lists what there is."
        yield Row(("GET", "other"), message, status=404, code="not_found", path=path)
    message = f"There is nothing at /{'x' * 59}…; /docs lists what there is."
    yield Row(("GET", "other"), message, status=404, code="not_found", path="/" + "x" * 3000)
    model = ("GET", "/v1/models/{model}")
    for asked, shown in (("nope", "'nope'"), ("a//b", "'a//b'"), ("%E6%9D%B1", "'東'"), ("x" * 999, f"'{'x' * 60}'")):
        message = f"There is no model {shown} here; the one that is served is 'tiny'."
        yield Row(model, message, "model", None, 404, "model_not_found", f"/v1/models/{asked}")
    for path in {path for _, path in RIGHT}:
        methods = {method for method, other in RIGHT if other == path}
        allowed = ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))
        for method in {"PUT", "DELETE", "GET", "POST"} - methods:
            url = path.replace("{model}", "tiny")
            message = f"{method} is not allowed at {url}, only {allowed}."
            yield Row((method, path), message, None, b"", 405, "method_not_allowed", url)


def without_a_key() -> Iterator[Row]:
    """Routes that want a key; what they may and may not take for one: tests/api/test_access.py."""
    message = "The API key is missing or wrong: send one of the server's with Authorization: Bearer KEY."
    for route in RIGHT:
        if route not in OPEN:
            yield Row(route, message, status=401, code="invalid_api_key", client="guarded")


def not_ready() -> Iterator[Row]:
    """Routes that compute, where the self-check failed."""
    for route in WAITS_FOR_A_SLOT:
        if route[1] not in ("/tokenize", "/decode"):
            message = "The self-check failed: … (cosine …, at least 0.999 is needed)."
            yield Row(route, message, status=503, code="not_ready", client="unready")


def faults() -> Iterator[Row]:
    """Routes that have texts, where the tokenizer fails."""
    message = "Something went wrong inside the server; its log says what."
    for route in WAITS_FOR_A_SLOT:
        path, body = json.loads(json.dumps(RIGHT[route]).replace("cat", SNOWMAN))
        if route[1] != "/decode":
            yield Row(route, message, None, body, 500, "internal_error", path, client="faulty")


def app_client(encoder: Encoder, **settings: Any) -> FlaskClient:
    return create_app(Settings(max_length=64, **settings), encoder).test_client()


@pytest.fixture(scope="module")
def plain(tiny_encoder: Encoder) -> FlaskClient:
    return app_client(tiny_encoder, max_texts=8, max_body_bytes=20_000)


@pytest.fixture(scope="module")
def guarded(tiny_encoder: Encoder) -> FlaskClient:
    """A client of a server with an API key."""
    return app_client(tiny_encoder, api_key=("key",))


@pytest.fixture(scope="module")
def unready(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FlaskClient:
    """A client of a server whose model gives another vector than where it was built."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("unready") / "model")
    change(folder, golden={"vectors": {"model_int8.onnx": [1.0] * 32}})
    return app_client(open_encoder(folder))


@pytest.fixture(scope="module")
def faulty(tiny_model: Path, tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> FlaskClient:
    """A client of a server whose tokenizer has no token for what it does not know."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("faulty") / "model")
    file = folder / "tokenizer/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["unk_token"] = "[NONE]"
    file.write_text(json.dumps(tokenizer))
    golden = {"text": "cat", "vectors": {"model_int8.onnx": tiny_encoder.encode(["cat"]).vectors[0].tolist()}}
    change(folder, golden=golden, files={"tokenizer/tokenizer.json": sha256(file)})
    return app_client(open_encoder(folder))


def change(model: Path, **fields: dict[str, Any]) -> None:
    """Write other values into a model folder's manifest."""
    manifest = json.loads((model / "manifest.json").read_text())
    for name, values in fields.items():
        manifest[name] |= values
    (model / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("row", rows())
def test_a_wrong_request(row: Row, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    """It gets its failure, and the next request its answer."""
    client: FlaskClient = request.getfixturevalue(row.client)
    headers = JSON if row.headers is None else row.headers
    response = client.open(row.url, method=row.route[0], data=row.sent or None, headers=headers)
    answer = Answer(response.status_code, {name.lower(): value for name, value in response.headers}, response.data)
    check(answer, row)
    if row.status == 500:
        assert "Traceback" in caplog.text and SNOWMAN not in caplog.text
    path = "/health" if row.client in ("guarded", "unready") else "/embed?q=cat"
    assert client.get(path).status_code == 200


# -- What the server, the connection or the time is wrong with: real servers


def request_of(route: Route, *, head: str = "", body: bytes | None = None, length: int | None = None) -> bytes:
    """The bytes of a right request, with other lines in its head, or another body."""
    path, right = RIGHT[route]
    data = body if body is not None else json.dumps(right).encode() if right else b""
    if right and "Transfer-Encoding" not in head:
        head += f"Content-Length: {length or len(data)}\r\n"
    kind = "Content-Type: application/json\r\n" if right else ""
    return f"{route[0]} {path} HTTP/1.1\r\nHost: a\r\n{kind}{head}\r\n".encode() + data


def answer_of(connection: socket.socket) -> Answer:
    """The next answer on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def ask(server: Server, data: bytes, *, is_last: bool = False) -> Answer:
    with connect(server) as connection:
        connection.sendall(data)
        if is_last:
            connection.shutdown(socket.SHUT_WR)
        return answer_of(connection)


def named(routes: list[Route]) -> list[Any]:
    return [pytest.param(route, id="".join(route)) for route in routes]


class Stalled:
    """A server, and requests that stopped in the middle: nothing more will come."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.connections: dict[Any, socket.socket] = {}
        self._stack = stack
        for route in RIGHT:
            whole = request_of(route)
            self._send(route, whole[: -1 if whole.endswith(b"}") else -2])
        self._send("large", request_of(("POST", "/embed"), length=99_999))
        self._send("chunked", request_of(("POST", "/embed"), head=CHUNKED, body=b"20\r\n{"))

    def _send(self, name: Any, data: bytes) -> None:
        connection = self.connections[name] = self._stack.enter_context(connect(self.server))
        connection.sendall(data)


CHUNKED = "Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def stalled(start: Start, tiny_model: Path) -> Iterator[Stalled]:
    """They have 10 seconds, in which the other tests of the same server run."""
    with ExitStack() as stack:
        yield Stalled(start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_BODY_BYTES=100_000).wait_until_ready(), stack)


@pytest.fixture
def server(stalled: Stalled) -> Server:
    return stalled.server


@pytest.mark.parametrize("route", named(READS_JSON))
@pytest.mark.parametrize(
    ("head", "body", "length", "message"),
    [
        ("", b'{"a": 1', 100, "The body ends after 7 of 100 bytes (Content-Length)."),
        ("", b"{" * 70_000, 99_999, "The body ends after 70000 of 99999 bytes (Content-Length)."),
        (CHUNKED, b"ZZZ\r\n\r\n", None, "The body cannot be read: Invalid chunk size: b'ZZZ'."),
        (CHUNKED, b"-1\r\n\r\n", None, "The body cannot be read: Invalid chunk size: b'-1'."),
        (CHUNKED, b"2\r\n{}XX\r\n", None, "The body cannot be read: Invalid chunk terminator is not …: b'XX'."),
        (CHUNKED, b"9\r\n{", None, "The body ends before its last chunk."),
        (CHUNKED, b"2\r\n{}\r\n", None, "The body ends before its last chunk."),
        (CHUNKED, b"", None, "The body ends before its last chunk."),
    ],
)
def test_a_body_that_breaks_off(
    server: Server, route: Route, head: str, body: bytes, length: int | None, message: str
) -> None:
    """What is not all there, or wrongly chunked, is not taken for a request."""
    data = request_of(route, head=head, body=body, length=length)
    check(ask(server, data, is_last=True), Row(route, message))
    assert ask(server, request_of(route)).status == 200


@pytest.mark.parametrize("route", named(READS_JSON))
def test_a_chunked_body_over_the_limit(server: Server, route: Route) -> None:
    """413, although no length has warned of it."""
    body = b"100001\r\n" + b" " * 0x100001 + b"\r\n0\r\n\r\n"
    message = "The body …over the limit of 100000 bytes (MAX_BODY_BYTES)…."
    row = Row(route, message, status=413, code="request_entity_too_large")
    check(ask(server, request_of(route, head=CHUNKED, body=body)), row)


@pytest.mark.parametrize(
    ("old", "new", "status", "message"),
    [
        (" HTTP/1.1", " HTTP/9.9", 400, "The request cannot be read: Invalid HTTP Version: (9, 9)."),
        ("Host", "Ho st", 400, "The request cannot be read: Invalid HTTP header name: 'Ho st'."),
        ("Host: a", "Host: a\r\nContent-Length: -1", 400, "The request cannot be read: …CONTENT-LENGTH…."),
        (" HTTP/1.1", f"?{'a' * 9000} HTTP/1.1", 414, "The URL is over the limit of 8190 bytes: … POST /embed."),
        ("Host: a", f"Host: {'a' * 9000}", 431, "The headers are over the limit of 100 fields, or of 8190 bytes in …."),
        ("Host: a", "Host: a" + "\r\nA: a" * 100, 431, "The headers are over the limit of 100 fields, or of …."),
        ("Host: a", "Host: a\r\nExpect: more", 417, "The request cannot be read: … expectation: 'more'."),
    ],
)
def test_what_is_not_http(server: Server, old: str, new: str, status: int, message: str) -> None:
    """What Gunicorn refuses has the one shape, too; that comes before it is known which route is meant."""
    for route in RIGHT:
        row = Row(route, message, status=status, code=HTTPStatus(status).name.lower())
        check(ask(server, request_of(route).replace(old.encode(), new.encode(), 1)), row, is_parsed=False)
        assert ask(server, request_of(route)).status == 200


def test_a_long_line_that_is_not_http(server: Server) -> None:
    """It is quoted as far as it tells what is wrong."""
    answer = ask(server, request_of(("GET", "/health")).replace(b"Host", b"a " * 4000, 1))
    assert answer.status == 400
    assert len(json.loads(answer.body)["error"]["message"]) < 300


def test_a_host_that_is_none(server: Server) -> None:
    """A name that no host can have is the client's fault, and is said so."""
    row = Row(
        ("GET", "/info"), "The request cannot be read: its Host, or another header, is malformed.", code="bad_request"
    )
    check(ask(server, request_of(row.route).replace(b"Host: a", b"Host: " + b"a" * 300)), row)


@pytest.mark.parametrize(("path", "said"), [("/東京", "at /東京;"), ("/v1/models/モデル", "model 'モデル' here;")])
def test_a_path_as_curl_sends_it(server: Server, path: str, said: str) -> None:
    """UTF-8 without percent signs is read as UTF-8."""
    answer = ask(server, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert answer.status == 404 and said in json.loads(answer.body)["error"]["message"]


def test_a_header_that_moves_the_server(server: Server) -> None:
    """No header of a client's makes the server believe that it is mounted elsewhere."""
    for header in ("SCRIPT_NAME: /a", "PATH_INFO: /nope"):
        assert ask(server, request_of(("GET", "/health"), head=f"{header}\r\n")).status == 200


@pytest.fixture(scope="module")
def small_queue(start: Start, tiny_model: Path) -> Server:
    """One slot, and two requests may wait."""
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=2, MAX_TEXTS=10_000).wait_until_ready()


def test_a_full_queue(small_queue: Server) -> None:
    """Every route that waits for a slot answers 429; those that compute nothing go on."""

    def large() -> None:
        requests.post(f"{small_queue.url}/embed", json={"texts": MANY}, timeout=60)

    message = "The queue is full: 2 requests wait already (MAX_QUEUE). Try again later."
    with clients(6, large):
        for route in WAITS_FOR_A_SLOT:
            while (answer := ask(small_queue, request_of(route))).status == 200:
                pass
            check(answer, Row(route, message, status=429, code="queue_full"))
            assert answer.headers["retry-after"] == "1"
            if route[0] == "POST":  # not all there yet, and never will be
                while (answer := ask(small_queue, request_of(route, length=1_000_000))).status != 429:
                    assert answer.status == 400
                assert answer.headers["connection"] == "close"
        for route in set(RIGHT) - set(WAITS_FOR_A_SLOT):
            assert ask(small_queue, request_of(route)).status == 200
        other = request_of(("GET", "/embed")).replace(b" /embed", b" //embed")
        while (answer := ask(small_queue, other)).status == 200:
            pass  # another spelling waits like the others
        assert answer.status == 429
    for route in WAITS_FOR_A_SLOT:
        assert ask(small_queue, request_of(route)).status == 200


def test_a_burst_is_no_full_queue(small_queue: Server) -> None:
    """Requests that compute nothing and come at the same moment find idle threads: none is refused."""
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(small_queue)) for _ in range(8)]
        for connection in connections:
            connection.sendall(request_of(("GET", "/info")))
            assert answer_of(connection).status == 200
        os.kill(small_queue.workers()[0], signal.SIGSTOP)
        for connection in connections:
            connection.sendall(request_of(("GET", "/info")))
        os.kill(small_queue.workers()[0], signal.SIGCONT)
        assert {answer_of(connection).status for connection in connections} == {200}


def slow_request_of(route: Route) -> bytes:
    """A right request with a text that waits for its turn to be tokenized."""
    right = RIGHT[route][1]
    if not right:
        return request_of(route).replace(b"cat", b"the" + b"+the" * 800)
    return request_of(route, body=json.dumps(right).replace("cat", "the" + " the" * 800).encode())


def too_late(server: Server, seconds: float, *, stop: bool = False) -> dict[Route, Answer]:
    """What waiting requests get if the worker is paused, as clouds do it, until their time is up."""
    slow = request_of(("POST", "/tokenize"), body=json.dumps({"inputs": "!" * 60_000}).encode())
    worker = server.workers()[0]
    with ExitStack() as stack, ExitStack() as ahead, requests.Session() as session:
        assert session.get(f"{server.url}/readyz", timeout=30).ok
        for _ in range(20):
            ahead.enter_context(connect(server)).sendall(slow)
        waiting = {route: stack.enter_context(connect(server)) for route in WAITS_FOR_A_SLOT}
        for route, connection in waiting.items():
            connection.sendall(slow_request_of(route))
        for _ in range(2):  # then what was sent before has been received
            assert session.get(f"{server.url}/readyz", timeout=30).ok
        if stop:
            server.process.terminate()
            while session.get(f"{server.url}/readyz", timeout=30).ok:
                pass
        os.kill(worker, signal.SIGSTOP)
        ahead.close()
        time.sleep(seconds)
        os.kill(worker, signal.SIGCONT)
        return {route: answer_of(connection) for route, connection in waiting.items()}


@pytest.fixture(scope="module")
def late(start: Start, tiny_model: Path) -> dict[str, dict[Route, Answer]]:
    """The answers after REQUEST_DEADLINE, and those of a server that is shutting down."""
    environ: dict[str, Any] = {"MODEL_DIR": tiny_model, "MAX_LENGTH": 64, "CPUS": 1, "CACHE_SIZE": 0}
    hasty = start(REQUEST_DEADLINE=1, **environ).wait_until_ready()
    found = {}
    for _ in range(5):
        found["deadline_exceeded"] = too_late(hasty, 1.2)
        if {answer.status for answer in found["deadline_exceeded"].values()} == {503}:
            break  # else those ahead of them were too late before the worker was paused
    for route in WAITS_FOR_A_SLOT:
        assert ask(hasty, request_of(route)).status == 200
    ending = start(**environ).wait_until_ready()
    found["shutting_down"] = too_late(ending, 6.7, stop=True)
    assert "Traceback" not in ending.wait(30)
    assert ending.process.returncode == 0
    return found


@pytest.mark.parametrize("code", ["deadline_exceeded", "shutting_down"])
@pytest.mark.parametrize("route", named(WAITS_FOR_A_SLOT))
def test_too_late(late: dict[str, dict[Route, Answer]], code: str, route: Route) -> None:
    """503, nothing begun, whether the request's own time is up or the server's."""
    texts = 2 if route[1] == "/similarity" else 1
    message = (
        f"The request's time was up (REQUEST_DEADLINE, or the server is shutting down) after 0 of {texts} texts: …"
    )
    check(late[code][route], Row(route, message, status=503, code=code))
    assert late[code][route].headers["retry-after"] == {"deadline_exceeded": "1", "shutting_down": "5"}[code]


@pytest.mark.parametrize("route", named(list(RIGHT)))
def test_a_request_that_stops(stalled: Stalled, route: Route) -> None:
    """408 after 10 seconds."""
    message = "The body did not arrive: no more of it came within 10 s."
    if not RIGHT[route][1]:  # it is the head that is not all there: nobody knows the route
        message = "The request did not arrive within 10 s."
    row = Row(route, message, status=408, code="request_timeout")
    check(answer_of(stalled.connections[route]), row, is_parsed=route[0] == "POST")
    assert ask(stalled.server, request_of(route)).status == 200


@pytest.mark.parametrize("name", ["large", "chunked"])
def test_a_body_that_stops(stalled: Stalled, name: str) -> None:
    """408 for bodies that a thread waits for, too."""
    message = "The body did not arrive: no more of it came within 10 s."
    row = Row(("POST", "/embed"), message, status=408, code="request_timeout")
    check(answer_of(stalled.connections[name]), row)


def test_every_documented_failure_is_asked_for() -> None:
    """Each route of openapi.yml has a right request, and each 4xx and 5xx of it a row; a new route fails here."""
    assert set(RIGHT) == set(DOCUMENTED)
    documented = {(route, status) for route, statuses in DOCUMENTED.items() for status in statuses if status >= 400}
    asked = {(parameter.values[0].route, parameter.values[0].status) for parameter in rows()}
    asked |= {(route, status) for route in WAITS_FOR_A_SLOT for status in (429, 503)}
    asked |= {(route, status) for route in RIGHT for status in (408, 414)}
    assert documented - asked == NEVER | OWN_SHAPE
    assert {(route, status) for route, status in asked - documented if status not in ANYWHERE} == set()
