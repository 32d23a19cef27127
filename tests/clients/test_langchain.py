"""LangChain's and LlamaIndex's clients, in an environment of their own, against a real server."""

from typing import Any

import numpy as np
import pytest

from tests import clients
from tests.clients.common import KEY, TEXTS, check_vectors, native, openai_python
from tests.support.server import Server


@pytest.mark.parametrize("options", [{}, {"dimensions": 8}, {"model_kwargs": {"encoding_format": "float"}}])
def test_langchain_openai(guarded: Server, installed: None, options: dict[str, Any]) -> None:
    """OpenAIEmbeddings with check_embedding_ctx_length=False, which sends text, gets the bits of OpenAI's client."""
    options = {"model": "m", "base_url": f"{guarded.url}/v1", "api_key": KEY, **options}
    texts = [*TEXTS, "line\nbreak"]
    answer = clients.python(
        client="langchain_openai", options={**options, "check_embedding_ctx_length": False}, texts=texts
    )
    with openai_python(guarded, KEY) as client:
        expected = client.embeddings.create(model="m", input=texts, dimensions=options.get("dimensions", 32)).data
    check_vectors(answer, np.array([item.embedding for item in expected], np.float32))


@pytest.mark.parametrize("options", [{}, {"dimensions": 8}, {"chunk_size": 2}])
def test_langchain_openai_by_default(server: Server, installed: None, options: dict[str, Any]) -> None:
    """By default OpenAIEmbeddings sends OpenAI's token ids. The vectors are those of the texts.

    LangChain itself divides each vector by its length once more, in float64.
    """
    texts = [*TEXTS, "line\nbreak 😀", "<|endoftext|> is text, too"]
    options = {"model": "text-embedding-3-small", "base_url": f"{server.url}/v1", "api_key": "none", **options}
    answer = clients.python(client="langchain_openai", options=options, texts=texts)
    expected = native(server, texts, dimensions=options.get("dimensions", 32))
    assert answer["hosts"] == ["127.0.0.1"]
    for vectors in answer["vectors"].values():
        assert np.abs(np.array(vectors) - expected).max() < 1e-6


def test_langchain_huggingface(server: Server, installed: None) -> None:
    """HuggingFaceEndpointEmbeddings works with the URL as its client's model, the only place for it."""
    options: dict[str, Any] = {"model_kwargs": {"model": server.url}}
    check_vectors(clients.python(client="langchain_huggingface", options=options, texts=TEXTS), native(server, TEXTS))
    options = {"model_kwargs": {"model": server.url, "truncate": False}}
    answer = clients.python(client="langchain_huggingface", options=options, texts=["a " * 400])
    assert answer["error"] == "BadRequestError"
    assert "402 tokens" in answer["message"]


def test_llama_index(server: Server, installed: None) -> None:
    """OpenAILikeEmbedding gets the bits of POST /embed, in batches of two."""
    options = {"model_name": "m", "api_base": f"{server.url}/v1", "dimensions": 8, "embed_batch_size": 2}
    answer = clients.python(client="llama_index", options=options, texts=TEXTS)
    check_vectors(answer, native(server, TEXTS, dimensions=8))
