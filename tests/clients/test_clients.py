"""The client libraries that people use, against a real server."""

import asyncio
import base64
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import requests
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from numpy.typing import NDArray

from tests import clients
from tests.clients import python_client
from tests.server.test_load import MANY
from tests.server.test_load import clients as repeated
from tests.support.server import Server

Start = Callable[..., Server]
Vectors = NDArray[np.float32]

TEXTS = ["the cat sat on a mat", "動的計画法", "", "graph theory 😀"]
KEY = "sk-second"

is_watched = False


def _stay_here(event: str, arguments: tuple[Any, ...]) -> None:
    """A hook cannot be taken away: this one works while a test of this file runs."""
    if is_watched:
        python_client.stay_here(event, arguments)


sys.addaudithook(_stay_here)


@pytest.fixture(autouse=True)
def here_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting, key or proxy of whoever runs the tests; no client connects to anything but this machine."""
    global is_watched
    for name in os.environ:
        if name.startswith(("OPENAI_", "HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # where a login of the user's would be; it asks the hub for names of agents, to tell the hub which one calls
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    python_client.hosts.clear()
    is_watched = True
    yield
    is_watched = False
    assert python_client.hosts <= {"127.0.0.1"}


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """The tiny model, at most 8 texts and 20,000 bytes."""
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, MAX_TEXTS=8, MAX_BODY_BYTES=20_000).wait_until_ready()


@pytest.fixture(scope="module")
def guarded(start: Start, tiny_model: Path) -> Server:
    """The same with two API keys, of which KEY is one."""
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, API_KEY=f"sk-first,{KEY}").wait_until_ready()


@pytest.fixture(scope="module")
def small_queue(start: Start, tiny_model: Path) -> Server:
    """One slot, and one request may wait. Nobody reads the lines about thousands of refused ones."""
    options = {"CPUS": 1, "MAX_QUEUE": 1, "MAX_TEXTS": 100_000, "LOG_LEVEL": "error"}
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **options).wait_until_ready()


@pytest.fixture(scope="module")
def installed() -> None:
    """What clients.python and clients.javascript need."""
    clients.install()


@contextmanager
def busy(server: Server) -> Iterator[None]:
    """More work than the queue holds, until the block is left."""

    def work() -> None:
        requests.post(f"{server.url}/embed", json={"texts": MANY}, timeout=60)

    with repeated(4, work):
        yield


def native(server: Server, texts: list[str], **options: Any) -> Vectors:
    """The vectors of POST /embed?normalize=true."""
    body = {"texts": texts, **options}
    answer = requests.post(f"{server.url}/embed", params={"normalize": "true"}, json=body, timeout=10)
    answer.raise_for_status()
    return np.array(answer.json()["vectors"], np.float32)


def tokens(server: Server, texts: list[str]) -> int:
    answer = requests.post(f"{server.url}/embed", json={"texts": texts}, timeout=10).json()
    return sum(answer["tokens"])


def model_of(server: Server) -> str:
    model = requests.get(server.url, timeout=10).json()["model"]["id"]
    assert isinstance(model, str)
    return model


def same_bits(vectors: Any, expected: Vectors) -> bool:
    return np.array(vectors, np.float32).tobytes() == expected.tobytes()


def openai_python(server: Server, api_key: str = "none", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=api_key, **{"max_retries": 0, **options})


# OpenAI's client


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_openai(server: Server, options: Any) -> None:
    """Several texts, in base64 as the client wants it by itself, or as numbers: the bits of POST /embed."""
    with openai_python(server) as client:
        answer = client.embeddings.create(model="any-name", input=TEXTS, **options)
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    assert {item.object for item in answer.data} == {"embedding"}
    assert same_bits([item.embedding for item in answer.data], native(server, TEXTS))
    assert (answer.object, answer.model) == ("list", "any-name")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens(server, TEXTS)


def test_openai_base64(server: Server) -> None:
    """Who asks for base64 gets the string: float32, little-endian."""
    with openai_python(server) as client:
        answer = client.embeddings.create(model="m", input="cat", encoding_format="base64", user="somebody")
    encoded: Any = answer.data[0].embedding
    assert isinstance(encoded, str)
    assert base64.b64decode(encoded) == native(server, ["cat"]).astype("<f4").tobytes()


def test_openai_options(server: Server) -> None:
    """One text alone; the first dimensions, of length 1 again; what only this server has, by extra_body."""
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


def test_openai_async(server: Server) -> None:
    """The asynchronous client has the same answers and the same errors."""

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError, match="dimensions is 0; it must be a whole number from 1 to 32"):
                await client.embeddings.create(model="m", input=TEXTS, dimensions=0)
            return await client.embeddings.create(model="m", input=TEXTS)

    assert same_bits([item.embedding for item in asyncio.run(ask()).data], native(server, TEXTS))


def test_openai_models(server: Server) -> None:
    """The one model, in the list and by its name."""
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
        ({"input": [1]}, openai.BadRequestError, "invalid_request", "input", "check_embedding_ctx_length=False"),
        ({"input": [[1, 2]]}, openai.BadRequestError, "invalid_request", "input", "check_embedding_ctx_length=False"),
        ({"input": ["a", None]}, openai.BadRequestError, "invalid_request", "input", "input[1] is null"),
        ({"dimensions": 33}, openai.BadRequestError, "invalid_request", "dimensions", "from 1 to 32"),
        ({"encoding_format": "int8"}, openai.BadRequestError, "invalid_request", "encoding_format", "float or base64"),
        ({"input": ["a"] * 9}, openai.APIStatusError, "too_many_texts", "input", "over the limit of 8 (MAX_TEXTS)"),
        ({"input": "a" * 30_000}, openai.APIStatusError, "request_entity_too_large", None, "20000 bytes"),
    ],
)
def test_openai_errors(server: Server, request_: Any, error: Any, code: str, param: str | None, message: str) -> None:
    """Each of the client's exceptions, with our sentence as its text and our fields."""
    with openai_python(server) as client, pytest.raises(openai.APIStatusError) as raised:
        client.embeddings.create(**{"model": "m", "input": "a", **request_})
    found = raised.value
    assert type(found) is error
    assert (found.code, found.param, found.type) == (code, param, "invalid_request_error")
    assert str(found).startswith(f"Error code: {413 if error is openai.APIStatusError else 400} - ")
    assert message in str(found)


