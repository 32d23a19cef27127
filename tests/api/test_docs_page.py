"""GET /docs in a real browser: it shows every route, runs them, and asks nobody but this server."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from flask.testing import FlaskClient
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support import ROOT
from tests.support.server import Server

# Swagger UI keeps its online validator from 127.0.0.1 and localhost, so the page is opened under another name.
HOST = "embedding.test"
QUIET = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
FLAGS = ["no-sandbox", "no-proxy-server", *QUIET.split(), f"host-resolver-rules=MAP {HOST} 127.0.0.1"]
JAPANESE = "東京 は 日本 の 首都"
TEXTS = ["the cat sat", JAPANESE, ""]
GET_EMBED = ("embedOne", "tr[data-param-name=q] input", JAPANESE)
POST_EMBED = ("embedMany", "textarea", json.dumps({"texts": TEXTS}, ensure_ascii=False))
# Flasgger's own: assets, an old address that leads to /docs, a page for logins.
UNDOCUMENTED = "/docs/assets/<path:filename> /apidocs/index.html /docs/oauth2-redirect.html"


class Visit:
    """An open /docs page, every request of it and everything that went wrong in it."""

    def __init__(self, page: Page, port: str) -> None:
        self.page = page
        self.origin = f"http://{HOST}:{port}"
        self.requests: list[str] = []
        self.statuses: set[int] = set()
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))
        page.on("response", lambda answer: self.statuses.add(answer.status))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(f"{self.origin}/docs")
        page.locator(".opblock-tag-section").first.wait_for()

    def execute(self, operation: str, field: str, value: str) -> tuple[str, Any]:
        """Fill in one field of an operation and press Execute; the code and the JSON that the page shows."""
        section = self.page.locator(f"#operations-embed-{operation}")
        section.locator(".opblock-summary-control").click()
        section.locator(field).fill(value)
        section.get_by_role("button", name="Execute").click()
        answer = section.locator(".live-responses-table tr.response")
        return answer.locator(".response-col_status").inner_text(), json.loads(answer.locator("code").inner_text())


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("Chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in FLAGS]) as browser:
            yield browser


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    page = browser.new_page()
    yield Visit(page, server.port)
    page.close()


def operations(openapi: Any) -> list[tuple[str, str]]:
    return [(method.upper(), path) for path, methods in openapi["paths"].items() for method in methods]


def test_openapi_lists_the_apps_routes(client: FlaskClient) -> None:
    """The document has every route of the app, and no other."""
    rules = [rule for rule in client.application.url_map.iter_rules() if rule.rule not in UNDOCUMENTED.split()]
    # Flask's <path:model> is OpenAPI's {model}
    paths = {rule.rule: re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in rules}
    routes = [(method, paths[rule.rule]) for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}]
    assert sorted(operations(client.get("/openapi.json").json)) == sorted(routes)


@pytest.mark.browser
def test_page_shows_every_route(visit: Visit, server: Server) -> None:
    """Each method and path is visible, in the order of the tags and then of the document."""
    rows = [row for row in visit.page.locator(".opblock-summary").all() if row.is_visible()]
    parts = [[row.locator(f".opblock-summary-{part}").inner_text() for part in ("method", "path")] for row in rows]
    shown = [(method, path.replace("\u200b", "")) for method, path in parts]
    openapi = requests.get(f"{server.url}/openapi.json", timeout=30).json()
    tags = [tag["name"] for tag in openapi["tags"]]
    documented = operations(openapi)
    assert shown == sorted(documented, key=lambda o: tags.index(openapi["paths"][o[1]][o[0].lower()]["tags"][0]))


@pytest.mark.browser
def test_try_get_embed(visit: Visit, server: Server) -> None:
    """Execute shows the vector of a Japanese text, as any other client gets it."""
    code, shown = visit.execute(*GET_EMBED)
    assert (code, shown["text"], len(shown["vector"])) == ("200", JAPANESE, 32)
    assert shown == requests.get(f"{server.url}/embed", params={"q": JAPANESE}, timeout=30).json()


@pytest.mark.browser
def test_try_post_embed(visit: Visit, server: Server) -> None:
    """Execute shows the vectors of an edited body, as any other client gets them."""
    code, shown = visit.execute(*POST_EMBED)
    assert (code, shown["count"], len(shown["vectors"])) == ("200", 3, 3)
    assert shown == requests.post(f"{server.url}/embed", json={"texts": TEXTS}, timeout=30).json()


@pytest.mark.browser
def test_page_asks_only_this_server(visit: Visit) -> None:
    """No request goes elsewhere or fails, and the console stays empty: no error, no policy violation."""
    visit.execute(*GET_EMBED)
    visit.execute(*POST_EMBED)
    sent = [urlsplit(url) for url in visit.requests if not url.startswith("data:")]
    assert {f"{url.scheme}://{url.netloc}" for url in sent} == {visit.origin}
    assert {url.path for url in sent} >= {"/docs", "/docs/assets/docs.js", "/openapi.json", "/embed"}
    assert visit.statuses == {200}
    assert visit.complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("tag, code, effect", [("script", "a = 1", "a"), ("style", "p {}", "document.styleSheets[1]")])
def test_page_refuses_inline_code(visit: Visit, tag: str, code: str, effect: str) -> None:
    """A script or style that got into the page has no effect, and the console says why."""
    element = f"Object.assign(document.createElement('{tag}'), {{textContent: '{code}'}})"
    with visit.page.expect_console_message() as refusal:
        visit.page.evaluate(f"document.body.append({element})")
    assert "Content Security Policy" in refusal.value.text
    assert visit.page.evaluate(f"typeof {effect}") == "undefined"


@pytest.mark.browser
def test_swagger_ui_is_the_vendored_one(visit: Visit) -> None:
    """The running Swagger UI has the version that its README names."""
    named = re.match(r"Swagger UI (\S+),", (ROOT / "app/swagger_ui/README.md").read_text())
    assert named and visit.page.evaluate("versions.swaggerUI.version") == named[1]


@pytest.mark.parametrize("path", ["/flasgger_static/swagger-ui-bundle.js", "/docs/assets/lib/jquery.min.js"])
def test_flasggers_own_swagger_ui_is_not_served(client: FlaskClient, path: str) -> None:
    """The old Swagger UI inside Flasgger and its jQuery answer 404, as JSON."""
    answer = client.get(path)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")


def test_policy_lets_in_this_server_alone(client: FlaskClient) -> None:
    """The Content-Security-Policy names no other host and allows nothing inline."""
    policy = client.get("/docs").headers["Content-Security-Policy"]
    directives = {name: sources for name, *sources in (part.split() for part in policy.split(";"))}
    assert directives["default-src"] == ["'none'"]
    assert {source for sources in directives.values() for source in sources} == {"'none'", "'self'", "data:"}
