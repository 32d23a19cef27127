"""Interruptions: whatever stops the bulk command, the same command goes on, and ends with the same bytes."""

import json
import os
import pty
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.bulk import bulk, command, contents, environment, error, read, until, write_jsonl

ROWS = 30_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of rows, some of them bad, of which the second is half of all."""
    folder = tmp_path_factory.mktemp("inputs")
    words = "the cat sat on a mat 東京 動的 計画".split()
    generator = random.Random(7)
    for name, count in (("a", ROWS // 4), ("b", ROWS // 2), ("c", ROWS // 4)):
        rows: list[Any] = [
            {"id": f"{name}{row}", "text": " ".join(generator.choices(words, k=generator.randrange(20)))}
            for row in range(count)
        ]
        rows[100] = None
        rows[-1] = {"id": name}
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def arguments(folder: Path, out: Path) -> list[object]:
    return [folder / "*.jsonl", out, "--id", "id", "--errors", out.with_suffix(".bad"), "--normalize"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "npy"])
def test_kill_at_random_times(tmp_path: Path, tiny_model: Path, folder: Path, suffix: str) -> None:
    """kill -9 at random times, again and again: the files have the bytes of a run without a kill."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for path in (whole, killed):
        path.mkdir()
    bulk(tiny_model, *arguments(folder, whole / f"out.{suffix}"))
    generator = random.Random(suffix)
    kills = progress = 0
    while True:
        run = subprocess.Popen(
            command(*arguments(folder, killed / f"out.{suffix}")),
            cwd=ROOT,
            env=environment(tiny_model),
            stderr=subprocess.PIPE,
        )
        try:
            run.wait(generator.uniform(0.5, 2.5) if kills < 12 else None)
        except subprocess.TimeoutExpired:
            run.kill()
            kills += 1
        assert run.stderr
        lines = run.stderr.read().splitlines()
        run.stderr.close()
        assert run.wait() in (0, -signal.SIGKILL), lines
        progress = max(progress, *(json.loads(line).get("rows", 0) for line in lines), 0) if lines else progress
        if run.returncode == 0:
            break
    assert kills and progress == ROWS
    expected = {name: content.replace(bytes(whole), bytes(killed)) for name, content in contents(whole).items()}
    assert contents(killed) == expected


