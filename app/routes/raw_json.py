"""Raw JSON: finds the unparsed JSON of some values in a body."""

import functools
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

# Longest list that is parsed to find one of its items, bytes of JSON: at most 32,768 items, 2 MB.
MAX_LIST_BYTES = 65_536


@functools.cache
def decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type, cached."""
    return msgspec.json.Decoder(type_)


@functools.cache
def fields_type(kind: Any, *names: str) -> type[msgspec.Struct]:
    """Return a type with the named fields only, each of type `kind` or UNSET."""
    return msgspec.defstruct("Fields", [(name, kind | UnsetType, UNSET) for name in names])


@functools.cache
def _one_field_type(name: str) -> type[msgspec.Struct]:
    """Return a type with one raw field only."""
    return msgspec.defstruct("Part", [(name, Raw)])


def raw_value_at(data: bytes, steps: Sequence[str | int]) -> bytes:
    """Return the JSON of the value at a path in a body; b"" if it is not found, or expensive to find.

    The body may be invalid JSON after that value. Of repeated fields the last one counts.
    """
    part: Any = data
    try:
        for step in steps:
            if isinstance(step, str):
                part = getattr(decoder(_one_field_type(step)).decode(part), step)
            elif memoryview(part).nbytes <= MAX_LIST_BYTES:
                part = decoder(list[Raw]).decode(part)[step]
            else:
                return b""
    except (msgspec.MsgspecError, RecursionError, IndexError):
        return b""
    return bytes(part)
