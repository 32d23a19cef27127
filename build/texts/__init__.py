"""The texts that the build measures with: one file a group, one text a line."""

from pathlib import Path


def texts() -> dict[str, list[str]]:
    """Group (the file's name) -> its texts."""
    files = sorted(Path(__file__).parent.glob("*.txt"))
    return {path.stem: path.read_text(encoding="utf-8").splitlines() for path in files}