def begun(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the line that says what is computed."""
    return next(line for line in log if "shards" in line)


def killed(model: Path, folder: Path, out: Path, parts: int) -> Path:
    """Start the command, kill it when it has so many parts, and return its folder."""
    run = subprocess.Popen(command(*arguments(folder, out)), cwd=ROOT, env=environment(model))
    work = out.with_name(f"{out.name}.work")
    until(lambda: list(work.glob(f"{parts - 1:08d}.vectors")) if parts else (work / "lock").exists())
    run.kill()
    run.wait()
    return work


def test_a_part_that_does_not_count_yet(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """A kill between a part and the state after it, or within either, leaves files that are written again."""
    work = killed(tiny_model, folder, tmp_path / "out.npy", 2)
    state = json.loads((work / "state.json").read_text())["state"]["parts"]
    for name in (
        f"{state:08d}.vectors",
        f"{state:08d}.ids",
        f"{state:08d}.vectors.unfinished",
        "state.json.unfinished",
    ):
        (work / name).write_text("half of a part")
    bulk(tiny_model, *arguments(folder, tmp_path / "out.npy"))
    bulk(tiny_model, *arguments(folder, tmp_path / "again.npy"))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "again.npy").read_bytes()


def test_parts_of_an_attempt_without_a_state(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """Files of parts without a state are of an attempt that does not count: none of them is in the output."""
    out = tmp_path / "out.jsonl"
    work = killed(tiny_model, folder, out, 0)
    (work / "state.json").unlink(missing_ok=True)
    for name in ("00000000.errors", "00000001.vectors", "00000999.vectors"):
        (work / name).write_text('{"stale": 1}\n')
    bulk(tiny_model, *arguments(folder, out))
    assert b"stale" not in out.read_bytes() + out.with_suffix(".bad").read_bytes()
    assert len(read(out)[0]) == ROWS - 6


def test_a_missing_part(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """A part that somebody has removed is an error, not a shorter output."""
    out = tmp_path / "out.jsonl"
    work = killed(tiny_model, folder, out, 3)
    (work / "00000000.vectors").unlink()
    assert error(tiny_model, *arguments(folder, out)) == f"Files are missing in {work}: remove it to start anew."
    assert not out.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"recipe": 3, "state": {}}', '{"recipe": {}, "state": {"x": 1}}']
)
def test_a_state_of_something_else(tmp_path: Path, tiny_model: Path, folder: Path, content: str) -> None:
    """A state or a summary that is none is named, with what to remove."""
    out = tmp_path / "out.jsonl"
    work = killed(tiny_model, folder, out, 1)
    (work / "state.json").write_text(content)
    assert error(tiny_model, *arguments(folder, out)).endswith(f"of another version: remove {work} to start anew.")
    (tmp_path / "b.jsonl.json").write_text(content)
    (tmp_path / "b.jsonl").write_text("mine")
    assert "is not a file of this command" in error(tiny_model, *arguments(folder, tmp_path / "b.jsonl"))
    assert (tmp_path / "b.jsonl").read_text() == "mine"


def test_a_summary_without_its_output(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """An output that was removed, without its summary, is made anew, also after a kill."""
    out = tmp_path / "out.npy"
    bulk(tiny_model, *arguments(folder, out))
    whole = contents(tmp_path)
    for name in ("out.npy", "out.ids.jsonl", "out.bad"):
        (tmp_path / name).unlink()
    killed(tiny_model, folder, out, 1)
    assert not (tmp_path / "out.npy.json").exists()
    bulk(tiny_model, *arguments(folder, out))
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(tmp_path: Path, tiny_model: Path, folder: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end the command at once, with a sentence, and the next run goes on."""
    out = tmp_path / "out.jsonl"
    run = subprocess.Popen(
        command(*arguments(folder, out)), cwd=ROOT, env=environment(tiny_model), stderr=subprocess.PIPE
    )
    until(lambda: (tmp_path / "out.jsonl.work/state.json").exists())
    run.send_signal(number)
    _, log = run.communicate(timeout=10)
    assert run.returncode == 128 + number
    last = json.loads(log.splitlines()[-1])
    assert last["message"] == f"Stopped by {number.name}. What was done is kept: the same command goes on."
    first = begun(bulk(tiny_model, *arguments(folder, out)))
    assert "going on after" in first["message"] and first["rows"] >= 4096


def test_a_finished_output(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """The same command after its end computes nothing and changes nothing, as a repeated task of a job."""
    out = tmp_path / "out.parquet"
    bulk(tiny_model, *arguments(folder, out))
    before = contents(tmp_path)
    *_, log = bulk(tiny_model, *arguments(folder, out))
    assert log["message"].startswith(f"{out} has {ROWS - 6:,} vectors; 6 bad rows")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change, difference",
    [
        (["--normalize"], "normalize false, not true"),
        (["--dtype", "int8"], 'dtype "float32", not "int8"'),
        (["--prompt", "a "], 'prompt "", not "a "'),
    ],
)
def test_another_command(tmp_path: Path, tiny_model: Path, change: list[str], difference: str) -> None:
    """An output is never continued, or replaced, with other options, another model or changed inputs."""
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "cat"}])
    out = tmp_path / "out.jsonl"
    bulk(tiny_model, path, out)
    before = out.read_bytes()
    rest = "Remove it to start anew, or name another file."
    assert error(tiny_model, path, out, *change) == f"{out} was made with {difference}. {rest}"
    assert error(tiny_model, path, out, MAX_LENGTH=32) == f"{out} was made with max_length 64, not 32. {rest}"
    found = error(tiny_model, path, out, MODEL_PATH="model_fp32.onnx")
    assert found == f'{out} was made with model_file "model_int8.onnx", not "model_fp32.onnx". {rest}'
    path.write_text('{"text": "mat"}\n')
    assert error(tiny_model, path, out) == f"{out} was made with other inputs: {path} is new, changed or gone. {rest}"
    (tmp_path / "out.jsonl.json").unlink()
    assert error(tiny_model, path, out) == (
        f"{out} exists, and this run has not made it: move it away, or name another file."
    )
    assert out.read_bytes() == before


def test_files_of_the_user(tmp_path: Path, tiny_model: Path) -> None:
    """No file that the command has not made is written to: not an input, not another one in the place of its files."""
    texts = write_jsonl(tmp_path / "in.jsonl", [{"text": "cat"}, {}])
    out, mine = tmp_path / "out.npy", tmp_path / "mine"
    mine.write_text("mine")
    sentence = f"{texts} is an input, and this command would write to it: name another file for OUT."
    assert error(tiny_model, texts, texts) == sentence
    assert error(tiny_model, texts, out, "--errors", texts) == sentence
    ids = write_jsonl(tmp_path / "out.ids.jsonl", [{"text": "cat"}])
    assert error(tiny_model, ids, out).startswith(f"{ids} is an input, and this command would write to it")
    for arguments, path in (([texts, out], ids), ([texts, tmp_path / "a.npy", "--errors", mine], mine)):
        found = error(tiny_model, *arguments)
        assert found == f"{path} exists, and this run has not made it: move it away, or name another file."
    for name in ("b.jsonl", "b.jsonl.json"):
        found = error(tiny_model, texts, tmp_path / "b.jsonl", "--errors", tmp_path / name)
        assert found.endswith("would be written twice: name another file for the bad rows.")
    assert mine.read_text() == "mine" and len(contents(tmp_path)) == 3


