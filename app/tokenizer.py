"""Text -> token ids, exactly those of the model's own tokenizer.

A tokenizer is the `tokenizers` library's, but for one thing: a Unigram vocabulary of 250,000 pieces takes the library
0.7 to 1.0 s and 285 MB to load, most of it for its trie. The build therefore writes the trie as a table that is mapped
from the disk in a millisecond (build/pieces.py). The library still makes a text into characters (normalization, added
tokens, words); which pieces these become is searched here, as the library searches it.
"""

import os

# Read at import. The library's thread pool does not survive a fork, and one text at a time has no use for it.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

CHARACTERS = "characters.json"
PIECES = "pieces.npy"
# Where a word begins: SentencePiece's mark for the space before it.
WORD_START = "▁"
# What a node of the trie is, where it is not a piece's id.
NO_PIECE = -1
UNKNOWN = -2  # a character that is no piece by itself; several in a row become one unknown token
# Pieces are looked up in blocks: a long text's at once would take 200 bytes a character and more.
BLOCK_CHARACTERS = 4096


class Tokenizer:
    """The ids of texts, without those that the model puts around them: `prefix` and `suffix`."""

    def __init__(self, library: tokenizers.Tokenizer, pieces: "Pieces | None" = None) -> None:
        self._library = library
        self._pieces = pieces
        encoding = library.encode("a")
        mask = encoding.special_tokens_mask
        first = mask.index(0) if 0 in mask else len(mask)
        last = len(mask) - mask[::-1].index(0) if 0 in mask else len(mask)
        self.prefix, self.suffix = self._ids(encoding.ids[:first]), self._ids(encoding.ids[last:])

    @classmethod
    def load(cls, file: Path) -> "Tokenizer":
        """Read tokenizer.json, or characters.json and the pieces.npy beside it.

        Raises:
            Exception: the library has no narrower one for a file that it cannot read.
        """
        library = tokenizers.Tokenizer.from_file(str(file))
        library.no_padding()
        library.no_truncation()
        return cls(library, Pieces.load(file.with_name(PIECES), library) if file.name == CHARACTERS else None)

    def __call__(self, text: str) -> list[int]:
        """All ids of a text, however long it is."""
        # The batch form lets other threads run, and this one leaves out the offsets.
        return self._ids(self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _ids(self, ids: list[int]) -> list[int]:
        return self._pieces.best(ids) if self._pieces is not None else ids


class Pieces:
    """A Unigram vocabulary as a trie over character codes, and the search for a text's best pieces in it.

    table: (3, nodes) int64. A node's number is its column; columns are sorted by the first row. Rows:
        parent's number x alphabet + code of the character that leads here; -1 for the root;
        the piece's id, NO_PIECE or UNKNOWN; for the root the unknown token's id;
        the score, the bits of a float64.
    alphabet: codes are below it; 0 is for characters that are in no piece.
    word_start: the code of WORD_START. No piece has it but at its beginning, so words are searched one by one.
    """

    def __init__(self, table: NDArray[np.int64], alphabet: int, word_start: int) -> None:
        self._keys, self._ids, self._scores = table[0], table[1], table[2].view(np.float64)
        self._alphabet = alphabet
        self._word_start = word_start
        self._unknown_id = int(table[1, 0])

    @classmethod
    def load(cls, file: Path, characters: tokenizers.Tokenizer) -> "Pieces":
        """Map the file into memory, where all processes share it.

        Raises:
            ValueError: the characters are another tokenizer's.
        """
        word_start = characters.token_to_id(WORD_START)
        if word_start is None:
            raise ValueError(f"its vocabulary does not have {WORD_START}")
        return cls(np.asarray(np.load(file, mmap_mode="r")), characters.get_vocab_size(), word_start)

    def best(self, codes: list[int]) -> list[int]:
        """The ids of the pieces with the greatest sum of scores, of a text's character codes.

        The same sums in the same order as `Unigram::encode_optimized` of the library, in float64, and the first of
        equal ones, so that not even rounding makes another choice.
        """
        characters = np.array(codes, np.int64)
        words = iter([*np.flatnonzero(characters == self._word_start).tolist(), -1])
        word = next(words)
        best = [0.0] + [-np.inf] * len(codes)
        begins, ids = [0] * len(best), [0] * len(best)
        for block in range(0, len(codes), BLOCK_CHARACTERS):
            for start, end, score, piece in self._occurrences(characters, block):
                if start == word:
                    best[start] = 0.0
                    word = next(words)
                total = best[start] + score
                if total > best[end]:
                    best[end], begins[end], ids[end] = total, start, piece
        return self._from_the_end(begins, ids)

    def _occurrences(self, characters: NDArray[np.int64], block: int) -> Iterator[tuple[int, int, float, int]]:
        """The pieces that begin in a block of a text: start, end, score and id of each, sorted by start.

        All places walk down the trie together, one character at a time. Every character has a node.
        """
        starts = np.arange(block, min(block + BLOCK_CHARACTERS, len(characters)))
        keys = characters[starts]
        found_starts, found_ends, found_nodes = [], [], []
        length = 1
        while len(starts):
            nodes = self._keys.searchsorted(keys)
            there = self._keys.take(nodes, mode="clip") == keys
            starts, nodes = starts[there], nodes[there]
            pieces = self._ids[nodes] != NO_PIECE
            found_starts.append(starts[pieces])
            found_ends.append(found_starts[-1] + length)
            found_nodes.append(nodes[pieces])
            more = starts + length < len(characters)
            starts = starts[more]
            keys = nodes[more] * self._alphabet + characters[starts + length]
            length += 1
        order = np.concatenate(found_starts).argsort(kind="stable")
        all_nodes = np.concatenate(found_nodes)[order]
        return zip(
            np.concatenate(found_starts)[order].tolist(),
            np.concatenate(found_ends)[order].tolist(),
            self._scores[all_nodes].tolist(),
            self._ids[all_nodes].tolist(),
            strict=True,
        )

    def _from_the_end(self, begins: list[int], ids: list[int]) -> list[int]:
        """Follow the best pieces back from the text's end."""
        chosen: list[int] = []
        end, last = len(begins) - 1, NO_PIECE
        while end:
            if ids[end] != UNKNOWN:
                chosen.append(ids[end])
            elif last != UNKNOWN:
                chosen.append(self._unknown_id)
            last = ids[end]
            end = begins[end]
        return chosen[::-1]
