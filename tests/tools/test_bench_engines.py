"""python -m tools.bench.engines measures bare engines on the same token ids, and makes a table of them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from app.engine import session
from app.settings import Settings
from build.texts import texts
from tests.support import ROOT
from tools.bench import engine, engines, report
from tools.bench.engines import adapters, prepare

# Engines without packages of their own, which the tests do not install.
LOCAL = [item for item in engines.ENGINES if not item.packages and not item.needs_bf16]


def test_our_runs_are_the_servers() -> None:
    """The adapter, which imports nothing of the app, takes as many tokens in one run as the server."""
    assert adapters.RUN_TOKENS == session.RUN_TOKENS


def test_engines_beside_ours(
    tiny_model: Path, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each engine has a speed for each length, and its vectors are those of the model; the table has them all."""
    monkeypatch.setattr(prepare, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(engines, "ROUNDS", 1)
    monkeypatch.setattr(engines, "SECONDS", 0.02)
    fp32 = engine.load(Settings.from_env({"MODEL_DIR": str(tiny_model), "MAX_LENGTH": "128"}), "model_fp32.onnx")
    rows = engines.by_length(fp32, [text for lines in texts().values() for text in lines])
    assert all(rows.values())
    result = engines.measure(LOCAL, rows, tiny_source, tiny_model, fp32)
    found = {row["name"]: row for row in result["engines"]}
    assert set(found) == {item.name for item in LOCAL}
    for row in found.values():
        assert all(best["texts_per_second"] > 0 for best in row["best"].values())
        assert row["memory_mb"] > 20 and row["file_mb"] > 0
    for name in ("ONNX Runtime, FP32", "PyTorch, FP32"):
        assert found[name]["cosine"]["min"] > 0.99999
    assert found["ours, INT8"]["cosine"]["min"] > 0.98
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/benchmarks.md").write_text("before\n<!-- engines -->\n<!-- /engines -->\nafter\n")
    machine = {"cpu": "CPU", "cpus": 2, "features": ["avx2"]}
    report.save({"date": "2026-11-28", "machine": machine, **result}, tmp_path / "docs/bench/engines")
    report.write_engines(tmp_path)
    table = (tmp_path / "docs/benchmarks.md").read_text()
    assert table.startswith("before\n") and table.endswith("after\n")
    assert all(f"| {name} |" in table for name in found)
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_the_document_has_the_newest_figures(tmp_path: Path) -> None:
    """docs/benchmarks.md has the tables of docs/bench/engines/, as the report writes them."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    report.write_engines(tmp_path)
    assert (tmp_path / "docs/benchmarks.md").read_text() == (ROOT / "docs/benchmarks.md").read_text()


def test_the_newest_file_of_each_cpu(tmp_path: Path) -> None:
    """CPUs with other features have tables of their own; of one CPU the newest file counts."""
    result, *_ = [json.loads(path.read_text()) for path in (ROOT / "docs/bench/engines").glob("*.json")]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/benchmarks.md").write_text("<!-- engines -->\n<!-- /engines -->\n")
    for date, features in (("2026-01-01", ["avx2"]), ("2026-01-02", ["vnni"]), ("2026-01-03", ["avx2"])):
        machine = {"cpu": "CPU", "cpus": 2, "features": features}
        report.save({**result, "date": date, "machine": machine}, tmp_path / "docs/bench/engines")
    report.write_engines(tmp_path)
    text = (tmp_path / "docs/benchmarks.md").read_text()
    assert re.findall(r"2026-01-0\d", text) == ["2026-01-03", "2026-01-02"]
