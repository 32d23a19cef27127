"""Reader: the rows of a unit, whatever its format."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.bulk import BulkError
from app.bulk.parquet import read_parquet
from app.bulk.rows import STDIN, Columns, Row, Unit
from app.bulk.text_files import Lines, read_csv, read_jsonl

FORMATS = ("jsonl", "csv", "tsv", "parquet")


@dataclass(frozen=True)
class Reader:
    """How rows are read. format: one of FORMATS. max_bytes: longest line of a text file."""

    format: str
    columns: Columns
    max_bytes: int

    def read(self, unit: Unit, skip: int, digest: str) -> Iterator[Row]:
        """Yield the rows of a unit after the first `skip`. digest: of what was read for these, if from stdin.

        Raises:
            BulkError: the file cannot be read, has no such column, or stdin does not begin as it did before.
        """
        try:
            if self.format == "parquet":
                yield from read_parquet(unit, self.columns, skip)
                return
            with Lines(unit.path, self.max_bytes) as lines:
                rows = self._rows(unit, lines)
                is_same = not skip
                for row in rows:
                    if row.position == skip:
                        is_same = lines.digest == digest
                    elif row.position > skip and is_same:
                        yield row._replace(digest=lines.digest) if unit.path == STDIN else row
                if not is_same:
                    raise BulkError("stdin does not begin as it did when this work began: send the same again.")
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise BulkError(f"{unit.path} cannot be read: {reason}.") from None

    def id_type(self, units: Sequence[Unit]) -> str:
        """Return the type of the first id, "int" or "str": that of all ids, in every shard."""
        rows = (row for unit in units for row in self.read(unit, 0, "") if not row.error)
        return next((type(row.id).__name__ for row in rows), "str") if self.columns.id else "int"

    def _rows(self, unit: Unit, lines: Lines) -> Iterator[Row]:
        if self.format == "jsonl":
            return read_jsonl(lines, self.columns)
        return read_csv(lines, self.columns, unit, "\t" if self.format == "tsv" else ",")
