"""Chunks: their tokens, one after the other, are the tokens that the library gives the whole text."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from app.engine import chunks
from app.engine import tokenizer as tokenizer_module
from app.engine.manifest import CHARACTERS, TOKENIZER
from app.engine.runner import Threads
from app.engine.tokenizer import Tokenizer

RUNNER = Threads(lambda rows: [], lambda tokens: 1, 1)
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[MASK]", "[SEP]", "[UNK]"]
WORDS = "a b the cat next 東京 日本語 カタカナ ｶﾞ 한국어 привет नमस्ते कि สวัสดี ครับ שלום é e\u0301 ΑΣ İ ##a 1 ½ ㌔ ﷺ ﬁ 😀 🏽".split()
MARKS = "。 、 「 」 … . ! ( ) < [ ＜ｓ＞ ¨ ´ ▁ ▁▁ ▁next next▁ a▁b".split()
# Combining and joining characters, those that some normalizer deletes, and white space that is none to another.
ODD = [*"\u0301\u3099ﾞᅡᆨ\ufe0f\u200b\u200c\u200d\u2060\ufeff\xad\u0600\u0d4e\u180e\ue000\uffff\0\x01\x1c\x7f\x85\v\f"]
SPACES = [*chunks.WHITE_SPACE, "\r\n", "  ", "\n\u3000", "\u3000\u3000", "\t\t", " \n "]
ANY_CHARACTER = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x20000))]
PARTS = [*WORDS, *MARKS, *ODD, *SPECIALS]
# Sentences of a Japanese book: no white space inside.
SENTENCES = """吾輩は猫である。 名前はまだ無い。 どこで生れたかとんと見当がつかぬ。 「しかもあとで聞くと」 （この書生）
何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。 吾輩はここで始めて人間というものを見た。""".split()
Pair = tuple[Tokenizer, tokenizers.Tokenizer]


def xlm_roberta(*, normalizer: Any = None, lstrip: bool = False, rstrip: bool = False) -> tokenizers.Tokenizer:
    """Write a small Unigram tokenizer; each option varies one thing."""
    names = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "▁next", "next", "東", "京", "。", "\n"]
    vocabulary = [(name, 0.0) for name in SPECIALS[:5]] + [(name, -2.0 - len(name)) for name in names]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    one_space = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizer or normalizers.Sequence(
        [normalizers.NFKC(), one_space, normalizers.Strip(left=True, right=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    tokenizer.add_special_tokens([*SPECIALS[:4], AddedToken("<mask>", lstrip=lstrip, rstrip=rstrip)])
    return tokenizer


def collapsed_into_a_mark() -> Any:
    """Return the normalizer that transformers makes for some SentencePiece models."""
    collapse = normalizers.Replace(tokenizers.Regex(" {2,}"), "▁")
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True), collapse])


def bytes_of(normalizer: Any, *, add_prefix_space: bool) -> tokenizers.Tokenizer:
    """Train a small BPE tokenizer of bytes: RoBERTa's kind, and ModernBERT's with NFC."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS[:5], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "  ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def without_words() -> tokenizers.Tokenizer:
    """Return a small tokenizer of Llama's kind, as ruri-v3 has it: spaces become marks, and nothing splits a text."""
    names = ["▁", "▁▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "▁next", "next", "▁a▁b", "東", "京", "東京"]
    fallback = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocabulary = [*((name, 0.0) for name in SPECIALS[:5]), *fallback, *((name, -2.0 - len(name)) for name in names)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    tokenizer.add_special_tokens(SPECIALS[:5])
    return tokenizer


def cased_word_piece() -> tokenizers.Tokenizer:
    """Return a small tokenizer of BERT's kind that keeps capitals and accents."""
    vocabulary = dict.fromkeys([*SPECIALS, *"abcdeABCDE東京。éÉ", "next", "##t", "##a", "##B"])
    numbered = {name: number for number, name in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", numbered["[SEP]"]), ("<s>", 0))
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def small_pairs() -> dict[str, Pair]:
    """Return the app's tokenizer and the library's, by name."""
    made = {
        "as the stand-in": xlm_roberta(),
        "<mask> takes the white space before it": xlm_roberta(lstrip=True),
        "<mask> takes the white space after it": xlm_roberta(rstrip=True),
        "only NFKC": xlm_roberta(normalizer=normalizers.NFKC()),
        "collapsed into a mark": xlm_roberta(normalizer=collapsed_into_a_mark()),
        "RoBERTa's bytes": bytes_of(None, add_prefix_space=False),
        "bytes, a space first": bytes_of(None, add_prefix_space=True),
        "ModernBERT's bytes": bytes_of(normalizers.NFC(), add_prefix_space=False),
        "without words": without_words(),
        "cased WordPiece": cased_word_piece(),
    }
    return {name: (Tokenizer(library), library) for name, library in made.items()}


SMALL = small_pairs()


@pytest.fixture
def cut_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks as short as they can be."""
    for module in (chunks, tokenizer_module):
        monkeypatch.setattr(module, "CHUNK_CHARACTERS", 1)


@pytest.fixture(scope="module")
def word_piece(tiny_model: Path) -> Pair:
    file = tiny_model / TOKENIZER
    return Tokenizer.load(file), tokenizers.Tokenizer.from_file(str(file))


@pytest.fixture(scope="module")
def full_size(full_size_model: Path) -> Pair:
    """The mapped tokenizer, and the library's own."""
    whole = tokenizers.Tokenizer.from_file(str(full_size_model / TOKENIZER))
    return Tokenizer.load(full_size_model / CHARACTERS), whole


def is_equal(pair: Pair, text: str, max_length: int = sys.maxsize) -> bool:
    """Return whether ids and count are the library's of the whole text."""
    tokenizer, library = pair
    library.no_truncation()
    ids = library.encode(text).ids
    tokenized = tokenizer.encode(text, max_length, RUNNER)
    return tokenized.ids.tolist() == tokenizer.truncate(ids, max_length) and tokenized.tokens == len(ids)


def is_cut(pair: Pair, text: str) -> bool:
    return len(list(pair[0]._chunks(text, 0))) > 1


def random_text(choice: random.Random) -> str:
    """Return up to 60 parts; a fifth of them are any characters."""
    kinds = [PARTS, PARTS, SPACES, SPACES, ANY_CHARACTER]
    return "".join(choice.choice(choice.choice(kinds)) for _ in range(choice.randrange(2, 60)))


def book(white: str, characters: int) -> str:
    """Return a text of sentences with only this white space between paragraphs."""
    choice = random.Random(white)
    text = ""
    while len(text) < characters:
        text += "".join(choice.choices(SENTENCES, k=choice.randrange(1, 12))) + white
    return text


@pytest.mark.usefixtures("cut_everywhere")
@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(PARTS), st.sampled_from(SPACES), st.text(max_size=2)), max_size=30))
def test_any_text(name: str, parts: list[str]) -> None:
    """Any text of words, marks, special tokens, odd characters and white space has the library's tokens."""
    assert is_equal(SMALL[name], "".join(parts).encode("utf-8", "ignore").decode())


