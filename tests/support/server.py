"""A real Gunicorn on a free port."""

import fcntl
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import requests

from app.settings import Settings
from tests.support import ROOT

START_SECONDS = 60
GUNICORN = str(Path(sys.executable).parent / "gunicorn")


class Server:
    """A real Gunicorn with this repository's gunicorn.conf.py.

    Output goes into a file, since a full pipe that nobody reads would block the server. is_quiet: it goes nowhere.
    """

    def __init__(self, environ: dict[str, str], *, is_quiet: bool = False) -> None:
        self.port = environ.get("PORT") or str(free_port())
        clean = {name: value for name, value in os.environ.items() if name.upper() not in VARIABLES}
        self.run([GUNICORN], {**clean, "PORT": self.port, **environ}, is_quiet)

    def run(self, command: list[str], environ: dict[str, str] | None = None, is_quiet: bool = False) -> None:
        self._output = open(os.devnull, "r+") if is_quiet else tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=self._output, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        """Output so far."""
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
        """Return the ids of the worker processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self) -> str:
        """Stop the server as an operator does, and return its output."""
        self.process.terminate()
        return self.wait(30)

    def wait(self, seconds: float) -> str:
        """Wait until the server has ended, and return its output."""
        self.process.wait(seconds)
        output = self.output
        self._output.close()
        return output

    def kill(self) -> None:
        """End the server at once, and remove what it could not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._output.close()
        shutil.rmtree(f"/dev/shm/embedding-metrics-{self.process.pid}", ignore_errors=True)

    def output_of_failed_boot(self) -> str:
        """Return the output of a server that must end by itself."""
        return self.wait(START_SECONDS)


class ShellServer(Server):
    """A server that a shell script starts, in surroundings that it prepares."""

    def __init__(self, script: str, model: Path, *before: str, **environ: str) -> None:
        self.port = str(free_port())
        clean = {name: value for name, value in os.environ.items() if name.upper() not in VARIABLES}
        environ |= {"PORT": self.port, "MODEL_DIR": str(model), "MAX_LENGTH": "64"}
        self.run([*before, "bash", "-c", script], {**clean, **environ})


VARIABLES = {name.upper() for name in Settings.__dataclass_fields__}


# Ports that this process has chosen; another process sees them as locked bytes of a file, byte 1 for port 1.
_reserved: set[int] = set()
_reservations = Path(tempfile.gettempdir(), f"embedding-api-ports-{os.getuid()}").open("a")


def free_port() -> int:
    """Return a port that nobody listens on and no other test is about to use.

    Ended connections keep theirs, which are above these, for a minute.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            if port not in _reserved:
                fcntl.lockf(_reservations, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
                _reserved.add(port)
                probe.bind(("0.0.0.0", port))
                return port


# Type of the fixture `start`: start(NAME="value", …) starts a server.
Start = Callable[..., Server]
