"""GET / in a real browser: what the page shows is what the API answers, whatever is typed, with a key, by keyboard."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import requests
from playwright.sync_api import Browser, Error, Page, Route, expect

from app.page import HERE, LANGUAGES, PLOTS
from app.routes.tei import MAX_TOKENIZED
from tests.support.access import BEARER, KEYS
from tests.support.browser import HOST, Visit
from tests.support.failures import UNAUTHORIZED
from tests.support.http import LARGE_BATCH, repeat_in_threads
from tests.support.server import Server, Start
from tests.support.stand_ins import answering

pytestmark = pytest.mark.browser
# Milliseconds: several processes run tests at once.
expect.set_options(timeout=30_000)

MAX_LENGTH = 64
WORDS = {language: json.loads((HERE / f"words.{language}.json").read_text()) for language in LANGUAGES}
ENGLISH = WORDS["en"]
# Lines that must be shown and sent as they are: markup, quotes, a shell's and Python's syntax, directions, combined and
# invisible characters, halves of surrogate pairs.
HOSTILE = [
    "<img src=x onerror=\"document.title='run'\">",
    "</script><script>document.title = 'run'</script>",
    """it's "quoted" `touch run` $(touch run) ${HOME} \\ \\' \\" %s {x} !1""",
    "'; touch run; echo '",
    "\"]}' ; touch run #",
    "\u202egnihton\u202c \u2066cat\u2069 \u061c\u200f",
    "👩‍👩‍👧‍👦 🇯🇵 e\u0301 𠮷 \u200b\ufeff\u00ad\u2028\u2029",
    "\ud83d",
    "cat \udc00\ud800 mat",
    "\x00\x01\x1b[31m\x7f\x85",
    "   two  spaces\ttab ",
    "العربية and עברית",
]


@pytest.fixture
def server(shared_server: Start) -> Server:
    return shared_server()


class PageVisit(Visit):
    """The open page of GET /, with its first answer shown."""

    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url)
        self.url = url
        self.wait()

    def wait(self) -> None:
        """Wait until a computation has ended: its result, or its problem, is shown."""
        self.page.locator("#results[aria-busy=false]").wait_for(state="attached")

    def compute(self, lines: list[str]) -> None:
        """Put lines into the field, as pasting does, and press the button."""
        self.page.evaluate("lines => document.getElementById('texts').value = lines.join('\\n')", lines)
        self.page.get_by_role("button", name=ENGLISH["compute"]).click()
        self.wait()

    def select(self, index: int) -> None:
        self.page.locator("#line").select_option(index=index)

    def text(self, selector: str) -> str:
        return str(self.page.evaluate("selector => document.querySelector(selector).textContent", selector))

    def table(self) -> list[list[float]]:
        """Return the numbers of the table of similarities."""
        rows = self.page.locator(".heat tbody tr").all()
        return [[float(cell) for cell in row.locator("td").all_inner_texts()] for row in rows]


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[PageVisit]:
    with visiting(browser, server) as visit:
        yield visit


@contextmanager
def visiting(browser: Browser, server: Server, **options: Any) -> Iterator[PageVisit]:
    """Open the page in a context of its own. options: those of Playwright's new_context, such as locale."""
    with browser.new_context(**options) as context:
        yield PageVisit(context.new_page(), f"{server.url}/")


def embed(server: Server, texts: list[str]) -> Any:
    """Return the vectors of POST /embed. json.dumps sends lone surrogates as JavaScript does, as escapes."""
    answer = requests.post(
        f"{server.url}/embed",
        data=json.dumps({"texts": texts}),
        headers={"Content-Type": "application/json", **BEARER},
        timeout=30,
    )
    return answer.json()["vectors"]


def cosines(vectors: Any) -> Any:
    unit = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize(("locale", "language"), [("ja-JP", "ja"), ("en-GB", "en"), ("fr-FR", "en")])
