"""Check documents against the schemas in tests/support/schemas."""

import json
from typing import Any
from urllib.parse import urlsplit

import jsonschema  # type: ignore[import-untyped]  # it has no types
from referencing import Registry, Resource

from tests.support import ROOT

SCHEMAS = ROOT / "tests/support/schemas"


def problems(name: str, document: Any) -> list[str]:
    """Return what the schema in this file refuses. Schemas that it refers to are read from the same folder."""
    schema = json.loads((SCHEMAS / name).read_text())
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    registry = Registry(retrieve=_beside)  # type: ignore[call-arg]  # attrs' alias of a field, which mypy misses
    errors = kind(schema, registry=registry).iter_errors(document)
    return [f"{list(error.path)}: {error.message}" for error in errors]


def _beside(uri: str) -> Resource[Any]:
    return Resource.from_contents(json.loads((SCHEMAS / urlsplit(uri).path.rpartition("/")[2]).read_text()))
