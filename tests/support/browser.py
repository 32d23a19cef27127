"""Chromium, and visits to pages in it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.programs import require

# Swagger UI keeps its online validator from 127.0.0.1 and localhost, so the page is opened under another name.
HOST = "embedding.test"
QUIET = "disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
FLAGS = ["no-sandbox", "no-proxy-server", *QUIET.split(), f"host-resolver-rules=MAP {HOST} 127.0.0.1"]
JAPANESE = "東京 は 日本 の 首都"
TEXTS = ["the cat sat", JAPANESE, ""]
# Operation, field and value for DocsVisit.execute().
GET_EMBED = ("embedOne", "tr[data-param-name=q] input", JAPANESE)
POST_EMBED = ("embedMany", "textarea", json.dumps({"texts": TEXTS}, ensure_ascii=False))


@contextmanager
def launch() -> Iterator[Browser]:
    """Start Chromium. Without it tests are skipped, but in CI they fail."""
    chromium = require("chromium", "chromium")
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in FLAGS]) as browser:
            yield browser


class Visit:
    """An open page, every request of it and everything that went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.requests: list[str] = []
        self.statuses: set[int] = set()
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))
        page.on("response", lambda answer: self.statuses.add(answer.status))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(url)


class DocsVisit(Visit):
    """An open /docs page."""

    def __init__(self, page: Page, port: str) -> None:
        self.origin = f"http://{HOST}:{port}"
        super().__init__(page, f"{self.origin}/docs")
        page.locator(".opblock-tag-section").first.wait_for()

    def execute(self, operation: str, field: str, value: str) -> tuple[str, Any]:
        """Fill in one field of an operation and press Execute. Return the status and the JSON that the page shows."""
        section = self.page.locator(f"#operations-embed-{operation}")
        section.locator(".opblock-summary-control").click()
        section.locator(field).fill(value)
        section.get_by_role("button", name="Execute").click()
        answer = section.locator(".live-responses-table tr.response")
        return answer.locator(".response-col_status").inner_text(), json.loads(answer.locator("code").inner_text())
