"""Text files: JSONL and CSV, plain, gzip or from stdin, in bounded memory."""

import codecs
import csv
import gzip
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from typing import IO, Any

from app.bulk import BulkError
from app.bulk.rows import HALF, MAX_RAW_CHARACTERS, STDIN, Columns, Row, Unit, json_type

# Bytes that are read at once of the rest of a line that is too long.
CHUNK_BYTES = 1 << 20


class Lines:
    """The lines of a text file, plain or gzip, as bytes with their ends; a line over `limit` bytes is cut there.

    consumed: bytes of the file that were read. is_cut: whether the last line was cut. digest: SHA-256 of what was read
    from stdin, "" for a file, whose size and time are compared.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.limit = limit
        if path == STDIN and sys.stdin is None:
            raise BulkError("stdin is closed: name a file, or send the rows to it.")
        self._raw: IO[bytes] = sys.stdin.buffer if path == STDIN else open(path, "rb")
        self._file: Any = gzip.open(self._raw) if path.lower().endswith(".gz") else self._raw
        self._hash = hashlib.sha256() if path == STDIN else None
        self.is_cut = False

    @property
    def consumed(self) -> int:
        return 0 if self._hash else self._raw.tell()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest() if self._hash else ""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._hash:
            self._raw.close()

    def __iter__(self) -> Iterator[bytes]:
        while line := self._file.readline(self.limit + 1):
            self.is_cut = len(line) > self.limit and not line.endswith(b"\n")
            part = line
            while True:
                if self._hash:
                    self._hash.update(part)
                if not self.is_cut or not part or part.endswith(b"\n"):
                    break
                part = self._file.readline(CHUNK_BYTES)
            yield line


def read_jsonl(lines: Lines, columns: Columns) -> Iterator[Row]:
    """Yield the rows of JSON lines. Blank lines count as positions and are no rows."""
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        content = line.rstrip(b"\r\n")
        if number == 1:
            content = content.removeprefix(codecs.BOM_UTF8)
        values, error = None, ""
        try:
            if lines.is_cut:
                error = f"has over {lines.limit} bytes (MAX_BODY_BYTES)"
            else:
                values = json.loads(content)
                error = "" if isinstance(values, dict) else f"is {json_type(values)}, not an object"
        except UnicodeDecodeError as raised:
            error = f"is not UTF-8: byte 0x{content[raised.start]:02x} at {raised.start}"
        except RecursionError:
            error = "is nested too deeply"
        except json.JSONDecodeError as raised:
            error = f"is not JSON: {raised.msg}, at character {raised.pos}"
        except ValueError:
            error = "has a number of thousands of digits"
        place = number, lines.consumed, number
        row = Row(*place, None, "", error) if error else columns.row(*place, values or {})
        yield row._replace(raw=content[:MAX_RAW_CHARACTERS].decode("utf-8", "replace")) if row.error else row


def read_csv(lines: Lines, columns: Columns, unit: Unit, delimiter: str) -> Iterator[Row]:
    """Yield the records of CSV after its line of columns' names. Blank lines count as positions and are no rows.

    Raises:
        BulkError: a column is missing, or a quotation mark is never closed.
    """
    csv.field_size_limit(lines.limit)
    record: list[str] = []
    reader = csv.reader(_decoded(unit, lines, record), delimiter=delimiter, strict=True)
    try:
        header = next((fields for fields in reader if fields), [])
    except csv.Error as raised:
        raise BulkError(f"{unit.place(1)} is not a line with the columns' names: {raised}.") from None
    if header:
        columns.check(unit, header)
    for number in itertools.count(1):
        line, error, fields = reader.line_num + 1, "", []
        record.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as raised:
            if "field limit" in str(raised) or "end of data" in str(raised):
                raise BulkError(
                    f"{unit.place(line)} has a quotation mark that is not closed before the end, or within "
                    f"{lines.limit} characters (MAX_BODY_BYTES): correct it and start anew."
                ) from None
            error = f"is not CSV: {raised}"
            if reader.line_num > line:
                error += f", in lines {line} to {reader.line_num}"
        if not fields and not error:
            continue
        if not error and len(fields) != len(header):
            error = f"has {len(fields)} fields; the header has {len(header)}"
        values = dict(zip(header, fields, strict=False))
        if not error and any(HALF.search(values[name]) for name in columns.names):
            error = "is not UTF-8"
        place = number, lines.consumed, line
        row = Row(*place, None, "", error) if error else columns.row(*place, values)
        if row.error:
            row = row._replace(raw=HALF.sub("\ufffd", "".join(record)[:MAX_RAW_CHARACTERS].rstrip("\r\n")))
        yield row


def _decoded(unit: Unit, lines: Lines, record: list[str]) -> Iterator[str]:
    """Yield lines as text, without a byte order mark, and append them to a record.

    Bytes that are not UTF-8 become halves of surrogate pairs.
    """
    for number, line in enumerate(lines, 1):
        if lines.is_cut:
            raise BulkError(f"{unit.place(number)} has over {lines.limit} bytes (MAX_BODY_BYTES).")
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        record.append(text)
        yield text
