"""Failures of request bodies: what every route with JSON refuses, by field."""

import gzip
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.failures import Failure
from tests.support.routes import READS_JSON, REQUESTS, TAKES_ANYTHING

JSON = {"Content-Type": "application/json"}
LONG = "the " * 100
TOO_LONG = "has 102 tokens, over the limit of 64 (MAX_LENGTH), and truncate is false: shorten it, or allow truncation."


def not_json() -> Iterator[Failure]:
    """Bodies that are not a JSON object, by their bytes or by their headers."""
    bodies: list[tuple[bytes, str]] = [
        (b"", "The body is not JSON: unexpected end of data (line 1, column 1)."),
        (b"{", "The body is not JSON: unexpected end of data (line 1, column 2)."),
        (b'{"a": NaN}', "The body is not JSON: … (line 1, column 7)."),
        (b'{"a": ["\\ud83d"}', "The body is not JSON: … (line 1, column 16)."),
        (b'{"a": ["\\ud83', "The body is not JSON: unexpected end of data (line 1, column 14)."),
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
        "text/plain": 'The Content-Type is "text/plain": send JSON with Content-Type: application/json.',
        "multipart/form-data; boundary=a": 'The Content-Type is "multipart/form-data": send JSON with …',
        "x" * 5000: 'The Content-Type is "xxx…: send JSON with Content-Type: application/json.',
    }
    for route in READS_JSON:
        for data, message in bodies:
            yield Failure(route, message, body=data)
        for kind, message in types.items():
            headers = {"Content-Type": kind}
            yield Failure(route, message, status=415, code="unsupported_media_type", headers=headers)
        for encoding, data in (("gzip", gzip.compress(b"{}")), ("br", b"{}")):
            message = f'The Content-Encoding is "{encoding}": send the JSON uncompressed.'
            headers = {**JSON, "Content-Encoding": encoding}
            yield Failure(route, message, body=data, status=415, code="unsupported_media_type", headers=headers)
        message = "The body has 20001 bytes, over the limit of 20000 bytes (MAX_BODY_BYTES): send fewer texts at once."
        yield Failure(route, message, body=b" " * 20_001, status=413, code="request_entity_too_large")


# Fields for a list of texts: path, name of the field, other types that are allowed, and the request's body.
TEXT_FIELDS: list[tuple[str, str, str, Callable[[Any], Any]]] = [
    ("/embed", "texts", "", lambda value: {"texts": value}),
    ("/embed", "inputs", "a string or ", lambda value: {"inputs": value}),
    ("/", "inputs", "a string or ", lambda value: {"inputs": value}),
    ("/tokenize", "inputs", "a string or ", lambda value: {"inputs": value}),
    ("/v1/embeddings", "input", "a string or ", lambda value: {"input": value}),
    ("/v2/embed", "texts", "", lambda value: {"texts": value}),
    ("/similarity", "inputs.sentences", "", lambda value: {"inputs": {"source_sentence": "a", "sentences": value}}),
]


def texts() -> Iterator[Failure]:
    """Fields that should be a list of texts, and are not."""
    kinds: list[tuple[Any, str]] = [(5, "a number"), (True, "a boolean"), (None, "null"), ({"b": 1}, "an object")]
    for path, name, alternative, body in TEXT_FIELDS:
        route = ("POST", path)
        for value, kind in kinds + ([] if alternative else [("cat", "a string")]):
            if path != "/" or not isinstance(value, dict):  # these are similarities
                yield Failure(route, f"{name} is {kind}; it must be {alternative}a list of strings.", name, body(value))
        for value, kind in [*kinds, (["a"], "a list")]:
            yield Failure(route, f"{name}[1] is {kind}; every item must be a string.", name, body(["a", value]))
        yield Failure(route, f"{name} is an empty list; at least one text is needed.", name, body([]))
        message = f"{name} has 9 items, over the limit of 8 (MAX_TEXTS): send fewer at once."
        yield Failure(route, message, name, body(["a"] * 9), 413, "too_many_texts")
        if path == "/tokenize":  # it truncates nothing
            continue
        option: dict[str, Any] = {"truncate": "NONE" if path == "/v2/embed" else False}
        given = body(["a", LONG]) | ({"parameters": option} if path == "/similarity" else option)
        yield Failure(route, f"{name}[1] {TOO_LONG}", "truncate", given, code="text_too_long")
    for route in READS_JSON:
        if route in TAKES_ANYTHING:
            continue
        (name,) = REQUESTS[route][1]
        yield Failure(route, f"The field {name} is missing….", name, {})


