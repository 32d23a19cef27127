"""The bulk command as a process, and the files that it reads and writes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from tests.support import ROOT

Vectors = NDArray[Any]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "app.bulk", *map(str, arguments)]


def environment(model: Path, **environ: object) -> dict[str, str]:
    return {**os.environ, "MODEL_DIR": str(model), "MAX_LENGTH": "64", **{k: str(v) for k, v in environ.items()}}


def bulk(
    model: Path, *arguments: object, stdin: bytes | None = None, code: int = 0, **environ: object
) -> list[dict[str, Any]]:
    """Run the command to its end, and return the lines of its log."""
    run = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(model, **environ), input=stdin or b"", capture_output=True
    )
    assert (run.returncode, run.stdout) == (code, b""), run.stderr.decode()
    return [json.loads(line) for line in run.stderr.splitlines()]


def error(model: Path, *arguments: object, **options: Any) -> str:
    """Run the command, which must fail with one sentence, and return it."""
    last = bulk(model, *arguments, code=1, **options)[-1]
    assert last["severity"] == "ERROR"
    message = last["message"]
    assert isinstance(message, str)
    return message


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(out: Path) -> tuple[list[Any], Vectors]:
    """Return the ids and the vectors of an output."""
    if out.suffix == ".npy":
        return read_jsonl(out.with_suffix(".ids.jsonl")), np.load(out)
    if out.suffix == ".parquet":
        table = pyarrow.parquet.read_table(out)
        return table["id"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)
    rows = read_jsonl(out)
    return [row["id"] for row in rows], np.array([row["vector"] for row in rows], np.float32)


def until(holds: Callable[[], object]) -> None:
    """Wait until a condition holds, at most 20 s."""
    for _ in range(4000):
        if holds():
            return
        time.sleep(0.005)
    raise TimeoutError("20 s are over")


def contents(folder: Path) -> Mapping[str, bytes]:
    """Return the bytes of each file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
