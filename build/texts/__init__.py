"""Texts of the build: one file for each group, one text a line, and pairs of translations.

Of every four lines of a file, the first and the last are for calibration, the two between are held out. The
quantization uses calibration() only. The verification (build/verify.py) measures only texts that it has not seen:
held_out(), pairs() and unlike(), the texts of unlike/NAME.txt, whose kinds calibration does not have at all. For your
own domain, add a file NAME.txt in UTF-8 with one text a line; half of it is used for each. Blank lines are skipped and
do not count.
"""

import codecs
import hashlib
from pathlib import Path

from build import BuildError

FOLDER = Path(__file__).parent
PAIRS = "pairs.tsv"
UNLIKE = "unlike"


def texts(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Return all texts: group (the file's name) -> texts.

    Raises:
        BuildError: a file is not UTF-8.
    """
    return {path.stem: [text for _, text in _lines(path)] for path in sorted(folder.glob("*.txt"))}


def calibration(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Return the texts for calibration: group -> its 1st, 4th, 5th, 8th … text.

    Raises:
        BuildError: a file is not UTF-8.
    """
    return {group: _half(lines, (0, 3)) for group, lines in texts(folder).items()}


def calibration_sha256(folder: Path = FOLDER) -> str:
    """Return the SHA-256 of the calibration texts, which identifies them in a quantized file."""
    texts = [text for lines in calibration(folder).values() for text in lines]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def held_out(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Return the texts for verification: group -> its 2nd, 3rd, 6th, 7th … text, without those also in calibration().

    Raises:
        BuildError: a file is not UTF-8.
    """
    seen = {text for lines in calibration(folder).values() for text in lines}
    halves = {group: _half(lines, (1, 2)) for group, lines in texts(folder).items()}
    return {group: [text for text in lines if text not in seen] for group, lines in halves.items()}


def unlike(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Return texts of kinds that calibration does not have, for verification only: group -> texts.

    The group "empty" has what cannot be a line of a file.

    Raises:
        BuildError: a file is not UTF-8.
    """
    return {**texts(folder / UNLIKE), "empty": ["", " "]}


def pairs(folder: Path = FOLDER) -> list[tuple[str, str]]:
    """Return sentences with their translations from pairs.tsv (`English<TAB>Japanese`), for verification only.

    Raises:
        BuildError: the file is not UTF-8, or a line is not two texts with one tab between them.
    """
    result = []
    for number, line in _lines(folder / PAIRS):
        sides = line.split("\t")
        if len(sides) != 2 or not all(side.strip() for side in sides):
            raise BuildError(f"{folder / PAIRS}, line {number}: it must be two texts with one tab between them.")
        result.append((sides[0], sides[1]))
    return result


def _half(lines: list[str], places: tuple[int, int]) -> list[str]:
    """Return two of every four lines. If short and long lines alternate, both halves get both."""
    return [text for index, text in enumerate(lines) if index % 4 in places]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return (number, line) of all lines that are not blank."""
    result = []
    # bytes are split at line ends only; str.splitlines also splits at characters such as U+2028
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise BuildError(f"{path}, line {number}: it is not UTF-8.") from None
        if text.strip():
            result.append((number, text))
    return result
