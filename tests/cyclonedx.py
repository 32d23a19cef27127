"""CycloneDX 1.5 files: what is wrong with one, by the standard's own schema."""

import json
from typing import Any
from urllib.parse import urlsplit

import jsonschema  # type: ignore[import-untyped]
from referencing import Registry, Resource

from tests.conftest import ROOT

SCHEMAS = ROOT / "tests/schemas"


def problems(document: Any) -> list[str]:
    """Return what the schema refuses, and which references lead nowhere or to several."""
    schema = json.loads((SCHEMAS / "bom-1.5.SNAPSHOT.schema.json").read_text())
    registry = Registry(retrieve=_beside)  # type: ignore[call-arg]
    errors = jsonschema.Draft7Validator(schema, registry=registry).iter_errors(document)
    refused = [f"{list(error.path)}: {error.message}" for error in errors]
    if refused:
        return refused
    refs = [component["bom-ref"] for component in [document["metadata"]["component"], *document["components"]]]
    used = [entry["ref"] for entry in document["dependencies"]]
    used += [ref for entry in document["dependencies"] for ref in entry.get("dependsOn", ())]
    twice = {ref for ref in refs if refs.count(ref) > 1}
    return sorted({f"no component: {ref}" for ref in set(used) - set(refs)} | {f"twice: {ref}" for ref in twice})


def _beside(uri: str) -> Resource[Any]:
    """The schema that bom-1.5 names, from the same folder."""
    return Resource.from_contents(json.loads((SCHEMAS / urlsplit(uri).path.rpartition("/")[2]).read_text()))
