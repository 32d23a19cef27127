"""Every route of the API: a valid request for each, and which routes have what in common."""

import json
from typing import Any

import pytest
import yaml

from tests.support import ROOT

# Method and path.
Route = tuple[str, str]

OPENAPI = yaml.safe_load((ROOT / "app/openapi.yml").read_text())
OPERATIONS: dict[Route, Any] = {
    (method.upper(), path): operation
    for path, operations in OPENAPI["paths"].items()
    for method, operation in operations.items()
}
# Statuses that openapi.yml lists for each route.
DOCUMENTED: dict[Route, set[int]] = {
    route: {int(status) for status in operation["responses"]} for route, operation in OPERATIONS.items()
}
# Routes that need no API key.
PUBLIC = [route for route, operation in OPERATIONS.items() if operation.get("security") == [{}]]
# A valid request for every route: its target and its body.
REQUESTS: dict[Route, tuple[str, Any]] = {
    ("GET", "/embed"): ("/embed?q=cat", None),
    ("POST", "/embed"): ("/embed", {"texts": ["cat"]}),
    ("POST", "/v1/embeddings"): ("/v1/embeddings", {"input": ["cat"]}),
    ("GET", "/v1/models"): ("/v1/models", None),
    ("GET", "/v1/models/{model}"): ("/v1/models/tiny", None),
    ("POST", "/similarity"): ("/similarity", {"inputs": {"source_sentence": "cat", "sentences": ["cat"]}}),
    ("POST", "/tokenize"): ("/tokenize", {"inputs": ["cat"]}),
    ("POST", "/decode"): ("/decode", {"ids": [5, 6]}),
    ("GET", "/info"): ("/info", None),
    ("POST", "/api/embed"): ("/api/embed", {"input": ["cat"]}),
    ("POST", "/api/embeddings"): ("/api/embeddings", {"prompt": "cat"}),
    ("POST", "/api/show"): ("/api/show", {"model": "tiny"}),
    ("POST", "/v2/embed"): ("/v2/embed", {"texts": ["cat"]}),
    ("POST", "/vectors"): ("/vectors", {"text": "cat"}),
    ("POST", "/v1/models/{model}:predict"): ("/v1/models/tiny:predict", {"instances": ["cat"]}),
    ("POST", "/bigquery"): ("/bigquery", {"calls": [["cat"]]}),
    ("POST", "/"): ("/", {"inputs": ["cat"]}),
    **{
        ("GET", path): (path, None)
        for path in "/ /api/tags /api/version /meta /healthz /health /readyz /metrics /docs /openapi.json".split()
    },
}
READS_JSON = [route for route in REQUESTS if route[0] == "POST"]
# Routes that have no field which must be there.
TAKES_ANYTHING = [("POST", f"/api/{name}") for name in ("embed", "embeddings", "show")]
# Routes that read JSON and compute no vector.
COMPUTES_NOTHING = [("POST", path) for path in ("/tokenize", "/decode", "/api/show")]
WAITS_FOR_A_SLOT = [("GET", "/embed"), *READS_JSON]
CHUNKED = "Transfer-Encoding: chunked\r\n"


def request_of(route: Route, *, head: str = "", body: bytes | None = None, length: int | None = None) -> bytes:
    """Return the bytes of a valid request, with more lines in its head, another body, or another Content-Length."""
    path, valid = REQUESTS[route]
    data = body if body is not None else json.dumps(valid).encode() if valid else b""
    if valid and "Transfer-Encoding" not in head:
        head += f"Content-Length: {length or len(data)}\r\n"
    content_type = "Content-Type: application/json\r\n" if valid else ""
    return f"{route[0]} {path} HTTP/1.1\r\nHost: a\r\n{content_type}{head}\r\n".encode() + data


def as_parameters(routes: list[Route]) -> list[Any]:
    """Return routes as parameters of a test, named like POST/embed."""
    return [pytest.param(route, id="".join(route)) for route in routes]
