"""make bench measures and prints what the README shows."""

import os
import shutil
from pathlib import Path

import pytest
import requests

from app import cpu
from tests.bench import __main__ as bench
from tests.bench import load, one_cpu


@pytest.fixture
def quick(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model, one short round."""
    if shutil.which("wrk") is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("wrk is missing: apt-get install wrk")
    for module, seconds in ((bench, 0.2), (one_cpu, 2)):  # on one busy CPU, no request may be done in a second
        monkeypatch.setattr(module, "ROUNDS", 1)
        monkeypatch.setattr(module, "SECONDS", seconds)
    monkeypatch.setattr(one_cpu, "LOADS", [(1, 1), (1, 20), (32, 2)])
    monkeypatch.setenv("MODEL_DIR", str(tiny_model))
    monkeypatch.setenv("MAX_LENGTH", "64")


def figures(output: str) -> dict[str, list[str]]:
    """Label -> the other cells, of every row with figures."""
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows if len(row) > 1 and row[1][0].isdigit()}


@pytest.mark.usefixtures("quick")
def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    """In one short round, every row has its figure; the rows of one CPU come with it."""
    bench.main()
    rows = figures(capsys.readouterr().out)
    assert len([label for label in rows if not label.startswith("one CPU") and "client" not in label]) == 13
    assert all(
        float(row[0].split()[0]) > 0 for label, row in rows.items() if "engine" in label or "HTTP" in label
    ), rows
    if cpu.available_cpus() > 1:
        assert "one CPU: memory (PSS) after the load" in rows


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(cpu.available_cpus() < 2, reason="wrk needs a second CPU")
def test_one_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Each load has texts/s, rising percentiles and CPU time; this process may use all its CPUs again."""
    before = os.sched_getaffinity(0)
    one_cpu.measure(load.settings(), load.mixed_texts())
    assert os.sched_getaffinity(0) == before
    rows = figures(capsys.readouterr().out)
    loads = {label: row for label, row in rows.items() if label.endswith(("client", "clients"))}
    assert set(loads) == {"1 text a request, 1 client", "1 text a request, 20 clients", "32 texts a request, 2 clients"}
    for row in loads.values():
        texts_per_second, p50, p95, p99, cpu_ms = (float(cell.split()[0]) for cell in row)
        assert texts_per_second > 0 and cpu_ms > 0
        assert p50 <= p95 <= p99
    assert set(rows) - set(loads) == {
        "one CPU: most clients measured with p95 under 300 ms, 1 text a request",
        "one CPU: `gunicorn` to first vector",
        "one CPU: memory (PSS) after the load",
        "one CPU: the largest request, 2,048 pages",
    }


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(cpu.available_cpus() < 2, reason="wrk needs a second CPU")
def test_one_cpu_server_has_one_cpu() -> None:
    """Pinned, the server counts one CPU; the load runs on another."""
    with one_cpu.one_cpu_server(load.settings()) as server:
        load.wait_for_first_vector(server)
        assert requests.get(server.url, timeout=10).json()["cpu"]["available"] == 1
        assert os.sched_getaffinity(server.workers()[0]) & os.sched_getaffinity(0) == set()
