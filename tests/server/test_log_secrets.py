"""No text, vector or key of a request is logged, and no request can forge a line."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.http import ask
from tests.support.log import PIECE_BYTES, SECRET_KEYS, get_request, line_of, post_request
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two workers with API keys that log everything."""
    environ = {"API_KEY": ",".join(SECRET_KEYS), "LOG_LEVEL": "debug"}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_TEXTS=8, WEB_CONCURRENCY=2, **environ).wait_until_ready()


VECTOR_DIGITS = re.compile(r"\d\.\d{7,}")


def bodies(mark: str) -> list[tuple[str, Any]]:
    """Return valid and invalid requests of all dialects, with the mark in every place."""
    own = [{"texts": [mark]}, {"texts": [mark, 1]}, {"texts": mark}, {mark: 1}, {"texts": [mark], "prompt": mark}]
    own += [{"texts": [mark], "prompt_name": mark}, {"texts": [mark] * 9}, {"texts": [mark], "normalize": mark}]
    own += [
        {"texts": ["x " * 100 + mark], "truncate": False},
        {"texts": [mark * 20_000]},
        mark,
        [mark],
        {"texts": [""]},
    ]
    tei: list[Any] = [{"inputs": mark}, {"inputs": [mark, 2]}, {"inputs": mark, "prompt_name": mark}]
    tei += [{"inputs": [5, 6, 7]}, {"inputs": mark, "truncation_direction": mark}, {"inputs": {mark: mark}}]
    openai = {"input": [mark], "model": mark, "user": mark}
    calls = {"requestId": mark, "caller": mark, "sessionUser": mark, "userDefinedContext": {}, "calls": [[mark]]}
    return [
        *(("/embed", body) for body in [*own, *tei]),
        *(("/", body) for body in tei),
        *(("/tokenize", body) for body in tei),
        ("/v1/embeddings", openai),
        *(("/v1/embeddings", {**openai, name: mark}) for name in ("encoding_format", "dimensions", "input")),
        ("/similarity", {"inputs": {"source_sentence": mark, "sentences": [mark, f"{mark} 2"]}}),
        ("/similarity", {"inputs": {"source_sentence": mark, "sentences": mark}}),
        ("/decode", {"ids": [mark]}),
        ("/bigquery", calls),
        ("/bigquery", {**calls, "calls": [[mark, mark]]}),
        ("/bigquery", {**calls, "userDefinedContext": {mark: mark}}),
        ("/bigquery", {**calls, "userDefinedContext": {"prompt": mark}}),
    ]


def test_no_text_vector_or_key_is_logged(server: Server) -> None:
    """No text, vector or key is logged in any dialect, whether in query, body or header, even at LOG_LEVEL=debug."""
    mark, other = "SECRETMARK", "Bearer SECRETKEY-wrong"
    answers, last = [], ""

    def send_all(path: str, headers: dict[str, str] | None = None, **arguments: Any) -> None:
        nonlocal last
        method, sent = "POST" if arguments else "GET", {"Authorization": f"Bearer {SECRET_KEYS[0]}", **(headers or {})}
        response = requests.request(method, f"{server.url}{path}", headers=sent, timeout=30, **arguments)
        assert response.status_code < 500
        answers.append(response.text)
        last = response.headers["X-Request-Id"]

    for path, body in bodies(mark):
        send_all(path, json=body)
        send_all(path, json=body, headers={"Authorization": other})
    for data in (f'{{"texts": ["{mark}"', f'"{mark}"', b'{"texts": ["\xff' + mark.encode(), mark.encode("utf-16")):
        send_all("/embed", data=data, headers={"Content-Type": "application/json"})
    for kind in ("text/plain", f"text/{mark}", f"application/json; charset={mark}"):
        send_all("/embed", data=mark, headers={"Content-Type": kind})
    send_all("/embed", json={"texts": [mark]}, headers={"Content-Encoding": mark})
    for query in (f"q={mark}", f"q={mark}&prompt={mark}", f"{mark}=1", f"q={mark}&q=2", f"q=1&dimensions={mark}"):
        send_all(f"/embed?{query}")
        send_all(f"/nope?{query}")
    for header in ("Authorization", "Proxy-Authorization", "X-Api-Key", "Cookie", "Origin", "Referer"):
        send_all("/embed?q=a", headers={header: f"Basic {mark}"})
    send_all(f"/embed?q=a&api_key={mark}", headers={"X-Request-Id": f"{mark} {mark}", "traceparent": mark})
    line_of(server, last)
    output = server.output
    vectors = {digits for answer in answers for digits in VECTOR_DIGITS.findall(answer)}
    assert len(vectors) > 100 and sum(mark in answer for answer in answers) > 10
    assert [digits for digits in vectors if digits in output] == []
    for secret in (mark, "SECRETKEY", base64.b64encode(mark.encode()).decode()[:12], mark.encode().hex(), "NERTES"):
        assert secret.lower() not in output.lower()


