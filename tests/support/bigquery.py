"""BigQuery's part of a remote function, as https://cloud.google.com/bigquery/docs/remote-functions describes it."""

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64] | None
# Send a body to POST /bigquery, and return the status and the body of the answer.
Send = Callable[[Any], tuple[int, bytes]]
# "retries when the HTTP response code is …"; the waits are not documented, the number of attempts is: bigquery/quotas
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
    """The error of a query, as its user reads it."""


class BigQuery:
    """Queries with a function (text STRING) RETURNS JSON: `threads` threads send batches of `rows` rows."""

    def __init__(self, send: Send, *, rows: int, threads: int = 1, context: dict[str, str] | None = None) -> None:
        self.rows, self.threads, self.context = rows, threads, context
        self.statuses: Counter[int] = Counter()
        self._send = send
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def query(self, texts: Sequence[str | None]) -> list[Row]:
        """SELECT the vector of each text."""
        batches = [texts[start : start + self.rows] for start in range(0, len(texts), self.rows)]
        with ThreadPoolExecutor(self.threads) as pool:
            found = list(pool.map(lambda batch: self.call([[text] for text in batch]), batches))
        return [row for rows in found for row in rows]

    def call(self, calls: Sequence[Sequence[Any]]) -> list[Row]:
        """Send one batch, again and again until it is answered. Raises QueryFailed."""
        for attempt in range(ATTEMPTS):
            status, body = self.post(calls)
            if status == 200:
                return self._rows(body, len(calls))
            message = json.loads(body)["errorMessage"]
            assert isinstance(message, str) and len(message.encode()) < ERROR_MESSAGE_BYTES
            if status not in RETRIED:
                break
            time.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1))
        raise QueryFailed(message)

    def post(self, calls: Sequence[Sequence[Any]]) -> tuple[int, bytes]:
        body: dict[str, Any] = {
            "requestId": f"124ab1c{next(self._numbers)}",
            "caller": JOB,
            "sessionUser": "test-user@test-company.com",
            "calls": calls,
        }
        if self.context is not None:
            body["userDefinedContext"] = self.context
        status, answer = self._send(body)
        with self._lock:
            self.statuses[status] += 1
        return status, answer

    def _rows(self, body: bytes, count: int) -> list[Row]:
        """Return the column of the replies: a JSON array of numbers becomes FLOAT64s, null stays NULL."""
        assert len(body) < RESPONSE_BYTES
        replies = json.loads(body)["replies"]
        assert isinstance(replies, list) and len(replies) == count
        return [None if reply is None else np.array(reply, np.float64) for reply in replies]


def assert_rows(rows: list[Row], texts: Sequence[str | None], embed: Callable[[list[str]], Any]) -> None:
    """Check that each text has in its place, bit for bit, the vector of embed(texts), and NULL has NULL."""
    assert [row is None for row in rows] == [text is None for text in texts]
    found = np.array([row for row in rows if row is not None], np.float32)
    expected = embed([text for text in texts if text is not None])
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
