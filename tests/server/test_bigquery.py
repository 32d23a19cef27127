"""POST /bigquery of a real server: batches from many threads, and retries."""

from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.bigquery import TEXTS, BigQuery, assert_rows
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """One slot, and one request may wait."""
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, MAX_QUEUE=1).wait_until_ready()


def bigquery(server: Server, **options: Any) -> BigQuery:
    def send(body: Any) -> tuple[int, bytes]:
        response = requests.post(f"{server.url}/bigquery", json=body, timeout=60)
        return response.status_code, response.content

    return BigQuery(send, **options)


def embed(server: Server, texts: list[str]) -> list[Any]:
    """Return the vectors of POST /embed, 2,000 texts at once."""
    found: list[Any] = []
    for at in range(0, len(texts), 2000):
        response = requests.post(f"{server.url}/embed", json={"texts": texts[at : at + 2000]}, timeout=60)
        assert response.ok, response.text
        found += response.json()["vectors"]
    return found


def test_a_table_of_texts_becomes_a_table_of_vectors(server: Server) -> None:
    """Batches of 7 rows from 8 threads, NULLs among them, give every row its vector."""
    texts = [text and f"{text} {number}" for number in range(40) for text in TEXTS]
    query = bigquery(server, rows=7, threads=8)
    assert_rows(query.query(texts), texts, lambda given: embed(server, given))
    assert set(query.statuses) <= {200, 429}


def test_retries(server: Server) -> None:
    """Some of eight simultaneous requests get 429 where one may wait, and every row has its vector in the end."""
    query = bigquery(server, rows=500, threads=8)
    for turn in range(10):
        # no text twice: cached texts need no slot
        texts = [f"{turn} {number}" if number % 50 else None for number in range(12_000)]
        rows = query.query(texts)
        if query.statuses[429]:
            break
    assert set(query.statuses) == {200, 429}
    assert_rows(rows, texts, lambda given: embed(server, given))
