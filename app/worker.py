"""The Gunicorn worker: threads, and errors in this service's shape."""

import re
from http import HTTPStatus
from typing import Any

import gunicorn.http.message
import gunicorn.util
from gunicorn.workers.gthread import ThreadWorker

from app.errors import error_body


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's threaded worker for an app of `create_app`."""

    def open(self) -> None:
        """Open the encoder in this process, and let the app see when the worker is shutting down.

        Raises:
            BootError: the model cannot be opened.
        """
        self.wsgi.extensions["encoder"].open()
        self.wsgi.extensions["shutting_down"] = lambda: not self.alive


def _write_error(sock: Any, status: int, reason: str, message: str) -> None:
    """Requests that are not HTTP, or over Gunicorn's limits, never reach the app."""
    if status == HTTPStatus.REQUEST_URI_TOO_LONG:
        message += " (send long texts with POST /embed)"
    body = error_body(status, f"The request cannot be read: {message}", HTTPStatus(status).name.lower())
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    gunicorn.util.write_nonblock(sock, head.encode("latin1") + body)


# Gunicorn has no settings for these two: the page it writes, which is HTML, and the request
# target, where it refuses what `curl 'host/embed?q=日本語'` sends, UTF-8 without percent signs.
gunicorn.util.write_error = _write_error
gunicorn.http.message.RFC9112_TARGET_INVALID = re.compile(r"[^\x21-\x7e\x80-\xff]")
