"""Inputs: the files of a command, their units, and which of them a shard reads."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.bulk import BulkError
from app.bulk.parquet import open_parquet
from app.bulk.reader import FORMATS
from app.bulk.rows import STDIN, Unit

# Names of files that are in a format -> format.
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
# Set by Cloud Run Jobs: https://cloud.google.com/run/docs/container-contract#jobs-env-vars
TASK_INDEX, TASK_COUNT = "CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT"
MAX_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `count` parts of the units."""

    index: int = 0
    count: int = 1

    def name(self, path: str) -> str:
        """Return a file's name for this shard: vectors.parquet -> vectors-00002-of-00010.parquet."""
        if self.count == 1:
            return path
        stem, suffix = os.path.splitext(path)
        return f"{stem}-{self.index:05d}-of-{self.count:05d}{suffix}"

    def of(self, units: Sequence[Unit]) -> list[Unit]:
        """Return this shard's units: neighbours of about the same size as every other shard's.

        A unit belongs to the shard in which its middle lies, so the shards' outputs are in the order of the inputs.
        """
        total = sum(unit.size for unit in units) or len(units)
        mine, begin = [], 0.0
        for unit in units:
            size = unit.size or total / len(units)
            if min(int((begin + size / 2) / total * self.count), self.count - 1) == self.index:
                mine.append(unit)
            begin += size
        return mine


def parse_shard(text: str, environ: Mapping[str, str]) -> Shard:
    """Return the shard of --shard I/N, or that of a task of a Cloud Run Job.

    Raises:
        BulkError: the text or a variable is malformed.
    """
    source = "--shard"
    if not text and environ.get(TASK_COUNT):
        source, text = f"{TASK_INDEX}/{TASK_COUNT}", f"{environ.get(TASK_INDEX, '')}/{environ[TASK_COUNT]}"
    if not text:
        return Shard()
    index, _, count = text.partition("/")
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in (index, count)):
        raise BulkError(f"{source} is {text!r}; it must be like 0/10, the first of ten.")
    if not 0 <= int(index) < int(count) <= MAX_SHARDS:
        raise BulkError(f"{source} is {text!r}; it must be from 0/N to N-1/N, with an N of at most {MAX_SHARDS}.")
    return Shard(int(index), int(count))


class Written:
    """Names of the files that a command writes, for any shard: no input may be one of them.

    outputs: without a shard, OUT first. errors: the file of bad rows.
    """

    def __init__(self, outputs: Sequence[Path], errors: Path | None) -> None:
        out = outputs[0]
        names = [(path.parent, out.stem, path.name.removeprefix(out.stem)) for path in outputs]
        names.append((out.parent, out.stem, f"{out.suffix}.json"))
        if errors:
            names.append((errors.parent, errors.stem, errors.suffix))
        self._names = [
            (os.path.realpath(folder), re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?{re.escape(ending)}"))
            for folder, stem, ending in names
        ]

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(os.path.realpath(path))
        return any(folder == known and pattern.fullmatch(name) for known, pattern in self._names)


def find_files(patterns: Sequence[str], written: Written) -> list[str]:
    """Return the files of names and glob patterns, in the order given, those of a pattern in the order of their names.

    written: names of the command's own files, which patterns leave out.

    Raises:
        BulkError: there is no such file, or it is one of the command's own.
    """
    files: list[str] = []
    for pattern in patterns:
        if pattern == STDIN or os.path.isfile(pattern):
            found = [pattern]
            if pattern in written:
                raise BulkError(
                    f"{pattern} is an input, and this command would write to it: name another file for OUT."
                )
        elif os.path.isdir(pattern):
            raise BulkError(f"{pattern} is a folder: name its files, like '{os.path.join(pattern, '*.jsonl')}'.")
        else:
            paths = sorted(glob.glob(pattern, recursive=True))
            found = [path for path in paths if os.path.isfile(path) and path not in written]
        if not found:
            raise BulkError(f"There is no file {pattern}.")
        files += found
    if STDIN in files and len(files) > 1:
        raise BulkError("- (stdin) must be the only input.")
    return list({os.path.realpath(path): path for path in reversed(files)}.values())[::-1]


def format_of(files: Sequence[str], name: str) -> str:
    """Return the inputs' format: `name`, or what the files' suffixes say. `.gz` after a suffix does not count.

    Raises:
        BulkError: a suffix is unknown, or two are of different formats.
    """
    if name:
        return name
    formats: dict[str, str] = {}
    for path in files:
        known = SUFFIXES.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])
        if known is None:
            where = "stdin" if path == STDIN else path
            raise BulkError(f"The format of {where} is not known: give --format, one of {', '.join(FORMATS)}.")
        formats.setdefault(known, path)
    if len(formats) > 1:
        raise BulkError(f"The inputs have different formats ({', '.join(formats.values())}): take one after the other.")
    return next(iter(formats))


def find_units(files: Sequence[str], format_name: str) -> list[Unit]:
    """Return the units of the files: a text file is one, a Parquet file has one for each row group.

    Raises:
        BulkError: a Parquet file cannot be read.
    """
    units = []
    for path in files:
        if path == STDIN:
            if format_name == "parquet":
                raise BulkError("Parquet cannot be read from stdin, since its index is at the end: name a file.")
            units.append(Unit(path))
        elif format_name == "parquet":
            metadata, before = open_parquet(path).metadata, 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                units.append(Unit(path, rows, group, before))
                before += rows
        else:
            units.append(Unit(path, os.path.getsize(path)))
    return units


def describe(files: Sequence[str]) -> list[Any]:
    """Return what tells whether the files are the same as before: name, size, and modification time in nanoseconds.

    Of stdin that is its name only: Reader.read compares its bytes.
    """
    stats = [(path, None if path == STDIN else os.stat(path)) for path in files]
    return [[path, stat.st_size, stat.st_mtime_ns] if stat else [path] for path, stat in stats]
