"""Outputs: vectors beside their ids as JSONL, .npy or Parquet, made in parts that are put together at the end.

A part has one or two streams, named by what they hold: "vectors", and for .npy "ids". Each stream becomes a file.
"""

import io
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from app.bulk import BulkError
from app.bulk.parquet import import_pyarrow
from app.bulk.rows import Id

# Rows of a row group of the finished Parquet file, at least, but for the last: 25 MB of float32 with 384 dimensions.
GROUP_ROWS = 16_384

Streams = dict[str, bytes]
Array = NDArray[Any]


class Output(Protocol):
    """A format of vectors and ids."""

    def part(self, ids: Sequence[Id], vectors: Array) -> Streams:
        """Return the streams of a part. vectors: (n, dim)."""

    def join(self, stream: str, parts: Sequence[Path], rows: int, id_type: str, out: IO[bytes]) -> None:
        """Write one stream's parts, in order, as one file. rows: of all parts. id_type: "int" or "str"."""


class Jsonl:
    """Lines like {"id": 1, "vector": [0.1, …]}; numbers have their shortest exact decimal form."""

    def part(self, ids: Sequence[Id], vectors: Array) -> Streams:
        return {"vectors": b"".join(line({"id": key, "vector": row}) for key, row in zip(ids, vectors, strict=True))}

    def join(self, stream: str, parts: Sequence[Path], rows: int, id_type: str, out: IO[bytes]) -> None:
        concatenate(parts, out)


class Npy:
    """An array (n, dim) for numpy.load, and beside it the ids, a line of JSON for each: vectors.ids.jsonl."""

    def __init__(self, dimension: int, dtype: str) -> None:
        self._dimension = dimension
        self._dtype = np.dtype(dtype).newbyteorder("<")

    def part(self, ids: Sequence[Id], vectors: Array) -> Streams:
        return {"vectors": vectors.astype(self._dtype).tobytes(), "ids": b"".join(map(line, ids))}

    def join(self, stream: str, parts: Sequence[Path], rows: int, id_type: str, out: IO[bytes]) -> None:
        if stream == "vectors":
            header = {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (rows, self._dimension),
            }
            np.lib.format.write_array_header_1_0(out, header)
        concatenate(parts, out)


class Parquet:
    """Columns id and vector, a list of numbers of a fixed length."""

    def __init__(self, dimension: int, dtype: str) -> None:
        self._pyarrow, self._parquet = import_pyarrow()
        self._dimension = dimension
        self._number = self._pyarrow.from_numpy_dtype(dtype)

    def _schema(self, id_type: str) -> Any:
        ids = self._pyarrow.int64() if id_type == "int" else self._pyarrow.string()
        vector = self._pyarrow.list_(self._pyarrow.field("element", self._number, False), self._dimension)
        return self._pyarrow.schema(
            [self._pyarrow.field("id", ids, False), self._pyarrow.field("vector", vector, False)]
        )

    def part(self, ids: Sequence[Id], vectors: Array) -> Streams:
        pyarrow = self._pyarrow
        schema = self._schema(type(ids[0]).__name__)
        # Without pyarrow.array, which imports a part of numpy that the image does not have.
        numbers = pyarrow.Array.from_buffers(self._number, vectors.size, [None, pyarrow.py_buffer(vectors.tobytes())])
        columns = [
            pyarrow.array(ids, schema.field("id").type),
            pyarrow.FixedSizeListArray.from_arrays(numbers, type=schema.field("vector").type),
        ]
        buffer = io.BytesIO()
        with self._writer(buffer, schema) as writer:
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
        return {"vectors": buffer.getvalue()}

    def join(self, stream: str, parts: Sequence[Path], rows: int, id_type: str, out: IO[bytes]) -> None:
        schema = self._schema(id_type)
        with self._writer(out, schema) as writer:
            group: list[Any] = []
            for path in parts:
                group.append(self._parquet.ParquetFile(path).read())
                if path is parts[-1] or sum(table.num_rows for table in group) >= GROUP_ROWS:
                    writer.write_table(self._pyarrow.concat_tables(group).combine_chunks(), row_group_size=2**31)
                    group = []

    def _writer(self, out: IO[bytes], schema: Any) -> Any:
        # Numbers of vectors are noise: no dictionary and no compression makes them smaller, no statistics find them.
        return self._parquet.ParquetWriter(
            out,
            schema,
            use_dictionary=False,
            write_statistics=["id"],
            compression={"id": "zstd", "vector.list.element": "none"},
        )


def files_of(out: Path) -> dict[str, Path]:
    """Return the file of each stream of an output.

    Raises:
        BulkError: the suffix is unknown.
    """
    if out.suffix not in (".parquet", ".jsonl", ".npy"):
        raise BulkError(f"OUT is {out}; its name must end in .parquet, .jsonl or .npy.")
    files = {"vectors": out}
    if out.suffix == ".npy":
        files["ids"] = out.with_suffix(".ids.jsonl")
    return files


def output_of(out: Path, dimension: int, dtype: str) -> Output:
    """Return the output for a file's suffix. dtype: numpy's name of the numbers' type.

    Raises:
        BulkError: pyarrow is not installed.
    """
    if out.suffix == ".jsonl":
        return Jsonl()
    return Npy(dimension, dtype) if out.suffix == ".npy" else Parquet(dimension, dtype)


def concatenate(parts: Sequence[Path], out: IO[bytes]) -> None:
    """Write the bytes of files, one after the other."""
    for path in parts:
        with path.open("rb") as part:
            shutil.copyfileobj(part, out, 1 << 20)


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under another name first, so that it is there in full or not at all, also after a power cut.

    write: function that writes to a binary file.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # on a full disk, room for others
        raise
    with suppress(OSError):  # a file system whose folders cannot be synchronized
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def line(value: Any) -> bytes:
    """Return a value as a line of JSON."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
