"""The examples of openapi.yml and of the documents work on a real server."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate

from tests import clients
from tests.support import ROOT
from tests.support.documents import DOCUMENTS, blocks, read, rows
from tests.support.server import Server

OPENAPI = yaml.safe_load((ROOT / "app/openapi.yml").read_text())
OPERATIONS = [(path, method) for path, methods in OPENAPI["paths"].items() for method in methods]
URL = "localhost:8080"
# Languages of the programs that each document shows, and the documents with commands of curl.
CLIENTS = ["python", "python", "js"]
PROGRAMS = {
    "README.md": ["python"],
    "README.ja.md": ["python"],
    "docs/clients.md": CLIENTS,
    "docs/ja/clients.md": CLIENTS,
    "docs/recipes.md": ["python"] * 9,
}
COMMANDS = ["README.ja.md", "README.md", "docs/api.md", "docs/ja/api.md", "docs/ja/models.md", "docs/models.md"]


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], tiny_model: Any) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()


def resolved(item: dict[str, Any]) -> Any:
    """Return the item itself, or the one that its $ref names."""
    if "$ref" not in item:
        return item
    found: Any = OPENAPI
    for part in item["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def check(schema: dict[str, Any], content: Any) -> None:
    """Raise an error unless the content fits the schema."""
    OAS30Validator({**schema, "components": OPENAPI["components"]}).validate(content)


def bodies(path: str, method: str) -> Iterator[Any]:
    """Yield the examples of an operation's request body."""
    media = OPENAPI["paths"][path][method].get("requestBody", {}).get("content", {}).get("application/json")
    if media is None:
        return
    examples = [example["value"] for example in media.get("examples", {}).values()]
    for example in [*examples, media.get("example"), resolved(media["schema"]).get("example")]:
        if example is not None:
            yield example


def test_openapi_is_valid() -> None:
    """openapi.yml is a valid document of OpenAPI 3.0."""
    validate(OPENAPI)


@pytest.mark.parametrize("path, method", OPERATIONS)
def test_operation(server: Server, path: str, method: str) -> None:
    """Each example gets a response with status 200 that fits the schema. Every operation with a body has an example."""
    operation = OPENAPI["paths"][path][method]
    parameters = [resolved(item) for item in operation.get("parameters", [])]
    query = {item["name"]: item["example"] for item in parameters if item["in"] == "query" and "example" in item}
    url = server.url + path.replace("{model}", "tiny")
    examples = list(bodies(path, method))
    assert bool(examples) == ("requestBody" in operation)
    contents = resolved(operation["responses"]["200"])["content"]
    for body, (media_type, media) in product(examples or [None], contents.items()):
        if body is not None:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            check(schema, body)
        headers = {"Accept": media_type} if len(contents) > 1 else {}
        answer = requests.request(method, url, params=query, json=body, headers=headers, timeout=30)
        assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (200, media_type)
        if media_type == "application/json":
            check(media["schema"], answer.json())


def errors(item: Any) -> Iterator[dict[str, Any]]:
    """Yield every example of an error, anywhere in the document."""
    if isinstance(item, dict):
        several = [one["value"] for one in item.get("examples", {}).values()]
        for example in [item.get("example"), *several]:
            if isinstance(example, dict) and "error" in example:
                yield example
        for value in item.values():
            yield from errors(value)


def test_examples_of_errors() -> None:
    """Every example of an error has the shape that all errors have."""
    examples = list(errors(OPENAPI))
    assert len(examples) > 4
    for example in examples:
        check(OPENAPI["components"]["schemas"]["Error"], example)


def for_the_server(document: str, *languages: str) -> list[tuple[str, str]]:
    """Return language and code of a document's blocks that speak to the server."""
    return [(language, code) for language, code in blocks(document, *languages) if URL in code]


def test_every_example_is_run() -> None:
    """No document has a program or command for the server that the tests below leave out."""
    programs = {
        document: [language for language, _ in for_the_server(document, "python", "js")] for document in DOCUMENTS
    }
    assert {document: languages for document, languages in programs.items() if languages} == PROGRAMS
    assert [document for document in DOCUMENTS if for_the_server(document, "sh")] == COMMANDS


@pytest.mark.parametrize("document", COMMANDS)
def test_commands(server: Server, document: str) -> None:
    """Every curl command in the documents gets JSON with vectors."""
    for _, command in for_the_server(document, "sh"):
        address = server.url.removeprefix("http://")
        run = subprocess.run(
            ["sh", "-c", command.replace("curl ", "curl -sf ").replace(URL, address)], capture_output=True, check=True
        )
        answer = json.loads(run.stdout)
        assert answer["dimension"] == 32


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables with which programs find a PostgreSQL with pgvector."""
    clients.install()
    with clients.postgres(tmp_path_factory.mktemp("postgres")) as variables:
        yield variables


@pytest.mark.parametrize("document", PROGRAMS)
def test_clients(server: Server, database: dict[str, str], tmp_path: Path, document: str) -> None:
    """The programs for client libraries run unchanged and print the model's 32 dimensions."""
    for language, program in for_the_server(document, "python", "js"):
        output = clients.run(language, program.replace(f"http://{URL}", server.url), tmp_path, variables=database)
        assert "32" in output, output


def test_alloydb(server: Server, database: dict[str, str]) -> None:
    """The functions for AlloyDB, which a PostgreSQL runs, make requests and read answers."""
    ((_, code),) = blocks("docs/recipes.md", "sql")
    functions, _, call = code.partition("CALL google_ml.create_model(")
    assert "https://HOST/embed" in call

    def select(expression: str, *arguments: str) -> Any:
        program = "import json, psycopg, sys; functions, *select = json.load(sys.stdin); c = psycopg.connect();"
        program += "c.execute(functions); print(json.dumps(c.execute(*select).fetchone()[0]))"
        question = [functions, f"SELECT {expression}", arguments]
        return json.loads(clients.run("python", program, data=json.dumps(question), variables=database))

    request = select("embedding_request('m', %s)", "動的計画法")
    response = requests.post(f"{server.url}/embed", json=request, timeout=30).text
    vector = select("embedding_response('m', %s)", response)
    assert np.array(vector, np.float32).tolist() == np.array(json.loads(response)[0], np.float32).tolist()


@pytest.mark.parametrize("document", ["docs/api.md", "docs/ja/api.md"])
def test_the_error(server: Server, document: str) -> None:
    """The documented error is the server's response, except for the model's dimension."""
    (shown,) = re.findall(r'^{"error": .*}$', read(document), re.M)
    answer = requests.post(f"{server.url}/embed", json={"texts": ["a"], "dimensions": 500}, timeout=30)
    assert answer.json() == json.loads(shown.replace("384", "32"))


@pytest.mark.full_size
@pytest.mark.parametrize("document", ["docs/api.md", "docs/ja/api.md"])
def test_characters_per_token(document: str, full_size_model: Path) -> None:
    """For the stand-in, the documented command prints the figures of the table above it."""
    (command,) = [code for _, code in blocks(document, "sh") if "tokenizer.json" in code]
    command = command.replace(".venv/bin/python", sys.executable).replace(
        "model/tokenizer", f"{full_size_model}/tokenizer"
    )
    output = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    printed = dict(line.split() for line in output.splitlines())
    table = rows(document)
    for language, names in {"ja": ("Japanese", "日本語"), "en": ("English", "英語")}.items():
        (cells,) = [table[name] for name in names if name in table]
        assert float(printed[language]) == float(cells[0])
