"""Rendering: JSON responses. Long lists are rendered in slices, which bounds memory and time in the hub."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from flask import Response

from app.routes import context
from app.routes.body import JSON

# Items per slice: 64 vectors of 384 numbers are 280 kB and take 0.7 ms.
SLICE_ITEMS = 64


def json_response(content: Any, status: int = 200) -> Response:
    """Return a JSON response. float32 numbers have their shortest exact decimal form."""
    return _response(lambda: dumps(content), status)


def _response(render: Callable[[], bytes], status: int = 200) -> Response:
    began = time.monotonic()
    body = render()
    context().stages["serialize"] = time.monotonic() - began
    return Response(body, status, content_type=JSON)


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
    before, after = before or {}, after or {}
    if count <= SLICE_ITEMS:
        return _response(lambda: dumps({**before, name: items(0, count), **after} if name else items(0, count)))
    head, tail = b"[", b"]"
    if name:
        head, tail = dumps({**before, name: []})[:-2], b"]" + (b"," + dumps(after)[1:] if after else b"}")

    def parts() -> Iterator[bytes]:
        yield head
        yield from slices(items, count)
        yield tail

    return parts_response(parts)


def slices(items: Callable[[int, int], Any], count: int) -> Iterator[bytes]:
    """Yield the inside of a JSON list in slices. items: (start, stop) -> those items of the list, for orjson."""
    for start in range(0, count, SLICE_ITEMS):
        part = dumps(items(start, min(start + SLICE_ITEMS, count)))[1:-1]
        yield b"," + part if start else part


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
    response = Response(parts(), content_type=JSON)
    response.content_length = length
    return response


def dumps(content: Any) -> bytes:
    """Render JSON, numpy arrays included."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
