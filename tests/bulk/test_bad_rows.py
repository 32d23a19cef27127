"""Bad rows: each is named with its line, and stops the run or goes to a file; none vanishes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.engine.encoder import Encoder
from tests.support import ROOT
from tests.support.bulk import bulk, command, environment, error, read, read_jsonl, until

GOOD = b'{"id": "a", "text": "cat"}\n'
# A line of JSONL -> the rest of the sentence about it.
BAD_JSON = {
    b"{": "is not JSON: Expecting property name enclosed in double quotes, at character 1",
    b'{"id": 1' + b"0" * 5000 + b"}": "has a number of thousands of digits",
    b'"cat"': "is a string, not an object",
    b"null": "is null, not an object",
    b"[" * 100_000: "is nested too deeply",
    b'{"id": "b"}': "has no text, the column of texts",
    b'{"id": "b", "text": null}': "has null as text; a text must be a string",
    b'{"id": "b", "text": ["cat"]}': "has a list as text; a text must be a string",
    b'{"text": "cat"}': "has no id, the column of ids",
    b'{"id": true, "text": "cat"}': "has a boolean as id; an id must be a string or a whole number",
    b'{"id": 1.5, "text": "cat"}': "has a number as id; an id must be a string or a whole number",
    b'{"id": 7, "text": "cat"}': "has the id 7; the ids before it are strings",
    b'{"id": 9223372036854775808, "text": "cat"}': "has an id outside of 64 bits, 9223372036854775808",
    b'{"id": "b", "text": "\xff"}': "is not UTF-8: byte 0xff at 21",
    b'{"id": "b", "text": "' + b"a" * 20_000 + b'"}': "has over 20000 bytes (MAX_BODY_BYTES)",
}


@pytest.mark.parametrize("line, reason", BAD_JSON.items(), ids=lambda value: value[:20])
def test_lines_of_json(tmp_path: Path, tiny_model: Path, line: bytes, reason: str) -> None:
    """A bad line stops the run; with --errors it is in the file, with its place, and the others have their vectors."""
    limit: dict[str, Any] = {"MAX_BODY_BYTES": 20_000 if len(line) < 100_000 else 200_000}
    path, out, errors = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "bad.jsonl"))
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD.replace(b'"a"', b'"c"'))
    sentence = error(tiny_model, path, out, "--id", "id", **limit)
    assert sentence == (
        f"{path}, line 3 {reason}. Correct it, remove {out}.work and start anew, or give --errors FILE: such rows then "
        "go to that file, and the others get their vectors."
    )
    assert not out.exists()
    log = bulk(tiny_model, path, out, "--id", "id", "--errors", errors, **limit)
    assert log[-1]["message"] == f"{out} has 2 vectors; 1 bad rows are in {errors}"
    assert read(out)[0] == ["a", "c"]
    (bad,) = read_jsonl(errors)
    assert (bad["file"], bad["line"], bad["error"]) == (str(path), 3, reason)
    content = {"text": "cat", "id": 7} if "the id 7" in reason else {"row": line[:10_000].decode("utf-8", "replace")}
    assert {name: bad[name] for name in content} == content


def test_rows_of_csv(tmp_path: Path, tiny_model: Path) -> None:
    """Bad records of CSV are named with the line on which they begin, and have their text."""
    path, out, errors = (tmp_path / name for name in ("in.csv", "out.jsonl", "bad.jsonl"))
    path.write_bytes(b'\nid,text\n1,"two\nlines"\n2\n3,a,b\n4,"a"b\n\n5,\xff\n6,cat\n7,"a\n8,"b"\n9,mat\n')
    bulk(tiny_model, path, out, "--id", "id", "--errors", errors)
    assert read(out)[0] == ["1", "6", "9"]
    assert [(bad["line"], bad["error"], bad["row"]) for bad in read_jsonl(errors)] == [
        (5, "has 1 fields; the header has 2", "2"),
        (6, "has 3 fields; the header has 2", "3,a,b"),
        (7, "is not CSV: ',' expected after '\"'", '4,"a"b'),
        (9, "is not UTF-8", "5,\ufffd"),
        (11, "is not CSV: ',' expected after '\"', in lines 11 to 12", '7,"a\n8,"b"'),
    ]


def test_columns_that_are_there_twice(tmp_path: Path, tiny_model: Path) -> None:
    """A file with two columns of the name is refused: nobody knows which is meant."""
    (tmp_path / "in.csv").write_text("text,text\na,b\n")
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "in.parquet")
    for name in ("in.csv", "in.parquet"):
        sentence = error(tiny_model, tmp_path / name, tmp_path / "out.npy")
        assert sentence == f"{tmp_path / name} has more than one column text: give them different names."


@pytest.mark.parametrize("rest", [10, 10_000])
def test_a_quotation_mark_that_is_never_closed(tmp_path: Path, tiny_model: Path, rest: int) -> None:
    """The rest of a CSV file within one field is an error that no file of bad rows hides."""
    path = tmp_path / "in.csv"
    path.write_text('text\ncat\n"the\n' + "mat\n" * rest)
    sentence = error(tiny_model, path, tmp_path / "out.npy", "--errors", tmp_path / "bad", MAX_BODY_BYTES=20_000)
    assert sentence == (
        f"{path}, line 3 has a quotation mark that is not closed before the end, or within 20000 characters "
        "(MAX_BODY_BYTES): correct it and start anew."
    )


def test_rows_of_parquet(tmp_path: Path, tiny_model: Path) -> None:
    """Bad rows of Parquet are named with their row in the file."""
    path, out, errors = (tmp_path / name for name in ("in.parquet", "out.jsonl", "bad.jsonl"))
    table = pa.table({"id": [1, None, 3, 4], "text": ["cat", "mat", None, "the"]})
    pq.write_table(table, path, row_group_size=2)
    assert error(tiny_model, path, out, "--id", "id").startswith(
        f"{path}, row 2 has null as id; an id must be a string or a whole number. Correct it"
    )
    bulk(tiny_model, path, out, "--id", "id", "--errors", errors)
    assert read(out)[0] == [1, 4]
    assert read_jsonl(errors) == [
        {"file": str(path), "row": 2, "error": "has null as id; an id must be a string or a whole number"},
        {"file": str(path), "row": 3, "error": "has null as text; a text must be a string", "id": 3},
    ]


def test_times_as_ids(tmp_path: Path, tiny_model: Path) -> None:
    """Ids of another type, also those that Python cannot have, are bad rows."""
    path, out, errors = (tmp_path / name for name in ("in.parquet", "out.jsonl", "bad.jsonl"))
    ids = pa.array([0, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"id": ids, "text": ["a", "b"]}), path)
    bulk(tiny_model, path, out, "--id", "id", "--errors", errors)
    first, second = (bad["error"] for bad in read_jsonl(errors))
    assert first == "has a datetime as id; an id must be a string or a whole number"
    assert second.startswith("cannot be read: ")


def test_texts_that_are_too_long(tmp_path: Path, tiny_model: Path, tiny_encoder: Encoder) -> None:
    """With --no-truncate, texts over MAX_LENGTH are bad rows; the others around them have their vectors."""
    path, out, errors = (tmp_path / name for name in ("in.jsonl", "out.npy", "bad.jsonl"))
    texts = ["cat", "mat " * 100, "the", "a " * 63]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    log = bulk(tiny_model, path, out, "--no-truncate", "--errors", errors)
    assert read(out)[0] == [0, 2]
    np.testing.assert_array_equal(np.load(out), tiny_encoder.encode(["cat", "the"]).vectors)
    assert [(bad["line"], bad["error"]) for bad in read_jsonl(errors)] == [
        (2, "has 102 tokens, over the limit of 64 (MAX_LENGTH)"),
        (4, "has 65 tokens, over the limit of 64 (MAX_LENGTH)"),
    ]
    assert (log[-1]["bad"], log[-1]["truncated"]) == (2, 0)


def test_texts_that_cannot_be_tokenized(tmp_path: Path, tiny_model: Path) -> None:
    """A text that is too long without white space is a bad row, whatever stands beside it in its block."""
    path, out, errors = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "bad.jsonl"))
    texts: list[Any] = ["cat", "a" * 150_000, "the", "b" * 150_000]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    bulk(tiny_model, path, out, "--errors", errors)
    assert read(out)[0] == [0, 2]
    bad = read_jsonl(errors)
    assert [row["line"] for row in bad] == [2, 4]
    assert all("white space" in row["error"] for row in bad)


def test_only_bad_rows(tmp_path: Path, tiny_model: Path) -> None:
    """An input of bad rows only gives an empty output, and all of them in the file."""
    path, out, errors = (tmp_path / name for name in ("in.jsonl", "out.parquet", "bad.jsonl"))
    path.write_text("x\n" * 5000)
    bulk(tiny_model, path, out, "--errors", errors)
    assert read(out)[0] == []
    assert [bad["line"] for bad in read_jsonl(errors)] == list(range(1, 5001))


def test_bad_rows_are_not_lost_when_a_run_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    """Bad rows before the place where a run goes on stay bad: the same command without --errors is refused."""
    path, out, errors = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "bad.jsonl"))
    path.write_text("x\n" + '{"text": "cat"}\n' * 30_000)
    run = subprocess.Popen(command(path, out, "--errors", errors), cwd=ROOT, env=environment(tiny_model))
    until(lambda: (tmp_path / "out.jsonl.work/state.json").exists())
    run.kill()
    run.wait()
    sentence = error(tiny_model, path, out)
    assert sentence == "1 bad rows were put aside already: give --errors FILE again."
    bulk(tiny_model, path, out, "--errors", errors)
    assert (len(read(out)[0]), len(read_jsonl(errors))) == (30_000, 1)
