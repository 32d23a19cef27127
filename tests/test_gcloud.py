"""gcloud knows every command and flag that the documents, the pipeline and deploy/rollout.py use."""

import json
import re

import pytest

from tests import gcloud
from tests.conftest import ROOT

KNOWN = json.loads((ROOT / "tests/schemas/gcloud.json").read_text())


def problems(words: list[str]) -> list[str]:
    """What gcloud would refuse in a command, as far as names go."""
    command = next((" ".join(words[:n]) for n in (4, 3, 2) if " ".join(words[:n]) in KNOWN["commands"]), None)
    if command is None:
        return [f"no such command: {' '.join(words[:4])}"]
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    return [
        f"{command}: no such flag: {flag}" for flag in flags - set(KNOWN["commands"][command]) - set(KNOWN["global"])
    ]


def test_what_is_written() -> None:
    found = list(gcloud.commands())
    places = {place.partition(":")[0] for place, _ in found}
    assert places >= {"docs/cloud-run.md", "docs/ja/cloud-run.md", "cloudbuild.yaml", "README.md"}
    assert {place: problems(words) for place, words in found if problems(words)} == {}


def test_what_is_run() -> None:
    """The commands that deploy/rollout.py runs and those that it tells people to run."""
    script = (ROOT / "deploy/rollout.py").read_text()
    found = re.findall(r"f?\"(?:gcloud )?((?:run|auth) (?:services|revisions|print)[^\"]*)\"", script)
    found += [" ".join(re.findall(r"\"([^\"]*)\"", line)) for line in re.findall(r"gcloud\((\"run\".*)\)", script)]
    assert len(found) >= 5
    assert [
        problem for text in found for problem in problems(gcloud.words(text.replace("{where}", "--region x")))
    ] == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run services update-traffic name --to-revision x=100", "no such flag: --to-revision"),
        ("run service list", "no such command: run service list"),
    ],
)
def test_what_it_refuses(command: str, says: str) -> None:
    assert says in problems(gcloud.words(command))[0]


@pytest.mark.parametrize(
    ("language", "pattern"), [(language, pattern) for language in ("ja/",) for pattern in (r"^## ", r"^\| ", r"^\d\. ")]
)
def test_the_japanese_page_has_the_same_parts(language: str, pattern: str) -> None:
    english, japanese = (ROOT / f"docs/{folder}cloud-run.md" for folder in ("", language))
    count = [len(re.findall(pattern, path.read_text(), re.M)) for path in (english, japanese)]
    assert count[0] == count[1] > 0
    assert blocks(english.read_text()) == blocks(japanese.read_text())


def blocks(text: str) -> list[str]:
    """The shell's lines, without comments."""
    return [re.sub(r" +#.*", "", block) for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)]