def test_the_examples(browser: Browser, server: Server, locale: str, language: str) -> None:
    """The page opens in the reader's language with examples, computed: tokens, similarities, pairs, vector, facts."""
    words = WORDS[language]
    with visiting(browser, server, locale=locale) as visit:
        page = visit.page
        assert page.locator("html").get_attribute("lang") == language
        assert page.locator("#texts").input_value().split("\n") == words["examples"]
        vectors = embed(server, words["examples"])
        np.testing.assert_allclose(visit.table(), cosines(vectors), atol=0.00501)
        assert json.loads(visit.text("#json")) == vectors[0]
        assert page.locator("#tokens > li").count() == len(words["examples"])
        assert page.locator("h2").all_inner_texts()[0] == words["texts"]
        about = requests.get(server.url, timeout=10).json()
        facts = page.locator("#facts").inner_text()
        for shown in (
            about["model"]["id"],
            "INT8",
            str(about["onnxruntime"]["version"]),
            "query",
            words["fact_pooling"],
        ):
            assert shown in facts
        for name in ("mean", "p1", "min"):
            assert f"{about['quality']['int8'][name]:.5f}" in facts
        assert re.search(rf"\b{MAX_LENGTH}\b.*\b128\b", facts)  # served, and the model's own
        assert visit.complaints == []


def test_own_texts(visit: PageVisit, server: Server) -> None:
    """Each line's vector is that of /embed, the table has the cosines, and the pairs are ranked by them."""
    texts = ["the cat sat on a mat", "a cat sat", "東京 は 日本 の 首都", "graph theory", "dynamic programming"]
    visit.compute(["", texts[0], "   ", *texts[1:], ""])
    vectors = embed(server, texts)
    expected = cosines(vectors)
    np.testing.assert_allclose(visit.table(), expected, atol=0.00501)
    assert visit.page.locator(".heat tbody th .name").all_inner_texts() == texts
    for index, vector in enumerate(vectors):
        visit.select(index)
        assert json.loads(visit.text("#json")) == vector
    ranked = sorted(((expected[i, j], i, j) for j in range(5) for i in range(j)), reverse=True)
    shown = visit.page.locator("#pairs li").all()
    assert len(shown) == len(ranked) == 10
    for item, (cosine, i, j) in zip(shown, ranked, strict=True):
        value, first, second = item.locator("> span").all_inner_texts()
        assert float(value) == pytest.approx(cosine, abs=0.00051)
        assert (first, second) == (f"{i + 1} {texts[i]}", f"{j + 1} {texts[j]}")


def test_tokens(visit: PageVisit, server: Server) -> None:
    """The chips are the tokens of /tokenize, special ones marked."""
    text = "the cat 𠮷 sat"
    visit.compute([text])
    (tokens,) = requests.post(f"{server.url}/tokenize", json={"inputs": [text]}, timeout=10).json()
    assert visit.page.locator("#tokens .token").all_inner_texts() == [token["text"] for token in tokens]
    specials = [token["text"] for token in tokens if token["special"]]
    assert visit.page.locator("#tokens .token.special").all_inner_texts() == specials
    assert visit.text("#tokens .count") == f"Tokens: {len(tokens)}"
    assert visit.page.locator("#pairs").inner_text() == ENGLISH["no_pairs"]


def test_the_cut(visit: PageVisit, server: Server) -> None:
    """A text over MAX_LENGTH shows the tokens that are cut off, and says it; what is left has the same vector."""
    visit.compute(["the " * 80, "the " * 62])
    first = visit.page.locator("#tokens > li").first
    assert first.locator(".count").inner_text().startswith(f"Cut after {MAX_LENGTH} of 82 tokens")
    assert first.locator(".token").count() == 82
    assert first.locator("del").count() == 82 - MAX_LENGTH
    kinds = first.locator("> ul > li").evaluate_all("items => items.map((item) => item.className)")
    cut = kinds.index("cut")
    assert "beyond" not in " ".join(kinds[:cut]) and cut == MAX_LENGTH - 1
    assert kinds[cut + 1 :] == ["token beyond"] * (82 - MAX_LENGTH) + ["token special"]
    assert first.locator("del").first.evaluate("item => getComputedStyle(item).textDecorationLine") == "line-through"
    assert visit.page.locator("#tokens > li").nth(1).locator("del, .cut").count() == 0
    assert visit.table()[0][1] == 1


