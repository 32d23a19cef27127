"""Fixtures for client libraries: servers, and a watch over what the libraries connect to."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import clients
from tests.clients import python_client
from tests.clients.common import KEY
from tests.support.server import Server, Start

is_watched = False


def _refuse_other_hosts(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse connections to other machines. A hook cannot be removed: this one works during these tests only."""
    if is_watched:
        python_client.stay_here(event, arguments)


sys.addaudithook(_refuse_other_hosts)


@pytest.fixture(autouse=True)
def here_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Clear the settings, keys and proxies of the user, and fail if a client connects to another machine."""
    global is_watched
    for name in os.environ:
        if name.startswith(("OPENAI_", "HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # a login of the user would be here; for telemetry the library would ask the hub
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    python_client.hosts.clear()
    is_watched = True
    yield
    is_watched = False
    assert python_client.hosts <= {"127.0.0.1"}


@pytest.fixture
def server(shared_server: Start) -> Server:
    """At most 8 texts and 20,000 bytes."""
    return shared_server(MAX_TEXTS=8, MAX_BODY_BYTES=20_000)


@pytest.fixture
def guarded(shared_server: Start) -> Server:
    """Two API keys, one of them KEY."""
    return shared_server(API_KEY=f"sk-first,{KEY}")


@pytest.fixture
def small_queue(shared_server: Start) -> Server:
    """One slot, and one request may wait. Rejections are not logged, since there are thousands."""
    return shared_server(CPUS=1, MAX_QUEUE=1, MAX_TEXTS=100_000, LOG_LEVEL="error")


@pytest.fixture(scope="module")
def installed() -> None:
    """The libraries in an environment of their own, for clients.python() and clients.javascript()."""
    clients.install()
