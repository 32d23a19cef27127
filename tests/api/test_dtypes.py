"""Small vectors: int8, uint8, binary and ubinary, as numbers and as base64, in every dialect that can ask for them."""

import base64
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import quantize_embeddings

from app import create_app
from app.engine.dtypes import DTYPES, quantize
from app.engine.encoder import Encoder
from app.settings import Settings
from tests.support.app import vectors

SMALL = [dtype for dtype in DTYPES if dtype != "float32"]
NUMPY = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
TEXTS = ["the cat", "東京 は", ""]


@pytest.fixture(scope="module")
def client(tiny_encoder: Encoder) -> FlaskClient:
    return create_app(Settings(max_length=64), tiny_encoder).test_client()


def expected(client: FlaskClient, encoder: Encoder, dtype: str, dimensions: int | None = None) -> Any:
    """Return what sentence-transformers makes of the float32 vectors, with the model folder's range."""
    unit = np.array(vectors(client, TEXTS), np.float32)[:, :dimensions]
    range_ = encoder.model_folder.manifest.int8_range
    assert range_
    ranges = np.repeat(np.array(range_, np.float32)[:, None], unit.shape[1], axis=1)
    return quantize_embeddings(unit, dtype, ranges=ranges)  # type: ignore[arg-type]  # it has the names as literals


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("dimensions", [None, 8, 13])
def test_equal_to_sentence_transformers(
    client: FlaskClient, tiny_encoder: Encoder, dtype: str, dimensions: int | None
) -> None:
    """Every dialect returns what sentence-transformers makes of the same vectors, cut first."""
    right = expected(client, tiny_encoder, dtype, dimensions)
    options = {"dtype": dtype, **({"dimensions": dimensions} if dimensions else {})}
    cohere = {"texts": TEXTS, "embedding_types": ["float", dtype], "output_dimension": dimensions}
    found = [
        client.post("/embed", json={"texts": TEXTS, **options}).get_json()["vectors"],
        client.post("/embed", json={"texts": TEXTS, "normalize": True, **options}).get_json()["vectors"],
        client.post("/embed", json={"inputs": TEXTS, **options}).get_json(),
        [
            item["embedding"]
            for item in client.post("/v1/embeddings", json={"input": TEXTS, **options}).get_json()["data"]
        ],
        client.post("/v1/models/m:predict", json={"instances": TEXTS, "parameters": options}).get_json()["predictions"],
        client.post("/v2/embed", json=cohere).get_json()["embeddings"][dtype],
        client.post("/bigquery", json={"calls": [[text] for text in TEXTS], "userDefinedContext": options}).get_json()[
            "replies"
        ],
    ]
    assert found == [right.tolist()] * len(found)
    encoded = client.post("/embed", json={"texts": TEXTS, "encoding_format": "base64", **options}).get_json()["vectors"]
    assert [base64.b64decode(row) for row in encoded] == [row.astype(NUMPY[dtype]).tobytes() for row in right]


@pytest.mark.parametrize(
    ("fields", "dtype", "is_base64"),
    [
        ({"output_dtype": "int8"}, "int8", False),
        ({"output_dtype": "ubinary", "encoding_format": "base64"}, "ubinary", True),
        ({"embedding_type": "binary"}, "binary", False),
        ({"embedding_type": "ubinary"}, "ubinary", False),
    ],
)
def test_other_names(client: FlaskClient, fields: Any, dtype: str, is_base64: bool) -> None:
    """Voyage's, Mistral's and Jina's names for the same options."""
    found = client.post("/v1/embeddings", json={"input": TEXTS, **fields}).get_json()
    options = {"dtype": dtype, "encoding_format": "base64" if is_base64 else "float"}
    right = client.post("/embed", json={"texts": TEXTS, **options}).get_json()["vectors"]
    assert [item["embedding"] for item in found["data"]] == right


def test_cohere(client: FlaskClient) -> None:
    """An answer of Cohere's API has each type once, the texts, and the tokens as billed units."""
    types = ["int8", "float", "base64", "float"]
    body = {"model": "embed-v4.0", "texts": TEXTS, "input_type": "search_query", "embedding_types": types}
    answer = client.post("/v2/embed", json=body).get_json()
    assert list(answer) == ["id", "embeddings", "texts", "meta", "response_type"]
    assert list(answer["embeddings"]) == ["int8", "float", "base64"]
    right = vectors(client, TEXTS, prompt_name="query")
    assert answer["embeddings"]["float"] == right
    decoded = [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in answer["embeddings"]["base64"]]
    assert np.array_equal(np.array(decoded, np.float32), np.array(right, np.float32))
    assert (answer["texts"], answer["response_type"]) == (TEXTS, "embeddings_by_type")
    native = client.post("/embed", json={"texts": TEXTS, "prompt_name": "query"}).get_json()
    assert answer["meta"]["billed_units"] == {"input_tokens": sum(native["tokens"])}
    many = client.post("/v2/embed", json={"texts": TEXTS * 100}).get_json()
    assert list(many["embeddings"]) == ["float"]
    assert many["embeddings"]["float"] == vectors(client, TEXTS) * 100 and many["texts"] == TEXTS * 100
    assert many["id"] != answer["id"]


def test_the_query(client: FlaskClient, tiny_encoder: Encoder) -> None:
    """GET /embed has the option, too."""
    answer = client.get("/embed", query_string={"q": TEXTS[0], "dtype": "uint8"}).get_json()
    assert answer["vector"] == expected(client, tiny_encoder, "uint8")[0].tolist()
    assert answer["dimension"] == 32


@settings(max_examples=200, deadline=None)
@given(
    vector=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20),
    step=st.floats(0.0001, 0.1),
    dtype=st.sampled_from(SMALL),
)
def test_any_vector(vector: list[float], step: float, dtype: str) -> None:
    """quantize() is sentence-transformers' function, also for numbers outside the range."""
    array = np.array([vector], np.float32)
    range_ = (-128.5 * step, 126.5 * step)
    ranges = np.repeat(np.array(range_, np.float32)[:, None], len(vector), axis=1)
    right = quantize_embeddings(array, dtype, ranges=ranges)  # type: ignore[arg-type]  # it has the names as literals
    assert np.array_equal(quantize(array, dtype, range_), right)


def test_codes_are_numbers(client: FlaskClient, tiny_encoder: Encoder) -> None:
    """Code 0 of int8 stands for zero, so that codes can be compared by cosine as they are."""
    codes = np.array(client.post("/embed", json={"texts": TEXTS, "dtype": "int8"}).get_json()["vectors"], np.float32)
    unit = np.array(vectors(client, TEXTS), np.float32)
    cosines = (codes * unit).sum(1) / np.linalg.norm(codes, axis=1)
    assert cosines.min() > 0.999
    assert tiny_encoder.model_folder.manifest.int8_range


def test_a_folder_without_a_range(client: FlaskClient, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that an older version built refuses int8, and says what to do; bits need no range."""
    monkeypatch.setitem(tiny_encoder.model_folder.manifest.__dict__, "int8_range", None)
    refused = client.post("/embed", json={"texts": TEXTS, "dtype": "int8"})
    assert refused.status_code == 400
    message = "dtype is int8, and this model folder has no range for it: build it again."
    assert refused.get_json()["error"]["message"] == message
    assert client.post("/embed", json={"texts": TEXTS, "dtype": "binary"}).status_code == 200