def test_an_input_that_grows(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """An input that has changed while it was read is an error at the end."""
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes((folder / "b.jsonl").read_bytes())
    flags = ["--id", "id", "--errors", tmp_path / "bad"]
    run = subprocess.Popen(command(path, out, *flags), cwd=ROOT, env=environment(tiny_model), stderr=subprocess.PIPE)
    until(lambda: (tmp_path / "out.jsonl.work/state.json").exists())
    with path.open("a") as file:
        file.write('{"id": "late", "text": "cat"}\n')
    _, log = run.communicate()
    assert run.returncode == 1
    assert json.loads(log.splitlines()[-1])["message"] == (
        f"An input has changed while it was read: remove {out}.work and start anew."
    )


def test_two_at_once(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """A second process for the same output is refused while the first one works."""
    out = tmp_path / "out.jsonl"
    run = subprocess.Popen(command(*arguments(folder, out)), cwd=ROOT, env=environment(tiny_model))
    until(lambda: (tmp_path / "out.jsonl.work/lock").exists())
    os.kill(run.pid, signal.SIGSTOP)
    try:
        sentence = error(tiny_model, *arguments(folder, out))
    finally:
        os.kill(run.pid, signal.SIGCONT)
    assert sentence == f"Another process is making {out}: wait for it, or stop it."
    assert run.wait() == 0


def test_a_full_disk(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """A file that cannot be written is an error with a sentence, and the command goes on when there is room."""
    out = tmp_path / "out.npy"
    code = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({ROWS * 64}, {ROWS * 64}))"
    run = subprocess.run(
        [*command()[:1], "-c", f"{code}; runpy.run_module('app.bulk', run_name='__main__')"]
        + [str(argument) for argument in arguments(folder, out)],
        cwd=ROOT,
        env=environment(tiny_model),
        capture_output=True,
    )
    last = json.loads(run.stderr.splitlines()[-1])
    assert run.returncode == 1
    assert "File too large. What was done is kept: the same command goes on." in last["message"]
    log = bulk(tiny_model, *arguments(folder, out))
    assert "going on after 30,000 rows" in begun(log)["message"]
    assert len(np.load(out)) == ROWS - 6


def test_stdin_goes_on(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """A run from stdin goes on if the same comes again, and refuses anything else."""
    data = (folder / "b.jsonl").read_bytes()
    flags = [tmp_path / "out.jsonl", "--format", "jsonl", "--id", "id", "--errors", tmp_path / "bad"]
    run = subprocess.Popen(
        command("-", *flags), cwd=ROOT, env=environment(tiny_model), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdin
    run.stdin.write(data[: len(data) * 3 // 4])
    run.stdin.flush()
    until(lambda: (tmp_path / "out.jsonl.work/state.json").exists())
    run.kill()
    run.communicate()
    for other in (data.replace(b"b7", b"x7"), data[:1000]):
        sentence = error(tiny_model, "-", *flags, stdin=other)
        assert sentence == "stdin does not begin as it did when this work began: send the same again."
    log = bulk(tiny_model, "-", *flags, stdin=data)
    assert "going on after" in begun(log)["message"]
    bulk(tiny_model, folder / "b.jsonl", tmp_path / "whole.jsonl", "--id", "id", "--errors", tmp_path / "bad2")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_stdin_after_the_end(tmp_path: Path, tiny_model: Path) -> None:
    """A complete output of stdin stays if the same comes again; other rows are refused, not taken for done."""
    flags = ["-", tmp_path / "out.jsonl", "--format", "jsonl"]
    bulk(tiny_model, *flags, stdin=b'{"text": "cat"}\n')
    bulk(tiny_model, *flags, stdin=b'{"text": "cat"}\n')
    for other in (b'{"text": "mat"}\n', b'{"text": "cat"}\n{"text": "mat"}\n', b""):
        assert "stdin" in error(tiny_model, *flags, stdin=other)


def test_memory(tmp_path: Path, tiny_model: Path) -> None:
    """Ten times the rows need no more memory."""
    peaks = []
    for count in (10_000, 100_000):
        path = write_jsonl(tmp_path / f"{count}.jsonl", ({"text": f"the cat {row} " * 4} for row in range(count)))
        run = subprocess.Popen(command(path, tmp_path / f"{count}.npy"), cwd=ROOT, env=environment(tiny_model))
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        assert run.returncode == 0
        peaks.append(usage.ru_maxrss)
    assert peaks[1] < 1.2 * peaks[0], peaks


def test_the_bar_on_a_terminal(tmp_path: Path, tiny_model: Path, folder: Path) -> None:
    """On a terminal one line shows a bar, the rate and the time left, and the end is a sentence."""
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        command(*arguments(folder, tmp_path / "out.npy")), cwd=ROOT, env=environment(tiny_model), stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert run.wait() == 0
    lines = [line for line in shown.decode().replace("\x1b[K", "\r").split("\r") if line.strip()]
    bars = [line for line in lines if line.startswith("[")]
    assert bars and all("#" in bar and "rows/s" in bar for bar in bars[1:])
    assert any("left" in bar for bar in bars)
    assert "vectors" in lines[-1]
    assert not any(line.lstrip().startswith("{") for line in lines)
    assert all(len(bar) < 80 for bar in bars)
