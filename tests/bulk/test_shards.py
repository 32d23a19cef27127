"""Shards: the tasks of a job share files and row groups, and their outputs together are the whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.bulk.inputs import Shard
from app.bulk.rows import Unit
from tests.support.bulk import bulk, read, write_jsonl


def test_files_of_a_job(tmp_path: Path, tiny_model: Path) -> None:
    """Tasks of a Cloud Run Job read a share of the files each; their outputs in order are those of one process."""
    for number in range(7):
        rows = [{"id": number * 100 + row, "text": f"the cat {row}"} for row in range(number * 20)]
        write_jsonl(tmp_path / f"in{number}.jsonl", rows)
    flags = ["--id", "id", "--errors", tmp_path / "bad.jsonl"]
    bulk(tiny_model, tmp_path / "in*.jsonl", tmp_path / "whole.npy", *flags)
    ids, parts = [], []
    for task in range(3):
        job: dict[str, Any] = {"CLOUD_RUN_TASK_INDEX": task, "CLOUD_RUN_TASK_COUNT": 3}
        bulk(tiny_model, tmp_path / "in*.jsonl", tmp_path / "out.npy", *flags, **job)
        names, vectors = read(tmp_path / f"out-{task:05d}-of-00003.npy")
        assert (tmp_path / f"bad-{task:05d}-of-00003.jsonl").exists()
        assert names
        ids += names
        parts.append(vectors)
    whole_ids, whole = read(tmp_path / "whole.npy")
    assert ids == whole_ids
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_row_groups(tmp_path: Path, tiny_model: Path) -> None:
    """--shard divides one Parquet file by its row groups."""
    table = pa.table({"id": list(range(100)), "text": [f"cat {row}" for row in range(100)]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=10)
    found = []
    for shard in range(4):
        flags = ["--id", "id", "--shard", f"{shard}/4"]
        bulk(tiny_model, tmp_path / "in.parquet", tmp_path / "out.parquet", *flags)
        found.append(read(tmp_path / f"out-{shard:05d}-of-00004.parquet")[0])
    assert [len(ids) for ids in found] == [20, 30, 20, 30]
    assert sum(found, []) == list(range(100))


def test_outputs_among_the_inputs(tmp_path: Path, tiny_model: Path) -> None:
    """A pattern leaves out what other shards have written already: no row is lost, none is read as an input."""
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"id": f"{name}{row}", "text": "cat"} for row in range(4)])
    found = []
    for shard in range(3):
        flags = ["--id", "id", "--errors", tmp_path / "bad.jsonl", "--shard", f"{shard}/3"]
        bulk(tiny_model, tmp_path / "*.jsonl", tmp_path / "out.jsonl", *flags)
        found += read(tmp_path / f"out-{shard:05d}-of-00003.jsonl")[0]
    assert found == [f"{name}{row}" for name in "abc" for row in range(4)]


def test_empty_shards_have_the_same_columns(tmp_path: Path, tiny_model: Path) -> None:
    """A shard without rows has the types of the others, so that their files can be read as one table."""
    write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "cat"}])
    for shard in range(3):
        bulk(tiny_model, tmp_path / "in.jsonl", tmp_path / "out.parquet", "--id", "id", "--shard", f"{shard}/3")
    first, *others = (pq.read_schema(tmp_path / f"out-{shard:05d}-of-00003.parquet") for shard in range(3))
    assert [first.equals(other) for other in others] == [True, True]


@pytest.mark.parametrize("sizes", [[5], [1, 1, 1], [0, 0, 0, 0], [100, 1, 1, 1, 100], list(range(1, 50))])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 60])
def test_every_unit_is_in_one_shard(sizes: list[int], count: int) -> None:
    """The shards have each unit once, in order, and no shard is larger than a fair one by more than a unit."""
    units = [Unit(str(number), size) for number, size in enumerate(sizes)]
    shards = [Shard(index, count).of(units) for index in range(count)]
    assert [unit for shard in shards for unit in shard] == units
    fair, largest = sum(sizes) / count, max(sizes)
    assert all(sum(unit.size for unit in shard) <= fair + largest for shard in shards)
