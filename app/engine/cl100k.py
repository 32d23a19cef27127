"""Cl100k: decodes token ids of OpenAI's encoding cl100k_base, which clients send instead of text.

All of OpenAI's embedding models have this encoding: https://github.com/openai/tiktoken
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Ids that are decoded at once: 0.2 ms.
CHUNK_IDS = 4096


class UnknownToken(ValueError):
    """An id stands for no token. index: its place among the ids."""

    def __init__(self, index: int) -> None:
        super().__init__(f"id {index} stands for no token")
        self.index = index


class OverLimit(ValueError):
    """The text of token ids is longer than it may be."""


class Cl100k:
    """The table of cl100k_base. build/cl100k.py writes it.

    table: uint8, one after the other: the number n of ids as uint32, n + 1 offsets as uint32, and the bytes of all
    tokens. Token i has bytes offsets[i] to offsets[i + 1]; ids without a token have none.
    """

    def __init__(self, table: NDArray[np.uint8]) -> None:
        self.size = int(table[:4].view(np.uint32)[0])
        end = 4 * (self.size + 2)
        self._offsets = table[4:end].view(np.uint32)
        self._bytes = table[end:]

    @classmethod
    def load(cls, file: Path) -> "Cl100k":
        """Map the file into memory, which all processes share."""
        return cls(np.load(file, mmap_mode="r"))

    def decode(self, ids: Sequence[int], max_bytes: int, pause: Callable[[], None]) -> bytes:
        """Return the text of token ids, each from 0 to size - 1, as bytes, which need not be UTF-8.

        pause: called between two pieces of work.

        Raises:
            UnknownToken: an id stands for no token.
            OverLimit: the text is longer than max_bytes. A token may have 128 bytes.
        """
        parts = []
        left = max_bytes
        for start in range(0, len(ids), CHUNK_IDS):
            chunk = np.array(ids[start : start + CHUNK_IDS], np.int64)
            begins = self._offsets[chunk].astype(np.int64)
            lengths = self._offsets[chunk + 1] - begins
            if not lengths.all():
                raise UnknownToken(start + int(np.argmin(lengths)))
            ends = np.cumsum(lengths)
            left -= int(ends[-1])
            if left < 0:
                raise OverLimit
            places = np.arange(ends[-1]) + np.repeat(begins - (ends - lengths), lengths)
            parts.append(self._bytes[places].tobytes())
            pause()
        return b"".join(parts)
