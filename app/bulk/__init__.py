"""The bulk command: files of texts -> files of vectors, without HTTP. `python -m app.bulk --help`.

It can be killed at any moment: the same command goes on, and the files have the same bytes in the end (work.py).
"""

from app.errors import BootError


class BulkError(BootError):
    """The command cannot go on; the message is one line that says why and what to do."""
