"""huggingface_hub's client against a real server."""

import asyncio
from typing import Any

import numpy as np
import pytest
import requests
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from tests.clients.common import KEY, TEXTS, full_queue, native, same_bits
from tests.support.server import Server


def test_feature_extraction(server: Server) -> None:
    """feature_extraction at the server's URL or at /embed returns the bits of POST /embed, in rows."""
    expected = native(server, TEXTS)
    for url in (server.url, f"{server.url}/", f"{server.url}/embed"):
        client = InferenceClient(base_url=url)
        many, one = client.feature_extraction(TEXTS), client.feature_extraction(TEXTS[0])
        assert many.dtype == np.float32
        assert (many.shape, one.shape) == ((4, 32), (1, 32))
        assert same_bits(many, expected) and same_bits(one, expected[:1])


def test_options(server: Server) -> None:
    """Each option of the client has the same effect as in POST /embed."""
    client = InferenceClient(model=server.url)
    raw = requests.post(f"{server.url}/embed", json={"texts": TEXTS}, timeout=10).json()["vectors"]
    assert same_bits(client.feature_extraction(TEXTS, normalize=False), np.array(raw, np.float32))
    assert same_bits(client.feature_extraction(TEXTS, normalize=True), native(server, TEXTS))
    assert same_bits(client.feature_extraction(TEXTS, dimensions=8), native(server, TEXTS, dimensions=8))
    query = native(server, TEXTS, prompt_name="query")
    assert same_bits(client.feature_extraction(TEXTS, prompt_name="query"), query)
    long = "a " * 200
    cut = client.feature_extraction(long, truncate=True, truncation_direction="right", encoding_format="float")
    assert same_bits(cut, native(server, [long]))


def test_async(server: Server) -> None:
    """The asynchronous client has the same answers."""

    async def ask() -> tuple[Any, list[float]]:
        async with AsyncInferenceClient(model=server.url) as client:
            vectors = await client.feature_extraction(TEXTS)
            return vectors, await client.sentence_similarity(TEXTS[0], TEXTS[1:])

    vectors, scores = asyncio.run(ask())
    assert same_bits(vectors, native(server, TEXTS))
    assert len(scores) == 3


@pytest.mark.parametrize("path", ["", "/similarity"])
def test_similarity(server: Server, path: str) -> None:
    """sentence_similarity returns the cosine of the sentence to each of the others."""
    scores = InferenceClient(model=server.url + path).sentence_similarity(TEXTS[0], [*TEXTS[1:], TEXTS[0]])
    vectors = native(server, TEXTS)
    assert np.allclose(scores, [*(vectors[1:] @ vectors[0]), 1], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"truncate": False}, 400, "402 tokens"),
        ({"truncation_direction": "left"}, 400, 'truncation_direction is "left"; only Right is possible'),
        ({"prompt_name": "nope"}, 400, "nope"),
        ({"text": ["a"] * 9}, 413, "inputs has 9 items, over the limit of 8 (MAX_TEXTS)"),
    ],
)
def test_errors(server: Server, options: Any, status: int, message: str) -> None:
    """The exception has our sentence, and its response TEI's name for the type of error."""
    with pytest.raises(HfHubHTTPError) as raised:
        InferenceClient(model=server.url).feature_extraction(**{"text": "a " * 400, **options})
    error = raised.value
    assert isinstance(error, BadRequestError) == (status == 400)
    assert error.response.status_code == status
    assert message in str(error)
    content = error.response.json()
    assert message in content["error"]["message"]
    assert content["error_type"] == "Validation"


def test_api_key(guarded: Server) -> None:
    """A key is accepted, and none or a wrong one raises an error."""
    assert InferenceClient(model=guarded.url, token=KEY).feature_extraction("cat").shape == (1, 32)
    for token in (None, "hf_wrong"):
        with pytest.raises(HfHubHTTPError, match="invalid_api_key") as raised:
            InferenceClient(model=guarded.url, token=token).feature_extraction("cat")
        assert raised.value.response.status_code == 401


def test_a_full_queue(small_queue: Server) -> None:
    """A full queue raises an error with Retry-After; this client does not retry."""
    client = InferenceClient(model=small_queue.url)
    with full_queue(small_queue), pytest.raises(HfHubHTTPError, match="429 Too Many Requests") as raised:
        for _ in range(1000):
            client.feature_extraction("cat")
    assert raised.value.response.headers["retry-after"] == "1"
    assert "1 requests wait already (MAX_QUEUE)" in str(raised.value)
