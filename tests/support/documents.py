"""The documents for users: names, tables, code blocks and headings."""

import re

from tests.support import ROOT

READMES = ("README.md", "README.ja.md")
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# English and Japanese of the same page.
PAIRS = [READMES, *((name.replace("/ja/", "/"), name) for name in DOCUMENTS if "/ja/" in name)]


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def rows(document: str) -> dict[str, list[str]]:
    """Return the other cells of every table row by its first cell, without backquotes around a cell."""
    lines = [line for line in read(document).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0].strip("`"): [cell.strip("`") for cell in row[1:]] for row in cells if len(row) > 1}


def blocks(document: str, *languages: str) -> list[tuple[str, str]]:
    """Return language and code of the fenced blocks in these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", read(document), re.M | re.S)
    return [(language, code) for language, code in found if language in languages]


def anchors(document: str) -> set[str]:
    """Return what a link may have after "#", as GitHub makes it of the headings."""
    text = re.sub(r"^```.*?^```", "", read(document), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