def test_openai_api_key(guarded: Server) -> None:
    """Each of the keys lets in; another one is an AuthenticationError, on every route of the client."""
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


def test_openai_without_retries(small_queue: Server) -> None:
    """A full queue is a RateLimitError."""
    with busy(small_queue), openai_python(small_queue) as client, pytest.raises(openai.RateLimitError) as raised:
        for _ in range(1000):
            client.embeddings.create(model="m", input="cat")
    error = raised.value
    assert (error.code, error.type, error.response.headers["retry-after"]) == ("queue_full", "rate_limit_error", "1")
    assert "1 requests wait already (MAX_QUEUE)" in str(error)


def test_openai_retries(small_queue: Server, caplog: pytest.LogCaptureFixture) -> None:
    """With retries, the answer comes in the end: the client waits as long as Retry-After says."""
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
        with busy(small_queue):
            thread.start()
            assert refused.wait(60)
        thread.join()
    assert statuses[-1] == (200, str(len(statuses) - 1 - statuses.index((429, "0"))))
    assert "Retrying request in 1.000000 seconds (retry 1 of 20)" in caplog.messages
    assert same_bits(answers[-1], native(small_queue, ["cat"]))


def test_openai_deadline(start: Start, tiny_model: Path) -> None:
    """What takes too long is an InternalServerError that says so."""
    many = MANY[:2000]  # alone they are in time, on a slow machine too
    environ = {"CPUS": 1, "MAX_TEXTS": 10_000, "REQUEST_DEADLINE": 2, "CACHE_SIZE": 0}
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **environ).wait_until_ready()

    def large() -> None:
        requests.post(f"{server.url}/embed", json={"texts": many}, timeout=60)

    with repeated(10, large), openai_python(server) as client, pytest.raises(openai.InternalServerError) as raised:
        for _ in range(20):
            client.embeddings.create(model="m", input=many)
    error = raised.value
    assert (error.status_code, error.code, error.response.headers["retry-after"]) == (503, "deadline_exceeded", "1")
    assert "try again (finished vectors are kept for a while), or send fewer texts at once" in str(error)


