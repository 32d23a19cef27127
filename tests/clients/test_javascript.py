"""OpenAI's client for JavaScript against a real server."""

import numpy as np

from tests import clients
from tests.clients.common import KEY, TEXTS, full_queue, openai_python, same_bits
from tests.support.server import Server


def test_vectors_models_and_errors(guarded: Server, installed: None) -> None:
    """The package `openai` gets the same vectors, models and errors as OpenAI's client for Python."""
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
        ["embeddings.create", {"model": "m", "input": [[1, 200000]]}],
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
    assert ids["message"].startswith("400 input[0][1] is 200000; it must be one of OpenAI's token ids")
    (wrong,) = clients.javascript(options={**options, "apiKey": "sk-wrong"}, calls=calls[:1])["answers"]
    assert (wrong["error"], wrong["code"]) == ("AuthenticationError", "invalid_api_key")


def test_a_full_queue(small_queue: Server, installed: None) -> None:
    """A full queue is a RateLimitError."""
    options = {"baseURL": f"{small_queue.url}/v1", "apiKey": "none", "maxRetries": 0}
    with full_queue(small_queue):
        calls = [["embeddings.create", {"model": "m", "input": "cat"}]] * 50
        answers = clients.javascript(options=options, calls=calls)["answers"]
    refused = [answer for answer in answers if "error" in answer]
    assert {(answer["error"], answer["status"], answer["code"]) for answer in refused} == {
        ("RateLimitError", 429, "queue_full")
    }
