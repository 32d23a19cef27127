"""Failures of single routes: their own fields, queries, paths, API keys, and faults of the server."""

import json
from collections.abc import Iterator
from typing import Any

from tests.support.failures import UNAUTHORIZED, Failure
from tests.support.failures_of_bodies import LONG, TOO_LONG
from tests.support.routes import COMPUTES_NOTHING, PUBLIC, REQUESTS, WAITS_FOR_A_SLOT

# A text without a token in the vocabulary of the tokenizer that fails.
SNOWMAN = "☃"


def others() -> Iterator[Failure]:
    """Fields that only one route has."""
    flags = {"/tokenize": "add_special_tokens", "/decode": "skip_special_tokens"}
    for path, flag in flags.items():
        for value, shown in (("no", '"no"'), (0, "0"), ({}, "an object")):
            body = {**REQUESTS["POST", path][1], flag: value}
            yield Failure(("POST", path), f"{flag} is {shown}; it must be true or false.", flag, body)

    openai = ("POST", "/v1/embeddings")
    for name in ("model", "input_type", "task"):
        yield Failure(openai, f"{name} is a number; it must be a string.", name, {"input": "a", name: 5})
    fields: list[tuple[str, Any, str]] = [
        ("late_chunking", True, "true; only false is possible here."),
        ("embedding_type", "int8", '"int8"; only float, base64, binary or ubinary is possible here.'),
        ("truncate_prompt_tokens", 5, "5; only -1, or MAX_LENGTH or more, is possible here."),
        ("truncate_prompt_tokens", "all", '"all"; only -1, or MAX_LENGTH or more, is possible here.'),
        ("add_special_tokens", False, "false; only true is possible here."),
        ("embed_dtype", "float16", '"float16"; only float32 is possible here.'),
        ("endianness", "big", '"big"; only native or little is possible here.'),
        ("output_dtype", "float16", '"float16"; only float, int8, uint8, binary or ubinary is possible here.'),
        ("modality", "image", '"image"; only text is possible here.'),
        ("truncate", "START", '"START"; it must be true, false, "END" or "NONE".'),
        ("truncation", "yes", '"yes"; it must be true or false.'),
        ("use_activation", 1, "1; it must be true or false."),
        ("output_dimension", 0, "0; it must be a whole number from 1 to 32."),
    ]
    for name, wrong, message in fields:
        yield Failure(openai, f"{name} is {message}", name, {"input": "a", name: wrong})
    message = f"input {TOO_LONG}"
    for option in ({"truncate": "NONE"}, {"truncation": False}):
        yield Failure(openai, message, "truncate", {"input": LONG, **option}, code="text_too_long")

    given: list[tuple[Any, str]] = [(None, "null"), (5, "a number"), (["a"], "a list")]
    for value, kind in given:
        message = f'inputs is {kind}; it must be {{"source_sentence": "…", "sentences": ["…"]}}.'
        yield Failure(("POST", "/similarity"), message, "inputs", {"inputs": value})
        for path in ("/similarity", "/"):
            message = f"inputs.source_sentence is {kind}; it must be a string."
            yield Failure(("POST", path), message, "inputs", {"inputs": {"source_sentence": value, "sentences": ["a"]}})
    many = {"inputs": {"source_sentence": "a", "sentences": ["a"] * 8}}
    message = "inputs has 9 texts, over the limit of 8 (MAX_TEXTS): send fewer at once."
    yield Failure(("POST", "/similarity"), message, "inputs", many, 413, "too_many_texts")
    body = {"inputs": {"source_sentence": LONG, "sentences": ["a"]}, "parameters": {"truncate": False}}
    yield Failure(("POST", "/similarity"), f"inputs.source_sentence {TOO_LONG}", "truncate", body, code="text_too_long")

    falsy: list[tuple[Any, str]] = [([], "a list"), (0, "a number"), ("", "a string"), (False, "a boolean")]
    for path, name in (("/similarity", "parameters"), ("/bigquery", "userDefinedContext")):
        for value, kind in falsy:
            body = REQUESTS["POST", path][1] | {name: value}
            yield Failure(("POST", path), f"{name} is {kind}; it must be an object.", name, body)

    bigquery = ("POST", "/bigquery")
    for calls, kind in ((None, "null"), (5, "a number"), ({}, "an object")):
        message = f"calls is {kind}; it must be a list of the arguments of each call."
        yield Failure(bigquery, message, "calls", {"calls": calls})
    for call, found in (("a", "a string"), ([], "0 arguments"), (["a", "b"], "2 arguments"), (None, "null")):
        message = f"calls[1] has {found}; the function takes one argument: FUNCTION(text STRING)."
        yield Failure(bigquery, message, "calls", {"calls": [["a"], call]})
    for argument, kind in ((5, "a number"), (["a"], "a list"), (True, "a boolean")):
        message = f"calls[1] has {kind}; the argument must be a STRING or NULL."
        yield Failure(bigquery, message, "calls", {"calls": [[None], [argument]]})
    message = "calls has 9 items, over the limit of 8 (MAX_TEXTS): send fewer at once."
    yield Failure(bigquery, message, "calls", {"calls": [["a"]] * 9}, 413, "too_many_texts")
    for name in ("mode", "encoding_format"):
        message = (
            f'user_defined_context has "{name}"; known are normalize, dimensions, prompt_name, prompt, truncate, dtype.'
        )
        body = {"calls": [["a"]], "userDefinedContext": {name: "a"}}
        yield Failure(bigquery, message, "userDefinedContext", body)
    for first in ("a", None):
        body = {"calls": [[first], [LONG]], "userDefinedContext": {"truncate": "false"}}
        yield Failure(bigquery, f"calls[1] {TOO_LONG}", "truncate", body, code="text_too_long")


