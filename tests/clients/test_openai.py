"""OpenAI's client for Python against a real server."""

import asyncio
import base64
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import requests

from tests.clients.common import KEY, TEXTS, full_queue, native, openai_python, same_bits
from tests.support.http import LARGE_BATCH, long_texts, repeat_in_threads
from tests.support.server import Server, Start


def tokens(server: Server, texts: list[str]) -> int:
    answer = requests.post(f"{server.url}/embed", json={"texts": texts}, timeout=10).json()
    return sum(answer["tokens"])


def model_of(server: Server) -> str:
    model = requests.get(server.url, timeout=10).json()["model"]["id"]
    assert isinstance(model, str)
    return model


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_several_texts(server: Server, options: Any) -> None:
    """Several texts get the bits of POST /embed, in base64, which the client asks for by itself, or as numbers."""
    with openai_python(server) as client:
        answer = client.embeddings.create(model="any-name", input=TEXTS, **options)
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    assert {item.object for item in answer.data} == {"embedding"}
    assert same_bits([item.embedding for item in answer.data], native(server, TEXTS))
    assert (answer.object, answer.model) == ("list", "any-name")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens(server, TEXTS)


def test_base64(server: Server) -> None:
    """encoding_format=base64 gets the string: float32, little-endian."""
    with openai_python(server) as client:
        answer = client.embeddings.create(model="m", input="cat", encoding_format="base64", user="somebody")
    encoded: Any = answer.data[0].embedding
    assert isinstance(encoded, str)
    assert base64.b64decode(encoded) == native(server, ["cat"]).astype("<f4").tobytes()


def test_options(server: Server) -> None:
    """The client can send one text, dimensions, and by extra_body the options that only this server has."""
    with openai_python(server) as client:
        one = client.embeddings.create(model="m", input="cat").data
        short = client.embeddings.create(model="m", input=TEXTS, dimensions=8).data
        query = client.embeddings.create(model="m", input=TEXTS, extra_body={"prompt_name": "query"}).data
    assert same_bits([item.embedding for item in one], native(server, ["cat"]))
    vectors = np.array([item.embedding for item in short], np.float32)
    assert vectors.shape == (4, 8)
    assert same_bits(vectors, native(server, TEXTS, dimensions=8))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert same_bits([item.embedding for item in query], native(server, TEXTS, prompt_name="query"))


def test_async(server: Server) -> None:
    """The asynchronous client has the same answers and the same errors."""

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(
                openai.BadRequestError, match="dimensions is 33; it must be a whole number from 1 to 32"
            ):
                await client.embeddings.create(model="m", input=TEXTS, dimensions=33)
            return await client.embeddings.create(model="m", input=TEXTS)

    assert same_bits([item.embedding for item in asyncio.run(ask()).data], native(server, TEXTS))


def test_models(server: Server) -> None:
    """The one model is in the list, and is found by its name."""
    with openai_python(server) as client:
        (model,) = client.models.list()
        assert (model.id, model.object) == (model_of(server), "model")
        assert isinstance(model.created, int) and isinstance(model.owned_by, str)
        assert client.models.retrieve(model.id) == model
        with pytest.raises(openai.NotFoundError, match="There is no model 'org/other' here") as raised:
            client.models.retrieve("org/other")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("request_", "error", "code", "param", "message"),
    [
        ({"input": []}, openai.BadRequestError, "invalid_request", "input", "input is an empty list"),
        ({"input": [200_000]}, openai.BadRequestError, "invalid_request", "input", "input[0] is 200000; it must be"),
        ({"input": [[1, -2]]}, openai.BadRequestError, "invalid_request", "input", "input[0][1] is -2; it must be"),
        ({"input": ["a", None]}, openai.BadRequestError, "invalid_request", "input", "input[1] is null"),
        ({"dimensions": 33}, openai.BadRequestError, "invalid_request", "dimensions", "from 1 to 32"),
        ({"encoding_format": "int8"}, openai.BadRequestError, "invalid_request", "encoding_format", "float or base64"),
        ({"input": ["a"] * 9}, openai.APIStatusError, "too_many_texts", "input", "over the limit of 8 (MAX_TEXTS)"),
        ({"input": "a" * 30_000}, openai.APIStatusError, "request_entity_too_large", None, "20000 bytes"),
    ],
)
def test_errors(server: Server, request_: Any, error: Any, code: str, param: str | None, message: str) -> None:
    """Each error raises the client's exception for it, with our sentence and our fields."""
    with openai_python(server) as client, pytest.raises(openai.APIStatusError) as raised:
        client.embeddings.create(**{"model": "m", "input": "a", **request_})
    found = raised.value
    assert type(found) is error
    assert (found.code, found.param, found.type) == (code, param, "invalid_request_error")
    assert str(found).startswith(f"Error code: {413 if error is openai.APIStatusError else 400} - ")
    assert message in str(found)


