"""Shared fixtures: a tiny real model, the full-size stand-in, and real servers on free ports."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.settings import Settings
from tests.support import ROOT
from tests.support import tiny_model as tiny
from tests.support.model import build, open_encoder
from tests.support.server import Server

FULL_SIZE = ROOT / ".cache/full-size"


# The order of the levels: the fast ones first, since an early failure should come early.
LEVELS = ["unit", "api", "requirements", "docs", "deploy", "build", "tools", "server", "clients", "image"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by level; within one, those of the full-size model and of the browser come last."""

    def order(item: pytest.Item) -> tuple[int, bool, bool]:
        level = item.path.relative_to(ROOT / "tests").parts[0]
        return LEVELS.index(level), bool(item.get_closest_marker("full_size")), bool(item.get_closest_marker("browser"))

    items.sort(key=order)


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
def start() -> Iterator[Callable[..., Server]]:
    """start(NAME="value", …) starts a server with these variables; all are stopped at the end."""
    servers = []

    def started(**environ: str | Path) -> Server:
        servers.append(Server({name: str(value) for name, value in environ.items()}))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()
