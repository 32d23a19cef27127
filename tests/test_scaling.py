"""docs/scaling.md: its results follow from its inputs, and its inputs from what was measured."""

import math
import re
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT

PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
RATES = ["1", "100", "10,000"]


def between(marker: str) -> str:
    return PAGE.split(f"<!-- {marker} -->\n")[1].split(f"<!-- /{marker} -->")[0]


def scaling(*options: str) -> str:
    command = [sys.executable, str(ROOT / "docs/scaling.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(text: str) -> list[list[str]]:
    """The cells of every row that has a figure in its second cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if re.search(r"\d", row[1])]


def figure(cell: str) -> float:
    found = re.search(r"[\d.,]+", cell)
    assert found, cell
    return float(found[0].replace(",", ""))


INPUTS = {row[0].strip("`"): figure(row[1]) for row in table(PAGE.split("## Inputs")[1].split("## Formulas")[0])}


def test_results() -> None:
    """What the page shows is what the script prints."""
    assert between("results") == scaling()


def test_measured_inputs() -> None:
    """The measured inputs are those of the page's own table of one CPU."""
    measured = {row[0]: row[1] for row in table(between("one_cpu"))}
    assert INPUTS["texts_per_vcpu_second"] == figure(measured["1 text a request, 10 clients"])
    assert INPUTS["texts_per_vcpu_second_batched"] == figure(measured["32 texts a request, 1 client"])
    assert INPUTS["start_seconds"] == figure(measured["one CPU: `gunicorn` to first vector"])
    assert figure(measured["one CPU: memory (PSS) after the load"]) * 1e6 < INPUTS["memory_gib"] * 2**30
    clients = "one CPU: most clients measured with p95 under 300 ms, 1 text a request"
    assert figure(measured[clients]) >= 10


def test_deployed_inputs() -> None:
    """An instance is what service.yaml asks for, and takes the concurrency that the page gives the reasons for."""
    spec = yaml.safe_load((ROOT / "service.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": f"{INPUTS['vcpus']:g}", "memory": f"{INPUTS['memory_gib']:g}Gi"}
    assert f"**Hence concurrency {spec['containerConcurrency']}**" in PAGE


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", [1, 32])
def test_formulas(rate: str, size: int) -> None:
    """Every row by the page's formulas, written a second time."""
    i = INPUTS
    row = next(row for row in table(between("results")) if row[:2] == [rate, str(size)])
    requests, instances, slow, by_request, by_instance, million, vms = map(figure, row[2:])
    texts = figure(rate)
    per_vcpu = i["texts_per_vcpu_second"] if size == 1 else i["texts_per_vcpu_second_batched"]
    month = i["month_seconds"]

    assert requests == pytest.approx(texts / size, abs=0.5 if texts / size >= 100 else 0.005)
    needed = math.ceil(texts / (per_vcpu * i["vcpus"] * i["utilization"]))
    assert instances == needed
    assert slow == math.ceil(texts * i["slow_cpu"] / (per_vcpu * i["vcpus"] * i["utilization"]))
    steps = math.ceil(size / per_vcpu / i["billing_step"])
    share = min(1, texts / size / needed * steps * i["billing_step"])
    second = needed * share * (i["vcpus"] * i["cpu_request"] + i["memory_gib"] * i["memory_request"])
    expected_by_request = month * (second + texts / size * i["million_requests"] / 1_000_000)
    expected_by_instance = month * needed * (i["vcpus"] * i["cpu_instance"] + i["memory_gib"] * i["memory_instance"])
    expected_million = min(expected_by_request, expected_by_instance) / (texts * month) * 1_000_000
    expected_vms = math.ceil(texts / (per_vcpu * i["utilization"])) * i["vm_vcpu_month"]
    for shown, expected in (
        (by_request, expected_by_request),
        (by_instance, expected_by_instance),
        (million, expected_million),
        (vms, expected_vms),
    ):
        assert shown == pytest.approx(expected, abs=0.51 if expected >= 100 else 0.0051)


def test_one_instance() -> None:
    """An idle minimum instance, a kept one, where the two billings meet, and the share of requests that wait."""
    i = INPUTS
    idle, kept, even, share = (figure(row[1]) for row in table(between("results"))[-4:])
    month = i["month_seconds"]
    assert idle == pytest.approx(month * (i["vcpus"] * i["cpu_idle"] + i["memory_gib"] * i["memory_idle"]), abs=0.0051)
    second = i["vcpus"] * i["cpu_instance"] + i["memory_gib"] * i["memory_instance"]
    assert kept == pytest.approx(month * second, abs=0.0051)
    busy = i["vcpus"] * i["cpu_request"] + i["memory_gib"] * i["memory_request"]
    assert even == pytest.approx(second / busy * 100, abs=0.51)
    assert share == pytest.approx(i["starts_per_hour"] * i["start_seconds"] / 3600 * 100, abs=0.00051)


def test_own_numbers() -> None:
    """The page's own command works; a CPU twice as fast needs half the instances."""
    command = next(line for line in PAGE.splitlines() if line.startswith("python docs/scaling.py"))
    assert table(scaling(*command.split()[2:]))[0][0] == "500"
    slow, fast = (
        figure(table(scaling("--texts-per-second", "10000", "--texts-per-vcpu-second", each))[0][3])
        for each in ("100", "200")
    )
    assert math.ceil(slow / 2) == fast


def test_every_input_is_an_option() -> None:
    """Also those that only matter in one table."""
    usage = scaling("--help")
    for name in INPUTS:
        assert f"--{name.replace('_', '-')}" in usage
