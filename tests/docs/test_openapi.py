"""openapi.yml documents the request bodies and parameters of the routes, field by field."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml
from flask.testing import FlaskClient

from app import routes
from app.routes import bigquery, cohere, native, ollama, openai, options, tei, token_ids, vertex, weaviate
from app.routes.body import TextList
from tests.support import ROOT

OPENAPI = yaml.safe_load((ROOT / "app/openapi.yml").read_text())
# Limit of token ids: it depends on the model, so openapi.yml has none.
ID_TYPES: Any = token_ids.ids_types(2**40)
EMBED: Any = tei.Embed
DECODE: Any = tei.Decode
OPENAI: Any = openai.Input
SCHEMAS = OPENAPI["components"]["schemas"]
BODIES: dict[str, list[Any]] = {
    "Texts": [native.Texts],
    "Inputs": [EMBED[str | TextList], *(EMBED[ids] for ids in ID_TYPES)],
    "Comparison": [tei.Comparison],
    "/tokenize": [tei.Tokenize],
    "/decode": [DECODE[ids] for ids in ID_TYPES],
    "OpenaiInput": [OPENAI[kind] for kind in (str | TextList, *ID_TYPES)],
    "OllamaInput": [ollama.Embed],
    "OllamaPrompt": [ollama.Prompt],
    "OllamaShow": [ollama.Show],
    "CohereTexts": [cohere.Embed],
    "WeaviateText": [weaviate.Vectors],
    "Instances": [vertex.Instances],
    "Calls": [bigquery.Calls],
}


def alternatives(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[Any]:
    """Yield the types that a schema (OpenAPI or JSON Schema) allows, with their limits, in a comparable form."""
    while "$ref" in schema:
        path, schema = schema["$ref"].split("/")[1:], root
        for name in path:
            schema = schema[name]
    if schema.get("nullable"):
        yield "null"
    if schema.get("enum") == [None]:
        return
    kind = "string" if "enum" in schema else schema.get("type")
    if several := schema.get("oneOf", schema.get("anyOf")):
        for one in several:
            yield from alternatives(one, root)
    elif kind == "null":
        yield "null"
    elif kind == "object":
        properties = {
            (name, name in schema.get("required", ()), frozenset(alternatives(inner, root)))
            for name, inner in schema["properties"].items()
        }
        yield "object", schema.get("additionalProperties", True), frozenset(properties)
    elif kind == "array":
        (items,) = schema.get("prefixItems", [schema["items"]])
        yield "array", schema.get("minItems"), schema.get("maxItems"), frozenset(alternatives(items, root))
    else:
        limits = [schema.get(name) for name in ("minimum", "maximum", "maxLength")]
        yield kind, frozenset(schema.get("enum", ())), *(None if limit == 2**40 - 1 else limit for limit in limits)


def members(schemas: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Return whether each field is required, and its types in any of several objects; also for other fields."""
    found: dict[str, Any] = {}
    for schema, root in schemas:
        ((kind, others, properties),) = alternatives(schema, root)
        assert kind == "object"
        found["other fields"] = others
        for name, is_required, allowed in properties:
            found[name] = (is_required, allowed | found.get(name, (None, frozenset()))[1])
    return found


@pytest.mark.parametrize("name", BODIES)
def test_bodies(name: str) -> None:
    """Every field of a body is documented with its types and limits, and whether it may be null or missing."""
    if name.startswith("/"):
        schema = OPENAPI["paths"][name]["post"]["requestBody"]["content"]["application/json"]["schema"]
    else:
        schema = SCHEMAS[name]
    types = [msgspec.json.schema(type_) for type_ in BODIES[name]]
    assert members([(schema, OPENAPI)]) == members([(type_, type_) for type_ in types])


def test_the_query() -> None:
    """The parameters of GET /embed are the options."""
    type_ = msgspec.json.schema(options.OptionFields)
    parameters = {name: parameter["schema"] for name, parameter in OPENAPI["components"]["parameters"].items()}
    documented = {name: (False, {*alternatives(schema, OPENAPI), "null"}) for name, schema in parameters.items()}
    assert documented | {"other fields": True} == members([(type_, type_)])


def test_every_body_is_compared() -> None:
    """No schema of a request is left out of the comparison."""
    used = set()
    for path, methods in OPENAPI["paths"].items():
        for operation in methods.values():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                found = schema.get("oneOf", [schema])
                used |= {one["$ref"].rsplit("/", 1)[1] if "$ref" in one else path for one in found}
    assert used == set(BODIES)


def test_version(client: FlaskClient) -> None:
    """GET /, GET /openapi.json and the newest entry of the changelog have the same version."""
    assert client.get("/").get_json()["version"] == routes.VERSION
    assert client.get("/openapi.json").get_json()["info"]["version"] == routes.VERSION
    assert re.findall(r"^## \[?(\d[\w.]*)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == routes.VERSION
