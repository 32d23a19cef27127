"""Parts of a body: the JSON of some of its values, unparsed."""

import functools
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

# Longest list whose items are parsed to find one of them, bytes of JSON: at most 32,768 items, 2 MB.
MAX_LIST_BYTES = 65_536


@functools.cache
def decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type."""
    return msgspec.json.Decoder(type_)


@functools.cache
def fields_type(kind: Any, *names: str) -> type[msgspec.Struct]:
    """Return the type of an object of which only these fields matter, each of that type or UNSET."""
    return msgspec.defstruct("Fields", [(name, kind | UnsetType, UNSET) for name in names])


@functools.cache
def _part_type(name: str) -> type[msgspec.Struct]:
    """Return the type of an object of which only this field matters."""
    return msgspec.defstruct("Part", [(name, Raw)])


def part_at(data: bytes, steps: Sequence[str | int]) -> bytes:
    """Return the JSON of one value in a body; b"" where that is not cheap, or not found.

    A body may be no JSON behind a value that does not fit, or have the value's field twice: the last one counts here.
    """
    part: Any = data
    try:
        for step in steps:
            if isinstance(step, str):
                part = getattr(decoder(_part_type(step)).decode(part), step)
            elif memoryview(part).nbytes <= MAX_LIST_BYTES:
                part = decoder(list[Raw]).decode(part)[step]
            else:
                return b""
    except (msgspec.MsgspecError, RecursionError, IndexError):
        return b""
    return bytes(part)
