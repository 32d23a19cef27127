"""Servers on loopback that stand in for others, and a proxy that alters the answers of a real one."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import requests

from tests.support.server import Server

# Function of path and JSON of an answer; returns a status (200: unchanged) and JSON.
Change = Callable[[str, Any], tuple[int, Any]]


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Serve each GET, HEAD and POST with this function; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                answer(self)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def altered(server: Server, change: Change) -> Iterator[str]:
    """Pass requests on to a server, and alter its answers: change(path, JSON); yields the URL."""

    def pass_on(request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        headers = {"Content-Type": "application/json"} if body else {}
        answer = requests.request(request.command, server.url + request.path, data=body, headers=headers, timeout=10)
        status, changed = change(request.path.partition("?")[0], answer.json())
        request.send_response(answer.status_code if status == 200 else status)
        request.end_headers()
        request.wfile.write(json.dumps(changed).encode())

    with answering(pass_on) as url:
        yield url


def model(**values: Any) -> Change:
    return lambda path, answer: (200, {**answer, "model": {**answer["model"], **values}} if path == "/" else answer)


def quality(file: str, name: str, value: float) -> Change:
    def change(path: str, answer: Any) -> tuple[int, Any]:
        if path == "/":
            answer["quality"][file][name] = value
        return 200, answer

    return change


def vectors(change: Callable[[list[Any]], list[Any]]) -> Change:
    return lambda _, answer: (200, {**answer, "vectors": change(answer["vectors"])} if "vectors" in answer else answer)