JSON_IN_CHUNKS = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
MALFORMED = {
    "a control character in the query": get_request("/embed?q=MARK\x01"),
    "a space in the query": get_request("/embed?q=cat MARK"),
    "a header without a colon": get_request("/embed?q=cat", "Authorization Bearer MARK\r\n"),
    "a space in a header's name": get_request("/embed?q=cat", "Authorization Bearer MARK: 1\r\n"),
    "a control character in a header": get_request("/embed?q=cat", "Authorization: Bearer MARK\x01\r\n"),
    "an expectation": get_request("/embed?q=cat", "Expect: MARK\r\n"),
    "a coding": get_request("/embed?q=cat", "Transfer-Encoding: MARK\r\n"),
    "a long query": get_request(f"/embed?q=MARK{'a' * 9000}"),
    "a long header": get_request("/embed?q=cat", f"Authorization: Bearer MARK{'a' * 9000}\r\n"),
    "a body without its head": '{"texts": ["MARK"]}\r\n\r\n',
    "two lengths": post_request("/embed", '{"texts": ["MARK"]}', "Content-Length: 1\r\n"),
    "half a body": post_request("/embed", '{"texts": ["MARK"]}').replace("Content-Length: 19", "Content-Length: 99"),
    "a wrong chunk": get_request("/embed", JSON_IN_CHUNKS, "POST") + "MARK\r\n",
    "a chunk too long": get_request("/embed", JSON_IN_CHUNKS, "POST") + "2\r\nMARK\r\n0\r\n\r\n",
    "what comes behind": post_request("/embed", '{"texts": ["a"]}') + "MARK",
}
HALVES = ["GET /embed?q=MARK", "GET /embed?q=cat HTTP/1.1\r\nAuthorization: Bearer MARK\r\n"]


def output_after(server: Server, request: str) -> str:
    """Send a request and a second one, and return the log when the second one has its line."""
    ask(server, request, is_last=True)
    line_of(server, ask(server, get_request("/info")).headers["x-request-id"])
    return server.output


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_http_is_not_logged(server: Server, case: str) -> None:
    """Texts and keys in malformed HTTP are not logged."""
    assert "SECRETMALFORMED" not in output_after(server, MALFORMED[case].replace("MARK", "SECRETMALFORMED"))


@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_is_not_logged(server: Server, half: str) -> None:
    """A head that breaks off is not logged."""
    mark = f"SECRET{len(half)}HALF"
    assert mark not in output_after(server, half.replace("MARK", mark))


HOSTILE = {
    "quotes": '"}\\", {"severity": "EMERGENCY"',
    "a tab": "a\tb",
    "not UTF-8": "\xff\xc3\x28\xed\xa0\x80",
    "almost a line": "\x85\xa0\xad",
    "long": "a" * 8000,
    "long and wide": "\xe3\x81\x82" * 2500,
    "too long": "a" * 10_000,
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("header", ["User-Agent", "X-Request-Id", "X-Cloud-Trace-Context", "traceparent"])
def test_log_injection_by_a_header(server: Server, header: str, case: str) -> None:
    """Whatever a header has, the request has one line, of its own severity, that a pipe takes in one piece."""
    request = get_request("/embed?q=cat", f"{header}: {HOSTILE[case]}\r\n").replace("User-Agent: me\r\n", "")
    answer = ask(server, request.encode("latin-1"), is_last=True)
    line = line_of(server, answer.headers["x-request-id"])
    assert answer.status == (431 if case == "too long" else 200)
    assert (line["severity"], line["httpRequest"]["status"]) == ("INFO", answer.status)
    assert re.fullmatch(r"[0-9a-f]{16}|a{1,128}", line["requestId"])
    assert len(json.dumps(line, ensure_ascii=False).encode()) < PIECE_BYTES
    assert not [name for name in line if name.startswith("logging.")]


@pytest.mark.parametrize("escaped", ["%0A", "%0D%0A", "%00", "%22%7D", "%1B[2J", "%E2%80%A8", "%ED%A0%80", "%FF", "é"])
def test_log_injection_by_a_path(server: Server, escaped: str) -> None:
    """Escapes in a path make no line and no invalid UTF-8, and a long path is cut."""
    answer = ask(server, get_request(f"/{escaped}{{}}{escaped * 500}"), is_last=True)
    line = line_of(server, answer.headers["x-request-id"])
    assert (answer.status, line["route"], line["error"]) == (404, "other", "not_found")
    assert line["httpRequest"]["requestUrl"].startswith("/") and len(line["httpRequest"]["requestUrl"]) <= 200
    assert len(json.dumps(line, ensure_ascii=False).encode()) < PIECE_BYTES


def test_a_path_that_reverses_text(start: Start, tiny_model: Path) -> None:
    """Characters that change a line's direction are escaped in the text log."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, LOG_FORMAT="text").wait_until_ready()
    for character in "\u202e\u2067\u200f\u061c":
        assert requests.get(f"{server.url}/a{character}b", timeout=10).status_code == 404
    output = server.stop()
    assert not set("\u202e\u2067\u200f\u061c") & set(output)
    assert "/a\\u202eb 404" in output
