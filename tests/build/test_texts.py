"""The texts of the build: those for calibration, and those held out for verification."""

from pathlib import Path

import pytest

from build import BuildError
from build.texts import calibration, held_out, pairs, texts, unlike


def test_each_file_is_half_for_calibration_and_half_for_the_proof() -> None:
    """Of every four lines the outer two are for calibration and the inner two held out."""
    outer, inner = calibration(), held_out()
    for group, lines in texts().items():
        assert sorted(outer[group] + inner[group]) == sorted(lines)
        assert outer[group] == [text for index, text in enumerate(lines) if index % 4 in (0, 3)]
        assert len(lines) % 2 == 0, group


def test_the_proof_is_of_what_calibration_has_not_seen() -> None:
    """No held-out text or pair is a calibration text, and no sentence is in two pairs."""
    seen = {text for lines in calibration().values() for text in lines}
    sides = [side for pair in pairs() for side in pair]
    assert not seen & {*(text for lines in held_out().values() for text in lines), *sides}
    assert len(set(sides)) == len(sides) >= 1000


def test_kinds_that_calibration_does_not_have() -> None:
    """The texts of unlike/ are only for the proof, and the empty text is one of them."""
    strange = {text for lines in unlike().values() for text in lines}
    assert {"", " "} < strange and len(strange) >= 100
    assert not strange & {text for lines in texts().values() for text in lines}
    assert {"repeated", "combining", "planes", "hash", "capitals", "digits"} < set(unlike())


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    """A file with a byte order mark, CRLF and blank lines is read; a text may contain a line separator."""
    lines = ["", "one", "  ", "two\u2028of two", "one", "  three", "", ""]
    (tmp_path / "own.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert texts(tmp_path) == {"own": ["one", "two\u2028of two", "one", "  three"]}
    assert calibration(tmp_path) == {"own": ["one", "  three"]}
    assert held_out(tmp_path) == {"own": ["two\u2028of two"]}


def test_what_calibration_sees_in_another_file_is_not_in_the_proof(tmp_path: Path) -> None:
    """A text that another file has for calibration is not held out."""
    (tmp_path / "a.txt").write_text("cat\ndog\n")
    (tmp_path / "b.txt").write_text("dog\ncat\ncow\nfox\n")
    assert held_out(tmp_path) == {"a": [], "b": ["cow"]}


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    """The error names the file and the line."""
    (tmp_path / "own.txt").write_bytes("first\n\n東京\n".encode("shift_jis"))
    with pytest.raises(BuildError, match=r"/own\.txt, line 3: it is not UTF-8\.$"):
        calibration(tmp_path)


def test_pairs(tmp_path: Path) -> None:
    """Pairs are English and Japanese in the file's order; a blank line at the end is ignored."""
    (tmp_path / "pairs.tsv").write_text("cat\t猫\ndog\t犬\n\n", encoding="utf-8")
    assert pairs(tmp_path) == [("cat", "猫"), ("dog", "犬")]


@pytest.mark.parametrize("line", ["dog", "dog\t犬\t", "dog\t", "\t犬"])
def test_a_line_that_is_no_pair(tmp_path: Path, line: str) -> None:
    """The error names the file and the line."""
    (tmp_path / "pairs.tsv").write_text(f"cat\t猫\n{line}\n", encoding="utf-8")
    with pytest.raises(BuildError, match=r"/pairs\.tsv, line 2: it must be two texts with one tab between them\.$"):
        pairs(tmp_path)
