"""Other people's servers, on the same model and the same texts: what `make bench` compares with.

Each is installed in an environment of its own under .cache/peers/ and run as its documentation
says, on as many CPUs as ours. What was chosen and why is in tools/bench/README.md.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import requests
from numpy.typing import NDArray

from app.settings import Settings
from build.similarity import cosines
from tests.support.server import free_port
from tools.bench import load
from tools.bench.peers import models

HERE = Path(__file__).parent
CACHE = HERE.parent.parent.parent / ".cache/peers"
MAX_LENGTH = Settings.max_length
# A server of its own in each round. A request of 32 texts can take seconds: in less time too few would be counted.
ROUNDS = 3
SECONDS = 10.0
INSTALL_SECONDS = 1800
EXPORT_SECONDS = 900
START_SECONDS = 180
ANSWER_SECONDS = 60
STOP_SECONDS = 20
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class PeerError(Exception):
    """A peer cannot be installed, prepared or started; the message has the end of what it printed."""


@dataclass(frozen=True)
class Peer:
    """One alternative.

    name: for a table. folder: here and under .cache/peers/. command: (peer, model folder, port,
    CPUs) -> what to run. shape: an answer's JSON -> its vectors, in order. model: which of
    .cache/peers/models/. path, field: of the request. batch_size: texts that the library pads to
    one length, the fastest of those tried; default_batch_size: its own. int8: it computes with
    the INT8 file. prompts: the server puts the model's default prompt before each text; otherwise
    its client must.
    """

    name: str
    folder: str
    command: Callable[["Peer", Path, int, int], list[str]]
    shape: Callable[[Any], list[list[float]]]
    model: str = models.CLASSIC
    path: str = "/embed"
    field: str = "texts"
    batch_size: int = 1
    default_batch_size: int = 32
    int8: bool = True
    prompts: bool = True

    def at_default_batch_size(self) -> "Peer":
        return replace(self, batch_size=self.default_batch_size)

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version, as pinned."""
        lines = (HERE / self.folder / "requirements.txt").read_text().splitlines()
        pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
        return {name.partition("[")[0]: version for name, version in pins}

    def body(self, source: Path, texts: Sequence[str]) -> bytes:
        """Return the request for the vectors of these texts."""
        prompt = "" if self.prompts else models.default_prompt(source)
        return orjson.dumps({self.field: [prompt + text for text in texts]})


