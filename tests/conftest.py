"""Shared fixtures: a tiny real model, the full-size stand-in, and real servers on free ports."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
import requests
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.engine.model_folder import ModelFolder
from app.settings import Settings
from tests import tiny

ROOT = Path(__file__).parent.parent
FULL_SIZE = ROOT / ".cache/full-size"
START_SECONDS = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick ones first: an early failure should come early."""
    items.sort(key=lambda item: (bool(item.get_closest_marker("full_size")), bool(item.get_closest_marker("browser"))))


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a random BERT of two layers, mean pooling, two prompts."""
    return tiny.write(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder that `python -m build` makes of it."""
    out = tmp_path_factory.mktemp("tiny") / "model"
    build("--model", str(tiny_source), "--out", str(out))
    return out


@pytest.fixture(scope="session")
def full_size_model() -> Path:
    """The default model's folder where the hub is out of reach: the stand-in, by --fallback.

    Built once and kept, then only checked to be up to date.
    """
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(FULL_SIZE.parent / "empty-hub")}
    build("--fallback", "stand-in", "--out", str(FULL_SIZE), **hub)
    return FULL_SIZE


def build(*arguments: str, **environ: str) -> str:
    """Run `python -m build` as a user does; all that it prints."""
    command = [sys.executable, "-m", "build", *arguments]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: Path) -> Encoder:
    """An open encoder on the tiny INT8 model, two slots, no cache."""
    return open_encoder(tiny_model)


def open_encoder(model: Path, file: str = "model_int8.onnx", **options: Any) -> Encoder:
    model_folder = ModelFolder.load(model, Path(file), Path("tokenizer"))
    encoder = Encoder.load(model_folder, **{"max_length": 64, "threads": 2, **options})
    encoder.open()
    return encoder


@pytest.fixture
def client(tiny_model: Path, tiny_encoder: Encoder) -> FlaskClient:
    """A client of the app on the tiny model, MAX_TEXTS 8, MAX_BODY_BYTES 20,000."""
    settings = Settings(model_dir=tiny_model, max_length=64, max_texts=8, max_body_bytes=20_000)
    return create_app(settings, tiny_encoder).test_client()


class Server:
    """A real Gunicorn with this repository's gunicorn.conf.py.

    Its output goes into a file, since a full pipe that nobody reads would hold it up; is_quiet: nowhere.
    """

    def __init__(self, environ: dict[str, str], *, is_quiet: bool = False) -> None:
        self.port = environ.get("PORT") or str(free_port())
        clean = {name: value for name, value in os.environ.items() if name.upper() not in VARIABLES}
        self.run([str(Path(sys.executable).parent / "gunicorn")], {**clean, "PORT": self.port, **environ}, is_quiet)

    def run(self, command: list[str], environ: dict[str, str] | None = None, is_quiet: bool = False) -> None:
        self._output = open(os.devnull, "r+") if is_quiet else tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=self._output, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        """What it has written so far."""
        # not read(), which would move the place where the server writes
        file = self._output.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> Self:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/readyz", timeout=5).ok:
                    return self
            except requests.ConnectionError:
                time.sleep(0.05)
        raise AssertionError(f"the server is not ready: {self.stop()}")

    def workers(self) -> list[int]:
        """The worker processes' ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self) -> str:
        """Stop it as an operator does; its output."""
        self.process.terminate()
        return self.wait(30)

    def wait(self, seconds: float) -> str:
        """Its output, when it has ended."""
        self.process.wait(seconds)
        output = self.output
        self._output.close()
        return output

    def kill(self) -> None:
        """End it at once, and take away what it could not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._output.close()
        shutil.rmtree(f"/dev/shm/embedding-metrics-{self.process.pid}", ignore_errors=True)

    def output_of_failed_boot(self) -> str:
        """Its output, when it must end by itself."""
        return self.wait(START_SECONDS)


VARIABLES = {name.upper() for name in Settings.__dataclass_fields__}


def free_port() -> int:
    """A port that nobody listens on and no client has: ended connections keep theirs, above these, for a minute."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Server]]:
    """start(NAME="value", …) starts a server with these variables; all are stopped at the end."""
    servers = []

    def started(**environ: str | Path) -> Server:
        servers.append(Server({name: str(value) for name, value in environ.items()}))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()
