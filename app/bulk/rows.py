"""Rows: a text and its id, or an error, and where they stand in the inputs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.bulk import BulkError
from app.errors import MAX_QUOTED_CHARACTERS

STDIN = "-"
# Most of a bad row that is repeated beside its error, characters.
MAX_RAW_CHARACTERS = 10_000
# Halves of surrogate pairs, which UTF-8 does not have.
HALF = re.compile("[\ud800-\udfff]")
JSON_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    bytes: "binary data",
}

Id = str | int | None


class Row(NamedTuple):
    """A row of an input, good or bad.

    position: rows of the unit that were read with this one, blank lines included. consumed: the same in the measure of
    Unit.size. line: line in a text file, or row in a Parquet file, from 1. error: the rest of a sentence, "" for a good
    row. raw: a bad row as it is in a text file. digest: of stdin up to this row. unit: index among the shard's units.
    """

    position: int
    consumed: int
    line: int
    id: Id
    text: str
    error: str = ""
    raw: str = ""
    digest: str = ""
    unit: int = 0


class Unit(NamedTuple):
    """A part of the inputs that one shard reads from its beginning to its end.

    size: bytes of a text file, rows of a row group, 0 if unknown. group: row group of a Parquet file, None for a text
    file. before: rows of the file before the group.
    """

    path: str
    size: int = 0
    group: int | None = None
    before: int = 0

    @property
    def measure(self) -> str:
        """Unit in which places in a file are counted."""
        return "line" if self.group is None else "row"

    def place(self, line: int) -> str:
        """Return where a row is, for a message."""
        return f"{'stdin' if self.path == STDIN else self.path}, {self.measure} {line}"


@dataclass(frozen=True)
class Columns:
    """Names of the columns of texts and of ids. id "": no ids."""

    text: str
    id: str

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys(name for name in (self.text, self.id) if name))

    def check(self, unit: Unit, known: Sequence[str]) -> None:
        """Raise BulkError if a file has no such column, or two. known: those that it has."""
        for name in self.names:
            if known.count(name) > 1:
                raise BulkError(f"{unit.path} has more than one column {name}: give them different names.")
            if name not in known:
                shown = ", ".join(known)[:200]
                raise BulkError(f"{unit.path} has no column {name}; it has {shown}: choose with --text and --id.")

    def row(self, position: int, consumed: int, line: int, values: Mapping[str, Any]) -> Row:
        """Return the row, checked. values: of the columns by their names; the others are those of Row."""
        key: Any = None
        error = ""
        if self.id:
            key = values.get(self.id)
            if self.id not in values:
                error = f"has no {self.id}, the column of ids"
            elif isinstance(key, bool) or not isinstance(key, str | int):
                error = f"has {json_type(key)} as {self.id}; an id must be a string or a whole number"
            elif isinstance(key, int) and not -(2**63) <= key < 2**63:
                error = f"has an id outside of 64 bits, {str(key)[:MAX_QUOTED_CHARACTERS]}"
            elif isinstance(key, str):
                key = HALF.sub("\ufffd", key)
        text = values.get(self.text)
        if error:
            key = None
        elif self.text not in values:
            error = f"has no {self.text}, the column of texts"
        elif not isinstance(text, str):
            error = f"has {json_type(text)} as {self.text}; a text must be a string"
        if error or not isinstance(text, str):
            return Row(position, consumed, line, key, "", error)
        # As the API does with texts that JavaScript has cut within an emoji.
        return Row(position, consumed, line, key, HALF.sub("\ufffd", text))


def json_type(value: Any) -> str:
    """Return a value's type in JSON's words."""
    return JSON_TYPES.get(type(value), f"a {type(value).__name__}")
