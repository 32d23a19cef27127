"""The page of GET /, without a browser: who gets it, its language, its policy, its files and the build's plots."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.page import HERE, LANGUAGES, PLOTS
from app.settings import Settings
from tests.support.access import BEARER, KEYS, ORIGIN

# Accept headers of browsers' navigation: Chrome, Firefox (new and old), Safari; Lynx; w3m; curl -H.
BROWSERS = [
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7",
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,image/svg+xml,*/*;q=0.8",
    "text/html, text/plain, text/sgml, text/css, application/xhtml+xml, */*;q=0.01",
    "text/html, text/*;q=0.5, image/*",
    "text/html",
    "TEXT/HTML",
    "text/*",
]
# Accept headers of clients that read JSON: none; curl, Python's requests and httpx, fetch in a browser, KServe's and
# Hugging Face's clients; axios; jQuery; R's httr; and malformed ones.
OTHERS = [
    None,
    "",
    "*/*",
    "application/json",
    "application/json, text/plain, */*",
    "application/json, text/javascript, */*; q=0.01",
    "application/json, text/xml, application/xml, */*",
    "application/json, text/html;q=0.9",
    "text/html, application/json",
    "application/json, text/html",
    "text/html;q=0, */*",
    "text/html;q=0.5, */*",
    "application/*, text/*;q=0.9",
    "image/png",
    ";;q=",
    "text/html;q=much, application/json",
]


@pytest.fixture(scope="module")
def guarded(tiny_encoder: Encoder) -> FlaskClient:
    """A client of a server with two keys and one origin."""
    variables = {"MAX_LENGTH": "64", "API_KEY": KEYS, "CORS_ORIGINS": ORIGIN}
    return create_app(Settings.from_env(variables), tiny_encoder).test_client()


@pytest.mark.parametrize("accept", BROWSERS)
def test_browsers_get_the_page(client: FlaskClient, accept: str) -> None:
    """A client that prefers text/html to application/json gets the page; a HEAD is like a GET."""
    answer = client.get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    assert answer.text.startswith("<!DOCTYPE html>")
    assert set(answer.vary) == {"Accept", "Accept-Language"}
    head = client.head("/", headers={"Accept": accept})
    assert (head.data, head.headers["Content-Length"]) == (b"", str(len(answer.data)))


@pytest.mark.parametrize("accept", OTHERS)
def test_other_clients_get_json(client: FlaskClient, accept: str | None) -> None:
    """Every other client gets the same JSON, byte for byte, and caches keep the two apart."""
    expected = client.get("/").data
    answer = client.get("/", headers={} if accept is None else {"Accept": accept})
    assert (answer.status_code, answer.content_type, answer.data) == (200, "application/json", expected)
    assert set(answer.vary) == {"Accept"}
    head = client.head("/", headers={} if accept is None else {"Accept": accept})
    assert (head.mimetype, head.headers["Content-Length"]) == ("application/json", str(len(expected)))


@pytest.mark.parametrize("method, path", [("POST", "/"), ("GET", "/nope"), ("GET", "/embed"), ("GET", "/page/nope.js")])
def test_a_browsers_other_requests_get_json(client: FlaskClient, method: str, path: str) -> None:
    """Browsers get the JSON of all other routes, and of errors."""
    answer = client.open(path, method=method, json={"inputs": "cat"} if method == "POST" else None)
    in_browser = client.open(
        path, method=method, json={"inputs": "cat"} if method == "POST" else None, headers={"Accept": BROWSERS[0]}
    )
    assert in_browser.mimetype == "application/json"
    assert (in_browser.status_code, in_browser.data) == (answer.status_code, answer.data)


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("ja", "ja"),
        ("ja-JP", "ja"),
        ("ja,en-US;q=0.9,en;q=0.8", "ja"),
        ("en-US,en;q=0.9,ja;q=0.8", "en"),
        ("en-GB", "en"),
        ("fr-CH, fr;q=0.9, ja;q=0.8, en;q=0.7", "ja"),
        ("ja-JP,en;q=0.9", "ja"),
        ("ja-JP,*;q=0.1", "ja"),
        ("en-US,ja;q=0.9", "en"),
        ("ja," * 1000, "en"),
        ("fr", "en"),
        ("*", "en"),
        ("", "en"),
        (None, "en"),
        (";q=", "en"),
    ],
)
def test_languages(client: FlaskClient, accepted: str | None, language: str) -> None:
    """The page is in the language of Accept-Language that it has, otherwise in English, and says so."""
    headers = {"Accept": "text/html"} | ({} if accepted is None else {"Accept-Language": accepted})
    answer = client.get("/", headers=headers)
    assert answer.headers["Content-Language"] == language
    assert f'<html lang="{language}">' in answer.text
    words = json.loads((HERE / f"words.{language}.json").read_text())
    assert f"<title>{words['title']}</title>" in answer.text and words["texts_label"] in answer.text


def test_both_languages_have_the_same_words() -> None:
    """The files of words have the same names with the same values in braces, and scripts use no other names."""
    english, japanese = (json.loads((HERE / f"words.{language}.json").read_text()) for language in LANGUAGES)
    assert list(english) == list(japanese)
    for name, sentence in english.items():
        assert type(sentence) is type(japanese[name]) and len(sentence) and len(japanese[name])
        if isinstance(sentence, str):
            assert sorted(re.findall(r"{\w+}", sentence)) == sorted(re.findall(r"{\w+}", japanese[name])), name
        elif isinstance(sentence, dict):
            assert list(sentence) == list(japanese[name])
        else:
            assert len(sentence) == len(japanese[name])
    scripts = "".join(path.read_text() for path in HERE.glob("*.js"))
    used = set(re.findall(r"words\.(\w+)", (HERE / "index.html").read_text())) | set(re.findall(r'"(\w+)"', scripts))
    assert set(re.findall(r'say\("(\w+)"', scripts)) <= set(english)
    beginnings = tuple(re.findall(r"say\(`(\w+)\$", scripts))
    assert [
        name for name in english if name not in used and not name.startswith(beginnings) and name not in PLOTS
    ] == []


class Elements(HTMLParser):
    """Collects the elements of a document: name and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_this_servers_alone(client: FlaskClient, language: str) -> None:
    """All addresses are relative and answer; nothing is inline: no script, style, or handler."""
    html = client.get("/", headers={"Accept": "text/html", "Accept-Language": language}).text
    elements = Elements(html).found
    addresses = [value for _, attributes in elements for name in ("href", "src") if (value := attributes.get(name))]
    assert len(addresses) > 5
    for address in addresses:
        assert re.fullmatch(r"(page/)?[\w.]+", address)
        assert client.get(f"/{address}").status_code == 200, address
    assert [name for _, attributes in elements for name in attributes if name == "style" or name.startswith("on")] == []
    assert "style" not in {tag for tag, _ in elements}
    types = [attributes.get("type") for tag, attributes in elements if tag == "script" and "src" not in attributes]
    assert types == ["application/json"]


