"""The page that GET / shows in a browser: rendered once per language, its files, and the build's plots.

The page has no figures of its own: it asks GET / for JSON, POST /embed and POST /tokenize. With API_KEY the page is
public, like /docs, and its requests need the key. To change its words: words.en.json and words.ja.json.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import cast

from flask import Flask, Response, abort, current_app, request
from werkzeug.datastructures import LanguageAccept

HERE = Path(__file__).parent
# Languages of the page. The first is the default.
LANGUAGES = ("en", "ja")
# Content policy of the page: its own files and nothing inline. No string becomes markup (Trusted Types).
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
# Content policy of a plot that is opened by itself: Matplotlib's SVG has inline styles, and images in data: URLs.
PLOT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
# The build's plots beside report.json, in the order of the page.
PLOTS = ("report_error.svg", "report_similarity.svg")
# Longest Accept and Accept-Language that are looked at, characters: parsing one of 64 kB takes long, before any key.
MAX_HEADER_CHARACTERS = 1000
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class File:
    """A file as it is sent. policy: its Content-Security-Policy, or None for that of every response."""

    content: bytes
    content_type: str
    policy: str | None = None

    @cached_property
    def etag(self) -> str:
        """Name of this version of the content."""
        return sha256(self.content).hexdigest()[:32]

    def response(self) -> Response:
        """Return the response: the file, or 304 if the browser has it already."""
        response = Response(self.content, content_type=self.content_type)
        response.cache_control.no_cache = True
        if self.policy:
            response.headers["Content-Security-Policy"] = self.policy
        response.set_etag(self.etag)
        response.make_conditional(request)
        return response


@dataclass(frozen=True)
class Page:
    """The page by its language, and the files beside it by their names."""

    by_language: dict[str, File]
    files: dict[str, File]


def register(app: Flask, model_dir: Path) -> None:
    """Read the page and its files, and serve the files. GET / itself belongs to routes/ops.py."""
    files = {path.name: _read(path) for path in HERE.iterdir() if path.suffix in (".css", ".js", ".svg")}
    plots = {}
    for name in PLOTS:
        with suppress(OSError):  # a folder of an older build, or a copy without plots
            plots[name] = _read(model_dir / name, PLOT_POLICY)
    template = app.jinja_env.from_string((HERE / "index.html").read_text("utf-8"))
    pages = {}
    for language in LANGUAGES:
        words = json.loads((HERE / f"words.{language}.json").read_text("utf-8"))
        html = template.render(language=language, words=words, plots=list(plots))
        pages[language] = File(html.encode(), CONTENT_TYPES[".html"], CONTENT_SECURITY_POLICY)
    app.extensions["page"] = Page(pages, files | plots)
    app.add_url_rule("/page/<name>", "page_file", _file)


def is_wanted() -> bool:
    """Return whether the request is GET / of a client that prefers HTML to JSON, as browsers do."""
    if request.path != "/" or request.method not in ("GET", "HEAD"):
        return False
    if len(request.headers.get("Accept", "")) > MAX_HEADER_CHARACTERS:
        return False
    accepted = request.accept_mimetypes
    return accepted["text/html"] > accepted["application/json"]


def page_response() -> Response:
    """Return the page in the reader's language."""
    language = LANGUAGES[0]
    if len(request.headers.get("Accept-Language", "")) <= MAX_HEADER_CHARACTERS:
        # ja-JP before en: werkzeug would prefer en, which the page has by that very name
        tags = [(tag.partition("-")[0], quality) for tag, quality in request.accept_languages]
        language = LanguageAccept(tags).best_match(LANGUAGES, LANGUAGES[0])
    response = _page().by_language[language].response()
    response.headers["Content-Language"] = language
    response.vary.update(["Accept", "Accept-Language"])
    return response


def _page() -> Page:
    return cast(Page, current_app.extensions["page"])


def _read(path: Path, policy: str | None = None) -> File:
    return File(path.read_bytes(), CONTENT_TYPES[path.suffix], policy)


def _file(name: str) -> Response:
    file = _page().files.get(name)
    return file.response() if file else abort(404)
