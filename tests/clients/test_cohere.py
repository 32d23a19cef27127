"""Cohere's own client, in an environment of its own, against a real server."""

from typing import Any

import pytest

from tests import clients
from tests.clients.common import KEY, TEXTS, check_vectors, native
from tests.support.server import Server


@pytest.mark.parametrize("dtype", ["float", "int8", "ubinary"])
def test_cohere(guarded: Server, installed: None, dtype: str) -> None:
    """ClientV2 gets the numbers of POST /embed with the same dtype, async too."""
    server = {"base_url": guarded.url, "api_key": KEY}
    options: dict[str, Any] = {"server": server, "input_type": "clustering", "embedding_types": [dtype]}
    answer = clients.python(client="cohere", options=options, texts=TEXTS)
    given = {"dtype": "float32" if dtype == "float" else dtype}
    check_vectors(answer, native(guarded, TEXTS, key=KEY, **given))


def test_an_error_of_cohere(server: Server, installed: None) -> None:
    """The client shows the sentence of an error."""
    options: dict[str, Any] = {"server": {"base_url": server.url, "api_key": "none"}, "input_type": "search_query"}
    options |= {"truncate": "NONE", "embedding_types": ["float"]}
    answer = clients.python(client="cohere", options=options, texts=["a " * 400])
    assert answer["error"] == "BadRequestError"
    assert "texts[0] has 403 tokens, over the limit of 64 (MAX_LENGTH)" in answer["message"], answer
