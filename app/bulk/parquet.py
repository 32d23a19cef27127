"""Parquet: importing pyarrow, which is optional, and the rows of a file."""

import functools
from collections.abc import Iterator
from typing import Any

from app.bulk import BulkError
from app.bulk.rows import Columns, Row, Unit

# Rows that are in memory at once, and bytes read at once.
BATCH_ROWS = 1024
BUFFER_BYTES = 1 << 20


def import_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet, which only Parquet needs."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BulkError(
            "Parquet needs pyarrow: pip install -r requirements/parquet.txt, or build the image with "
            "--build-arg PARQUET=yes."
        ) from None
    return pyarrow, pyarrow.parquet


@functools.lru_cache(maxsize=1)
def open_parquet(path: str) -> Any:
    """Open a Parquet file, once for all its row groups: the index of 2,000 takes a millisecond to read.

    Raises:
        BulkError: pyarrow is not installed, or the file cannot be read as Parquet.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        return parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def read_parquet(unit: Unit, columns: Columns, skip: int) -> Iterator[Row]:
    """Yield the rows of a row group after the first `skip`."""
    file = open_parquet(unit.path)
    columns.check(unit, file.schema_arrow.names)
    names = columns.names
    position = 0
    for batch in _batches(file, unit, names):
        if position + batch.num_rows <= skip:
            position += batch.num_rows
            continue
        for scalars in zip(*(batch.column(name) for name in names), strict=True):
            position += 1
            if position <= skip:
                continue
            place = position, position, unit.before + position
            try:
                values = {name: scalar.as_py() for name, scalar in zip(names, scalars, strict=True)}
            except UnicodeDecodeError:
                yield Row(*place, None, "", "is not UTF-8")
            except (ValueError, OverflowError) as error:  # a time that Python does not have
                yield Row(*place, None, "", f"cannot be read: {error}")
            else:
                yield columns.row(*place, values)


def _batches(file: Any, unit: Unit, columns: list[str]) -> Iterator[Any]:
    """Yield the record batches of a row group."""
    pyarrow, _ = import_pyarrow()
    try:
        yield from file.iter_batches(BATCH_ROWS, row_groups=[unit.group], columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(unit.path, error) from None


def _unreadable(path: str, error: Exception) -> BulkError:
    return BulkError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}")
