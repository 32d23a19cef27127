"""make compare: by how much the vectors of two model folders, or of two environments, differ."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tools import compare

ENVIRONMENT = Path(sys.prefix)


def make_compare(other: Path, model: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.compare", str(other), "--model", str(model)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_same_bits(is_folder: bool, tiny_model: Path) -> None:
    """A folder equals itself, and an environment with the same releases: every vector has the same bits."""
    run = make_compare(tiny_model if is_folder else ENVIRONMENT, tiny_model)
    first, second, *files = run.stdout.splitlines()
    assert "onnxruntime" in first and first.partition(": ")[2] == second.partition(": ")[2]
    assert [line.partition(":")[0] for line in files] == ["model_fp32.onnx", "model_int8.onnx"]
    for line in files:
        same, of, count = line.split()[1:4]
        assert (same, of) == (count, "of") and "least 1.000000" in line and " 1.0000 of the 10 nearest" in line


def test_other_vectors(tiny_model: Path) -> None:
    """Vectors that differ are counted, and compared by cosine, neighbours and translations found."""
    here = compare.vectors(tiny_model)
    there = {name: rows.copy() for name, rows in here.items()}
    there["model_int8.onnx"][:2] *= -1
    fp32, int8 = compare.differences(here, there)
    count = len(here["model_int8.onnx"])
    assert f" {count} of {count} vectors" in fp32
    assert f" {count - 2} of {count} vectors" in int8 and "least -1.000000" in int8


def test_what_cannot_be_compared(tiny_model: Path, tmp_path: Path) -> None:
    """A folder without a model, an environment without the packages, and vectors of another length: one sentence."""
    run = make_compare(tmp_path, tiny_model)
    assert run.returncode == 1 and f"{tmp_path}/manifest.json not found" in run.stderr
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(Path(sys.executable).resolve())
    run = make_compare(tmp_path, tiny_model)
    assert run.returncode == 1 and "No module named" in run.stderr
    here = compare.vectors(tiny_model)
    with pytest.raises(compare.CompareError, match="32 and 16 numbers"):
        compare.differences(here, {name: rows[:, :16] for name, rows in here.items()})


def test_the_folder_of_an_image(tiny_model: Path, tmp_path: Path) -> None:
    """A folder with one of the two model files, as images have, is compared by that file; without any there is none."""
    shutil.copytree(tiny_model, tmp_path / "model")
    for file in (tmp_path / "model").glob("model_fp32.onnx*"):
        file.unlink()
    run = make_compare(tmp_path / "model", tiny_model)
    assert [line.partition(":")[0] for line in run.stdout.splitlines()[2:]] == ["model_int8.onnx"], run.stderr
    (tmp_path / "model/model_int8.onnx").unlink()
    run = make_compare(tmp_path / "model", tiny_model)
    assert run.returncode == 1 and "no model file in common" in run.stderr
