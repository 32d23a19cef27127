"""Failures of the routes for Ollama's, Weaviate's, Vertex AI's and KServe's clients."""

from collections.abc import Iterator
from typing import Any

from tests.support.failures import Failure
from tests.support.failures_of_bodies import LONG, TOO_LONG
from tests.support.routes import REQUESTS

EMBED, EMBEDDINGS, SHOW = (("POST", f"/api/{name}") for name in ("embed", "embeddings", "show"))
VECTORS = ("POST", "/vectors")
PREDICT = ("POST", "/v1/models/{model}:predict")
TOO_MANY = "has 9 items, over the limit of 8 (MAX_TEXTS): send fewer at once."
KINDS: list[tuple[Any, str]] = [(5, "a number"), (True, "a boolean"), ({"b": 1}, "an object")]


def ollama() -> Iterator[Failure]:
    """POST /api/embed, /api/embeddings and /api/show."""
    for value, kind in KINDS:
        message = f"input is {kind}; it must be a string or a list of strings."
        yield Failure(EMBED, message, body={"input": value})
        yield Failure(EMBED, f"input[1] is {kind}; every item must be a string.", body={"input": ["a", value]})
        yield Failure(EMBEDDINGS, f"prompt is {kind}; it must be a string.", body={"prompt": value})
        for route in (EMBED, EMBEDDINGS, SHOW):
            body = {**REQUESTS[route][1], "model": value}
            yield Failure(route, f"model is {kind}; it must be a string.", body=body)
    yield Failure(EMBED, f"input {TOO_MANY}", body={"input": ["a"] * 9}, status=413)
    yield Failure(EMBED, f"input[1] {TOO_LONG}", body={"input": ["a", LONG], "truncate": False})
    message = "dimensions is 33; it must be a whole number from 1 to 32."
    yield Failure(EMBED, message, body={"input": "a", "dimensions": 33})
    yield Failure(EMBED, 'truncate is "END"; it must be true or false.', body={"input": "a", "truncate": "END"})
    message = "There is nothing at /api/chat; /docs lists what there is."
    yield Failure(("POST", "/api/chat"), message, status=404, path="/api/chat", body={"model": "a"})


def cohere() -> Iterator[Failure]:
    """POST /v2/embed; its texts are in failures_of_bodies.py."""
    only_end = "; only NONE or END is possible here: a text keeps its beginning."
    types = "it must be one of float, base64, int8, uint8, binary, ubinary."
    fields: list[tuple[str, Any, str, str]] = [
        ("truncate", "START", f'truncate is "START"{only_end}', "truncate"),
        ("truncate", True, f"truncate is true{only_end}", "truncate"),
        ("embedding_types", ["float", "int4"], f'embedding_types[1] is "int4"; {types}', "embedding_types"),
        (
            "embedding_types",
            "float",
            "embedding_types is a string; it must be a list of types.",
            "embedding_types",
        ),
        (
            "embedding_types",
            ["int8"] * 101,
            "embedding_types has 101 types; at most 100 are possible.",
            "embedding_types",
        ),
        ("max_tokens", 5, "max_tokens is 5; only MAX_LENGTH or more is possible here.", "max_tokens"),
        ("images", ["data:"], "images is a list; only texts are possible here.", "images"),
        ("inputs", [{}], "inputs is a list; only texts are possible here.", "inputs"),
        ("input_type", 5, "input_type is a number; it must be a string.", "input_type"),
        ("model", 5, "model is a number; it must be a string.", "model"),
        ("output_dimension", 33, "dimensions is 33; it must be a whole number from 1 to 32.", "dimensions"),
    ]
    for name, value, message, param in fields:
        yield Failure(("POST", "/v2/embed"), message, param, {"texts": ["a"], name: value})


def weaviate() -> Iterator[Failure]:
    """POST /vectors."""
    for value, kind in KINDS:
        yield Failure(VECTORS, f"text is {kind}; it must be a string.", body={"text": value})
        yield Failure(VECTORS, f"texts is {kind}; it must be a list of strings.", body={"texts": value})
        yield Failure(VECTORS, f"texts[1] is {kind}; every item must be a string.", body={"texts": ["a", value]})
        if not isinstance(value, dict):
            yield Failure(VECTORS, f"config is {kind}; it must be an object.", body={"text": "a", "config": value})
        message = f"config.task_type is {kind}; it must be a string."
        yield Failure(VECTORS, message, body={"text": "a", "config": {"task_type": value}})
    message = "dimensions is 0; it must be a whole number from 1 to 32."
    yield Failure(VECTORS, message, body={"text": "a", "config": {"dimensions": 0}})
    yield Failure(VECTORS, f"texts {TOO_MANY}", body={"texts": ["a"] * 9}, status=413)


def predictions() -> Iterator[Failure]:
    """POST /v1/models/{model}:predict."""
    for value, kind in KINDS:
        yield Failure(PREDICT, f"instances is {kind}; it must be a list of texts.", body={"instances": value})
        if not isinstance(value, dict):
            message = f'instances[1] is {kind}; it must be a string, or an object like {{"text": "…"}}.'
            yield Failure(PREDICT, message, body={"instances": ["a", value]})
            message = f"parameters is {kind}; it must be an object."
            yield Failure(PREDICT, message, body={"instances": ["a"], "parameters": value})
        for name in ("text", "content", "inputs", "input", "task_type"):
            message = f"instances[0].{name} is {kind}; it must be a string."
            yield Failure(PREDICT, message, body={"instances": [{"text": "a", name: value}]})
    fields = "give one, in text, content, inputs, input."
    for instance in ({}, {"text": None}, {"prompt": "a"}):
        message = f"instances[1] has no text; {fields}"
        yield Failure(PREDICT, message, body={"instances": ["a", instance]})
    message = f"instances[0] has several texts; {fields}"
    yield Failure(PREDICT, message, body={"instances": [{"text": "a", "content": "b"}]})
    yield Failure(PREDICT, f"instances {TOO_MANY}", body={"instances": ["a"] * 9}, status=413)
    body = {"instances": ["a", {"text": LONG}], "parameters": {"truncate": False}}
    yield Failure(PREDICT, f"instances[1] {TOO_LONG}", body=body)
