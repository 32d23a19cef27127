"""POST /bigquery, with BigQuery's part played as https://cloud.google.com/bigquery/docs/remote-functions tells it."""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray

from tests.support.server import Server

Start = Callable[..., Server]
Row = NDArray[np.float64] | None
# "retries when the HTTP response code is …"; how long it waits is not documented, how often is: bigquery/quotas
RETRIED = {408, 429, 500, 503, 504}
ATTEMPTS = 20
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
ERROR_MESSAGE_BYTES = 1024
RESPONSE_BYTES = 15_000_000
JOB = "//bigquery.googleapis.com/projects/myproject/jobs/myproject:US.bquxjob_5b4c112c_17961fafeaf"
TEXTS: list[str | None] = [
    "cat",
    None,
    "",
    "東京は日本の首都",
    'a "quoted"\n\ttext\\',
    "graph theory " * 40,
    None,
    "😀",
]


class QueryFailed(Exception):
    """The query's error, as its user reads it."""


class BigQuery:
    """Queries with a function (text STRING) RETURNS JSON: so many threads send the rows in batches."""

    def __init__(self, server: Server, *, rows: int, threads: int = 4, context: dict[str, str] | None = None) -> None:
        self.url = f"{server.url}/bigquery"
        self.rows, self.threads, self.context = rows, threads, context
        self.statuses: Counter[int] = Counter()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def query(self, texts: Sequence[str | None]) -> list[Row]:
        """SELECT the vector of each text."""
        batches = [texts[start : start + self.rows] for start in range(0, len(texts), self.rows)]
        with ThreadPoolExecutor(self.threads) as pool:
            found = list(pool.map(lambda batch: self.call([[text] for text in batch]), batches))
        return [row for rows in found for row in rows]

    def call(self, calls: Sequence[Sequence[Any]]) -> list[Row]:
        """One batch, again and again until it is answered."""
        for attempt in range(ATTEMPTS):
            response = self.post(calls)
            if response.status_code == 200:
                return self._rows(response, len(calls))
            message = response.json()["errorMessage"]
            assert isinstance(message, str) and len(message.encode()) < ERROR_MESSAGE_BYTES
            if response.status_code not in RETRIED:
                break
            time.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1))
        raise QueryFailed(message)

    def post(self, calls: Sequence[Sequence[Any]]) -> requests.Response:
        body: dict[str, Any] = {
            "requestId": f"124ab1c{next(self._numbers)}",
            "caller": JOB,
            "sessionUser": "test-user@test-company.com",
            "calls": calls,
        }
        if self.context is not None:
            body["userDefinedContext"] = self.context
        response = requests.post(self.url, json=body, timeout=60)
        with self._lock:
            self.statuses[response.status_code] += 1
        return response

    def _rows(self, response: requests.Response, count: int) -> list[Row]:
        """The column of the replies: a JSON array of numbers becomes FLOAT64s, null stays NULL."""
        assert len(response.content) < RESPONSE_BYTES
        replies = response.json()["replies"]
        assert isinstance(replies, list) and len(replies) == count
        return [None if reply is None else np.array(reply, np.float64) for reply in replies]


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two slots, at most 64 rows in a request and 100,000 bytes."""
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=2, MAX_TEXTS=64, MAX_BODY_BYTES=100_000).wait_until_ready()


def embed(server: Server, texts: Sequence[str], batch: int = 64, **options: Any) -> NDArray[np.float32]:
    """The vectors of POST /embed."""
    vectors: list[list[float]] = []
    for at in range(0, len(texts), batch):
        body = {"texts": texts[at : at + batch], **options}
        response = requests.post(f"{server.url}/embed", json=body, timeout=60)
        assert response.ok, response.text
        vectors += response.json()["vectors"]
    return np.array(vectors, np.float32)


def assert_rows(rows: list[Row], texts: Sequence[str | None], server: Server, **options: Any) -> None:
    """Each text has in its place, bit for bit, what POST /embed gives it, and NULL has NULL."""
    assert [row is None for row in rows] == [text is None for text in texts]
    given = [text for text in texts if text is not None]
    found = np.array([row for row in rows if row is not None], np.float32)
    np.testing.assert_array_equal(found, embed(server, given, **options))


def test_a_table_of_texts_becomes_a_table_of_vectors(server: Server) -> None:
    """Batches of 7 rows from 8 threads, NULLs among them: every vector in its row."""
    texts = [text and f"{text} {number}" for number in range(40) for text in TEXTS]
    bigquery = BigQuery(server, rows=7, threads=8)
    assert_rows(bigquery.query(texts), texts, server)
    assert set(bigquery.statuses) <= {200, 429}


@pytest.mark.parametrize("texts", [[None], [None] * 5, ["cat"], [""]])
def test_one_row_and_only_nulls(server: Server, texts: list[str | None]) -> None:
    """calls has one element where rows are skipped (CASE, MERGE), and may have no text at all."""
    assert_rows(BigQuery(server, rows=64).query(texts), texts, server)


@pytest.mark.parametrize(
    ("context", "options"),
    [
        ({}, {}),
        ({"normalize": "true"}, {"normalize": True}),
        ({"normalize": "false", "truncate": "true"}, {}),
        ({"dimensions": "8", "normalize": "true"}, {"dimensions": 8, "normalize": True}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"prompt": "graph "}, {"prompt": "graph "}),
    ],
)
def test_options(server: Server, context: dict[str, str], options: dict[str, Any]) -> None:
    """user_defined_context has the options of POST /embed, as strings."""
    assert_rows(BigQuery(server, rows=4, context=context).query(TEXTS), TEXTS, server, **options)


def test_a_repeated_request(server: Server) -> None:
    """BigQuery may send a batch again although it was answered: the same bytes come again."""
    bigquery = BigQuery(server, rows=64)
    first, second = (bigquery.post([[text] for text in TEXTS]).content for _ in range(2))
    assert first == second


def test_retries(start: Start, tiny_model: Path) -> None:
    """Where one request may wait and eight come at once, some are refused, and every row has its vector in the end."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=1).wait_until_ready()
    bigquery = BigQuery(server, rows=500, threads=8)
    for turn in range(10):
        # no text twice: what is in the cache is no work
        texts = [f"{turn} {number}" if number % 50 else None for number in range(12_000)]
        rows = bigquery.query(texts)
        if bigquery.statuses[429]:
            break
    assert set(bigquery.statuses) == {200, 429}
    assert_rows(rows, texts, server, batch=2000)


