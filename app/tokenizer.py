"""Text -> token ids, exactly those of the model's own tokenizer.

A tokenizer is the `tokenizers` library's, but for one thing: a Unigram vocabulary of 250,000 pieces takes the library
0.7 to 1.0 s and 285 MB to load, most of it for its trie. The build therefore writes the trie as a table that is mapped
from the disk in a millisecond (build/pieces.py). The library still makes a text into characters (normalization, added
tokens, words); which pieces these become is searched here, as the library searches it.
"""

import os

# Read at import. The library's thread pool does not survive a fork, and one text at a time has no use for it.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

CHARACTERS = "characters.json"
PIECES = "pieces.npy"
# Where a word begins: SentencePiece's mark for the space before it.
WORD_START = "▁"
NO_PIECE = -1


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
        if file.name != CHARACTERS:
            return cls(library)
        # Its cache of 10,000 words saves nothing here, and could grow to 90 MB in each worker.
        library.model._resize_cache(0)
        return cls(library, Pieces.load(file.with_name(PIECES), library))

    def __call__(self, text: str) -> list[int]:
        """All ids of a text, however long it is."""
        # The batch form lets other threads run, and this one leaves out the offsets.
        return self._ids(self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """The same ids, each with where it begins and ends in the text, in characters."""
        encoding = self._library.encode_batch([text], add_special_tokens=False)[0]
        offsets = encoding.offsets
        if self._pieces is None:
            return [(number, *offset) for number, offset in zip(encoding.ids, offsets, strict=True)]
        spans = self._pieces.spans(encoding.ids)
        return [(number, offsets[begin][0], offsets[end - 1][1]) for number, begin, end in spans]

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids, each from 0 to vocabulary_size - 1."""
        library = self._library
        if self._pieces is None:
            return library.decode(ids, skip_special_tokens=skip_special_tokens)
        names = []
        special = {code for code, token in library.get_added_tokens_decoder().items() if token.special}
        for codes in map(self._pieces.codes, ids):
            if not (skip_special_tokens and codes[0] in special):
                names.append("".join(library.id_to_token(code) or "" for code in codes))
        return (library.decoder or tokenizers.decoders.Metaspace(WORD_START)).decode(names)

    @property
    def vocabulary_size(self) -> int:
        return self._pieces.size if self._pieces is not None else self._library.get_vocab_size()

    def _ids(self, ids: list[int]) -> list[int]:
        return self._pieces.best(ids) if self._pieces is not None else ids


class Pieces:
    """A Unigram vocabulary as a trie over character codes, and the search for a text's best pieces in it.

    table: (4, cells) int32, a double-array trie. A node is a cell; that of a single character is its code. Rows:
        base: the child by a code is at the cell base + code,
        check: if this is that code, otherwise there is none; no two nodes have the same base,
        the piece's id, or NO_PIECE,
        the scores of all pieces by id, the bits of float64s.
    The cell 0 is an unknown character's; its piece has an id of its own, after all others, and its check is the id of
    the unknown token.
    word_start: the code of WORD_START. No piece has it but at its beginning, so words are searched one by one.
    end: a code that no child has.
    """

    def __init__(self, table: NDArray[np.int32], *, word_start: int, end: int) -> None:
        self._table = table
        # Reading one number from a memoryview takes half the time that it takes from an array.
        self._bases, self._checks, self._pieces = (memoryview(row) for row in table[:3])
        self._scores = memoryview(table[3].view(np.float64))
        self._unknown, self._unknown_id = int(table[2, 0]), int(table[1, 0])
        self._word_start = word_start
        self._end = end

    @classmethod
    def load(cls, file: Path, characters: tokenizers.Tokenizer) -> "Pieces":
        """Map the file into memory, where all processes share it.

        Raises:
            ValueError: the characters are another tokenizer's.
        """
        word_start = characters.token_to_id(WORD_START)
        if word_start is None:
            raise ValueError(f"its vocabulary does not have {WORD_START}")
        return cls(np.load(file, mmap_mode="r"), word_start=word_start, end=characters.get_vocab_size())

    @property
    def size(self) -> int:
        """All ids are below."""
        return self._unknown

    def best(self, codes: list[int]) -> list[int]:
        """The ids of the pieces with the greatest sum of scores, of a text's character codes."""
        return [piece for piece, _, _ in self.spans(codes)]

    def spans(self, codes: list[int]) -> list[tuple[int, int, int]]:
        """The same, each with the indexes of its first code and of the one after its last.

        The same sums in the same order as `Unigram::encode_optimized` of the library, in float64, and the first of
        equal ones, so that not even rounding makes another choice.
        """
        bases, checks, pieces, scores = self._bases, self._checks, self._pieces, self._scores
        best = [0.0] + [-math.inf] * len(codes)
        begins, chosen = [0] * len(best), [0] * len(best)
        followed = [*codes, self._end]
        for start, node in enumerate(codes):
            score = best[start] if node != self._word_start else 0.0
            end = start + 1
            while True:
                piece = pieces[node]
                if piece != NO_PIECE and (total := score + scores[piece]) > best[end]:
                    best[end], begins[end], chosen[end] = total, start, piece
                code = followed[end]
                node = bases[node] + code
                if checks[node] != code:
                    break
                end += 1
        return self._from_the_end(begins, chosen)

    def _from_the_end(self, begins: list[int], chosen: list[int]) -> list[tuple[int, int, int]]:
        """Follow the best pieces back from the text's end."""
        spans: list[tuple[int, int, int]] = []
        end, last = len(begins) - 1, NO_PIECE
        while end:
            piece, begin = chosen[end], begins[end]
            if piece != self._unknown:
                spans.append((piece, begin, end))
            elif last != self._unknown:
                spans.append((self._unknown_id, begin, end))
            else:  # several in a row are one
                spans[-1] = (self._unknown_id, begin, spans[-1][2])
            last = piece
            end = begin
        return spans[::-1]

    def codes(self, piece: int) -> list[int]:
        """The character codes of a piece; those of the unknown token for one that no text can have."""
        of_piece, of_base = self._cells
        cell = int(of_piece[piece]) or int(of_piece[self._unknown_id])
        codes = []
        while cell >= self._end:
            codes.append(self._checks[cell])
            cell = int(of_base[cell - codes[-1]])
        return [cell, *codes[::-1]]

    @cached_property
    def _cells(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The cell of each piece, or 0, and of each base: 5 MB for 250,000 pieces, made when first used."""
        backwards = np.arange(self._table.shape[1], dtype=np.int32)[::-1]
        found = []
        for row in (self._table[2], self._table[0]):
            cells = np.zeros(row.max() + 1, np.int32)
            held = backwards[row[backwards] != NO_PIECE]
            cells[row[held]] = held  # the first one stays: an added token's own cell is before its characters'
            found.append(cells)
        return found[0], found[1]