# huggingface_hub's client


def test_huggingface_hub(server: Server) -> None:
    """feature_extraction, at the server's URL or at /embed: the bits of POST /embed, in rows."""
    expected = native(server, TEXTS)
    for url in (server.url, f"{server.url}/", f"{server.url}/embed"):
        client = InferenceClient(base_url=url)
        many, one = client.feature_extraction(TEXTS), client.feature_extraction(TEXTS[0])
        assert many.dtype == np.float32
        assert (many.shape, one.shape) == ((4, 32), (1, 32))
        assert same_bits(many, expected) and same_bits(one, expected[:1])


def test_huggingface_hub_options(server: Server) -> None:
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


def test_huggingface_hub_async(server: Server) -> None:
    """The asynchronous client."""

    async def ask() -> tuple[Any, list[float]]:
        async with AsyncInferenceClient(model=server.url) as client:
            vectors = await client.feature_extraction(TEXTS)
            return vectors, await client.sentence_similarity(TEXTS[0], TEXTS[1:])

    vectors, scores = asyncio.run(ask())
    assert same_bits(vectors, native(server, TEXTS))
    assert len(scores) == 3


@pytest.mark.parametrize("path", ["", "/similarity"])
def test_huggingface_hub_similarity(server: Server, path: str) -> None:
    """The cosine of the sentence to each of the others."""
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
def test_huggingface_hub_errors(server: Server, options: Any, status: int, message: str) -> None:
    """The exception's text has our sentence, and its answer the kind of error in TEI's words."""
    with pytest.raises(HfHubHTTPError) as raised:
        InferenceClient(model=server.url).feature_extraction(**{"text": "a " * 400, **options})
    error = raised.value
    assert isinstance(error, BadRequestError) == (status == 400)
    assert error.response.status_code == status
    assert message in str(error)
    content = error.response.json()
    assert message in content["error"]["message"]
    assert content["error_type"] == "Validation"


def test_huggingface_hub_api_key(guarded: Server) -> None:
    """A key lets in, none or another does not."""
    assert InferenceClient(model=guarded.url, token=KEY).feature_extraction("cat").shape == (1, 32)
    for token in (None, "hf_wrong"):
        with pytest.raises(HfHubHTTPError, match="invalid_api_key") as raised:
            InferenceClient(model=guarded.url, token=token).feature_extraction("cat")
        assert raised.value.response.status_code == 401


def test_huggingface_hub_and_a_full_queue(small_queue: Server) -> None:
    """429 with Retry-After; this client leaves trying again to its user."""
    client = InferenceClient(model=small_queue.url)
    with busy(small_queue), pytest.raises(HfHubHTTPError, match="429 Too Many Requests") as raised:
        for _ in range(1000):
            client.feature_extraction("cat")
    assert raised.value.response.headers["retry-after"] == "1"
    assert "1 requests wait already (MAX_QUEUE)" in str(raised.value)


# LangChain, LlamaIndex, JavaScript: in an environment of their own


def check_vectors(answer: Any, expected: Vectors) -> None:
    """Every method of the client gave these vectors, and the client has connected to this machine only."""
    assert answer["hosts"] == ["127.0.0.1"], answer
    assert len(answer["vectors"]) == 3, answer
    for method, vectors in answer["vectors"].items():
        assert same_bits(vectors, expected), method


@pytest.mark.parametrize("options", [{}, {"dimensions": 8}, {"model_kwargs": {"encoding_format": "float"}}])
def test_langchain_openai(guarded: Server, installed: None, options: dict[str, Any]) -> None:
    """OpenAIEmbeddings with check_embedding_ctx_length=False."""
    options = {"model": "m", "base_url": f"{guarded.url}/v1", "api_key": KEY, **options}
    texts = [*TEXTS, "line\nbreak"]
    answer = clients.python(
        client="langchain_openai", options={**options, "check_embedding_ctx_length": False}, texts=texts
    )
    with openai_python(guarded, KEY) as client:
        expected = client.embeddings.create(model="m", input=texts, dimensions=options.get("dimensions", 32)).data
    check_vectors(answer, np.array([item.embedding for item in expected], np.float32))