def test_how_a_full_queue_is_told(start: Start, tiny_model: Path) -> None:
    """429 with a sentence, in BigQuery's key and in this service's own."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=1).wait_until_ready()
    bigquery = BigQuery(server, rows=1)
    refused: list[requests.Response] = []

    def work(client: int) -> None:
        for turn in itertools.count():
            if refused:
                return
            response = bigquery.post([[f"{client} {turn} {number}"] for number in range(500)])
            if response.status_code != 200:
                refused.append(response)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    response = refused[0]
    assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
    body = response.json()
    assert body["errorMessage"] == body["error"]["message"]
    assert body["error"]["code"] == "queue_full"


FAILURES: list[tuple[Any, dict[str, str] | None, str]] = [
    ([["cat", "dog"]], None, "2 arguments"),
    ([["cat"], []], None, "calls[1]"),
    ([["cat"], [1]], None, "calls[1]"),
    ([["cat"], "dog"], None, "calls[1]"),
    ([[["cat"]]], None, "a list"),
    ([["cat"]], {"normalize": "yes"}, "normalize"),
    ([["cat"]], {"dimensions": "33"}, "33"),
    ([["cat"]], {"dimensions": "x" * 5000}, "dimensions"),
    ([["cat"]], {"prompt_name": "東京" * 400}, "prompt_name"),
    ([["cat"]], {"prompt": "a ", "prompt_name": "query"}, "prompt_name"),
    ([["cat"]], {"encoding_format": "base64"}, "encoding_format"),
    ([["cat"]], {"colour": "red"}, "colour"),
    ([["cat"], [None], ["graph " * 200]], {"truncate": "false"}, "tokens"),
]


@pytest.mark.parametrize(("calls", "context", "named"), FAILURES)
def test_a_clients_mistake(server: Server, calls: Any, context: dict[str, str] | None, named: str) -> None:
    """400, which is not retried: the query fails with a short sentence that names what is wrong."""
    bigquery = BigQuery(server, rows=64, context=context)
    with pytest.raises(QueryFailed) as failed:
        bigquery.call(calls)
    assert bigquery.statuses == {400: 1}
    assert named in str(failed.value) and str(failed.value).endswith(".")
    body = bigquery.post(calls).json()
    assert set(body) == {"errorMessage", "error"}
    assert body["errorMessage"] == body["error"]["message"]
    assert (body["error"]["type"], set(body["error"])) == (
        "invalid_request_error",
        {"message", "type", "param", "code"},
    )


@pytest.mark.parametrize(
    ("texts", "named"),
    [(["cat"] * 65, "MAX_TEXTS"), ([None] * 65, "MAX_TEXTS"), (["x" * 20_000] * 5, "MAX_BODY_BYTES")],
)
def test_too_long_a_batch(server: Server, texts: list[str | None], named: str) -> None:
    """413, which is not retried, above MAX_TEXTS rows and above MAX_BODY_BYTES; smaller batches pass."""
    bigquery = BigQuery(server, rows=100)
    with pytest.raises(QueryFailed, match=named):
        bigquery.query(texts)
    assert bigquery.statuses == {413: 1}
    assert_rows(BigQuery(server, rows=3).query(texts), texts, server, batch=3)


@pytest.mark.parametrize("body", ['{"requestId": "1"}', '{"calls": {}}', '{"calls": [["cat"]]', "[]", '{"calls": 1}'])
def test_what_is_no_call(server: Server, body: str) -> None:
    """400 with BigQuery's key, also where the JSON itself is wrong."""
    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{server.url}/bigquery", data=body, headers=headers, timeout=30)
    assert response.status_code == 400
    assert response.json()["errorMessage"] == response.json()["error"]["message"]
