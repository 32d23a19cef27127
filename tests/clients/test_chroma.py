"""Chroma's embedding functions for three APIs, in an environment of their own, against a real server."""

from tests import clients
from tests.clients.common import TEXTS, check_vectors, native
from tests.support.server import Server


def test_chroma(server: Server, installed: None) -> None:
    """The functions for OpenAI, text-embeddings-inference and Ollama get the bits of POST /embed."""
    check_vectors(clients.python(client="chroma", options={"url": server.url}, texts=TEXTS), native(server, TEXTS))
