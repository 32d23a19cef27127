"""gcloud knows every command and flag that the documents and the pipeline use."""

import re

import pytest

from tests.support import ROOT, gcloud


def test_what_is_written() -> None:
    """gcloud knows every command and flag in the documents and the pipeline."""
    found = list(gcloud.commands())
    places = {place.partition(":")[0] for place, _ in found}
    assert places >= {"docs/cloud-run.md", "docs/ja/cloud-run.md", "cloudbuild.yaml", "docs/bigquery.md"}
    assert {place: gcloud.problems(words) for place, words in found if gcloud.problems(words)} == {}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run services update-traffic name --to-revision x=100", "no such flag: --to-revision"),
        ("run service list", "no such command: run service list"),
    ],
)
def test_what_it_refuses(command: str, says: str) -> None:
    """An unknown command or flag is found."""
    assert says in gcloud.problems(gcloud.words(command))[0]


@pytest.mark.parametrize("pattern", [r"^## ", r"^\| ", r"^\d\. "])
def test_the_japanese_page_has_the_same_parts(pattern: str) -> None:
    """The Japanese page on Cloud Run has the commands of the English one."""
    english, japanese = ((ROOT / f"docs/{folder}cloud-run.md").read_text() for folder in ("", "ja/"))
    assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, japanese, re.M)) > 0
    assert blocks(english) == blocks(japanese)


def blocks(text: str) -> list[str]:
    """Return the lines of a shell script without comments."""
    return [re.sub(r" +#.*", "", block) for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)]
