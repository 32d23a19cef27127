"""make bench measures and prints what the README shows."""

import os
import shutil
from pathlib import Path

import pytest

from tests.bench import __main__ as bench


def test_bench(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On the tiny model, in one short round, every row has its figure."""
    if shutil.which("wrk") is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("wrk is missing: apt-get install wrk")
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "SECONDS", 0.2)
    monkeypatch.setenv("MODEL_DIR", str(tiny_model))
    monkeypatch.setenv("MAX_LENGTH", "64")
    bench.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    figures = {row[0]: row[1].split()[0] for row in rows if row[1][0].isdigit()}
    assert len(figures) == 14
    assert all(float(figure) > 0 for label, figure in figures.items() if "engine" in label or "HTTP" in label), figures
