"""The texts of the build: what quantization may see, and what the proof measures."""

from pathlib import Path

import pytest

from build import BuildError
from build.texts import calibration, held_out, pairs, texts


def test_each_file_is_half_for_calibration_and_half_for_the_proof() -> None:
    """The first and last of every four lines, and the two between; together they are all of a file."""
    outer, inner = calibration(), held_out()
    for group, lines in texts().items():
        assert sorted(outer[group] + inner[group]) == sorted(lines)
        assert outer[group] == [text for index, text in enumerate(lines) if index % 4 in (0, 3)]
        assert len(lines) % 2 == 0, group


def test_the_proof_is_of_what_calibration_has_not_seen() -> None:
    """No text of the proof, nor of the pairs, is one of calibration's; no sentence is in two pairs."""
    seen = {text for lines in calibration().values() for text in lines}
    sides = [side for pair in pairs() for side in pair]
    assert not seen & {*(text for lines in held_out().values() for text in lines), *sides}
    assert len(set(sides)) == len(sides) >= 1000


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    """As an editor on Windows saves it: byte order mark, CRLF, blank lines; a text may hold a line separator."""
    lines = ["", "one", "  ", "two\u2028of two", "one", "  three", "", ""]
    (tmp_path / "own.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert texts(tmp_path) == {"own": ["one", "two\u2028of two", "one", "  three"]}
    assert calibration(tmp_path) == {"own": ["one", "  three"]}
    assert held_out(tmp_path) == {"own": ["two\u2028of two"]}


def test_what_calibration_sees_in_another_file_is_not_in_the_proof(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat\ndog\n")
    (tmp_path / "b.txt").write_text("dog\ncat\ncow\nfox\n")
    assert held_out(tmp_path) == {"a": [], "b": ["cow"]}


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    """The error names the file and the line."""
    (tmp_path / "own.txt").write_bytes("first\n\n東京\n".encode("shift_jis"))
    with pytest.raises(BuildError, match=r"/own\.txt, line 3: it is not UTF-8\.$"):
        calibration(tmp_path)


def test_pairs(tmp_path: Path) -> None:
    """English and Japanese, in the file's order; a blank line at the end is none."""
    (tmp_path / "pairs.tsv").write_text("cat\t猫\ndog\t犬\n\n", encoding="utf-8")
    assert pairs(tmp_path) == [("cat", "猫"), ("dog", "犬")]


@pytest.mark.parametrize("line", ["dog", "dog\t犬\t", "dog\t", "\t犬"])
def test_a_line_that_is_no_pair(tmp_path: Path, line: str) -> None:
    """The error names the file and the line."""
    (tmp_path / "pairs.tsv").write_text(f"cat\t猫\n{line}\n", encoding="utf-8")
    with pytest.raises(BuildError, match=r"/pairs\.tsv, line 2: it must be two texts with one tab between them\.$"):
        pairs(tmp_path)
