"""Fixtures of the deployment's tests: a server on the tiny model, and the pipeline in front of it."""

from pathlib import Path

import pytest

from tests.support.pipeline import Pipeline
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """A server on the tiny model."""
    return start(MODEL_DIR=tiny_model, MAX_LENGTH="64").wait_until_ready()


@pytest.fixture
def pipeline(tmp_path: Path, server: Server) -> Pipeline:
    """The pipeline, whose image is that server."""
    return Pipeline(tmp_path, server.url)
