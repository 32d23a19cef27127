"""Check CycloneDX 1.5 files by the standard's own schema."""

from typing import Any

from tests.support import schema


def problems(document: Any) -> list[str]:
    """Return what the schema refuses, and references to no component or to several."""
    refused = schema.problems("bom-1.5.SNAPSHOT.schema.json", document)
    if refused:
        return refused
    refs = [component["bom-ref"] for component in [document["metadata"]["component"], *document["components"]]]
    used = [entry["ref"] for entry in document["dependencies"]]
    used += [ref for entry in document["dependencies"] for ref in entry.get("dependsOn", ())]
    twice = {ref for ref in refs if refs.count(ref) > 1}
    return sorted({f"no component: {ref}" for ref in set(used) - set(refs)} | {f"twice: {ref}" for ref in twice})
