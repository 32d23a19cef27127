"""Ollama's own client and LangChain's for it, in an environment of their own, against a real server."""

from typing import Any

import pytest

from tests import clients
from tests.clients.common import TEXTS, check_vectors, native
from tests.support.server import Server


@pytest.mark.parametrize("dimensions", [None, 8])
def test_ollama(server: Server, installed: None, dimensions: int | None) -> None:
    """ollama finds the model, and gets the bits of POST /embed, one text or many, async too."""
    options = {"host": server.url, "model": "any", "dimensions": dimensions, "keep_alive": "1m"}
    answer = clients.python(client="ollama", options=options, texts=TEXTS)
    check_vectors(answer, native(server, TEXTS, dimensions=dimensions))


def test_an_error_of_ollama(server: Server, installed: None) -> None:
    """ollama shows the sentence of an error."""
    options: dict[str, Any] = {"host": server.url, "model": "any", "truncate": False}
    answer = clients.python(client="ollama", options=options, texts=["a " * 400])
    assert answer["error"] == "ResponseError"
    assert answer["message"].startswith("input[0] has 402 tokens, over the limit of 64 (MAX_LENGTH)"), answer


def test_langchain_ollama(server: Server, installed: None) -> None:
    """LangChain's OllamaEmbeddings, with its options for Ollama, gets the same bits, and finds the model first."""
    options = {"base_url": server.url, "model": "tiny", "validate_model_on_init": True, "num_ctx": 512}
    answer = clients.python(client="langchain_ollama", options=options, texts=TEXTS)
    check_vectors(answer, native(server, TEXTS))
