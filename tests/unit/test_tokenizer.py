"""The mapped vocabulary gives the ids of the model's own tokenizer.json for every text."""

import gettext
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from app.engine.manifest import CHARACTERS, TOKENIZER
from app.engine.tokenizer import Tokenizer as AppTokenizer
from build import unigram as build_unigram

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
# Tokens with equal sums of scores, within other tokens, with characters of their own, and over a word's end.
VOCABULARY = {
    "▁": -2.0,
    "a": -3.0,
    "b": -3.0,
    "aa": -6.0,
    "ab": -4.5,
    "▁a": -2.5,
    "▁ab": -9.0,
    "東京": -5.0,
    "京都": -5.0,
}
VOCABULARY |= {"都": -7.0, "🗼": -8.0, "aaa": -8.9, "a▁b": -0.1, "▁▁": -0.1, "xyz": -4.0, "z": -4.5}
CATALOGUES = Path("/usr/share/locale")
DOCUMENTS = 20_000


def write_unigram_folder(folder: Path, *, splits_white_space: bool = False) -> Path:
    """Write a model folder with only a tokenizer, of XLM-R's kind. splits_white_space: with WhitespaceSplit, too."""
    vocabulary = [*((special, 0.0) for special in SPECIALS[:4]), *VOCABULARY.items(), ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    words: pre_tokenizers.PreTokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    if splits_white_space:
        tokenizer.normalizer = None
        words = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    tokenizer.pre_tokenizer = words
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    tokenizer.add_special_tokens(SPECIALS[:4] + [AddedToken("<mask>", lstrip=True)])
    tokenizer.add_tokens(["▁ab z"])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(folder / TOKENIZER))
    return folder


def both(folder: Path) -> tuple[AppTokenizer, AppTokenizer]:
    """Load the tokenizer from tokenizer.json, and from characters.json with pieces.npy."""
    whole, split = (AppTokenizer.load(folder / name) for name in (TOKENIZER, CHARACTERS))
    return whole, split


def compare(whole: AppTokenizer, split: AppTokenizer, text: str) -> None:
    """Check for equal ids, positions and decoded text."""
    ids = whole(text)
    assert split(text) == ids
    assert split.spans(text).tolist() == whole.spans(text).tolist()
    assert split.spans(text, add_special_tokens=False)[:, 0].tolist() == ids
    for skip in (True, False):
        decoded = [each.decode([0, *ids, 2], skip_special_tokens=skip) for each in (whole, split)]
        assert decoded[0] == decoded[1]


@pytest.fixture(scope="module", params=[False, True], ids=["metaspace", "white space, metaspace"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[AppTokenizer, AppTokenizer]:
    folder = write_unigram_folder(tmp_path_factory.mktemp("tokenizer"), splits_white_space=request.param)
    assert build_unigram.write(folder)
    return both(folder)


@pytest.fixture(scope="module")
def full_size(full_size_model: Path) -> tuple[AppTokenizer, AppTokenizer]:
    return both(full_size_model)


def test_what_a_model_puts_around_a_text(tiny: tuple[AppTokenizer, AppTokenizer]) -> None:
    """The special tokens <s> and </s> around a text have their own ids."""
    for tokenizer in tiny:
        assert (tokenizer.prefix, tokenizer.suffix) == ([0], [2])


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a", "aab ab", "a  b", "▁▁a", "a▁b", "aaaaaaa", "xy", "xyz", "東京都", "東京京都", "\0", "x🧿🧿 🧿"),
        *("a\x1cb", "a\x85\u3000b\n"),
        *("<s>", "＜ｓ＞", "a<unk>b", "🧿<unk>🧿", "x<mask>  <mask> a", "▁ab z", "ab z", "ﷺ", "<s", "a" * 10_000),
        "東京" * 5000 + "x" * 5000,
    ],
)
def test_texts_that_are_hard(tiny: tuple[AppTokenizer, AppTokenizer], text: str) -> None:
    """Equal scores, unknown characters, literal special tokens and long texts give the library's ids."""
    compare(*tiny, text)


