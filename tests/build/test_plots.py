"""Plots of the report: valid files, the same bytes from the same vectors, and no input that breaks them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from app.engine.manifest import MANIFEST
from build import plots
from build.similarity import Matrix
from tests.support import ROOT

GROUPS = ["en", "ja", "en", "ja", "en"]
TOKENS = [3, 9, 27, 100, 256]
WRITE = """
import json, pathlib, sys, numpy
from build import plots
out, vectors, texts = sys.argv[1:]
plots.write(pathlib.Path(out), "a model", *numpy.load(vectors), *json.loads(texts))
"""


def vectors(n: int, noise: float = 0.05) -> tuple[Matrix, Matrix]:
    """Return two arrays (n, 16): random vectors, and the same with noise."""
    chance = np.random.default_rng(0)
    a = chance.normal(size=(n, 16)).astype(np.float32)
    return a, a + np.float32(noise) * chance.normal(size=a.shape).astype(np.float32)


def write(out: Path, a: Matrix, b: Matrix, groups: list[str], name: str = "a model") -> dict[str, bytes]:
    """Write the plots and return their bytes; groups and tokens are repeated for all texts."""
    n = len(a)
    plots.write(out, name, a, b, (groups * n)[:n], (TOKENS * n)[:n], {"the mean must stay below": 0.02})
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(written: dict[str, bytes]) -> None:
    """Check the four files: PNGs of the right size, valid SVGs, none too large for a document."""
    assert sorted(written) == sorted(plots.PLOTS)
    for name, content in written.items():
        if name.endswith(".png"):
            assert content[:16] == b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
            width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
            assert (width, height) == (1280, 640)
            assert content.endswith(b"IEND\xaeB`\x82")
            assert len(content) < 200_000
        else:
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
            assert len(content) < 300_000


def test_the_same_vectors_give_the_same_bytes(tmp_path: Path) -> None:
    """The same vectors give the same bytes, also with other matplotlib settings and without a home folder.

    Matplotlib's list of fonts goes to a temporary folder there.
    """
    a, b = vectors(5)
    plots.write(tmp_path / "first", "a model", a, b, GROUPS, TOKENS)
    first = contents(tmp_path / "first")
    check(first)
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None, "axes.facecolor": "red"}):
        plots.write(tmp_path / "second", "a model", a, b, GROUPS, TOKENS)
        assert matplotlib.rcParams["font.size"] == 30
    assert contents(tmp_path / "second") == first

    np.save(tmp_path / "vectors.npy", np.stack([a, b]))
    (tmp_path / "home").touch()  # a file: not even root makes a folder in it
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPL"))}
    arguments = [str(tmp_path / "third"), str(tmp_path / "vectors.npy"), json.dumps([GROUPS, TOKENS])]
    environ = kept | {"HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", WRITE, *arguments], cwd=ROOT, env=environ, check=True)
    assert contents(tmp_path / "third") == first


@pytest.mark.parametrize(
    "n, noise, groups, name",
    [
        pytest.param(2, 0.05, ["only"], "a model", id="one pair in one group"),
        pytest.param(12, 0.0, ["en", "ja"], "a model", id="no error at all"),
        pytest.param(12, 2.0, ["日本", "$_{"], "社内/モデル $x_{" * 20, id="much error and names that are not plain"),
        pytest.param(800, 0.05, [f"group {i}" for i in range(40)], "a model", id="many texts and groups"),
    ],
)
def test_any_texts_can_be_drawn(n: int, noise: float, groups: list[str], name: str, tmp_path: Path) -> None:
    """Any texts can be drawn without a warning or an error."""
    check(write(tmp_path, *vectors(n, noise), groups, name))


def test_broken_vectors_are_drawn_as_errors(tmp_path: Path) -> None:
    """Zero, NaN and infinite vectors are drawn as errors, and the manifest is removed."""
    a, b = vectors(12)
    b[:6] = a[:6]
    b[9:] = np.array([[0], [np.nan], [np.inf]])
    (tmp_path / MANIFEST).touch()
    check(write(tmp_path, a, b, ["en", "ja"]))


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    """A single text, and lists of different lengths, are refused; nothing is written."""
    a, b = vectors(3)
    with pytest.raises(ValueError, match="at least two texts"):
        plots.write(tmp_path, "a model", a[:1], b[:1], ["en"], [3])
    with pytest.raises(ValueError, match="Each text needs"):
        plots.write(tmp_path, "a model", a, b, ["en"], [3, 4, 5])
    assert not any(tmp_path.iterdir())
