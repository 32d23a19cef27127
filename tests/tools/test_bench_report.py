"""The report writes the figures of make bench into the documents and the charts, the same in both languages."""

import json
import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support import ROOT
from tools.bench import report

DOCUMENTS = ("README.md", "README.ja.md", "docs/benchmarks.md", "docs/capacity.md")


def latency(p50: float, p95: float, p99: float) -> dict[str, float]:
    return {"p50": p50, "p95": p95, "p99": p99}


def peer(name: str, rate: float, mean: float) -> dict[str, Any]:
    rates = {"clients_32": rate, "batches": rate + 0.6, "one_client_p50": 52.96, "memory_mb": 1457.4}
    return {"name": name, **rates, "start_seconds": 12.0, "batched": {"mean": mean, "min": mean - 0.01}}


RESULT: dict[str, Any] = {
    "date": "2026-11-23",
    "machine": {"cpu": "AMD EPYC 9B45", "cpus": 2},
    "model": "社内/model $x_{",
    "engine": {"fp32": 95.2, "plain_int8": 150.0, "int8": 209.44},
    "http": {
        "batches": 208.4,
        "clients_32": 188.0,
        "cached": 1779.0,
        "one_client_p50": 7.14,
        "engine_p50": 5.7,
        "batches_over_engine": 0.994,
        "clients_32_over_engine": 0.9,
    },
    "latency_by_clients": [
        {"clients": 1, "texts_per_second": 140.0, **latency(7.1, 50, 60)},
        {"clients": 8, "texts_per_second": 188.0, **latency(40, 91.7, 1110)},
    ],
    "latency_by_length": [
        {"name": "word", "tokens": 4, **latency(3.04, 4, 6)},
        {"name": "page", "tokens": 256, **latency(48, 52, 61)},
    ],
    "fairness": {"unloaded": latency(5, 7, 8), "loaded": latency(9, 15, 20)},
    "overload": {
        "capacity": 190.0,
        "offered": 1900.0,
        "answered": 175.0,
        "goodput": 0.921,
        "answered_p99": 500.0,
        "refused_p99": 12.34,
    },
    "cache": {"hit_p50": 0.6},
    "start_seconds": 0.614,
    "memory": {"one_worker_mb": 150.4, "further_worker_mb": 34.6},
    "quality": {
        "fp32": {"mean": 1.0, "p1": 1.0, "min": 0.9999999, "pairwise_difference": 0.0},
        "int8": {"mean": 0.9996834, "p1": 0.9993189, "min": 0.9990366, "pairwise_difference": 0.001104},
        "retrieval": {"queries": 1000, "reference": 0.975, "int8": 0.978},
        "neighbours": {"nearest": 10, "overlap": 0.9561532},
        "bytes": {"model_fp32.onnx": 470096694, "model_int8.onnx": 119566696},
    },
    "accuracy": {"plain_int8": {"mean": 0.9884, "min": 0.95}},
    "one_cpu": {
        "loads": [
            {"texts": 1, "clients": 1, "texts_per_second": 93.4, **latency(7, 51, 66), "cpu_ms_per_text": 10.75},
            {"texts": 32, "clients": 2, "texts_per_second": 96.0, **latency(653, 729, 1015), "cpu_ms_per_text": 9.4},
        ],
        "most_clients": 10,
        "p95_limit": 300,
        "start_seconds": 1.31,
        "memory_mb": 486.2,
        "largest_texts": 2048,
        "largest_seconds": 126.0,
    },
    "peers": [peer("Infinity, INT8", 58.2, 0.98693), peer("sentence-transformers, PyTorch", 31.0, 1.0)],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with copies of the documents."""
    (tmp_path / "docs/img").mkdir(parents=True)
    for name in DOCUMENTS:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in deepcopy(RESULT).items() if name not in names}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def block(root: Path, document: str) -> str:
    name = "one_cpu" if document.endswith("capacity.md") else "bench"
    text = (root / document).read_text(encoding="utf-8")
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]


def test_the_figures_are_in_the_tables(root: Path) -> None:
    """Figures are rounded for the documents, and every row of a table has as many cells as its head."""
    report.write(RESULT, root)
    english, japanese, benchmarks, one_cpu = (block(root, document) for document in DOCUMENTS)
    for row in (
        " | this server, INT8 | Infinity, INT8 |",
        "32 clients, 1 text a request | 188 texts/s | 58 texts/s |",
        "cosine to FP32, mean | 0.99968 | 0.98693 |",
    ):
        assert f"| {row.strip()}\n" in english, row
    assert "| 起動から最初のベクトルまで | 0.61 秒 | 12.00 秒 |\n" in japanese
    for row in (
        "bare engine, FP32 | 95 texts/s | |",
        "bare engine, plain INT8 (`quantize_dynamic`) | 150 texts/s | 1.58 × FP32 |",
        "bare engine, INT8 | 209 texts/s | 2.20 × FP32 |",
        "HTTP, 32 texts a request, 2 clients | 208 texts/s | 0.99 × bare engine |",
        "HTTP, 1 text a request, 1 client, p50 | 7.1 ms | bare engine + 1.4 ms |",
        "page, 256 tokens | 48.0 ms | 52.0 ms | 61.0 ms |",
        "the same, beside 2 clients with 64 long paragraphs a request | 9.0 ms (1.80 ×) | 20.0 ms (2.50 ×) |",
        "answered | 175 texts/s | 0.92 × capacity |",
        "time to a rejection (429), p99 | 12.3 ms | |",
        "`gunicorn` to first vector | 0.61 s |",
        "size | 470 MB | 120 MB |",
        "the same, minimum | 1.00000 | 0.99904 |",
        "this server, INT8 | 188 texts/s | 208 texts/s | 7.1 ms | 150 MB | 0.61 s | 0.99968 | 0.99904 |",
        "Infinity, INT8 | 58 texts/s | 59 texts/s | 53.0 ms | 1457 MB | 12.00 s | 0.98693 | 0.97693 |",
    ):
        assert f"\n| {row}\n" in benchmarks, row
    for row in (
        "1 text a request, 1 client | 93 | 7 ms | 51 ms | 66 ms | 10.75 ms |",
        "32 texts a request, 2 clients | 96 | 653 ms | 729 ms | 1015 ms | 9.40 ms |",
        "one CPU: the largest request, 2,048 pages | 126 s |",
    ):
        assert f"\n| {row}\n" in one_cpu, row
    for tables in (english, japanese, benchmarks, one_cpu):
        for table in tables.split("\n\n"):
            rows = table.strip().splitlines()
            assert rows[1] == "|" + " --- |" * (len(rows[1].split("|")) - 2)
            assert {row.count("|") for row in rows} == {rows[0].count("|")}, table


def test_the_table_of_bulk(root: Path) -> None:
    """Rates become euros for a million and for 100 million texts, and hours of a job, by the prices given."""
    shutil.copy(ROOT / "docs/bulk.md", root / "docs/bulk.md")
    row = {"texts": 20_000, "tokens": 17.4, "texts_per_second": 800.0, "over_bare": 0.968, "memory_mb": 301.4}
    prices = {"cpu_instance": 0.00002, "memory_instance": 0.0, "dollars_per_euro": 1.25}
    machine = {"cpu": "AMD EPYC 9B45", "cpus": 2, "features": ["vnni", "avx2"]}
    result = {"date": "2026-12-01", "machine": machine, "model": "m", "prices": prices, "bulk": {"short": row}}
    report.write_bulk(result, root)
    table = (root / "docs/bulk.md").read_text().split("<!-- bulk -->\n")[1].split("<!-- /bulk -->")[0]
    assert "2026-12-01, 2 CPUs of an AMD EPYC 9B45 (vnni, avx2), m:" in table
    assert "| short | 20,000 | 17 | 800 | 0.97 | 301 MB | €0.040 | €4.00 | 0.17 h |" in table


@pytest.mark.parametrize("result", [RESULT, without("peers")], ids=["peers", "no peers"])
def test_both_languages_have_the_same_figures(result: dict[str, Any], root: Path) -> None:
    """The READMEs have the same table with the same figures, each with labels in its language."""
    report.write(result, root)
    english, japanese = (block(root, document) for document in DOCUMENTS[:2])
    assert re.findall(r"\d+[.]?\d*", english) == re.findall(r"\d+[.]?\d*", japanese)
    assert [line.count("|") for line in english.splitlines()] == [line.count("|") for line in japanese.splitlines()]
    assert english.isascii()
    labels = [line.split("|")[1] for line in japanese.splitlines()[2:]]
    assert all(not label.isascii() for label in labels)


def test_one_cpu_has_the_rows_of_the_page(root: Path) -> None:
    """The rows that docs/capacity.md takes its inputs from keep their labels."""
    before = {line.split("|")[1] for line in block(root, "docs/capacity.md").splitlines() if "CPU" in line}
    report.write(RESULT, root)
    assert {line.split("|")[1] for line in block(root, "docs/capacity.md").splitlines() if "CPU" in line} == before


def test_again_is_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON file gives the same bytes again, and only the text between the marks has changed."""
    report.write(RESULT, root)
    first = contents(root)
    assert set(first) == {*DOCUMENTS, *(f"docs/img/{name}" for name in report.CHARTS)}
    file = root / "X.json"
    file.write_text(json.dumps(RESULT), encoding="utf-8")
    monkeypatch.setattr(report, "ROOT", root)
    monkeypatch.setattr("sys.argv", ["report", str(file)])
    report.main()
    file.unlink()
    assert contents(root) == first
    for name in DOCUMENTS:
        assert (root / name).read_text().replace(block(root, name), "") == (ROOT / name).read_text().replace(
            block(ROOT, name), ""
        )


def test_what_was_not_measured_is_left_out(root: Path) -> None:
    """Peers that were not measured have no row and no bar; docs/capacity.md keeps its own figures."""
    report.write(RESULT, root)
    charts = {name: (root / "docs/img" / name).read_bytes() for name in report.CHARTS}
    shutil.copy(ROOT / "docs/capacity.md", root / "docs/capacity.md")
    for result in ({**RESULT, "peers": [], "one_cpu": None}, without("peers", "one_cpu")):
        report.write(result, root)
        assert "beside others" not in block(root, "docs/benchmarks.md")
        assert "Infinity" not in block(root, "README.md") + block(root, "README.ja.md")
        assert (root / "docs/capacity.md").read_text() == (ROOT / "docs/capacity.md").read_text()
        changed = {name for name in report.CHARTS if (root / "docs/img" / name).read_bytes() != charts[name]}
        assert changed == {"bench_throughput.svg", "bench_accuracy.svg"}


def test_the_charts_are_drawings(root: Path) -> None:
    """The charts are small, valid SVG, even if all points coincide."""
    same = deepcopy(RESULT)
    for other in same["peers"]:
        other.update(batches=same["engine"]["int8"], batched=same["quality"]["int8"])
    for result in (RESULT, same):
        report.write(result, root)
        for name in report.CHARTS:
            content = (root / "docs/img" / name).read_bytes()
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
            assert len(content) < 150_000
            assert b"<dc:date>" not in content


def test_a_document_without_a_place_is_refused(root: Path) -> None:
    """A document without the marks is named, and no document is changed."""
    (root / "README.ja.md").write_text("# <!-- bench -->\n")
    before = contents(root)
    with pytest.raises(ValueError, match=r"README\.ja\.md has no tables between"):
        report.write(RESULT, root)
    assert contents(root) == before