def test_api_key(guarded: Server) -> None:
    """Each of the keys is accepted; another one raises AuthenticationError on every route of the client."""
    with openai_python(guarded, "sk-first") as first, openai_python(guarded, KEY) as second:
        assert first.embeddings.create(model="m", input="cat") == second.embeddings.create(model="m", input="cat")
        (model,) = second.models.list()
    with openai_python(guarded, "sk-wrong") as wrong:
        calls: list[Callable[[], Any]] = [
            lambda: wrong.embeddings.create(model="m", input="cat"),
            lambda: wrong.models.list(),
            lambda: wrong.models.retrieve(model.id),
        ]
        for call in calls:
            with pytest.raises(openai.AuthenticationError) as raised:
                call()
            assert raised.value.code == "invalid_api_key"
            assert "sk-" not in str(raised.value)


def test_a_full_queue(small_queue: Server) -> None:
    """A full queue raises RateLimitError."""
    with full_queue(small_queue), openai_python(small_queue) as client, pytest.raises(openai.RateLimitError) as raised:
        for _ in range(1000):
            client.embeddings.create(model="m", input="cat")
    error = raised.value
    assert (error.code, error.type, error.response.headers["retry-after"]) == ("queue_full", "rate_limit_error", "1")
    assert "1 requests wait already (MAX_QUEUE)" in str(error)


def test_retries(small_queue: Server, caplog: pytest.LogCaptureFixture) -> None:
    """With retries the client waits as long as Retry-After says, and gets its answer in the end."""
    refused = threading.Event()
    statuses: list[tuple[int, str]] = []

    def note(response: httpx2.Response) -> None:
        statuses.append((response.status_code, response.request.headers["x-stainless-retry-count"]))
        if response.status_code == 429:
            refused.set()

    def ask(client: openai.OpenAI) -> None:
        while not refused.is_set():
            answers.append(client.embeddings.create(model="m", input="cat").data[0].embedding)

    answers: list[list[float]] = []
    caplog.set_level(logging.INFO, "openai._base_client")
    http = httpx2.Client(event_hooks={"response": [note]})
    with openai_python(small_queue, max_retries=20, http_client=http) as client:
        thread = threading.Thread(target=ask, args=[client])
        with full_queue(small_queue):
            thread.start()
            assert refused.wait(60)
        thread.join()
    assert statuses[-1] == (200, str(len(statuses) - 1 - statuses.index((429, "0"))))
    assert "Retrying request in 1.000000 seconds (retry 1 of 20)" in caplog.messages
    assert same_bits(answers[-1], native(small_queue, ["cat"]))


def test_deadline(start: Start, tiny_model: Path) -> None:
    """A request over its deadline raises InternalServerError with our sentence."""
    many = long_texts(LARGE_BATCH[:2000])  # alone they meet the deadline, on a slow machine too
    environ = {"CPUS": 1, "MAX_TEXTS": 10_000, "REQUEST_DEADLINE": 2, "CACHE_SIZE": 0}
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **environ).wait_until_ready()

    def large() -> None:
        requests.post(f"{server.url}/embed", json={"texts": many}, timeout=60)

    with repeat_in_threads(10, large), openai_python(server) as client, pytest.raises(
        openai.InternalServerError
    ) as raised:
        for _ in range(20):
            client.embeddings.create(model="m", input=many)
    error = raised.value
    assert (error.status_code, error.code, error.response.headers["retry-after"]) == (503, "deadline_exceeded", "1")
    assert "try again (finished vectors are kept for a while), or send fewer texts at once" in str(error)
