"""gcloud: its known commands and flags, and the commands in the documents and the pipeline, split into words."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

KNOWN = json.loads((ROOT / "tests/support/schemas/gcloud.json").read_text())
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "cloudbuild.yaml", ROOT / "service.yaml"]
# Shell variables and substitutions; their values do not matter.
VARIABLE = re.compile(r'"?\$\([^)]*\)"?|\$\{?\w+\}?')
ENDS = {"|", ";", "&&", "||", "<", ">"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield pairs of a place, `FILE: LINE`, and the words after `gcloud`."""
    for path in sorted(DOCUMENTS):
        for line in lines(path):
            for found in re.finditer(r"(?<![\w/`.-])gcloud (?=[a-z])", line):
                yield f"{path.relative_to(ROOT)}: {line.strip()}", words(line[found.end() :])


def lines(path: Path) -> list[str]:
    """Return the lines of a document's shell blocks and quoted commands, or of a file. Continued lines are joined."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        quoted = re.findall(r"`(gcloud [a-z][^`]* [^`]+)`", text)
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        text = "\n".join([*blocks, *quoted])
    else:
        text = re.sub(r"^.*# .*gcloud.*$", "", text, flags=re.M)
    return re.sub(r"\\\n\s*", "", text).splitlines()


def words(command: str) -> list[str]:
    lexer = shlex.shlex(VARIABLE.sub("value", command), posix=True, punctuation_chars=True)
    lexer.wordchars += "=:,{}@^$…"
    found: list[str] = []
    for word in lexer:
        if word in ENDS:
            break
        found.append(word)
    return found


def problems(words: list[str]) -> list[str]:
    """Return the names in a command that gcloud would refuse."""
    command = next((" ".join(words[:n]) for n in (4, 3, 2) if " ".join(words[:n]) in KNOWN["commands"]), None)
    if command is None:
        return [f"no such command: {' '.join(words[:4])}"]
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    return [
        f"{command}: no such flag: {flag}" for flag in flags - set(KNOWN["commands"][command]) - set(KNOWN["global"])
    ]
