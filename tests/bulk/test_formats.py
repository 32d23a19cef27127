"""Inputs, outputs and options of the bulk command: every vector is the encoder's, beside its id."""

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.engine.dtypes import shape
from app.engine.encoder import Encoder
from tests.support import ROOT
from tests.support.bulk import bulk, environment, error, read, read_jsonl, write_jsonl
from tools import slim

TEXTS = ["the cat sat", "東京 は 日本 の 首都", "", 'a "quoted",\n\ttext\\', "graph theory " * 40, "😀", "the cat sat"]
ROWS = [{"key": f"k{index}", "body": text, "other": [index]} for index, text in enumerate(TEXTS)]
COLUMNS = ("--text", "body", "--id", "key")


def vectors(encoder: Encoder, texts: Sequence[str] = TEXTS, **options: Any) -> Any:
    return encoder.encode(texts, **options).vectors


def write(folder: Path, kind: str) -> Path:
    """Write ROWS in a format."""
    path = folder / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerow(ROWS[0])
            writer.writerows(row.values() for row in ROWS)
    else:
        data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "csv", "tsv", "parquet", "jsonl.gz"])
@pytest.mark.parametrize("out", ["out.jsonl", "out.npy", "out.parquet"])
def test_formats(tmp_path: Path, tiny_model: Path, tiny_encoder: Encoder, kind: str, out: str) -> None:
    """Each format of inputs gives, in each format of outputs, the same ids and the encoder's bits, in their order."""
    log = bulk(tiny_model, write(tmp_path, kind), tmp_path / out, *COLUMNS)
    ids, found = read(tmp_path / out)
    assert ids == [row["key"] for row in ROWS]
    np.testing.assert_array_equal(found, vectors(tiny_encoder))
    summary = json.loads((tmp_path / f"{out}.json").read_text())
    assert {name: summary[name] for name in ("rows", "vectors", "bad", "truncated")} == {
        "rows": 7,
        "vectors": 7,
        "bad": 0,
        "truncated": 1,
    }
    assert log[-1]["message"] == f"{tmp_path / out} has 7 vectors; 1 texts were cut at 64 tokens"
    assert not list(tmp_path.glob("*.work"))


@pytest.mark.parametrize(
    "arguments, options",
    [
        (["--normalize"], {"normalize": True}),
        (["--dimensions", 8, "--normalize"], {"dimensions": 8, "normalize": True}),
        (["--dtype", "int8"], {"dtype": "int8"}),
        (["--dtype", "ubinary", "--dimensions", 12], {"dtype": "ubinary", "dimensions": 12}),
    ],
)
@pytest.mark.parametrize("out", ["out.jsonl", "out.npy", "out.parquet"])
def test_options(
    tmp_path: Path, tiny_model: Path, tiny_encoder: Encoder, arguments: list[Any], options: dict[str, Any], out: str
) -> None:
    """The options of the API have the API's results."""
    bulk(tiny_model, write(tmp_path, "jsonl"), tmp_path / out, *COLUMNS, *arguments)
    expected = shape(
        tiny_encoder.encode(TEXTS).rows, int8_range=tiny_encoder.model_folder.manifest.int8_range, **options
    )
    _, found = read(tmp_path / out)
    np.testing.assert_array_equal(found, expected)


def test_prompts(tmp_path: Path, tiny_model: Path, tiny_encoder: Encoder) -> None:
    """--prompt puts a text before each text, --prompt-name one of the model's; an unknown name is refused."""
    path = write(tmp_path, "jsonl")
    bulk(tiny_model, path, tmp_path / "a.npy", "--text", "body", "--prompt", "graph ")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), vectors(tiny_encoder, prompt="graph "))
    bulk(tiny_model, path, tmp_path / "b.npy", "--text", "body", "--prompt-name", "query")
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), vectors(tiny_encoder, prompt_name="query"))
    sentence = error(tiny_model, path, tmp_path / "c.npy", "--text", "body", "--prompt-name", "other")
    assert sentence == "prompt_name is 'other'; the model's prompts are: 'query', 'document'."


