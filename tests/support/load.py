"""A real server under load: clients that must be served all the while, and the server's memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.support.http import repeat_in_threads
from tests.support.server import Server

# Longest time that a good client may wait, seconds: generous, for a busy machine.
PATIENCE = 10
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@contextmanager
def good_clients(server: Server) -> Iterator[None]:
    """Poll /health and embed a text until the block is left. Each answer must be right, and come within PATIENCE."""
    expected = requests.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=PATIENCE).json()

    def poll(ask: Callable[[requests.Session], None]) -> None:
        with requests.Session() as session:
            for _ in range(5):
                ask(session)
                time.sleep(0.02)

    def health(session: requests.Session) -> None:
        assert session.get(f"{server.url}/health", timeout=PATIENCE).json() == {"ok": True}

    def embed(session: requests.Session) -> None:
        response = session.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=PATIENCE)
        assert response.json() == expected

    with repeat_in_threads(1, lambda: poll(health)), repeat_in_threads(1, lambda: poll(embed)):
        yield


def memory(server: Server) -> float:
    """Return the memory of all processes in MB; pages that they share count once."""
    total = 0
    for pid in [server.process.pid, *server.workers()]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
