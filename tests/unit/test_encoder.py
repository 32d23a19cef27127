"""Encoder on a tiny real model: equal to sentence-transformers, invariant, cached, bounded."""

import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.chunks import CHUNK_CHARACTERS
from app.engine.encoder import Encoder
from app.engine.session import RUN_TOKENS, Session
from app.errors import BootError, InvalidRequest, NotReady, TextTooLong
from build import export_onnx
from tests.support import tiny_model as tiny
from tests.support.model import open_encoder

TEXTS = [
    "the cat sat",
    "",
    " 東京 は 日本 の 首都 ",
    "a",
    "Dynamic PROGRAMMING!",
    "the " * 300,
    "\x00\x1f",
    "é́ 😀 ﬁ ㌔",
]
# any text that is valid Unicode
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@pytest.fixture(scope="module")
def reference(tiny_source: Path) -> Any:
    model = export_onnx.load(tiny_source)
    model.max_seq_length = 64
    return model


@pytest.fixture(scope="module")
def fp32(tiny_model: Path) -> Encoder:
    return open_encoder(tiny_model, "model_fp32.onnx")


def test_fp32_equals_sentence_transformers(fp32: Encoder, reference: Any) -> None:
    """FP32 gives sentence-transformers' raw vectors, also for empty and over-long texts."""
    np.testing.assert_allclose(fp32.encode(TEXTS).vectors, reference.encode(TEXTS), atol=2e-6)


@pytest.mark.parametrize("name", ["query", "document"])
def test_prompts(fp32: Encoder, reference: Any, name: str) -> None:
    """A prompt by name, and the same one spelled out, is put before each text."""
    expected = reference.encode(TEXTS, prompt_name=name)
    np.testing.assert_allclose(fp32.encode(TEXTS, prompt_name=name).vectors, expected, atol=2e-6)
    np.testing.assert_allclose(fp32.encode(TEXTS, prompt=tiny.PROMPTS[name]).vectors, expected, atol=2e-6)


def test_unknown_prompt_name(fp32: Encoder) -> None:
    """The message names the model's prompts."""
    with pytest.raises(InvalidRequest, match="'qery'; the model's prompts are: 'query', 'document'"):
        fp32.encode(["a"], prompt_name="qery")


def test_tokens_and_truncated(fp32: Encoder, reference: Any) -> None:
    """tokens is the true length with special tokens; truncated says whether it is over max_length."""
    result = fp32.encode(TEXTS)
    true = [len(reference.tokenizer(text, verbose=False)["input_ids"]) for text in TEXTS]
    assert result.tokens == true
    assert result.truncated == [n > 64 for n in true]
    assert max(true) > 300


def test_exactly_max_length_is_not_truncated(fp32: Encoder) -> None:
    """A text of 64 tokens is not truncated, one of 65 is."""
    result = fp32.encode(["the " * 62, "the " * 63])
    assert (result.tokens, result.truncated) == ([64, 65], [False, True])


def test_truncate_false_names_the_text_and_its_length(fp32: Encoder) -> None:
    """With truncate false nothing is computed, and the first text that is too long is named."""
    with pytest.raises(TextTooLong, match="Text 1 has 102 tokens, over the limit of 64"):
        fp32.encode(["a", "the " * 100, "the " * 200], truncate=False)


def test_long_texts_are_counted_whole(fp32: Encoder, reference: Any) -> None:
    """A text over CHUNK_CHARACTERS has the tokens and vector of the whole text, with or without spaces."""
    words = [*tiny.WORDS, " ", "\n", "\u3000", "xyz", "é́", "##a", "[MASK]", "[MASK] ", " [SEP]", "▁the", "\x00"]
    for space in (" ", "\r\n", "\u3000"):
        text = space.join(random.Random(1).choices(words, k=4 * CHUNK_CHARACTERS)).replace(" ", space)
        check_long_text(fp32, reference, text)


def check_long_text(fp32: Encoder, reference: Any, text: str) -> None:
    assert len(text) > 10 * CHUNK_CHARACTERS
    result = fp32.encode([text])
    assert result.tokens == [len(reference.tokenizer(text, verbose=False)["input_ids"])]
    np.testing.assert_allclose(result.vectors, reference.encode([text]), atol=2e-6)


@pytest.mark.parametrize("space", [" ", "\n", "\u3000", "\r\n"], ids=ascii)
def test_a_book_without_white_space_is_refused(fp32: Encoder, space: str) -> None:
    """A text of over 100,000 characters without white space is refused; with white space any length is accepted."""
    assert fp32.encode(["a" * 100_000, "a" * 90_000 + space + "a" * 90_000]).tokens == [3, 4]
    with pytest.raises(TextTooLong, match="Text 0 has 100001 characters without white space, over the limit of 100000"):
        fp32.encode(["a" * 100_001])


def test_no_texts(fp32: Encoder) -> None:
    """An empty list gives (0, dim)."""
    assert fp32.encode([]).vectors.shape == (0, 32)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=12), seed=st.integers(0, 999))
