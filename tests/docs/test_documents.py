"""The documents agree with the code: settings, options, routes, limits, links; in both languages."""

import json
import re
from collections import Counter
from dataclasses import fields
from pathlib import PurePosixPath

import pytest
import yaml

from app import routes
from app.routes import options
from app.settings import Settings
from build import verify
from build.source import DEFAULT_MODEL
from tests.support import ROOT
from tests.support.documents import DOCUMENTS, PAIRS, READMES, anchors, blocks, read, rows

OPENAPI = yaml.safe_load((ROOT / "app/openapi.yml").read_text())
CONFIGURATION = "docs/configuration.md"
API = ("docs/api.md", "docs/ja/api.md")
MODELS = ("docs/models.md", "docs/ja/models.md")
# Settings whose default is in words, since it depends on the CPU or is empty.
IN_WORDS = {"CPUS", "WEB_CONCURRENCY", "HOST", "SERVED_MODEL_NAME", "DEFAULT_PROMPT_NAME"}
IN_WORDS |= {"API_KEY", "CORS_ORIGINS", "AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE", "GOOGLE_CLOUD_PROJECT"}


def settings(document: str) -> dict[str, list[str]]:
    """Return default and meaning of each setting in a document's table."""
    return {name: cells for name, cells in rows(document).items() if re.fullmatch(r"[A-Z_]+", name)}


def test_settings() -> None:
    """The page on configuration has every setting with its default, and no other."""
    table = settings(CONFIGURATION)
    expected = {field.name.upper(): field.default for field in fields(Settings)}
    assert set(table) == set(expected)
    for name in set(expected) - IN_WORDS:
        assert table[name][0].rstrip("/") == str(expected[name]), name


def test_settings_of_the_readmes() -> None:
    """The settings in the READMEs are the same in both languages, and those of the page on configuration."""
    table = settings(CONFIGURATION)
    english, japanese = (settings(readme) for readme in READMES)
    assert english == {name: table[name] for name in english}
    assert list(english) == list(japanese)
    assert all(japanese[name][0] == table[name][0] for name in set(japanese) - IN_WORDS)


@pytest.mark.parametrize("document", API)
def test_options(document: str) -> None:
    """Every option of /embed is in the page on the API and in openapi.yml, with its default."""
    table, parameters = rows(document), OPENAPI["components"]["parameters"]
    schema = OPENAPI["components"]["schemas"]["Texts"]["properties"]
    assert set(options.OPTIONS) == set(parameters) == set(schema) - {"texts"}
    for name in ("normalize", "truncate", "encoding_format"):
        default = getattr(options.Options(), name)
        assert table[name][0] == (str(default).lower() if isinstance(default, bool) else default)
        assert parameters[name]["schema"]["default"] == schema[name]["default"] == default
    assert set(options.OPTIONS) <= set(table)


@pytest.mark.parametrize("document", API)
def test_routes(document: str) -> None:
    """Every route of openapi.yml is in the page on the API."""
    for path, methods in OPENAPI["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}" in read(document), path


def test_the_images_arguments() -> None:
    """The Dockerfile's defaults are those of `make` and `python -m build`; the page on it names every argument."""
    text = (ROOT / "Dockerfile").read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.M))
    assert (defaults["MODEL"], defaults["REVISION"]) == (DEFAULT_MODEL, "")
    assert f"TORCH_INDEX ?= {defaults['TORCH_INDEX']}\n" in (ROOT / "Makefile").read_text()
    assert defaults["VERSION"] == routes.VERSION
    assert set(re.findall(r"`([A-Z]\w*)=`", read("docs/container.md"))) == set(defaults) - {"VERSION"}


@pytest.mark.parametrize(("english", "japanese"), PAIRS)
def test_both_languages_have_the_same_parts(english: str, japanese: str) -> None:
    """A Japanese page has the sections, tables, lists and commands of the English one, and links to it."""
    texts = read(english), read(japanese)
    for pattern in (r"^##+ ", r"^\| ", r"^- ", r"^```", r"^!\["):
        assert len(re.findall(pattern, texts[0], re.M)) == len(re.findall(pattern, texts[1], re.M)), pattern
    assert commands(english) == commands(japanese)
    assert "[日本語](" in texts[0] and "[English](" in texts[1]


@pytest.mark.parametrize(("english", "japanese"), PAIRS)
def test_both_languages_have_the_same_figures(english: str, japanese: str) -> None:
    """The tables have the same numbers of two digits or more, row by row."""
    figures = [
        [Counter(re.findall(r"\d[\d.,]*\d", line)) for line in read(document).splitlines() if line.startswith("| ")]
        for document in (english, japanese)
    ]
    assert figures[0] == figures[1]


def commands(document: str) -> list[str]:
    """Return the code without the comments at the ends of lines."""
    return [re.sub(r" +#.*", "", code) for _, code in blocks(document, "sh", "python", "js")]


def test_what_is_measured_is_there() -> None:
    """The blocks that the tools fill in contain figures."""
    for document, name in [(readme, "bench") for readme in READMES] + [("docs/container.md", "image")]:
        block = read(document).split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
        assert len(re.findall(r"\d[\d.,]*", block)) > 10, document


@pytest.mark.parametrize("readme", READMES)
def test_the_readmes_are_short(readme: str) -> None:
    """A README has at most 150 lines; details belong in docs/."""
    assert len(read(readme).splitlines()) <= 150


@pytest.mark.parametrize("document", MODELS)
def test_the_gate(document: str) -> None:
    """The page on models has the figures of build/verify.py, in the order of its table."""
    gate = [verify.INT8_COSINE["mean"], verify.INT8_COSINE["p1"], verify.FP32_MIN_COSINE, verify.INT8_COSINE["min"]]
    gate += [verify.INT8_PAIRWISE_DIFFERENCE, verify.INT8_RETRIEVAL_LOSS, verify.INT8_NEIGHBOURS]
    table = read(document).split("\n| | FP32 | INT8 |\n")[1].split("\n\n")[0]
    cells = [cell for row in table.splitlines()[1:] for cell in row.strip("| ").split("|")[1:]]
    assert [float(cell) for cell in cells if cell.strip()] == gate


@pytest.mark.parametrize("document", MODELS)
def test_speeds_by_cpu(document: str) -> None:
    """The page on models has the figures of a file in docs/bench/ for each CPU in its table."""
    results = [json.loads(file.read_text()) for file in ROOT.glob("docs/bench/*.json")]
    measured = [
        [f"{result['engine']['int8']:.0f}", *(f"{result['http'][name]:.0f}" for name in ("clients_32", "batches"))]
        + [f"{result['http']['one_client_p50']:.1f}"]
        for result in results
    ]
    shown = [[cell.split()[0] for cell in cells[:4]] for name, cells in rows(document).items() if "AVX-512" in name]
    assert shown and [figures for figures in shown if figures not in measured] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links(document: str) -> None:
    """Every image, file and heading that a document links to is in the repository."""
    missing = []
    for link, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", read(document)):
        target = (ROOT / PurePosixPath(document).parent / link).resolve() if link else ROOT / document
        if not target.exists() or (anchor and anchor not in anchors(str(target.relative_to(ROOT)))):
            missing.append((link, anchor))
    assert missing == []