def test_several_files_and_numbered_rows(tmp_path: Path, tiny_model: Path, tiny_encoder: Encoder) -> None:
    """Files of a pattern are read in the order of their names; without --id rows are numbered over all of them."""
    for name, texts in (("b", ["the", "a"]), ("a", ["cat"]), ("c", [])):
        write_jsonl(tmp_path / f"{name}.jsonl", ({"text": text} for text in texts))
    bulk(tiny_model, tmp_path / "?.jsonl", tmp_path / "out.parquet")
    ids, found = read(tmp_path / "out.parquet")
    assert ids == [0, 1, 2]
    np.testing.assert_array_equal(found, vectors(tiny_encoder, ["cat", "the", "a"]))


@pytest.mark.parametrize("out", ["out.jsonl", "out.npy", "out.parquet"])
def test_no_rows(tmp_path: Path, tiny_model: Path, out: str) -> None:
    """An empty input gives an output without rows that can be read."""
    bulk(tiny_model, write_jsonl(tmp_path / "in.jsonl", []), tmp_path / out)
    ids, found = read(tmp_path / out)
    assert (ids, len(found)) == ([], 0)


def test_stdin(tmp_path: Path, tiny_model: Path, tiny_encoder: Encoder) -> None:
    """- reads stdin, whose format must be named."""
    data = b'\xef\xbb\xbfid,text\n1,cat\n2,"the\nmat"\n'
    sentence = error(tiny_model, "-", tmp_path / "out.jsonl", stdin=data)
    assert sentence == "The format of stdin is not known: give --format, one of jsonl, csv, tsv, parquet."
    bulk(tiny_model, "-", tmp_path / "out.jsonl", "--format", "csv", "--id", "id", stdin=data)
    ids, found = read(tmp_path / "out.jsonl")
    assert ids == ["1", "2"]
    np.testing.assert_array_equal(found, vectors(tiny_encoder, ["cat", "the\nmat"]))


def test_what_a_parquet_file_is_for_others(tmp_path: Path, tiny_model: Path) -> None:
    """The Parquet file has columns id and vector, a list of floats; whole numbers stay whole numbers."""
    write_jsonl(tmp_path / "in.jsonl", [{"id": 7, "text": "cat"}, {"id": -(2**63), "text": "mat"}])
    bulk(tiny_model, tmp_path / "in.jsonl", tmp_path / "out.parquet", "--id", "id")
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert (schema.names, schema.field("id").type, schema.field("vector").type.list_size) == (
        ["id", "vector"],
        pa.int64(),
        32,
    )
    assert read(tmp_path / "out.parquet")[0] == [7, -(2**63)]


def test_parquet_in_the_image(tmp_path: Path, tiny_model: Path) -> None:
    """Parquet is read and written without the parts of numpy that the image does not have."""
    absent = [path.replace("/", ".") for names in slim.DEAD_WEIGHT.values() for path in names.split()]
    absent = [name for name in absent if name.startswith("numpy.") and name.replace(".", "").isalpha()]
    assert "numpy.ma" in absent
    hide = f"import runpy, sys; sys.modules.update(dict.fromkeys({absent}))"
    code = f"{hide}; runpy.run_module('app.bulk', run_name='__main__')"
    arguments = [write(tmp_path, "parquet"), tmp_path / "out.parquet", *COLUMNS]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, env=environment(tiny_model), capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()
    assert read(tmp_path / "out.parquet")[0] == [row["key"] for row in ROWS]


def test_large_row_groups(tmp_path: Path, tiny_model: Path) -> None:
    """Parts become row groups of at least 16,384 rows, all but the last."""
    write_jsonl(tmp_path / "in.jsonl", ({"text": f"cat {number}"} for number in range(40_000)))
    bulk(tiny_model, tmp_path / "in.jsonl", tmp_path / "out.parquet")
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert groups == [16_384, 16_384, 7232]


