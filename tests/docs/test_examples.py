"""What the documents show is what happens: every example of openapi.yml and of both READMEs, at a real server."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import yaml
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate

from tests import clients
from tests.support import ROOT
from tests.support.server import Server

OPENAPI = yaml.safe_load((ROOT / "app/openapi.yml").read_text())
OPERATIONS = [(path, method) for path, methods in OPENAPI["paths"].items() for method in methods]
READMES = ["README.md", "README.ja.md"]
URL = "localhost:8080"


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], tiny_model: Any) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()


def resolved(item: dict[str, Any]) -> Any:
    """What a $ref names."""
    if "$ref" not in item:
        return item
    found: Any = OPENAPI
    for part in item["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def check(schema: dict[str, Any], content: Any) -> None:
    """Content is what the schema says."""
    OAS30Validator({**schema, "components": OPENAPI["components"]}).validate(content)


def bodies(path: str, method: str) -> Iterator[Any]:
    """The examples of an operation's request body."""
    media = OPENAPI["paths"][path][method].get("requestBody", {}).get("content", {}).get("application/json")
    if media is None:
        return
    examples = [example["value"] for example in media.get("examples", {}).values()]
    for example in [*examples, media.get("example"), resolved(media["schema"]).get("example")]:
        if example is not None:
            yield example


def test_openapi_is_valid() -> None:
    """It is OpenAPI 3.0."""
    validate(OPENAPI)


@pytest.mark.parametrize("path, method", OPERATIONS)
def test_operation(server: Server, path: str, method: str) -> None:
    """Each example is answered with 200 and what the schema says; every operation has one, or needs none."""
    operation = OPENAPI["paths"][path][method]
    parameters = [resolved(item) for item in operation.get("parameters", [])]
    query = {item["name"]: item["example"] for item in parameters if item["in"] == "query" and "example" in item}
    url = server.url + path.replace("{model}", "tiny")
    examples = list(bodies(path, method))
    assert bool(examples) == ("requestBody" in operation)
    ((media_type, media),) = (
        operation["responses"]["200"].get("content", {}).items()
        or resolved(operation["responses"]["200"])["content"].items()
    )
    for body in examples or [None]:
        if body is not None:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            check(schema, body)
        answer = requests.request(method, url, params=query, json=body, timeout=30)
        assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (200, media_type)
        if media_type == "application/json":
            check(media["schema"], answer.json())


def errors(item: Any) -> Iterator[dict[str, Any]]:
    """All that has the shape of an error's example, anywhere in the document."""
    if isinstance(item, dict):
        if isinstance(item.get("example"), dict) and "error" in item["example"]:
            yield item["example"]
        for value in item.values():
            yield from errors(value)


def test_examples_of_errors() -> None:
    """They have the one shape."""
    examples = list(errors(OPENAPI))
    assert len(examples) > 4
    for example in examples:
        check(OPENAPI["components"]["schemas"]["Error"], example)


def blocks(readme: str, *languages: str) -> list[tuple[str, str]]:
    """Language and code of a README's blocks that speak to the server."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / readme).read_text(), re.M | re.S)
    return [(language, code) for language, code in found if language in languages and URL in code]


@pytest.mark.parametrize("readme", READMES)
def test_commands(server: Server, readme: str) -> None:
    """curl's commands give JSON with vectors."""
    commands = blocks(readme, "sh")
    assert len(commands) >= 2
    for _, command in commands:
        address = server.url.removeprefix("http://")
        run = subprocess.run(
            ["sh", "-c", command.replace("curl ", "curl -sf ").replace(URL, address)], capture_output=True, check=True
        )
        answer = json.loads(run.stdout)
        assert answer["dimension"] == 32


@pytest.mark.parametrize("readme", READMES)
def test_clients(server: Server, readme: str) -> None:
    """The programs for client libraries run as they stand, and see the model's 32 dimensions."""
    programs = blocks(readme, "python", "js")
    assert [language for language, _ in programs] == ["python", "python", "js"]
    clients.install()
    for language, program in programs:
        output = clients.run(language, program.replace(f"http://{URL}", server.url))
        assert "32" in output, output


@pytest.mark.parametrize("readme", READMES)
def test_the_error(server: Server, readme: str) -> None:
    """The error that is shown is one that is answered, but for the model's dimension."""
    (shown,) = re.findall(r'^{"error": .*}$', (ROOT / readme).read_text(), re.M)
    answer = requests.post(f"{server.url}/embed", json={"texts": ["a"], "dimensions": 500}, timeout=30)
    assert answer.json() == json.loads(shown.replace("384", "32"))