@settings(max_examples=500, deadline=None)
@given(parts=st.lists(st.sampled_from([*VOCABULARY, *SPECIALS, " ", "京", "y"]) | st.text(max_size=3), max_size=20))
def test_any_text(tiny: tuple[AppTokenizer, AppTokenizer], parts: list[str]) -> None:
    """Any text of tokens, special tokens and other characters gives the library's ids."""
    compare(*tiny, "".join(parts).encode("utf-8", "ignore").decode())


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"].update(byte_fallback=True),
        lambda content: content["model"].update(unk_id=None),
        lambda content: content["pre_tokenizer"].update(prepend_scheme="never"),
        lambda content: content["pre_tokenizer"].update(split=False),
        lambda content: content.update(pre_tokenizer=None),
        lambda content: content["model"]["vocab"].append(["a", -1.0]),
    ],
)
def test_another_kind_stays_as_it_is(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Other kinds of tokenizers get no mapped files, and existing ones are removed."""
    folder = write_unigram_folder(tmp_path)
    assert build_unigram.write(folder)
    content = json.loads((folder / TOKENIZER).read_text())
    change(content)
    (folder / TOKENIZER).write_text(json.dumps(content))
    assert not build_unigram.write(folder)
    assert [path.name for path in (folder / "tokenizer").iterdir()] == ["tokenizer.json"]


@pytest.mark.full_size
def test_every_character(full_size: tuple[AppTokenizer, AppTokenizer]) -> None:
    """All of Unicode gives the same ids: 64 characters in a row, and the basic plane one by one between letters."""
    whole, split = full_size
    everything = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    rows = ["".join(everything[start : start + 64]) for start in range(0, len(everything), 64)]
    rows += ["a" + "b ".join(everything[start : start + 64]) for start in range(0, 0x10000, 64)]
    assert [row for row in rows if split(row) != whole(row)] == []


@pytest.mark.full_size
def test_every_token(full_size_model: Path, full_size: tuple[AppTokenizer, AppTokenizer]) -> None:
    """All 250,000 tokens give the same ids, in a random order, some after a space."""
    whole, split = full_size
    vocabulary = json.loads((full_size_model / TOKENIZER).read_text())["model"]["vocab"]
    names = [random.Random(n).choice(["", " "]) + token for n, (token, _) in enumerate(vocabulary)]
    random.Random(0).shuffle(names)
    rows = ["".join(names[start : start + 16]) for start in range(0, len(names), 16)]
    assert [row for row in rows if split(row) != whole(row)] == []


def documents() -> Iterator[str]:
    """Return texts of people: the metadata of installed packages and the machine's message catalogues."""
    for path in sorted(Path(build_unigram.__file__).parent.parent.glob("*.md")):
        yield path.read_text(encoding="utf-8")
    for path in sorted(Path(pytest.__file__).parent.parent.glob("*.dist-info/**/*")):
        if path.name == "METADATA" or path.suffix in (".md", ".rst", ".txt"):
            yield path.read_text(encoding="utf-8", errors="ignore")
    for path in sorted(CATALOGUES.glob("*/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            try:
                # There is no public way to list them, so the type stubs do not know it.
                messages = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            except (UnicodeDecodeError, ValueError, IndexError):
                continue  # its head is broken
        yield from (message for message in messages.values() if message)


@pytest.mark.full_size
def test_documents_and_message_catalogues(full_size: tuple[AppTokenizer, AppTokenizer]) -> None:
    """Documents and message catalogues in many languages give the library's ids."""
    whole, split = full_size
    texts = list(dict.fromkeys(documents()))
    texts = texts[:: len(texts) // DOCUMENTS or 1]
    assert len(texts) > 20
    assert [text[:100] for text in texts if split(text) != whole(text)] == []
    assert [text[:100] for text in texts[::20] if split.spans(text).tolist() != whole.spans(text).tolist()] == []


@pytest.mark.full_size
def test_ids_become_the_text_again(full_size: tuple[AppTokenizer, AppTokenizer]) -> None:
    """Ids decode to the library's text, and every tenth token to its name."""
    whole, split = full_size
    for text in ("動的計画法とグラフ理論", "the cat sat on a mat", "สวัสดี ครับ", "😀 ok"):
        assert split.decode([0, *split(text), 2]) == text
    for number in range(0, split.vocabulary_size, 10):
        name = whole.decode([number], skip_special_tokens=False)
        assert split.decode([number], skip_special_tokens=False) == name.replace("▁", "", 1)
