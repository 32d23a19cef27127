"""Comparison: by how much the vectors of two model folders differ, or those of one folder in two environments.

    python -m tools.compare OTHER [--model DIR]

OTHER is a model folder, or a virtual environment with other releases of ONNX Runtime, numpy and tokenizers, in which
the vectors of DIR are computed again. The texts are those with which the build proves a model.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from app.engine.manifest import Manifest
from app.errors import BootError
from build import texts
from build.similarity import NEAREST, Matrix, cosines, neighbour_overlap, translation_accuracy
from tools.encoders import open_encoder

PACKAGES = ("onnxruntime", "numpy", "tokenizers")
PYTHON = "bin/python"

# model file's name -> (n, dim) vectors
Vectors = dict[str, Matrix]


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; return the exit code."""
    parser = argparse.ArgumentParser("python -m tools.compare", description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="a model folder, or a virtual environment")
    parser.add_argument("--model", type=Path, default=Path("model"), help="the model folder (default: %(default)s)")
    # for the process that computes in the other environment
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.write:
            np.savez(options.write, **vectors(options.other))  # type: ignore[arg-type]  # names of files, not options
            print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
            return 0
        if (options.other / PYTHON).exists():
            python, folder = options.other / PYTHON, options.model
        else:
            python, folder = Path(sys.executable), options.other
        here, releases = compute(Path(sys.executable), options.model)
        there, other_releases = compute(python, folder)
        print(f"{options.model}: {releases}", f"{options.other}: {other_releases}", *differences(here, there), sep="\n")
    except (BootError, CompareError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class CompareError(Exception):
    """The two cannot be compared. The message says why."""


def compute(python: Path, folder: Path) -> tuple[Vectors, str]:
    """Return the vectors of a folder's model files, computed by a Python in a process of its own, and its releases."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "vectors.npz"
        command = [str(python.absolute()), "-m", "tools.compare", str(folder.absolute()), "--write", str(out)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        except OSError as error:
            raise CompareError(f"{python} cannot be run: {error.strerror}.") from None
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1].removeprefix("error: ")
            raise CompareError(f"{python} cannot compute the vectors of {folder}: {reason}")
        with np.load(out) as stored:
            return dict(stored), run.stdout.strip()


def vectors(folder: Path) -> Vectors:
    """Return the vectors of all texts for each model file that a folder has, here.

    Raises:
        BootError: the folder is not complete.
    """
    every = [text for lines in (texts.held_out() | texts.unlike()).values() for text in lines]
    every += [side for number in (0, 1) for side in [pair[number] for pair in texts.pairs()]]
    names = [name for name in Manifest.load(folder).golden.vectors if (folder / name).is_file()]  # an image has one
    return {name: open_encoder(folder, name, self_check=False).encode(every).vectors for name in names}


def differences(here: Vectors, there: Vectors) -> list[str]:
    """Return a line for each model file that both have.

    Raises:
        CompareError: there is none, or the vectors have different lengths.
    """
    lines = []
    pairs = len(texts.pairs())
    for name in sorted(here.keys() & there.keys()):
        one, other = here[name], there[name]
        if one.shape[1] != other.shape[1]:
            raise CompareError(
                f"The vectors have {one.shape[1]} and {other.shape[1]} numbers, so they cannot be compared."
            )
        same, similar = int((one == other).all(1).sum()), cosines(one, other)
        translations = [translation_accuracy(*np.split(rows[-2 * pairs :], 2)) for rows in (one, other)]
        lines.append(
            f"{name}: {same} of {len(one)} vectors have the same bits; cosine mean {similar.mean():.6f}, "
            f"least {similar.min():.6f}; {neighbour_overlap(one, other):.4f} of the {NEAREST} nearest neighbours "
            f"are the same; translations found: {translations[0]:.3f} and {translations[1]:.3f}"
        )
    if not lines:
        raise CompareError(f"They have no model file in common: {', '.join(here)} and {', '.join(there)}.")
    return lines


if __name__ == "__main__":
    sys.exit(main())
