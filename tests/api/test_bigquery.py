"""POST /bigquery: what a remote function of BigQuery gets, row by row."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from app.engine.encoder import Encoder
from app.settings import Settings
from tests.support.bigquery import TEXTS, BigQuery, QueryFailed, assert_rows


@pytest.fixture(scope="module")
def client(tiny_encoder: Encoder) -> FlaskClient:
    """A client of the app, MAX_TEXTS 64 and MAX_BODY_BYTES 100,000."""
    return create_app(Settings(max_length=64, max_texts=64, max_body_bytes=100_000), tiny_encoder).test_client()


def bigquery(client: FlaskClient, rows: int, context: dict[str, str] | None = None) -> BigQuery:
    def send(body: Any) -> tuple[int, bytes]:
        response = client.post("/bigquery", json=body)
        return response.status_code, response.data

    return BigQuery(send, rows=rows, context=context)


def embed(client: FlaskClient, texts: list[str], **options: Any) -> list[Any]:
    """Return the vectors of POST /embed."""
    return [client.post("/embed", json={"texts": [text], **options}).get_json()["vectors"][0] for text in texts]


@pytest.mark.parametrize("texts", [[None], [None] * 5, ["cat"], [""]])
def test_one_row_and_only_nulls(client: FlaskClient, texts: list[str | None]) -> None:
    """calls may have one element, as where rows are skipped (CASE, MERGE), and no text at all."""
    rows = bigquery(client, 64).query(texts)
    assert_rows(rows, texts, lambda given: embed(client, given) if given else [])


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
def test_options(client: FlaskClient, context: dict[str, str], options: dict[str, Any]) -> None:
    """user_defined_context has the options of POST /embed, as strings."""
    rows = bigquery(client, 4, context).query(TEXTS)
    assert_rows(rows, TEXTS, lambda given: embed(client, given, **options))


def test_a_repeated_request(client: FlaskClient) -> None:
    """A batch that BigQuery sends again although it was answered gets the same bytes."""
    query = bigquery(client, 64)
    assert query.post([[text] for text in TEXTS]) == query.post([[text] for text in TEXTS])


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


@pytest.mark.parametrize(("calls", "context", "quoted"), FAILURES)
def test_an_invalid_call(client: FlaskClient, calls: Any, context: dict[str, str] | None, quoted: str) -> None:
    """An invalid call gets 400, which is not retried: the query fails with a short sentence that names the mistake."""
    query = bigquery(client, 64, context)
    with pytest.raises(QueryFailed) as failed:
        query.call(calls)
    assert query.statuses == {400: 1}
    assert quoted in str(failed.value) and str(failed.value).endswith(".")


@pytest.mark.parametrize(
    ("texts", "quoted"),
    [(["cat"] * 65, "MAX_TEXTS"), ([None] * 65, "MAX_TEXTS"), (["x" * 20_000] * 5, "MAX_BODY_BYTES")],
)
def test_too_large_a_batch(client: FlaskClient, texts: list[str | None], quoted: str) -> None:
    """A batch over MAX_TEXTS or MAX_BODY_BYTES gets 413, which is not retried; smaller batches pass."""
    query = bigquery(client, 100)
    with pytest.raises(QueryFailed, match=quoted):
        query.query(texts)
    assert query.statuses == {413: 1}
    assert_rows(bigquery(client, 3).query(texts), texts, lambda given: embed(client, given) if given else [])
