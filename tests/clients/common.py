"""Helpers of the tests of client libraries: texts, expected vectors, a full queue, OpenAI's client."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import requests
from numpy.typing import NDArray

from tests.support.http import LARGE_BATCH, repeat_in_threads
from tests.support.server import Server

Vectors = NDArray[np.float32]
TEXTS = ["the cat sat on a mat", "動的計画法", "", "graph theory 😀"]
KEY = "sk-second"


@contextmanager
def full_queue(server: Server) -> Iterator[None]:
    """Send more work than the queue holds until the block is left."""

    def send_large_batch() -> None:
        requests.post(f"{server.url}/embed", json={"texts": LARGE_BATCH}, timeout=60)

    with repeat_in_threads(4, send_large_batch):
        yield


def native(server: Server, texts: list[str], key: str = "none", **options: Any) -> Vectors:
    """Return the vectors of POST /embed?normalize=true."""
    body = {"texts": texts, **options}
    headers = {"Authorization": f"Bearer {key}"}
    answer = requests.post(f"{server.url}/embed", params={"normalize": "true"}, json=body, headers=headers, timeout=10)
    answer.raise_for_status()
    return np.array(answer.json()["vectors"], np.float32)


def same_bits(vectors: Any, expected: Vectors) -> bool:
    return np.array(vectors, np.float32).tobytes() == expected.tobytes()


def check_vectors(answer: Any, expected: Vectors) -> None:
    """Check that every method of the client gave these vectors, and that it connected to this machine only."""
    assert answer["hosts"] == ["127.0.0.1"], answer
    assert len(answer["vectors"]) == 3, answer
    for method, vectors in answer["vectors"].items():
        assert same_bits(vectors, expected), method


def openai_python(server: Server, api_key: str = "none", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=api_key, **{"max_retries": 0, **options})
