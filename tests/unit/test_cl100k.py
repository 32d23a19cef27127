"""The table of OpenAI's token ids: decodes as tiktoken does. Its own encoder is in tests/clients/test_langchain.py."""

from pathlib import Path

import numpy as np
import pytest

from app.engine.cl100k import Cl100k, OverLimit, UnknownToken
from app.engine.manifest import CL100K
from build import BuildError, cl100k

# Texts with the ids that tiktoken gives for them.
TEXTS = {
    "hello world": [15339, 1917],
    "東京": [14276, 109, 47653],
    "😀": [76460, 222],
    "<|endoftext|>": [100257],
    "<|endofprompt|>!": [100276, 0],
    "": [],
}


@pytest.fixture(scope="module")
def table(tiny_model: Path) -> Cl100k:
    return Cl100k.load(tiny_model / CL100K)


def decode(table: Cl100k, ids: list[int]) -> str:
    return table.decode(ids, 1_000_000, lambda: None).decode(errors="replace")


@pytest.mark.parametrize("text", TEXTS)
def test_texts(table: Cl100k, text: str) -> None:
    """Token ids become their text, special tokens included."""
    assert decode(table, TEXTS[text]) == text


def test_long_texts(table: Cl100k) -> None:
    """The text of many ids is the same as of few, and others get their turn in between."""
    ids = TEXTS["hello world"] * 20_000
    pauses: list[None] = []
    assert table.decode(ids, 220_000, lambda: pauses.append(None)) == b"hello world" * 20_000
    assert len(pauses) > 5
    with pytest.raises(OverLimit):
        table.decode(ids, 219_999, lambda: None)


def test_half_a_character(table: Cl100k) -> None:
    """Ids that break off in the middle of a character become U+FFFD, as in tiktoken."""
    assert decode(table, TEXTS["😀"][:1]) == "\ufffd"
    assert decode(table, [15339, *TEXTS["😀"][1:]]) == "hello\ufffd"


def test_every_id(table: Cl100k) -> None:
    """Each id has a token of its own, or stands for none."""
    assert table.size == 100_277
    tokens = {}
    unknown = []
    for token in range(table.size):
        try:
            tokens[token] = decode(table, [token])
        except UnknownToken as error:
            assert error.index == 0
            unknown.append(token)
    assert unknown == [100_256, *range(100_261, 100_276)]
    with pytest.raises(UnknownToken) as raised:
        decode(table, [15339] * 5000 + [100_256])
    assert raised.value.index == 5000


def test_the_size(tiny_model: Path) -> None:
    """The table takes little room in the image."""
    assert (tiny_model / CL100K).stat().st_size < 1_500_000


def test_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build refuses a table that is not OpenAI's, and says what is missing."""
    file = tmp_path / "table"
    file.write_text("aGVsbG8= 0\n")
    monkeypatch.setattr(cl100k, "_data_file", lambda: file)
    with pytest.raises(BuildError, match="is not the table of cl100k_base: its SHA-256 is "):
        cl100k.write(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(cl100k, "PACKAGE", "no_such_package")
    with pytest.raises(BuildError, match="needs the package llama-index-core"):
        cl100k.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_the_form_of_the_file(tiny_model: Path) -> None:
    """The file is one array of bytes, which is mapped, not read."""
    assert isinstance(np.load(tiny_model / CL100K, mmap_mode="r"), np.memmap)
