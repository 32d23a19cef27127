"""make tasks: what the vectors of a model folder are worth on tasks, INT8 beside FP32."""

import gzip
import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT
from tools import tasks

WORDS = ["cat", "dog", "river", "train", "music", "winter"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.tasks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def write(file: Path, rows: list[Mapping[str, object]]) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def table(output: str) -> dict[str, list[str]]:
    """First cell -> the other cells of a table's rows."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "|" in line]
    return {cells[0]: cells[1:] for cells in rows[2:]}


def test_files_of_all_kinds(tiny_model: Path, tmp_path: Path) -> None:
    """Each kind of file gets its figure with both precisions. The data is made so that the right figure is known."""
    same = [{"sentence1": word, "sentence2": word, "score": 5} for word in WORDS]
    other = [{"sentence1": word, "sentence2": f"the {word} and 5 more", "score": 1} for word in WORDS]
    files = [
        write(tmp_path / "similar.jsonl.gz", [*same, *other]),
        write(tmp_path / "search.jsonl", [{"Question": word, "Answer": word, "url": ""} for word in WORDS]),
        write(tmp_path / "pairs.jsonl", [{"source": word, "target": word} for word in WORDS]),
    ]
    outcome = run(*files, "--model", tiny_model)
    found = table(outcome.stdout)
    assert set(found) == {file.name for file in files}, outcome.stderr
    assert found["pairs.jsonl"] == ["accuracy", "6", "1.0000", "1.0000", "+0.0000"]
    for file, figure, count, least in (
        ("search.jsonl", "nDCG@10", "6", 0.6),
        ("similar.jsonl.gz", "Spearman", "12", 0.8),
    ):
        fp32, int8 = map(float, found[file][2:4])
        assert found[file][:2] == [figure, count] and min(fp32, int8) > least
        assert float(found[file][4]) == pytest.approx(int8 - fp32, abs=1.01e-4)


def test_ndcg() -> None:
    """nDCG@10 is 1 for a right document that is the nearest, 1/log2(3) for the second, and 0 beyond the tenth."""
    documents = np.eye(12, dtype=np.float32)
    query = np.arange(12, 0, -1, dtype=np.float32)[None]
    assert tasks.ndcg(query, documents, [0]) == 1
    assert tasks.ndcg(query, documents, [1]) == pytest.approx(1 / np.log2(3))
    assert tasks.ndcg(query, documents, [9]) == pytest.approx(1 / np.log2(11))
    assert tasks.ndcg(query, documents, [10]) == 0


def test_queries_and_documents_have_their_prompts(tiny_encoder: object) -> None:
    """In a search queries and documents get the model's prompts for them; otherwise texts get the default one."""
    asked: list[tuple[int, str | None]] = []

    class Spy:
        def encode(self, texts: list[str], prompt_name: str | None = None) -> object:
            asked.append((len(texts), prompt_name))
            return tiny_encoder.encode(texts)  # type: ignore[attr-defined]

    prompts: dict[str, str | None] = {"query": "query", "document": "passage"}
    for kind in ("search", "similarity"):
        tasks.figure(tasks.Task("", kind, WORDS, WORDS, list(range(6))), Spy(), prompts)  # type: ignore[arg-type]
    assert asked == [(6, "query"), (6, "passage"), (6, None), (6, None)]


def catalogue(pairs: dict[str, str]) -> bytes:
    """Return a .mo file as msgfmt writes it."""
    count = len(pairs)
    content, head = b"", 28 + 16 * count
    tables = []
    for texts in (pairs.keys(), pairs.values()):
        for text in texts:
            tables.append(struct.pack("<2I", len(text.encode()), head + len(content)))
            content += text.encode() + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0) + b"".join(tables) + content


def test_message_catalogues(tmp_path: Path) -> None:
    """Messages of this machine's programs are pairs of translations; short ones and placeholders are left out."""
    long = "The file could not be opened for writing."
    folder = tmp_path / "ja/LC_MESSAGES"
    folder.mkdir(parents=True)
    (folder / "a.mo").write_bytes(
        catalogue({"": "header", long: "ファイルを書き込み用に開けませんでした。", "Open": "開く", f"{long} %s": "…%s"})
    )
    task = tasks.catalogues(tmp_path)
    assert (task.left, task.right) == ([long], ["ファイルを書き込み用に開けませんでした。"])
    with pytest.raises(tasks.TaskError, match="no message catalogues"):
        tasks.catalogues(folder)


def test_a_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set is downloaded once, and one that is something else is not kept."""
    monkeypatch.setattr(tasks, "CACHE", tmp_path / "cache")
    source = tmp_path / "data.jsonl"
    source.write_text("<html>")
    with pytest.raises(tasks.TaskError, match="line 1: it is not a JSON object"):
        tasks.download("name", source.as_uri())
    write(source, [{"source": "a", "target": "b"}])
    first = tasks.download("name", source.as_uri())
    source.unlink()
    assert tasks.download("name", source.as_uri()) == first == tasks.Task("name", "translations", ["a"], ["b"], [])


def test_what_is_at_hand(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a file the build's pairs are measured; what cannot be reached is left out with the reason."""
    monkeypatch.setattr(tasks, "CACHE", tmp_path)
    monkeypatch.setattr(tasks, "DOWNLOADS", {"JSTS": (tmp_path / "none").as_uri()})
    monkeypatch.setattr(tasks.catalogues, "__defaults__", (tmp_path,))
    assert tasks.main(["--model", str(tiny_model)]) == 0
    output = capsys.readouterr()
    assert set(table(output.out)) == {"the build's pairs"}
    assert "JSTS is left out: file://" in output.err and "message catalogues is left out: there are no" in output.err
    assert output.out.startswith("In search queries get the prompt 'the ', documents 'a '.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a row needs the fields"),
        ('{"a": 1}\n', "line 1: a row needs the fields"),
        ("[1]\n", "line 1: it is not a JSON object"),
        ('{"source": "a", "target": "b"}\n{"source": "a"}\n', "line 2: target is None; it must be a string"),
        ('{"sentence1": "a", "sentence2": "b", "score": "x"}\n', "line 1: score is 'x'; it must be a number"),
    ],
)
def test_wrong_files(content: str, message: str, tiny_model: Path, tmp_path: Path) -> None:
    """A file without the right fields is refused with its line."""
    file = tmp_path / "file.jsonl"
    file.write_text(content)
    outcome = run(file, "--model", tiny_model)
    assert outcome.returncode == 1 and message in outcome.stderr and "Traceback" not in outcome.stderr


def test_wrong_arguments(tiny_model: Path, tmp_path: Path) -> None:
    """A missing or damaged file, a prompt that the model lacks, and a wrong folder: one sentence each."""
    file = write(tmp_path / "file.jsonl.gz", [{"source": "a", "target": "b"}] * 9)
    file.write_bytes(file.read_bytes()[:-9])
    for arguments, message in (
        ([tmp_path / "none", "--model", tiny_model], "No such file"),
        ([file, "--model", tiny_model], "cannot be read"),
        ([file, "--model", tiny_model, "--query-prompt", "nope"], "'nope'; the model's prompts are"),
        ([file, "--model", tmp_path], "not found"),
    ):
        outcome = run(*arguments)
        assert outcome.returncode == 1 and message in outcome.stderr and "Traceback" not in outcome.stderr