@pytest.mark.usefixtures("cut_everywhere")
def test_any_text_of_word_piece(word_piece: Pair) -> None:
    """Any text has the library's tokens with BERT's tokenizer, which deletes controls and marks and spaces Chinese."""
    choice = random.Random(0)
    assert [text for text in (random_text(choice) for _ in range(3_000)) if not is_equal(word_piece, text)] == []


@pytest.mark.usefixtures("cut_everywhere")
@pytest.mark.parametrize("white", [*chunks.WHITE_SPACE, "\r\n"], ids=ascii)
def test_every_kind_of_white_space_is_a_place_to_cut(word_piece: Pair, white: str) -> None:
    """A text may be cut at every kind of white space between two letters."""
    for pair in (word_piece, SMALL["as the stand-in"]):
        assert is_cut(pair, f"aa{white}bb{white * 3}aa。{white}「bb")


@pytest.mark.usefixtures("cut_everywhere")
def test_no_cut_where_white_space_separates_no_words() -> None:
    """A text is not cut where white space does not separate words: with NFKC alone, or in an added token."""
    assert is_cut(SMALL["only NFKC"], "aa bb") and not is_cut(SMALL["only NFKC"], "aa\nbb")
    library = xlm_roberta()
    library.add_tokens(["aa bb"])
    assert not is_cut((Tokenizer(library), library), "xx aa bb xx")
    library = xlm_roberta()
    library.pre_tokenizer = None
    assert not is_cut((Tokenizer(library), library), "aa bb")


@pytest.mark.parametrize("white", ["\n", "\t", "\r\n", "\u3000", "\u00a0", "\n\u3000"], ids=ascii)
def test_a_japanese_book(word_piece: Pair, white: str) -> None:
    """A book with white space only between paragraphs has the library's tokens, truncated or not."""
    text = book(white, 15_000)
    for pair in (word_piece, SMALL["as the stand-in"]):
        assert is_equal(pair, text) and is_equal(pair, text, 256)
        assert max(len(chunk) for chunk in pair[0]._chunks(text, 0)) < 2 * chunks.CHUNK_CHARACTERS


@pytest.mark.full_size
@pytest.mark.parametrize("white", ["\n", "\t", "\r\n", "\u3000", "\u00a0", "\n\u3000"], ids=ascii)
def test_a_japanese_book_at_full_size(full_size: Pair, white: str) -> None:
    """A book has the library's tokens with a vocabulary of 250,000 tokens, too."""
    text = book(white, 15_000)
    assert is_equal(full_size, text) and is_equal(full_size, text, 256)


@pytest.mark.full_size
@pytest.mark.usefixtures("cut_everywhere")
def test_any_text_at_full_size(full_size: Pair) -> None:
    """5,000 random texts have the library's tokens with a vocabulary of 250,000 tokens."""
    choice = random.Random(0)
    assert [text for text in (random_text(choice) for _ in range(5_000)) if not is_equal(full_size, text)] == []


@pytest.mark.full_size
@pytest.mark.usefixtures("cut_everywhere")
def test_every_character_before_and_after_a_cut(full_size: Pair, word_piece: Pair) -> None:
    """All of Unicode, 64 characters in a text with each kind of white space, has the library's tokens."""
    everything = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    rows = [everything[start : start + 64] for start in range(0, len(everything), 64)]
    texts = [SPACES[number % len(SPACES)].join(row) for number, row in enumerate(rows)]
    for pair in (full_size, word_piece):
        assert [text for text in texts if not is_equal(pair, text)] == []