def test_langchain_openai_by_default(server: Server, installed: None) -> None:
    """It sends another tokenizer's ids, and its user is told what to set."""
    options = {"model": "m", "base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    answer = clients.python(client="langchain_openai", options=options, texts=TEXTS[:2])
    assert (answer["error"], answer["hosts"]) == ("BadRequestError", ["127.0.0.1"])
    assert "OpenAIEmbeddings(check_embedding_ctx_length=False)" in answer["message"]


def test_langchain_huggingface(server: Server, installed: None) -> None:
    """HuggingFaceEndpointEmbeddings, which takes a URL as its client's model only."""
    options: dict[str, Any] = {"model_kwargs": {"model": server.url}}
    check_vectors(clients.python(client="langchain_huggingface", options=options, texts=TEXTS), native(server, TEXTS))
    options = {"model_kwargs": {"model": server.url, "truncate": False}}
    answer = clients.python(client="langchain_huggingface", options=options, texts=["a " * 400])
    assert answer["error"] == "BadRequestError"
    assert "402 tokens" in answer["message"]


def test_llama_index(server: Server, installed: None) -> None:
    """OpenAILikeEmbedding, in batches of two."""
    options = {"model_name": "m", "api_base": f"{server.url}/v1", "dimensions": 8, "embed_batch_size": 2}
    answer = clients.python(client="llama_index", options=options, texts=TEXTS)
    check_vectors(answer, native(server, TEXTS, dimensions=8))


def test_openai_javascript(guarded: Server, installed: None) -> None:
    """The `openai` package: one text and several, base64 and numbers, the models, the errors."""
    with openai_python(guarded, KEY) as client:
        expected = client.embeddings.create(model="m", input=TEXTS)
        (model,) = client.models.list()
    texts = {"model": "m", "input": TEXTS}
    calls = [
        ["embeddings.create", texts],
        ["embeddings.create", {**texts, "encoding_format": "float"}],
        ["embeddings.create", {"model": "m", "input": TEXTS[0]}],
        ["models.list"],
        ["models.retrieve", model.id],
        ["models.retrieve", "org/other"],
        ["embeddings.create", {"model": "m", "input": [[1, 2]]}],
    ]
    options = {"baseURL": f"{guarded.url}/v1", "apiKey": KEY, "maxRetries": 0}
    answer = clients.javascript(options=options, calls=calls)
    assert answer["hosts"] == ["127.0.0.1"]
    packed, floats, one, listed, retrieved, unknown, ids = answer["answers"]
    rows = np.array([item.embedding for item in expected.data], np.float32)
    for found, wanted in ((packed, rows), (floats, rows), (one, rows[:1])):
        assert same_bits([item["embedding"] for item in found["data"]], wanted)
        assert found["model"] == "m"
    assert packed["usage"] == floats["usage"] == expected.usage.model_dump()
    assert listed["data"] == [retrieved] and retrieved == model.model_dump(exclude_unset=True)
    assert (unknown["error"], unknown["status"], unknown["code"]) == ("NotFoundError", 404, "model_not_found")
    assert (ids["error"], ids["status"], ids["param"]) == ("BadRequestError", 400, "input")
    assert ids["message"].startswith("400 input has token ids")
    (wrong,) = clients.javascript(options={**options, "apiKey": "sk-wrong"}, calls=calls[:1])["answers"]
    assert (wrong["error"], wrong["code"]) == ("AuthenticationError", "invalid_api_key")


def test_openai_javascript_and_a_full_queue(small_queue: Server, installed: None) -> None:
    """A RateLimitError without retries."""
    options = {"baseURL": f"{small_queue.url}/v1", "apiKey": "none", "maxRetries": 0}
    with busy(small_queue):
        calls = [["embeddings.create", {"model": "m", "input": "cat"}]] * 50
        answers = clients.javascript(options=options, calls=calls)["answers"]
    refused = [answer for answer in answers if "error" in answer]
    assert {(answer["error"], answer["status"], answer["code"]) for answer in refused} == {
        ("RateLimitError", 429, "queue_full")
    }
