"""The texts that the build measures with: one file a group, one text a line, and pairs of translations.

Of every four lines of a file the first and the last are for calibration, the two between for the
proof. Quantization may look only at calibration(); the proof, build/verify.py, measures only what
calibration did not see: proof() and pairs(). For your own domain add a file NAME.txt in UTF-8, one
text a line: half of it is used for each. Blank lines are skipped, and do not count.
"""

import codecs
import hashlib
from pathlib import Path

from build import BuildError

FOLDER = Path(__file__).parent
PAIRS = "pairs.tsv"


def texts(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Group (the file's name) -> all its texts.

    Raises:
        BuildError: a file is not UTF-8.
    """
    return {path.stem: [text for _, text in _lines(path)] for path in sorted(folder.glob("*.txt"))}


def calibration(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Group -> its 1st, 4th, 5th, 8th … text: what quantization may look at.

    Raises:
        BuildError: a file is not UTF-8.
    """
    return {group: _half(lines, (0, 3)) for group, lines in texts(folder).items()}


def calibration_sha256(folder: Path = FOLDER) -> str:
    """Tells whether a file was quantized with these texts."""
    texts = [text for lines in calibration(folder).values() for text in lines]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def proof(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Group -> its 2nd, 3rd, 6th, 7th … text, but for what is in calibration(), too: what the proof measures.

    Raises:
        BuildError: a file is not UTF-8.
    """
    seen = {text for lines in calibration(folder).values() for text in lines}
    halves = {group: _half(lines, (1, 2)) for group, lines in texts(folder).items()}
    return {group: [text for text in lines if text not in seen] for group, lines in halves.items()}


def pairs(folder: Path = FOLDER) -> list[tuple[str, str]]:
    """Sentences and their translations, from pairs.tsv (`English<TAB>Japanese`); only for the proof.

    Raises:
        BuildError: the file is not UTF-8, or a line of it is not two texts with one tab between.
    """
    found = []
    for number, line in _lines(folder / PAIRS):
        sides = line.split("\t")
        if len(sides) != 2 or not all(side.strip() for side in sides):
            raise BuildError(f"{folder / PAIRS}, line {number}: it must be two texts with one tab between them.")
        found.append((sides[0], sides[1]))
    return found


def _half(lines: list[str], places: tuple[int, int]) -> list[str]:
    """Two of every four lines: where short and long ones take turns, both halves get both."""
    return [text for index, text in enumerate(lines) if index % 4 in places]


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of the lines that are not blank."""
    found = []
    # bytes: a str is split at characters, such as U+2028, that may be inside a text
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise BuildError(f"{path}, line {number}: it is not UTF-8.") from None
        if text.strip():
            found.append((number, text))
    return found