def test_the_default_prompt(browser: Browser, shared_server: Start) -> None:
    """A default prompt is named, and its tokens are marked before those of the text."""
    server = shared_server(DEFAULT_PROMPT_NAME="query")
    with visiting(browser, server) as visit:
        visit.compute(["cat sat"])
        assert visit.page.locator("#tokens .prompt").all_inner_texts() == ["the"]
        assert "“the ”" in visit.text("#prompt-hint") and "query" in visit.text("#prompt-hint")
        assert json.loads(visit.text("#json")) == embed(server, ["cat sat"])[0]


def test_a_long_text(visit: PageVisit) -> None:
    """A long text shows some of its tokens: its beginning, those around the cut, its end; the rest is counted."""
    visit.compute(["the " * 20_000])
    assert visit.text("#tokens .count").startswith(f"Cut after {MAX_LENGTH} of 20,002 tokens")
    drawn = visit.page.locator("#tokens .token").count()
    hidden = visit.page.locator("#tokens .gap").all_inner_texts()
    assert drawn < 350 and hidden == [f"{20_002 - drawn:,} more"]
    assert visit.page.locator("#tokens .cut").count() == 1


def test_a_text_too_long_for_tokens(visit: PageVisit) -> None:
    """Over /tokenize's limit of characters its sentence is in the place of the tokens; all else is shown."""
    visit.compute(["the " * (MAX_TOKENIZED // 4) + "a", "cat"])
    assert f"over the limit of {MAX_TOKENIZED} for /tokenize" in visit.text("#tokens-problem")
    assert visit.page.locator("#tokens li").count() == 0
    assert len(visit.table()) == 2
    visit.compute(["cat"])
    assert visit.text("#tokens-problem") == ""


def test_a_text_too_long_for_the_model(visit: PageVisit) -> None:
    """A text that /embed refuses shows its sentence, and the page goes on with the next."""
    visit.compute(["a" * (MAX_TOKENIZED + 1)])
    assert "characters without white space" in visit.text("#problem")
    assert not visit.page.locator("#results").is_visible()
    visit.compute(["cat"])
    assert visit.text("#problem") == "" and visit.page.locator("#results").is_visible()


def test_many_lines(visit: PageVisit) -> None:
    """The first 32 of more lines are used, and the page says so; without any it says what to do."""
    visit.compute([f"cat {n}" for n in range(40)])
    assert len(visit.table()) == 32
    assert visit.text("#problem") == "Only the first 32 of 40 texts are used."
    visit.compute(["", "  "])
    assert visit.text("#problem") == ENGLISH["no_texts"]


def test_the_servers_own_limit_of_texts(browser: Browser, shared_server: Start) -> None:
    """With a smaller MAX_TEXTS no more are sent."""
    with visiting(browser, shared_server(MAX_TEXTS=3)) as visit:
        assert visit.text("#problem") == "Only the first 3 of 8 texts are used."
        assert len(visit.table()) == 3


def run_curl(visit: PageVisit, folder: Path) -> Any:
    command = visit.text("#curl")
    run = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, check=True, env=program_environ())
    return json.loads(run.stdout)["vectors"][0]


def run_python(visit: PageVisit, folder: Path) -> Any:
    command = [sys.executable, "-c", visit.text("#python")]
    return json.loads(
        subprocess.run(command, cwd=folder, capture_output=True, check=True, env=program_environ()).stdout
    )


def program_environ() -> dict[str, str]:
    return {**os.environ, "API_KEY": "second-key", "no_proxy": "*"}


def test_hostile_texts(visit: PageVisit, server: Server, tmp_path: Path) -> None:
    """Any text is shown as it is, runs nothing, and its curl command and Python program give the same vector."""
    visit.compute(HOSTILE)
    vectors = embed(server, HOSTILE)
    np.testing.assert_allclose(visit.table(), cosines(vectors), atol=0.00501)
    for index, text in enumerate(HOSTILE):
        visit.select(index)
        assert json.loads(visit.text("#json")) == vectors[index], text
        assert run_curl(visit, tmp_path) == vectors[index], text
        assert run_python(visit, tmp_path) == vectors[index], text
        invisible = r"[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069]"
        assert not re.search(invisible, visit.text("#curl") + visit.text("#python")), text
    assert list(tmp_path.iterdir()) == []
    assert visit.page.title() == ENGLISH["title"]
    assert visit.page.locator("main img").count() == len(PLOTS)
    assert [urlsplit(url).netloc for url in visit.requests if urlsplit(url).netloc != f"127.0.0.1:{server.port}"] == []
    assert visit.complaints == []


def test_only_this_server(visit: PageVisit, server: Server) -> None:
    """No request goes elsewhere or fails; the plots are there; the console is empty."""
    assert {urlsplit(url).netloc for url in visit.requests} == {f"127.0.0.1:{server.port}"}
    paths = {urlsplit(url).path for url in visit.requests}
    assert paths >= {
        "/",
        "/embed",
        "/tokenize",
        "/page/page.css",
        *(f"/page/{path.name}" for path in HERE.glob("*.js")),
    }
    for image in visit.page.locator("img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth") > 0
    assert visit.statuses == {200}
    assert visit.complaints == []


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_by_itself(browser: Browser, server: Server, name: str) -> None:
    """A plot that is opened by itself is drawn with its own styles, and nothing is blocked."""
    page = browser.new_page()
    visit = Visit(page, f"{server.url}/page/{name}")
    assert page.evaluate("getComputedStyle(document.querySelector('path')).strokeLinejoin") == "round"
    assert [complaint for complaint in visit.complaints if "favicon" not in complaint] == []
    page.close()


@pytest.mark.parametrize(
    "code",
    [
        "document.body.innerHTML = '<b>run</b>'",
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title = 1'}))",
        "document.body.setAttribute('onclick', 'document.title = 1'); document.body.click(); throw TypeError()",
    ],
    ids=["markup", "script", "attribute"],
)
def test_inline_code_is_refused(visit: PageVisit, code: str) -> None:
    """An inline script has no effect, and no string becomes markup or code."""
    with pytest.raises(Error, match="TypeError|TrustedScript|TrustedHTML|Trusted Type"):
        visit.page.evaluate(f"() => {{ {code} }}")
    assert visit.page.title() == ENGLISH["title"] and visit.page.locator("h1").is_visible()
    assert visit.page.locator("b").count() == 0


def test_with_a_key(browser: Browser, shared_server: Start, tmp_path: Path) -> None:
    """The page asks for a key, says when it is wrong, works with it, and keeps it nowhere but in memory."""
    server = shared_server(API_KEY=KEYS)
    with browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        visit = PageVisit(context.new_page(), f"{server.url}/")
        page = visit.page
        field = page.get_by_label(ENGLISH["key_label"])
        expect(field).to_be_focused()
        assert not page.locator("#results").is_visible() and page.locator("#facts").inner_text() == ""
        assert visit.text("#key-problem") == ""
        for wrong, problem in (("first-kéy", ENGLISH["key_malformed"]), ("wrong", UNAUTHORIZED)):
            field.fill(wrong)
            field.press("Enter")
            expect(page.locator("#key-problem")).to_have_text(problem)
        field.fill("second-key")
        field.press("Enter")
        expect(page.locator("#results")).to_be_visible()
        expect(field).not_to_be_visible()
        expect(page.locator("#texts")).to_be_focused()
        visit.compute(["cat", "mat"])
        vectors = embed(server, ["cat", "mat"])
        assert json.loads(visit.text("#json")) == vectors[0]
        assert run_curl(visit, tmp_path) == run_python(visit, tmp_path) == vectors[0]
        kept = page.evaluate(
            "[document.cookie, location.href, document.documentElement.outerHTML, document.getElementById('key').value,"
            " JSON.stringify(localStorage), JSON.stringify(sessionStorage), JSON.stringify(history.state)]"
        )
        assert context.cookies() == [] and not [text for text in kept if "second-key" in text]
        assert not [url for url in visit.requests if "key" in url]
        assert page.evaluate("indexedDB.databases().then((found) => found.length)") == 0
        page.reload()
        expect(field).to_be_visible()


def test_copying(browser: Browser, server: Server) -> None:
    """A button copies its text; where the page may not use the clipboard, it selects the text and says how to go on."""
    with visiting(browser, server, permissions=["clipboard-read", "clipboard-write"]) as visit:
        for name in ("JSON", "curl", "Python"):
            visit.page.get_by_role("button", name=f"{ENGLISH['copy_button']}: {name}").click()
            expect(visit.page.locator("#copied")).to_have_text(ENGLISH["copied"].format(name=name))
            assert visit.page.evaluate("navigator.clipboard.readText()") == visit.text(f"#{name.lower()}")
    page = browser.new_page()
    visit = PageVisit(page, f"http://{HOST}:{server.port}/")  # not HTTPS and not localhost: no clipboard
    page.get_by_role("button", name=f"{ENGLISH['copy_button']}: curl").click()
    expect(page.locator("#copied")).to_have_text(ENGLISH["selected"].format(name="curl"))
    assert page.evaluate("getSelection().toString()") == visit.text("#curl")
    assert f"curl 'http://{HOST}:{server.port}/embed'" in visit.text("#curl")
    page.close()


def test_behind_a_path_prefix(browser: Browser, server: Server) -> None:
    """The page works behind a proxy that serves it under a path, and its commands have that path."""

    def pass_on(request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        url = server.url + unquote(request.path).removeprefix("/it's")
        answer = requests.request(request.command, url, data=body, headers=dict(request.headers), timeout=10)
        request.send_response(answer.status_code)
        for name in ("Content-Type", "Content-Security-Policy"):
            request.send_header(name, answer.headers[name])
        request.end_headers()
        request.wfile.write(answer.content)

    with answering(pass_on) as proxy, browser.new_context() as context:
        visit = PageVisit(context.new_page(), f"{proxy}/it's/")
        visit.compute(["cat", "mat"])
        vectors = embed(server, ["cat", "mat"])
        assert json.loads(visit.text("#json")) == vectors[0]
        assert run_curl(visit, Path("/")) == run_python(visit, Path("/")) == vectors[0]
        assert visit.complaints == []


def test_a_full_queue(browser: Browser, start: Start, tiny_model: Path) -> None:
    """429 is shown with its sentence and when to try again; afterwards the same button works."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=2, MAX_TEXTS=10_000).wait_until_ready()

    def send_large_batch() -> None:
        requests.post(f"{server.url}/embed", json={"texts": LARGE_BATCH}, timeout=60)

    with visiting(browser, server) as visit:
        with repeat_in_threads(6, send_large_batch):
            until = time.monotonic() + 60
            while not visit.text("#problem") and time.monotonic() < until:
                visit.compute(["cat"])
            assert visit.text("#problem") == (
                "The queue is full: 2 requests wait already (MAX_QUEUE). Try again later. Try again in 1 s."
            )
        visit.compute(["cat"])
        assert visit.text("#problem") == "" and len(visit.table()) == 1


def test_a_server_that_is_gone(browser: Browser, start: Start, tiny_model: Path) -> None:
    """Without a connection the page says so, and works again when the server is back."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    with visiting(browser, server) as visit:
        server.stop()
        visit.compute(["cat"])
        assert visit.text("#problem") == ENGLISH["no_connection"]
        start(MODEL_DIR=tiny_model, MAX_LENGTH=64, PORT=server.port).wait_until_ready()
        visit.compute(["cat"])
        assert visit.text("#problem") == "" and len(visit.table()) == 1


NOT_READY = {"error": {"message": "It is not ready.", "type": "server_error", "param": None, "code": "not_ready"}}


@pytest.mark.parametrize(
    ("status", "content", "retry_after", "problem"),
    [
        (503, json.dumps(NOT_READY), "5", "It is not ready. Try again in 5 s."),
        (502, "<h1>Bad Gateway</h1>", None, ENGLISH["no_json"].format(status=502)),
        (200, "<h1>Sign in</h1>", None, ENGLISH["no_json"].format(status=200)),
        (200, "", None, ENGLISH["no_json"].format(status=200)),
        (200, "{}", None, ENGLISH["fault"]),
    ],
)
def test_other_answers(visit: PageVisit, status: int, content: str, retry_after: str | None, problem: str) -> None:
    """A 503, and what proxies answer, is shown in a sentence; afterwards the page works."""
    headers = {"Content-Type": "text/html"} | ({"Retry-After": retry_after} if retry_after else {})
    visit.page.route("**/embed", lambda route: route.fulfill(status=status, body=content, headers=headers))
    visit.compute(["cat"])
    assert visit.text("#problem") == problem
    visit.page.unroute("**/embed")
    visit.compute(["cat"])
    assert visit.text("#problem") == "" and len(visit.table()) == 1


def test_the_newest_wins(visit: PageVisit) -> None:
    """Pressing again while an answer is on its way shows the newer one; the older one is given up without an error."""
    held: list[Route] = []
    page = visit.page
    page.route("**/embed", lambda route: route.continue_() if held else held.append(route))
    page.fill("#texts", "cat\nmat\nsat")
    page.keyboard.press("Control+Enter")
    until = time.monotonic() + 30
    while not held and time.monotonic() < until:
        page.wait_for_timeout(20)
    assert page.locator("#results").get_attribute("aria-busy") == "true"
    visit.compute(["the", "a"])
    assert len(visit.table()) == 2
    held[0].continue_()
    assert visit.text("#problem") == "" and visit.text("#status").startswith("Texts computed: 2,")


@pytest.mark.full_size
def test_the_mark_before_a_text(browser: Browser, start: Start, full_size_model: Path) -> None:
    """The mark that SentencePiece puts before a text is a space, not the text's first character once more."""
    server = start(MODEL_DIR=full_size_model, DEFAULT_PROMPT_NAME="none").wait_until_ready()
    with visiting(browser, server) as visit:
        visit.compute(["猫が寝る", "the cat"])
        chips = visit.page.locator("#tokens > li").first.locator(".token").all_inner_texts()
        assert [chip.split()[-1] for chip in chips] == ["<s>", "␣", "猫", "が", "寝", "る", "</s>"]


def test_live_regions_are_there_before_their_text(visit: PageVisit) -> None:
    """Live regions are in the page while they are empty: a screen reader may not announce one that appears at once."""
    for name in ("#status", "#problem", "#copied", "#key-problem"):
        visit.page.evaluate("name => { document.querySelector(name).textContent = ''; }", name)
        display = visit.page.locator(name).evaluate("element => getComputedStyle(element).display")
        assert display != "none", name


def test_keyboard_only(visit: PageVisit, server: Server) -> None:
    """Everything is reached and done with the keyboard, in the order of the page, and the focus is visible."""
    page = visit.page
    reached = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
        assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
        if reached[-1] == "python":
            break
    before = [
        ENGLISH["docs"],
        "OpenAPI",
        ENGLISH["metrics"],
        "texts",
        ENGLISH["compute"],
        "heat",
        "tokens-region",
        "line",
    ]
    copy = ENGLISH["copy_button"]
    assert reached == [*before, copy, "json", copy, "curl", copy, "python"]
    page.focus("#texts")
    page.keyboard.press("Control+A")
    page.keyboard.type("cat\nmat")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".heat tbody tr")).to_have_count(2)
    visit.wait()
    page.focus("#line")
    page.keyboard.press("ArrowDown")
    assert json.loads(visit.text("#json")) == embed(server, ["mat"])[0]
    page.focus("button.primary")
    page.keyboard.press("Enter")
    visit.wait()
    assert page.locator("#line").evaluate("list => list.selectedIndex") == 1  # the choice is kept


def test_screen_readers(visit: PageVisit) -> None:
    """Landmarks, headings in order, names of all fields and regions, a real table, and live messages."""
    page = visit.page
    for role in ("banner", "main", "navigation"):
        assert page.get_by_role(role).count() == 1
    levels = page.locator("h1, h2, h3").evaluate_all("items => items.map((item) => Number(item.tagName[1]))")
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    for role, name in (("textbox", "texts_label"), ("combobox", "line_label"), ("button", "compute")):
        assert page.get_by_role(role, name=ENGLISH[name], exact=True).count() == 1
    table = page.get_by_role("table", name=ENGLISH["similarity_caption"])
    assert table.get_by_role("columnheader").count() == 1 + len(ENGLISH["examples"])
    assert table.get_by_role("rowheader").count() == len(ENGLISH["examples"])
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("#status").get_attribute("role") == "status"
    assert page.locator("#problem").get_attribute("role") == "alert"
    for region in page.locator("[tabindex='0']").all():
        name = region.evaluate("item => document.getElementById(item.getAttribute('aria-labelledby')).innerText")
        assert region.get_attribute("role") == "region" and name


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_sideways_scrolling(browser: Browser, server: Server, width: int) -> None:
    """The page is never wider than the window; a wide table scrolls in its own region."""
    with visiting(browser, server, viewport={"width": width, "height": 844}) as visit:
        visit.compute(["x" * 500, "w" * 40 + " " + "長" * 300, *(f"the cat {n}" for n in range(30))])
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        region = visit.page.locator("#heat")
        assert region.evaluate("item => item.scrollWidth > item.clientWidth")
        outside = visit.page.locator("main *").evaluate_all(
            "(items, width) => items.filter((item) => !item.closest('#heat, pre, .unseen, bdi')"
            " && item.getBoundingClientRect().right > width).map((item) => item.outerHTML.slice(0, 80))",
            width,
        )
        assert outside == []


# Returns text and contrast of each element that shows text of its own. A canvas turns any CSS colour into numbers:
# https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
CONTRASTS = """() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const numbers = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return Array.from(context.getImageData(0, 0, 1, 1).data);
  };
  const luminance = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (item) => {
    for (let at = item; at; at = at.parentElement) {
      const color = numbers(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
  };
  const found = [];
  for (const item of document.querySelectorAll("body *")) {
    const hasText = Array.from(item.childNodes).some((node) => node.nodeType === 3 && node.data.trim());
    if (!hasText || !item.checkVisibility() || item.closest(".unseen")) continue;
    const both = [numbers(getComputedStyle(item).color), background(item)].map(luminance);
    found.push([item.innerText.slice(0, 40), (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Browser, server: Server, scheme: Literal["light", "dark"]) -> None:
    """All text has a contrast of 4.5 or more to its background, in dark and in light, also in the table's colours."""
    with visiting(browser, server, color_scheme=scheme) as visit:
        visit.compute(["the cat " * 40, "cat", "mat", "東京 は 日本", *(f"a {n}" for n in range(40))])
        contrasts = visit.page.evaluate(CONTRASTS)
        assert len(contrasts) > 1000
        assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
        paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", paper)[0]) < 60) == (scheme == "dark")
        background = "items => items.map((item) => getComputedStyle(item).backgroundColor)"
        assert len(set(visit.page.locator(".heat td").evaluate_all(background))) > 5
