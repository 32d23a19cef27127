"""Rendering: JSON responses. Long lists are rendered in slices, which bounds memory and time in the hub."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from flask import Response

from app.routes import context

# Items per slice: 64 vectors of 384 numbers are 280 kB and take 0.7 ms.
SLICE_ITEMS = 64


def json_response(content: Any, status: int = 200) -> Response:
    """Return a JSON response. float32 numbers have their shortest exact decimal form."""
    began = time.monotonic()
    body = dumps(content)
    context().stages["serialize"] = time.monotonic() - began
    return Response(body, status, mimetype="application/json")


def list_response(
    items: Callable[[int, int], Any],
    count: int,
    *,
    name: str = "",
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> Response:
    """Return a list of `count` items, or an object with that list as member `name` after `before`, before `after`.

    items: (start, stop) -> those items of the list, for orjson.
    """
    head, tail = b"[", b"]"
    if name:
        head = (dumps(before)[:-1] + b"," if before else b"{") + dumps(name) + b":["
        tail = b"]" + (b"," + dumps(after)[1:] if after else b"}")

    def parts() -> Iterator[bytes]:
        yield head
        for start in range(0, count, SLICE_ITEMS):
            part = dumps(items(start, min(start + SLICE_ITEMS, count)))[1:-1]
            yield b"," + part if start else part
        yield tail

    if count > SLICE_ITEMS:
        return parts_response(parts)
    began = time.monotonic()
    body = b"".join(parts())
    context().stages["serialize"] = time.monotonic() - began
    return Response(body, mimetype="application/json")


def parts_response(parts: Callable[[], Iterator[bytes]]) -> Response:
    """Return a response of many parts; each is rendered when the client has read the previous one.

    A client that does not read therefore uses the memory of a part, not of the response (9 MB for 2,048 texts). Its
    Content-Length is found by rendering everything twice: 20 ms for 2,048 texts, which take seconds to compute.
    """
    began = time.monotonic()
    runner = context().runner
    length = 0
    for part in parts():
        length += len(part)
        if runner:
            runner.pause()
    context().stages["serialize"] = time.monotonic() - began
    response = Response(parts(), mimetype="application/json")
    response.content_length = length
    return response


def dumps(content: Any) -> bytes:
    """Render JSON, numpy arrays included."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
