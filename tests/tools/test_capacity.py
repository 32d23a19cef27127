"""docs/capacity.md: its results follow from its inputs, and its inputs from measurements."""

import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml
from numpy.typing import NDArray

from app.engine.model_folder import ModelFolder
from app.engine.tokenizer import Tokenizer
from app.settings import Settings
from build.texts import texts
from tests.support import ROOT

PAGE = (ROOT / "docs/capacity.md").read_text(encoding="utf-8")
RATES = ["1", "100", "10,000"]
TOKENS = ["7", "20", "34", "105", "256"]


def between(marker: str) -> str:
    return PAGE.split(f"<!-- {marker} -->\n")[1].split(f"<!-- /{marker} -->")[0]


def scaling(*options: str) -> str:
    command = [sys.executable, str(ROOT / "tools/capacity.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(text: str) -> list[list[str]]:
    """Return the cells of every row with a figure in its second cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if re.search(r"\d", row[1])]


def figure(cell: str) -> float:
    found = re.search(r"[\d.,]+", cell)
    assert found, cell
    return float(found[0].replace(",", ""))


def close(expected: float) -> Any:
    """Return the expected value with the page's rounding: whole numbers from 100 on, two digits below."""
    return pytest.approx(expected, abs=0.51 if expected >= 100 else 0.0051)


# The parts of the results: by rate, one instance, the job, its requests.
BY_RATE, ONE_INSTANCE, JOB, REQUESTS = (table(part) for part in between("results").strip().split("\n\n"))
INPUTS = {row[0].strip("`"): figure(row[1]) for row in table(PAGE.split("## Inputs")[1].split("## Formulas")[0])}


def test_results() -> None:
    """The page shows the output of the script."""
    assert between("results") == scaling()


def test_measured_inputs() -> None:
    """The measured inputs are those of the page's own table of one CPU."""
    measured = {row[0]: row[1] for row in table(between("one_cpu"))}
    assert INPUTS["texts_per_vcpu_second"] == figure(measured["1 text a request, 10 clients"])
    assert INPUTS["texts_per_vcpu_second_batched"] == figure(measured["32 texts a request, 1 client"])
    assert INPUTS["start_seconds"] == figure(measured["one CPU: `gunicorn` to first vector"])
    assert figure(measured["one CPU: memory (PSS) after the load"]) * 1e6 < INPUTS["memory_gib"] * 2**30
    pages = figure(measured["one CPU: the largest request, 2,048 pages"]) / Settings.max_texts
    assert INPUTS["page_seconds"] == pytest.approx(pages, abs=0.00005)
    assert INPUTS["page_tokens"] == Settings.max_length
    clients = "one CPU: most clients measured with p95 under 300 ms, 1 text a request"
    assert figure(measured[clients]) >= 10


SPEC = yaml.safe_load((ROOT / "service.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]


def test_deployed_inputs() -> None:
    """The inputs for an instance and its concurrency are those of service.yaml."""
    spec = SPEC
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": f"{INPUTS['vcpus']:g}", "memory": f"{INPUTS['memory_gib']:g}Gi"}
    assert f"**Hence concurrency {spec['containerConcurrency']}**" in PAGE
    assert spec["containerConcurrency"] == INPUTS["concurrency"]


@pytest.mark.full_size
def test_tokens_of_the_mixed_texts(full_size_model: Path) -> None:
    """mean_tokens is the mean length of the mixed texts, truncated as by the server."""
    model_folder = ModelFolder.load(full_size_model, Settings.model_path, Settings.tokenizer_path)
    tokenizer = Tokenizer.load(model_folder.tokenizer_file)
    specials = len(tokenizer.prefix) + len(tokenizer.suffix)
    lengths = [
        min(len(tokenizer(text)) + specials, Settings.max_length) for group in texts().values() for text in group
    ]
    assert round(statistics.mean(lengths)) == INPUTS["mean_tokens"]
    manifest = json.loads((full_size_model / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["dimension"] == INPUTS["dimension"]


def test_size_of_a_reply() -> None:
    """reply_kb is the size of a vector of length 1 as JSON, and the largest response is below the limit."""
    dimension = int(INPUTS["dimension"])
    drawn = np.random.default_rng(1).normal(size=(1000, dimension))
    vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    assert INPUTS["reply_kb"] == pytest.approx(kilobytes(vectors), abs=0.05)
    longest = kilobytes(np.full((1000, dimension), -1.2345679e-06, np.float32))
    assert round(longest, 1) == figure(PAGE.split("as JSON; at most ")[1].split(" |")[0])
    assert longest * Settings.max_texts < INPUTS["response_mb"] * 1000


def kilobytes(vectors: NDArray[np.float32]) -> float:
    """Size of a reply, from 1,000 of them."""
    return len(orjson.dumps({"replies": vectors}, option=orjson.OPT_SERIALIZE_NUMPY)) / 1e6


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", [1, 32])
def test_formulas(rate: str, size: int) -> None:
    """Every row follows from the page's formulas, computed here independently."""
    i = INPUTS
    row = next(row for row in BY_RATE if row[:2] == [rate, str(size)])
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
        assert shown == close(expected)


def test_one_instance() -> None:
    """The table of one instance follows from the formulas."""
    i = INPUTS
    idle, kept, even, share = (figure(row[1]) for row in ONE_INSTANCE)
    month = i["month_seconds"]
    assert idle == pytest.approx(month * (i["vcpus"] * i["cpu_idle"] + i["memory_gib"] * i["memory_idle"]), abs=0.0051)
    second = i["vcpus"] * i["cpu_instance"] + i["memory_gib"] * i["memory_instance"]
    assert kept == pytest.approx(month * second, abs=0.0051)
    busy = i["vcpus"] * i["cpu_request"] + i["memory_gib"] * i["memory_request"]
    assert even == pytest.approx(second / busy * 100, abs=0.51)
    assert share == pytest.approx(i["starts_per_hour"] * i["start_seconds"] / 3600 * 100, abs=0.00051)


def test_the_jobs_rows() -> None:
    """The job has a row for each length of text, including the mixed texts' mean."""
    assert [row[0] for row in JOB] == TOKENS
    assert f"{INPUTS['mean_tokens']:g}" in TOKENS and f"{INPUTS['page_tokens']:g}" in TOKENS


@pytest.mark.parametrize("tokens", TOKENS)
def test_job(tokens: str) -> None:
    """Each row of the job follows from the page's formulas, computed here independently."""
    i = INPUTS
    rate, needed, ten, hundred, thousand, by_request, by_instance = map(
        figure, next(row for row in JOB if row[0] == tokens)[1:]
    )
    mean = 1 / i["texts_per_vcpu_second_batched"]
    share = (figure(tokens) - i["mean_tokens"]) / (i["page_tokens"] - i["mean_tokens"])
    text = mean + (i["page_seconds"] - mean) * share
    assert rate == close(1 / text)
    assert tokens != "34" or rate == i["texts_per_vcpu_second_batched"]
    hours = i["job_texts"] * text / 3600 / i["vcpus"]
    assert needed == math.ceil(hours / i["query_hours"])
    for shown, instances in ((ten, 10), (hundred, 100), (thousand, 1000)):
        assert shown == close(hours / instances)
    second = i["vcpus"] * i["cpu_request"] + i["memory_gib"] * i["memory_request"]
    fees = i["job_texts"] / i["batching_rows"] / 1_000_000 * i["million_requests"]
    assert by_request == close(hours * 3600 * second + fees)
    second = i["vcpus"] * i["cpu_instance"] + i["memory_gib"] * i["memory_instance"]
    assert by_instance == close(hours * 3600 * second)


def test_rows_of_a_request() -> None:
    """The recommended number of rows is computed in time, and the response is below BigQuery's limit."""
    i, rows = INPUTS, INPUTS["batching_rows"]
    seconds, last, response, most, stored = (figure(row[1]) for row in REQUESTS)
    assert seconds == close(rows / i["texts_per_vcpu_second_batched"] / i["vcpus"])
    assert last == close(i["concurrency"] * rows * i["page_seconds"] / i["vcpus"] * i["slow_cpu"])
    deadline = next(item["value"] for item in SPEC["containers"][0]["env"] if item["name"] == "REQUEST_DEADLINE")
    assert last < float(deadline)
    assert "(290 s in\n  `service.yaml`)" in PAGE and deadline == "290"
    assert response == close(rows * i["reply_kb"] / 1000)
    assert most == math.floor(i["response_mb"] * 1000 / i["reply_kb"])
    assert rows <= Settings.max_texts < most
    assert stored == close(i["job_texts"] * i["dimension"] * 8 / 1e9)


def test_own_numbers() -> None:
    """The page's own command works; a CPU twice as fast needs half the instances."""
    command = next(line for line in PAGE.splitlines() if line.startswith("python tools/capacity.py"))
    assert table(scaling(*command.split()[2:]))[0][0] == "500"
    slow, fast = (
        figure(table(scaling("--texts-per-second", "10000", "--texts-per-vcpu-second", each))[0][3])
        for each in ("100", "200")
    )
    assert math.ceil(slow / 2) == fast
    job = scaling("--job-texts", "1000000", "--tokens", "34", "--instances", "2", "5").split("\n\n")[2]
    two, five = (figure(cell) for cell in table(job)[0][3:5])
    assert two == pytest.approx(five * 2.5, abs=0.02)


def test_every_input_is_an_option() -> None:
    """Every input is an option of the command."""
    usage = scaling("--help")
    for name in INPUTS:
        assert f"--{name.replace('_', '-')}" in usage