def test_policy(client: FlaskClient) -> None:
    """The Content-Security-Policy allows this server's files, nothing inline and no frame."""
    policy = client.get("/", headers={"Accept": "text/html"}).headers["Content-Security-Policy"]
    directives = {name: sources for name, *sources in (part.split() for part in policy.split(";"))}
    assert directives["default-src"] == directives["frame-ancestors"] == directives["form-action"] == ["'none'"]
    assert directives["require-trusted-types-for"] == ["'script'"]
    assert {source for sources in directives.values() for source in sources} == {"'none'", "'self'", "'script'"}


def test_with_a_key(guarded: FlaskClient) -> None:
    """With API_KEY set the page and its files are public, and the data that they ask for is not."""
    page = guarded.get("/", headers={"Accept": BROWSERS[0], "Origin": ORIGIN})
    assert (page.status_code, page.mimetype) == (200, "text/html")
    assert {"Accept", "Accept-Language", "Origin"} <= set(", ".join(page.headers.getlist("Vary")).split(", "))
    assert guarded.head("/", headers={"Accept": BROWSERS[0]}).status_code == 200
    for path in HERE.glob("*.js"):
        assert guarded.get(f"/page/{path.name}").status_code == 200
    for accept in ("application/json", "*/*"):
        assert guarded.get("/", headers={"Accept": accept}).status_code == 401
        assert guarded.get("/", headers={"Accept": accept, **BEARER}).get_json()["name"] == "embedding-api"
    browser = {"Accept": BROWSERS[0]}
    assert guarded.post("/", json={"inputs": "cat"}, headers=browser).status_code == 401
    assert guarded.post("/embed", json={"texts": ["cat"]}, headers=browser).status_code == 401
    assert guarded.get("/metrics", headers=browser).status_code == 401
    assert [key for key in KEYS.split(", ") if key in page.text] == []


def test_an_unchanged_file_is_not_sent_again(client: FlaskClient) -> None:
    """A browser asks each time, and gets 304 as long as it has the newest file."""
    for path, headers in (("/", {"Accept": "text/html"}), ("/page/page.js", {})):
        answer = client.get(path, headers=headers)
        assert answer.headers["Cache-Control"] == "no-cache"
        again = client.get(path, headers={**headers, "If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["ETag"] == answer.headers["ETag"]
    tags = {client.get("/", headers={"Accept": "text/html", "Accept-Language": x}).headers["ETag"] for x in LANGUAGES}
    assert len(tags) == 2


@pytest.mark.parametrize("name", ["__init__.py", "index.html", "words.en.json", "../access.py", "report.json", ""])
def test_other_files_are_not_served(client: FlaskClient, name: str) -> None:
    """Only scripts, styles, the icon and the two plots are served; all else is 404 in JSON."""
    answer = client.get(f"/page/{name}")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")


def test_the_builds_plots(client: FlaskClient, tiny_model: Path) -> None:
    """The plots of the model folder are served as they are; no script runs where one is opened by itself."""
    html = client.get("/", headers={"Accept": "text/html"}).text
    for name in PLOTS:
        answer = client.get(f"/page/{name}")
        assert (answer.data, answer.mimetype) == ((tiny_model / name).read_bytes(), "image/svg+xml")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert f'src="page/{name}"' in html


def test_a_folder_without_plots(tiny_model: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    """A model folder without plots gives a page without them."""
    folder = shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.svg", "*.png"))
    client = create_app(Settings(model_dir=folder, max_length=64), tiny_encoder).test_client()
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200 and "<img" not in page.text
    assert client.get(f"/page/{PLOTS[0]}").status_code == 404