def test_a_vector_is_a_function_of_its_text(
    tiny_encoder: Encoder, tiny_model: Path, texts: list[str], seed: int
) -> None:
    """A vector has the same bits alone or together, in any order, concurrently, cached or not."""
    alone = {text: tiny_encoder.encode([text]).vectors[0].tobytes() for text in texts}
    cached = CACHED.setdefault(tiny_model, open_encoder(tiny_model, cache_size=4))
    orders = [random.Random(seed + i).choices(texts, k=len(texts)) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        runs = [(order, pool.submit(encoder.encode, order)) for order in orders for encoder in (tiny_encoder, cached)]
    for order, run in runs:
        assert [row.tobytes() for row in run.result().vectors] == [alone[text] for text in order]


CACHED: dict[Path, Encoder] = {}


def test_texts_of_one_length_share_a_run(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of equal length are computed together, up to RUN_TOKENS, with the bits that each has alone."""
    encoder = open_encoder(tiny_model)
    texts = [f"{word} {other}" for word in tiny.WORDS[:8] for other in tiny.WORDS[:8]]
    alone = [encoder.encode([text]).vectors[0].tobytes() for text in texts]
    runs: list[int] = []
    original = Session.compute

    def noted(self: Session, rows: Any) -> Any:
        runs.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(Session, "compute", noted)
    assert [vector.tobytes() for vector in encoder.encode(texts).vectors] == alone
    assert sum(runs) == len(texts) and max(runs) > 8
    length = encoder.encode(texts[:1]).tokens[0]
    assert max(runs) * length <= RUN_TOKENS


def test_a_text_of_one_token_runs_alone(tiny_encoder: Encoder) -> None:
    """Rows of one token are computed one by one: their products have a kernel of their own."""
    rows = [[number] for number in range(5, 25)]
    alone = [tiny_encoder.encode_ids([row]).vectors[0].tobytes() for row in rows]
    assert [vector.tobytes() for vector in tiny_encoder.encode_ids(rows).vectors] == alone


def test_duplicates_are_computed_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that occurs five times is computed once, and not at all in the next request (cache)."""
    runs = count_runs(monkeypatch)
    encoder = open_encoder(tiny_model, cache_size=10)
    runs.clear()
    encoder.encode(["cat", "mat", "cat", "cat", "cat"])
    assert len(runs) == 2
    encoder.encode(["mat", "cat"])
    assert len(runs) == 2


def test_the_cache_forgets_what_was_unused_longest(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with room for two drops the entry that was unused for longest."""
    runs = count_runs(monkeypatch)
    encoder = open_encoder(tiny_model, cache_size=2)
    for text in ("a", "b", "a", "c"):
        encoder.encode([text])
    runs.clear()
    encoder.encode(["a"])
    assert len(runs) == 0
    encoder.encode(["b"])
    assert len(runs) == 1


def test_a_cached_text_knows_its_prompt_and_length(tiny_model: Path) -> None:
    """The cache keeps texts with different prompts apart, and still reports truncation."""
    encoder = open_encoder(tiny_model, cache_size=10)
    for _ in range(2):
        plain, prompted = encoder.encode(["cat"]), encoder.encode(["cat"], prompt_name="query")
        assert plain.vectors.tobytes() != prompted.vectors.tobytes()
        long = encoder.encode(["the " * 100])
        assert (long.tokens, long.truncated) == ([102], [True])


def test_an_error_in_one_text_ends_the_request_and_not_the_encoder(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of the model reaches the caller, and the next request is answered."""
    encoder = open_encoder(tiny_model)
    expected = encoder.encode(["cat"]).vectors
    with monkeypatch.context() as patch:
        patch.setattr(Session, "compute", lambda self, rows: 1 / 0)
        for texts in (["cat"], ["cat", "mat", "sat"]):
            with pytest.raises(ZeroDivisionError):
                encoder.encode(texts)
    np.testing.assert_array_equal(encoder.encode(["cat"]).vectors, expected)


def test_max_length_over_the_model(tiny_model: Path) -> None:
    """A MAX_LENGTH over the model's positions stops the start."""
    with pytest.raises(BootError, match="MAX_LENGTH is 129, over the model's 128 positions"):
        open_encoder(tiny_model, max_length=129)


def test_the_self_check_does_not_depend_on_max_length(tiny_model: Path) -> None:
    """The self-check passes with a MAX_LENGTH below the golden text's length."""
    assert open_encoder(tiny_model, max_length=3).not_ready_reason is None


def test_the_self_check_refuses_to_encode(tiny_model: Path) -> None:
    """With another vector for the golden text, the encoder refuses every text and names the reason."""
    good = open_encoder(tiny_model).model_folder
    golden = dataclasses.replace(
        good.manifest.golden, vectors={name: v[::-1] for name, v in good.manifest.golden.vectors.items()}
    )
    bad = dataclasses.replace(good, manifest=dataclasses.replace(good.manifest, golden=golden))
    encoder = Encoder.load(bad, max_length=64)
    encoder.open()
    assert encoder.not_ready_reason is not None and "self-check failed" in encoder.not_ready_reason
    with pytest.raises(NotReady, match="self-check failed"):
        encoder.encode(["a"])


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows by one with every run of a model."""
    runs: list[None] = []
    original = Session.compute

    def counted(self: Session, rows: Any) -> Any:
        runs.extend([None] * len(rows))
        return original(self, rows)

    monkeypatch.setattr(Session, "compute", counted)
    return runs
