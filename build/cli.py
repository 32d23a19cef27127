"""Command lines of the build: options, exit codes, progress and warnings.

`python -m build`, `build.export_onnx`, `build.quantize` and `build.verify` share it.
"""

import argparse
import gc
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from build import BuildError, files
from build.source import DEFAULT_MODEL, revision_of


def parser(program: str) -> argparse.ArgumentParser:
    """Return a parser with the option --out."""
    result = argparse.ArgumentParser(program, description="Make a model folder for the embedding server.")
    result.add_argument("--out", type=Path, default=Path("model"), help="the folder to write (default: %(default)s)")
    return result


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the model."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder, or stand-in (default: %(default)s)")
    parser.add_argument("--revision", help="the hub's branch, tag or commit")
    parser.add_argument("--fallback", choices=["stand-in"], help="use it if the hub cannot be reached")


def add_effort(parser: argparse.ArgumentParser) -> None:
    """Add the option --effort."""
    parser.add_argument(
        "--effort",
        choices=["fast", "default", "best"],
        default="default",
        help="duration of the search for each layer's form: none, a minute or two, several minutes "
        "(default: %(default)s)",
    )


def run(work: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Call work(options) with OUT locked; print errors as one line. Return the exit code."""
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    if "model" in options:
        options.revision = revision_of(options.model, options.revision)
    try:
        with files.locked(options.out):
            work(options)
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def progress_bar(steps: int) -> Any:
    """Return a progress bar of so many steps, which is shown on a terminal only."""
    return tqdm(total=steps, disable=None, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {elapsed}", leave=False)


def no_progress_bar() -> Any:
    """Return a progress bar that is never shown."""
    return tqdm(disable=True)


@contextmanager
def step(name: str, bar: Any) -> Iterator[Callable[[str], None]]:
    """Run a step of the build, and print one line at its end: name, time, and the results that it reports."""
    gc.collect()  # models of transformers are in reference cycles, which hold gigabytes until a collection
    start = time.monotonic()
    bar.set_description(f"{name:8}")
    results: list[str] = []
    yield results.append
    bar.update()
    tqdm.write(f"{name:8} {time.monotonic() - start:6.1f} s  {' '.join(results)}", file=sys.stdout)
    sys.stdout.flush()


def sizes(out: Path, *names: str) -> str:
    """Return the paths of files in OUT with their sizes, each with its .data file."""
    return ", ".join(f"{out / name} {files.size(out, name) / 1e6:.1f} MB" for name in names)


def warn(warning: str | None) -> None:
    """Print a warning between two lines of exclamation marks, if there is one."""
    if warning:
        width = min(shutil.get_terminal_size().columns, 100)
        print(f"{'!' * width}\nWARNING: {warning}\n{'!' * width}", file=sys.stderr, flush=True)