def _flask(peer: "Peer", model: Path, port: int, threads: int) -> list[str]:
    """Return the command of serve.py behind Gunicorn: one process, one request thread per CPU."""
    command = [_bin(peer, "gunicorn"), "serve:app", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    return [*command, "--worker-class", "gthread", "--workers", "1", "--threads", str(threads), "--timeout", "120"]


def _infinity(peer: "Peer", model: Path, port: int, threads: int) -> list[str]:
    """Return the command of the peer's own server. It has no setting for threads: ONNX Runtime takes one per core."""
    command = [_bin(peer, "infinity_emb"), "v2", "--model-id", str(model), "--engine", "optimum", "--device", "cpu"]
    command += ["--pooling-method", models.pooling(model), "--batch-size", str(peer.batch_size)]
    command += ["--onnx-disable-optimize", "--log-level", "warning"]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


def _of_flask(answer: Any) -> list[list[float]]:
    vectors: list[list[float]] = answer["vectors"]
    return vectors


def _of_openai(answer: Any) -> list[list[float]]:
    return [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]


ST_ONNX = Peer("sentence-transformers, ONNX INT8", "st_onnx", _flask, _of_flask)
PEERS = [
    Peer("sentence-transformers, PyTorch", "st_torch", _flask, _of_flask, batch_size=4, int8=False),
    ST_ONNX,
    Peer("fastembed, INT8", "fastembed", _flask, _of_flask, default_batch_size=256),
    Peer(
        "Infinity, INT8",
        "infinity",
        _infinity,
        _of_openai,
        model=models.ONNX_ONLY,
        path="/embeddings",
        field="input",
        batch_size=4,
        prompts=False,
    ),
]


@dataclass(frozen=True)
class Running:
    """A peer that answers. seconds: from exec to its first vector."""

    peer: Peer
    source: Path
    url: str
    process: subprocess.Popen[bytes]
    seconds: float

    def pss_megabytes(self) -> float:
        return load.pss_megabytes(self.process.pid)


def prepare(peer: Peer, source: Path, max_length: int = MAX_LENGTH) -> None:
    """Make what it needs under .cache/peers/: its environment, and the model in its format. What is there is kept.

    Args:
        source: a sentence-transformers folder.
        max_length: tokens after which it cuts a text, as ours does.

    Raises:
        PeerError: it cannot be installed, or the model cannot be exported.
    """
    _install(peer)
    if peer.int8:
        _install(ST_ONNX)

    def export(folder: Path, out: Path) -> None:
        config = models.quantization()
        script = str(HERE / "st_onnx/export.py")
        run_tool([_bin(ST_ONNX, "python"), script, str(folder), str(out), config], EXPORT_SECONDS, _OFFLINE)

    models.write(CACHE / "models", source, max_length, export if peer.int8 else None)


@contextmanager
def serve(peer: Peer, source: Path, threads: int) -> Iterator[Running]:
    """Yield a prepared peer on a free port, with this many CPUs; it is stopped at the end.

    Raises:
        PeerError: it gives no vector within START_SECONDS.
    """
    home = CACHE / peer.folder
    port = free_port()
    model = CACHE / "models" / peer.model
    # Nothing of the bench's own settings, which Gunicorn and others read, too.
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR")}
    environ = {
        **kept,
        **_OFFLINE,
        "HF_HOME": str(home / "hub"),
        "INFINITY_HOME": str(home),
        "PEER_BATCH_SIZE": str(peer.batch_size),
        "PEER_MODEL": str(model),
        "PEER_ONNX": models.INT8,
        "PEER_POOLING": models.pooling(model),
        "PEER_PROMPT": models.default_prompt(source),
    }
    log = home / "serve.log"
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            peer.command(peer, model, port, threads),
            cwd=HERE / peer.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        running = Running(peer, source, f"http://127.0.0.1:{port}", process, 0.0)
        _wait_for_first_vector(running, log)
        yield Running(peer, source, running.url, process, time.perf_counter() - started)
    finally:
        _stop(process)


def vectors(server: Running, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of these texts, (n, dim) float32, from one request.

    Raises:
        requests.RequestException: it gave no answer, or an error.
    """
    answer = requests.post(
        server.url + server.peer.path,
        data=server.peer.body(server.source, texts),
        headers={"Content-Type": "application/json"},
        timeout=ANSWER_SECONDS,
    )
    answer.raise_for_status()
    return np.array(server.peer.shape(answer.json()), np.float32)


def accuracy(server: Running, texts: Sequence[str], reference: NDArray[np.float32], size: int = 1) -> dict[str, float]:
    """Return mean and minimum cosine to the reference, (n, dim), with `size` texts a request."""
    sent = (texts[start : start + size] for start in range(0, len(texts), size))
    near = cosines(np.concatenate([vectors(server, request) for request in sent]), reference)
    return {"mean": float(near.mean()), "min": float(near.min())}


_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "ORT_DISABLE_TELEMETRY": "1"}


def _bin(peer: Peer, program: str) -> str:
    return str(CACHE / peer.folder / "venv/bin" / program)


def _install(peer: Peer) -> None:
    """Make the environment anew where there is none of these requirements and this Python."""
    home = CACHE / peer.folder
    requirements = HERE / peer.folder / "requirements.txt"
    stamp = home / "installed.txt"
    wanted = f"# Python {sys.version}\n{requirements.read_text()}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"installing {peer.name}", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    run_tool([sys.executable, "-m", "venv", str(home / "venv")], INSTALL_SECONDS)
    pip = [_bin(peer, "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = peer.versions.get("torch")
    index = os.environ.get("TORCH_INDEX")
    if torch and index:
        # As in the Makefile: that index may be out of reach, so it is asked in a step of its own.
        extra = {"PIP_EXTRA_INDEX_URL": f"{os.environ.get('PIP_EXTRA_INDEX_URL', '')} {index}"}
        run_tool([*pip, "--retries", "1", "--timeout", "10", f"torch=={torch}"], INSTALL_SECONDS, extra)
    run_tool([*pip, "-r", str(requirements)], INSTALL_SECONDS)
    stamp.write_text(wanted)


def run_tool(command: list[str], seconds: float, environ: Mapping[str, str] | None = None, text: str = "") -> None:
    """Run a command with `text` as its input.

    Raises:
        PeerError: it fails, or does not end in time.
    """
    try:
        run = subprocess.run(
            command,
            env={**os.environ, **(environ or {})},
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"{command[0]} did not end within {seconds:.0f} s") from None
    if run.returncode:
        raise PeerError(f"{' '.join(command)} failed:\n{run.stdout[-2000:]}")


def _end_with_parent() -> None:
    """Let the kernel terminate this child process when the bench dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_for_first_vector(server: Running, log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and server.process.poll() is None:
        with suppress(requests.RequestException):
            vectors(server, ["a"])
            return
        time.sleep(0.005)
    raise PeerError(f"{server.peer.name} gave no vector:\n{log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):  # what is left of its group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
