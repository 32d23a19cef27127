"""A document against one of the schemas in tests/schemas."""

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from tests.conftest import ROOT

SCHEMAS = ROOT / "tests/schemas"


def problems(name: str, document: Any) -> list[str]:
    schema = json.loads((SCHEMAS / name).read_text())
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return [f"{list(error.path)}: {error.message}" for error in kind(schema).iter_errors(document)]