def test_texts_of_broken_unicode(tmp_path: Path, tiny_model: Path, tiny_encoder: Encoder) -> None:
    """Half of an emoji, which JavaScript leaves after a cut, is replaced as by the API; others' ids, too."""
    (tmp_path / "in.jsonl").write_text('{"id": "\\ud83d", "text": "good"}\n{"id": "b", "text": "cut \\ud83d"}\n')
    bulk(tiny_model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--id", "id")
    ids, found = read(tmp_path / "out.jsonl")
    assert ids == ["\ufffd", "b"]
    np.testing.assert_array_equal(found, vectors(tiny_encoder, ["good", "cut \ufffd"]))


def test_json_numbers_are_exact(tmp_path: Path, tiny_model: Path) -> None:
    """A line of JSONL has id and vector."""
    bulk(tiny_model, write_jsonl(tmp_path / "in.jsonl", [{"text": "cat"}]), tmp_path / "out.jsonl")
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert list(row) == ["id", "vector"] and row["id"] == 0 and len(row["vector"]) == 32


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["missing.jsonl", "out.npy"], "There is no file {}/missing.jsonl."),
        ([".", "out.npy"], "{0}/. is a folder: name its files, like '{0}/./*.jsonl'."),
        (["in.jsonl", "out.txt"], "OUT is {}/out.txt; its name must end in .parquet, .jsonl or .npy."),
        (["in.jsonl", "in.csv", "out.npy"], "The inputs have different formats ({0}/in.jsonl, {0}/in.csv): take one"),
        (["in.csv", "out.npy"], "{}/in.csv has no column text; it has id, body: choose with --text and --id."),
        (["in.jsonl", "out.npy", "--dimensions", "33"], "--dimensions is 33; it must be from 1 to 32."),
        (["in.jsonl", "out.npy", "--shard", "2/2"], "--shard is '2/2'; it must be from 0/N to N-1/N, with an N of at"),
        (["in.jsonl", "out.npy", "--shard", "x"], "--shard is 'x'; it must be like 0/10, the first of ten."),
        (["in.jsonl", "out.npy", "--shard", "0/2"], "The outputs of several shards need ids: give --id COLUMN."),
        (["in.jsonl", "out.npy", "--text", "\udcff"], "text is '?', which is not UTF-8: use another name."),
        (["bad.parquet", "out.npy"], "{}/bad.parquet cannot be read as Parquet: "),
        (["bad.jsonl.gz", "out.npy"], "{}/bad.jsonl.gz cannot be read: Not a gzipped file (b'{{\"')."),
    ],
)
def test_wrong_arguments(tmp_path: Path, tiny_model: Path, arguments: list[str], sentence: str) -> None:
    """A wrong argument ends the command with a sentence that names it, and nothing is written."""
    write_jsonl(tmp_path / "in.jsonl", [{"text": "cat"}])
    (tmp_path / "in.csv").write_text("id,body\n1,cat\n")
    (tmp_path / "bad.parquet").write_text("PAR1, but not really")
    (tmp_path / "bad.jsonl.gz").write_text('{"text": "cat"}\n')
    is_path = [not argument.startswith("-") and argument[0] not in "0123456789x\udcff" for argument in arguments]
    paths = [tmp_path / name if path else name for name, path in zip(arguments, is_path, strict=True)]
    if arguments[0] == ".":
        paths[0] = f"{tmp_path}/."
    found = error(tiny_model, *paths)
    assert found.startswith(sentence.format(tmp_path))
    assert not (tmp_path / "out.npy").exists()


def test_a_missing_model(tmp_path: Path) -> None:
    """Without a model folder the command says what to do, as the server does."""
    path = write_jsonl(tmp_path / "in.jsonl", [])
    assert "Model folder not found" in error(tmp_path / "nothing", path, tmp_path / "out.npy")