# Routes with options: path, a valid request, and the field that holds the options (None: the body itself).
OPTIONS: list[tuple[str, Any, str | None]] = [
    ("/embed", {"texts": ["a"]}, None),
    ("/embed", {"inputs": ["a"]}, None),
    ("/", {"inputs": "a"}, None),
    ("/v1/embeddings", {"input": "a"}, None),
    ("/tokenize", {"inputs": "a"}, None),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "parameters"),
    ("/v1/models/{model}:predict", {"instances": ["a"]}, "parameters"),
    ("/bigquery", {"calls": [["a"]]}, "userDefinedContext"),
]


def options() -> Iterator[Failure]:
    """Options with invalid values."""
    known = "the model's prompts are: 'query', 'document'."
    wrong: list[tuple[str, Any, str]] = [
        ("normalize", "yes", 'normalize is "yes"; it must be true or false.'),
        ("normalize", 1, "normalize is 1; it must be true or false."),
        ("truncate", [True], "truncate is a list; it must be true or false."),
        ("dimensions", 0, "dimensions is 0; it must be a whole number from 1 to 32."),
        ("dimensions", -1, "dimensions is -1; it must be a whole number from 1 to 32."),
        ("dimensions", 33, "dimensions is 33; it must be a whole number from 1 to 32."),
        ("dimensions", 1.5, "dimensions is 1.5; it must be a whole number from 1 to 32."),
        ("dimensions", 1.0, "dimensions is 1.0; it must be a whole number from 1 to 32."),
        ("dimensions", True, "dimensions is true; it must be a whole number from 1 to 32."),
        ("dimensions", "all", 'dimensions is "all"; it must be a whole number from 1 to 32.'),
        ("dimensions", 10**30, "dimensions is 1e+30; it must be a whole number from 1 to 32."),
        ("prompt", [1, 2], "prompt is a list; it must be a string of at most 1000 characters."),
        ("prompt", {"a": 1}, "prompt is an object; it must be a string of at most 1000 characters."),
        ("prompt", "a" * 1001, 'prompt is "aaa…; it must be a string of at most 1000 characters.'),
        ("prompt_name", 5, "prompt_name is 5; it must be a string of at most 1000 characters."),
        ("prompt_name", "nope", f"prompt_name is 'nope'; {known}"),
        ("prompt_name", "n" * 999, f"prompt_name is '{'n' * 60}…'; {known}"),
        ("encoding_format", "hex", 'encoding_format is "hex"; it must be float or base64.'),
        ("encoding_format", 64, "encoding_format is 64; it must be float or base64."),
        ("dtype", "int4", 'dtype is "int4"; it must be one of float32, int8, uint8, binary, ubinary.'),
        ("dtype", 8, "dtype is 8; it must be one of float32, int8, uint8, binary, ubinary."),
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
            if (path, name) == ("/bigquery", "encoding_format") or (path, name, value) == (
                "/v1/embeddings",
                "dimensions",
                0,
            ):
                continue
            if (path, name) == ("/v1/embeddings", "truncate"):
                message = 'truncate is a list; it must be true, false, "END" or "NONE".'
            given = {name: value}
            yield Failure(route, message, name, {**body, **({place: given} if place else given)})
        both = {"prompt": "a", "prompt_name": "query"}
        message = "prompt and prompt_name contradict each other: give one of them."
        yield Failure(route, message, "prompt", {**body, **({place: both} if place else both)})
    message = 'Unknown field "inputs"; known are texts, normalize, …'
    yield Failure(("POST", "/embed"), message, "inputs", {"texts": ["a"], "inputs": ["a"]})
    message = f'Unknown field "{"x" * 40}…; known are texts, normalize, …'
    yield Failure(("POST", "/embed"), message, "x" * 60, {"texts": ["a"], "x" * 5000: 1})
    message = 'Unknown field "normalise"; known are texts, normalize, …'
    yield Failure(("POST", "/embed"), message, "normalise", {"texts": ["a"], "normalise": True})
    message = "prompt is a list; it must be a string of at most 1000 characters."
    deep = b'{"texts": ["a"], "prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}"
    yield Failure(("POST", "/embed"), message, "prompt", deep)
    message = 'Unknown field "a"; known are texts, normalize, …'
    yield Failure(("POST", "/embed"), message, "a", {"texts": ["a"], "a` - at `$.b": 1})
    yield Failure(("POST", "/embed"), message, "a", {"texts": ["a"], "a - at `$.b": 1})
    message = 'Unknown parameter "q"; known are normalize, …'
    yield Failure(("POST", "/embed"), message, "q", path="/embed?q=a")
    message = "dimensions is 4 in the query and 3 in the body: give it once."
    body = {"texts": ["a"], "dimensions": 3}
    yield Failure(("POST", "/embed"), message, "dimensions", body, path="/embed?dimensions=4")


def ids() -> Iterator[Failure]:
    """Token ids that are not numbers, or not in the model's vocabulary."""
    for path, name in (("/", "inputs"), ("/embed", "inputs"), ("/decode", "ids")):
        route = ("POST", path)
        one: list[tuple[Any, str]] = [(-1, "-1"), (210, "210"), (2**63, str(2**63)), (2**64, "1.8446744073709552e+19")]
        for value, shown in [*one, (2.5, "2.5"), (True, "true"), ("a", '"a"'), (None, "null"), ([5], "a list")]:
            message = f"[1] is {shown}; it must be a token id, a whole number from 0 to 209."
            yield Failure(route, name + message, name, {name: [5, value]})
            yield Failure(route, f"{name}[1]{message}", name, {name: [[5], [5, value]]})
        for value, kind in (([], "an empty list"), ("a", "a string"), (5, "a number"), (None, "null")):
            message = f"{name}[1] is {kind}; it must be a list of token ids."
            yield Failure(route, message, name, {name: [[5], value]})
        message = f"{name} has 9 items, over the limit of 8 (MAX_TEXTS): send fewer at once."
        yield Failure(route, message, name, {name: [[5]] * 9}, 413, "too_many_texts")
        if path != "/decode":
            for value, place in (([5] * 102, "inputs[0]"), ([[5], [5] * 102], "inputs[1]")):
                given = {name: value, "truncate": False}
                yield Failure(route, f"{place} {TOO_LONG}", "truncate", given, code="text_too_long")
    for value, kind in ((None, "null"), (5, "a number"), ("a", "a string"), ([], "an empty list"), ({}, "an object")):
        message = f"ids is {kind}; it must be a list of token ids, or a list of such lists."
        yield Failure(("POST", "/decode"), message, "ids", {"ids": value})
    openai = "it must be one of OpenAI's token ids (cl100k_base). This model's own ids go to POST /embed as inputs."
    for value, shown in ((-1, "-1"), (100_277, "100277"), (100_256, "100256"), (2.5, "2.5"), ("a", '"a"')):
        for sent, place in (([5, value], "input[1]"), ([[5], [5, value]], "input[1][1]")):
            yield Failure(("POST", "/v1/embeddings"), f"{place} is {shown}; {openai}", "input", {"input": sent})
    # 58040 is the longest token, 128 spaces
    message = "input has token ids for more than 20000 bytes of text (MAX_BODY_BYTES): send fewer at once."
    for spaces in ([58040] * 300, [[58040] * 150] * 2):
        yield Failure(("POST", "/v1/embeddings"), message, "input", {"input": spaces}, 413, "too_many_texts")
    message = "input[1] is an empty list; it must be a list of token ids."
    yield Failure(("POST", "/v1/embeddings"), message, "input", {"input": [[5], []]})
    message = "input has 9 items, over the limit of 8 (MAX_TEXTS): send fewer at once."
    yield Failure(("POST", "/v1/embeddings"), message, "input", {"input": [[5]] * 9}, 413, "too_many_texts")
    for value in ([[]], [["a"]], [["a"], [5]]):
        message = "input[0] is a list; every item must be a string."
        yield Failure(("POST", "/v1/embeddings"), message, "input", {"input": value})
    message = "inputs[0] is a number; every item must be a string."
    yield Failure(("POST", "/tokenize"), message, "inputs", {"inputs": [5, 6]})


def named_twice() -> Iterator[Failure]:
    """Fields that come twice: the first value is invalid, the last one replaces it."""
    token = "it must be a token id, a whole number from 0 to 209."
    yield Failure(("POST", "/"), f"inputs[1] is a string; {token}", "inputs", b'{"inputs":[5,"a"],"inputs":[5]}')
    yield Failure(("POST", "/"), f"inputs[1] is null; {token}", "inputs", b'{"inputs":[5,null],"inputs":[5,[6]]}')
    inputs = b'{"inputs":{"source_sentence":"a","sentences":["b"]},'
    for last in (b"{}", b"[]", b"5", b'{"normalize":[5]}'):
        body = inputs + b'"parameters":{"normalize":5},"parameters":' + last + b"}"
        yield Failure(("POST", "/similarity"), "normalize is a number; it must be true or false.", "normalize", body)
    message = "calls[0] has many arguments; the function takes one argument: FUNCTION(text STRING)."
    yield Failure(("POST", "/bigquery"), message, "calls", b'{"calls":[[]],"calls":5}')