def queries() -> Iterator[Failure]:
    """Parameters of GET /embed; POST /embed has the same ones except q."""
    known = "known are q, normalize, dimensions, prompt_name, prompt, truncate, encoding_format, dtype."
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
        ("q=a&dimensions=1e1", "dimensions", 'dimensions is "1e1"; it must be a whole number from 1 to 32.'),
        ("q=a&dimensions=-1", "dimensions", 'dimensions is "-1"; it must be a whole number from 1 to 32.'),
        ("q=a&dimensions=" + "9" * 999, "dimensions", 'dimensions is "999…; it must be a whole number from 1 to 32.'),
        ("q=a&encoding_format=", "encoding_format", 'encoding_format is ""; it must be float or base64.'),
        ("q=a&encoding_format=hex", "encoding_format", 'encoding_format is "hex"; it must be float or base64.'),
        ("q=a&prompt=" + "a" * 1001, "prompt", 'prompt is "aaa…; it must be a string of at most 1000 characters.'),
        ("q=a&prompt_name=nope", "prompt_name", "prompt_name is 'nope'; the model's prompts are: 'query', 'document'."),
        ("q=a&prompt=a&prompt_name=query", "prompt", "prompt and prompt_name contradict each other: give one of them."),
    ):
        yield Failure(("GET", "/embed"), message, param, path=f"/embed?{query}")
    path = f"/embed?truncate=0&q={LONG.replace(' ', '+')}"
    yield Failure(("GET", "/embed"), f"q {TOO_LONG}", "truncate", path=path, code="text_too_long")
    message = "q has 100001 characters without white space, over the limit of 100000: split it into several."
    yield Failure(("GET", "/embed"), message, path=f"/embed?q={'a' * 100_001}", code="text_too_long")


def elsewhere() -> Iterator[Failure]:
    """Unknown paths, and methods that a path does not have."""
    for path in (
        "/nope",
        "/v1",
        "/bigquery/a",
        "/docs/assets/nope",
        "/docs/assets/../docs.py",
        "/EMBED",
        "/docs//embed",
    ):
        message = f"There is nothing at {path.replace('//', '/')}; /docs lists what there is."
        yield Failure(("GET", "other"), message, status=404, code="not_found", path=path)
    message = f"There is nothing at /{'x' * 59}…; /docs lists what there is."
    yield Failure(("GET", "other"), message, status=404, code="not_found", path="/" + "x" * 3000)
    model = ("GET", "/v1/models/{model}")
    for asked, shown in (("nope", "'nope'"), ("a//b/", "'a/b'"), ("%E6%9D%B1", "'東'"), ("x" * 999, f"'{'x' * 60}'")):
        message = f"There is no model {shown} here; the one that is served is 'tiny'."
        yield Failure(model, message, "model", None, 404, "model_not_found", f"/v1/models/{asked}")
    for path in sorted({path for _, path in REQUESTS if not path.endswith(":predict")}):
        methods = {method for method, other in REQUESTS if other == path}
        allowed = ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))
        for method in sorted({"PUT", "DELETE", "GET", "POST"} - methods):
            url = path.replace("{model}", "tiny")
            message = f"{method} is not allowed at {url}, only {allowed}."
            yield Failure((method, path), message, None, b"", 405, "method_not_allowed", url)


def without_a_key() -> Iterator[Failure]:
    """Routes that need an API key; which keys are accepted: tests/api/test_keys.py."""
    for route in REQUESTS:
        if route not in PUBLIC:
            yield Failure(route, UNAUTHORIZED, status=401, code="invalid_api_key", client="guarded")


def not_ready() -> Iterator[Failure]:
    """Routes that compute vectors, on a server whose self-check failed."""
    for route in WAITS_FOR_A_SLOT:
        if route not in COMPUTES_NOTHING:
            message = "The self-check failed: … (cosine …, at least 0.999 is needed)."
            yield Failure(route, message, status=503, code="not_ready", client="unready")


def faults() -> Iterator[Failure]:
    """Routes that take texts, on a server whose tokenizer fails."""
    message = "Something went wrong inside the server; its log says what."
    for route in WAITS_FOR_A_SLOT:
        path, body = json.loads(json.dumps(REQUESTS[route]).replace("cat", SNOWMAN))
        if route[1] not in ("/decode", "/api/show"):
            yield Failure(route, message, None, body, 500, "internal_error", path, client="faulty")
