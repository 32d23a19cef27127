"""Shared fixtures: a tiny real model, the full-size stand-in, real servers on free ports, and a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from playwright.sync_api import Browser

from app import create_app
from app.engine.encoder import Encoder
from app.settings import Settings
from tests.support import ROOT, cache
from tests.support.browser import launch
from tests.support.model import open_encoder
from tests.support.server import Server, Start

# The order of the levels: the fast ones first, since an early failure should come early.
LEVELS = ["unit", "api", "requirements", "docs", "deploy", "build", "tools", "bulk", "server", "clients", "image"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by level."""
    items.sort(key=lambda item: LEVELS.index(item.path.relative_to(ROOT / "tests").parts[0]))


@pytest.fixture(scope="session")
def tiny_source() -> Path:
    """A sentence-transformers folder: a random BERT of two layers, mean pooling, two prompts."""
    return cache.tiny_source_folder()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder that `python -m build` makes of the tiny source. Tests must not change it."""
    return cache.copy_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def full_size_model() -> Path:
    """The model folder of the full-size stand-in. Tests must not change it."""
    cache.build_full_size_model()
    return cache.FULL_SIZE


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: Path) -> Encoder:
    """An open encoder on the tiny INT8 model, two slots, no cache."""
    return open_encoder(tiny_model)


@pytest.fixture
def client(tiny_model: Path, tiny_encoder: Encoder) -> FlaskClient:
    """A client of the app on the tiny model, MAX_TEXTS 8, MAX_BODY_BYTES 20,000."""
    settings = Settings(model_dir=tiny_model, max_length=64, max_texts=8, max_body_bytes=20_000)
    return create_app(settings, tiny_encoder).test_client()


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """start(NAME="value", …) starts a server with these variables; all are stopped at the end of the module."""
    servers = []

    def started(**environ: str | Path) -> Server:
        servers.append(Server({name: str(value) for name, value in environ.items()}))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def shared_server(tiny_model: Path) -> Iterator[Start]:
    """shared_server(NAME="value", …) returns a ready server on the tiny model that all modules use together.

    For tests that leave it as it is, and don't count its requests. The server with equal variables is started once.
    """
    servers: dict[str, Server] = {}

    def shared(**environ: str | int) -> Server:
        variables = {"MODEL_DIR": str(tiny_model), "MAX_LENGTH": "64"}
        variables |= {name: str(value) for name, value in environ.items()}
        key = repr(sorted(variables.items()))
        if key not in servers:
            servers[key] = Server(variables).wait_until_ready()
        return servers[key]

    yield shared
    for server in servers.values():
        server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Not for the session: while it runs, asyncio.run() is impossible in this process."""
    with launch() as launched:
        yield launched
