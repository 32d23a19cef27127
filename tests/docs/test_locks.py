"""The locks agree with the requirements, and .dockerignore with the Dockerfile."""

import re

import pytest

from tests.support import ROOT


@pytest.mark.parametrize("name", ["runtime", "parquet", "build", "data", "test", "sdist", "audit", "clients"])
def test_locks(name: str) -> None:
    """Every package of the .in file is pinned in the .txt file, and every pin has hashes."""
    wanted = [line.split()[0] for line in lines(f"{name}.in") if not line.startswith(("-", "torch="))]
    locked = (ROOT / f"requirements/{name}.txt").read_text()
    pins = re.findall(r"^([a-z0-9.-]+)==\S+(?: ;[^\\\n]*)? \\\n    --hash=sha256:", locked, re.M)
    assert {re.split("[=<>;]", package)[0].lower() for package in wanted} <= set(pins)
    assert len(pins) == len(re.findall(r"^[a-z0-9]", locked, re.M))
    assert "torch" not in pins


def lines(name: str) -> list[str]:
    """Return the lines of a file of requirements, without comments."""
    text = (ROOT / "requirements" / name).read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_images_build_sees_only_what_it_copies() -> None:
    """.dockerignore admits what the Dockerfile copies and nothing else, so that other edits rebuild nothing."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")][0] == "*"
    let_in = {path for line in lines if line.startswith("!") for path in ROOT.glob(line[1:])}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    copied = {ROOT / name for copy in copies for name in copy.split()}
    assert [path for path in copied if not {path, *path.parents} & let_in] == []
    assert let_in - copied <= set(ROOT.glob("requirements/*.txt"))
