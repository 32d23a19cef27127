"""GET /docs in a real browser: it shows every route, runs them, and sends requests to this server only."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, expect

from app.http_errors import HTTP, RETRY_AFTER
from app.routes.options import OPTIONS, Options
from tests.support import ROOT
from tests.support.access import BEARER, KEYS
from tests.support.browser import GET_EMBED, HOST, JAPANESE, POST_EMBED, TEXTS, DocsVisit
from tests.support.failures import UNAUTHORIZED
from tests.support.routes import OPENAPI, OPERATIONS, PUBLIC
from tests.support.server import Server, Start
from tests.support.stand_ins import answering

pytestmark = pytest.mark.browser
# Code of an error -> its status.
HTTP_STATUS = {code: str(int(status)) for status, code in HTTP.values()}


@pytest.fixture
def server(shared_server: Start) -> Server:
    return shared_server()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[DocsVisit]:
    page = browser.new_page()
    yield DocsVisit(page, server.port)
    page.close()


def test_page_shows_every_route(visit: DocsVisit) -> None:
    """Each method and path is visible, in the order of the tags and then of the document."""
    rows = [row for row in visit.page.locator(".opblock-summary").all() if row.is_visible()]
    parts = [[row.locator(f".opblock-summary-{part}").inner_text() for part in ("method", "path")] for row in rows]
    shown = [(method, path.replace("\u200b", "")) for method, path in parts]
    tags = [tag["name"] for tag in OPENAPI["tags"]]
    assert visit.page.locator("button.authorize, button.authorization__btn").count() == 0  # without keys, no locks
    assert shown == sorted(OPERATIONS, key=lambda route: tags.index(OPERATIONS[route]["tags"][0]))


def test_try_get_embed(visit: DocsVisit, server: Server) -> None:
    """Execute shows the vector of a Japanese text, as any other client gets it."""
    code, shown = visit.execute(*GET_EMBED)
    assert (code, shown["text"], len(shown["vector"])) == ("200", JAPANESE, 32)
    assert shown == requests.get(f"{server.url}/embed", params={"q": JAPANESE}, timeout=30).json()


def test_try_post_embed(visit: DocsVisit, server: Server) -> None:
    """Execute shows the vectors of an edited body, as any other client gets them."""
    code, shown = visit.execute(*POST_EMBED)
    assert (code, shown["count"], len(shown["vectors"])) == ("200", 3, 3)
    assert shown == requests.post(f"{server.url}/embed", json={"texts": TEXTS}, timeout=30).json()


def test_page_uses_only_this_server(visit: DocsVisit) -> None:
    """No request goes elsewhere or fails, and the console stays empty: no error, no policy violation."""
    visit.execute(*GET_EMBED)
    visit.execute(*POST_EMBED)
    sent = [urlsplit(url) for url in visit.requests if not url.startswith("data:")]
    assert {f"{url.scheme}://{url.netloc}" for url in sent} == {visit.origin}
    assert {url.path for url in sent} >= {"/docs", "/docs/assets/docs.js", "/openapi.json", "/embed"}
    assert visit.statuses == {200}
    assert visit.complaints == []


@pytest.mark.parametrize("tag, code, effect", [("script", "a = 1", "a"), ("style", "p {}", "document.styleSheets[2]")])
def test_page_refuses_inline_code(visit: DocsVisit, tag: str, code: str, effect: str) -> None:
    """A script or style that got into the page has no effect, and the console says why."""
    element = f"Object.assign(document.createElement('{tag}'), {{textContent: '{code}'}})"
    with visit.page.expect_console_message() as refusal:
        visit.page.evaluate(f"document.body.append({element})")
    assert "Content Security Policy" in refusal.value.text
    assert visit.page.evaluate(f"typeof {effect}") == "undefined"


def test_swagger_ui_is_the_vendored_one(visit: DocsVisit) -> None:
    """The running Swagger UI has the version that its README names."""
    named = re.match(r"Swagger UI (\S+),", (ROOT / "app/swagger_ui/README.md").read_text())
    assert named and visit.page.evaluate("versions.swaggerUI.version") == named[1]


def test_the_server_has_its_address(visit: DocsVisit) -> None:
    """The list of servers has this one by its real address."""
    assert visit.page.locator(".servers option").all_inner_texts() == [f"{visit.origin} - this server"]


def test_options_are_visible(visit: DocsVisit) -> None:
    """POST /embed shows every option with its default as soon as it is opened."""
    section = visit.page.locator("#operations-embed-embedMany")
    section.locator(".opblock-summary-control").click()
    rows = section.locator(".opblock-description tbody tr").all()
    shown = {row.locator("td").nth(0).inner_text(): row.locator("td").nth(1).inner_text() for row in rows}
    assert list(shown) == list(OPTIONS)
    for name in ("normalize", "truncate", "encoding_format", "dtype"):
        assert shown[name] == str(getattr(Options(), name)).lower()


def test_rejections_are_explained(visit: DocsVisit) -> None:
    """429 and 503 say for each code what has happened, and when to send the request again."""
    section = visit.page.locator("#operations-embed-embedMany")
    section.locator(".opblock-summary-control").click()
    for status in ("429", "503"):
        row = section.locator(f'tr.response[data-code="{status}"]')
        description = row.locator(".response-col_description").inner_text()
        for code, seconds in RETRY_AFTER.items():
            if HTTP_STATUS[code] == status:
                assert code in description and str(seconds) in description


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_dark_and_light(browser: Browser, server: Server, scheme: Literal["dark", "light"]) -> None:
    """The page is dark where the reader prefers it, and follows a change; no text is left dark on dark."""
    page = browser.new_page(color_scheme=scheme)
    visit = DocsVisit(page, server.port)
    html = page.locator("html")
    assert html.get_attribute("class") == ("dark-mode" if scheme == "dark" else None)
    page.emulate_media(color_scheme="light")
    expect(html).not_to_have_class("dark-mode")
    page.emulate_media(color_scheme="dark")
    expect(html).to_have_class("dark-mode")
    page.locator("#operations-embed-embedMany .opblock-summary-control").click()
    for shown in (".opblock-description td:last-child", ".opblock-description p", ".examples-select__section-label"):
        color = page.locator(f"#operations-embed-embedMany {shown}").first.evaluate(
            "item => getComputedStyle(item).color"
        )
        assert min(map(int, re.findall(r"\d+", color)[:3])) > 150, shown
    assert visit.complaints == []
    page.close()


def answer_empty_page(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "text/html")
    request.send_header("Content-Length", "0")
    request.end_headers()


FETCH = """async ([url, key]) => {
  const headers = {"Content-Type": "application/json", "X-Stainless-Lang": "js"};
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    const answer = await fetch(url, {method: "POST", headers, body: '{"input": "cat"}'});
    return [answer.status, await answer.json(), answer.headers.get("X-Request-Id")];
  } catch (error) {
    return [0, String(error), null];
  }
}"""


def test_a_page_of_another_origin(browser: Browser, start: Start, tiny_model: Path) -> None:
    """Chromium lets a page of an origin in CORS_ORIGINS send its key and read vectors and errors, and no other page."""
    with answering(answer_empty_page) as allowed, answering(answer_empty_page) as other:
        allowed, other = (url.replace("127.0.0.1", HOST) for url in (allowed, other))
        server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, API_KEY=KEYS, CORS_ORIGINS=allowed).wait_until_ready()
        url = f"{server.url}/v1/embeddings"
        page = browser.new_page()
        page.goto(f"{allowed}/")
        status, content, request_id = page.evaluate(FETCH, [url, "first-key"])
        expected = requests.post(url, json={"input": "cat"}, headers=BEARER, timeout=10).json()
        assert (status, content) == (200, expected) and request_id
        status, content, _ = page.evaluate(FETCH, [url, "wrong"])
        assert (status, content["error"]["message"]) == (401, UNAUTHORIZED)
        page.goto(f"{other}/")
        assert page.evaluate(FETCH, [url, "first-key"])[:2] == [0, "TypeError: Failed to fetch"]
        page.close()


def test_docs_with_a_key(browser: Browser, shared_server: Start) -> None:
    """The page opens without a key, asks for one, and sends it; its own policy blocks none of this."""
    server = shared_server(API_KEY=KEYS)
    page = browser.new_page()
    visit = DocsVisit(page, server.port)
    assert page.locator("button.authorization__btn").count() == len(OPERATIONS) - len(PUBLIC)
    code, shown = visit.execute(*GET_EMBED)
    assert (code, shown["error"]["message"]) == ("401", UNAUTHORIZED)
    page.locator("button.authorize").click()
    page.locator(".modal-ux input").fill("second-key")
    page.locator(".modal-ux button.authorize").click()
    page.locator(".modal-ux button.btn-done").click()
    section = page.locator("#operations-embed-embedOne")
    section.get_by_role("button", name="Execute").click()
    section.locator(".live-responses-table tr.response .response-col_status", has_text="200").wait_for()
    assert not [complaint for complaint in visit.complaints if "Content Security Policy" in complaint]
    page.close()
