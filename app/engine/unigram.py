"""Unigram: a Unigram vocabulary mapped from a file, and the Viterbi search for the best tokens of a text."""

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

# SentencePiece's mark for the space before a word.
WORD_START = "▁"
NO_TOKEN = -1


class Unigram:
    """A Unigram vocabulary as a trie over character codes.

    build/unigram.py writes it. A code is the number of a character.

    table: (4, cells) int32, a double-array trie. A node is a cell; the cell of a single character is its code. Rows:
        base: the child of a node by a code is at cell base + code,
        check: that child exists if its check is the code; no two nodes have the same base,
        token: id of the token that ends at the node, or NO_TOKEN,
        scores of all tokens by id, the bits of float64s.
    Cell 0 stands for an unknown character. Its token has the id after all others, and its check is the id of the
    unknown token.
    word_start: the code of WORD_START. Tokens have it only at their beginning, so words are searched one by one.
    end: a code that no child has.
    """

    def __init__(self, table: NDArray[np.int32], *, word_start: int, end: int) -> None:
        self._table = table
        # Reading one number from a memoryview takes half as long as from an array.
        self._bases, self._checks, self._tokens = (memoryview(row) for row in table[:3])
        self._scores = memoryview(table[3].view(np.float64))
        self._unknown, self._unknown_id = int(table[2, 0]), int(table[1, 0])
        self._word_start = word_start
        self._end = end

    @classmethod
    def load(cls, file: Path, characters: tokenizers.Tokenizer) -> "Unigram":
        """Map the file into memory, which all processes share.

        Raises:
            ValueError: `characters` belongs to another tokenizer.
        """
        word_start = characters.token_to_id(WORD_START)
        if word_start is None:
            raise ValueError(f"its vocabulary does not have {WORD_START}")
        return cls(np.load(file, mmap_mode="r"), word_start=word_start, end=characters.get_vocab_size())

    @property
    def size(self) -> int:
        """Vocabulary size: ids are 0 to size - 1."""
        return self._unknown

    def viterbi(self, codes: list[int]) -> list[int]:
        """Return the token ids with the greatest sum of scores for a text's character codes."""
        return [token for token, _, _ in self.spans(codes)]

    def spans(self, codes: list[int]) -> list[tuple[int, int, int]]:
        """Return the ids of `viterbi`, each with the indexes of its first code and of the code after its last.

        It adds the same float64 numbers in the same order as `Unigram::encode_optimized` of the library, and takes the
        first of equal sums, so that rounding leads to the same choice.
        """
        bases, checks, tokens, scores = self._bases, self._checks, self._tokens, self._scores
        best = [0.0] + [-math.inf] * len(codes)
        begins, chosen = [0] * len(best), [0] * len(best)
        followed = [*codes, self._end]
        for start, node in enumerate(codes):
            score = best[start] if node != self._word_start else 0.0
            end = start + 1
            while True:
                token = tokens[node]
                if token != NO_TOKEN and (total := score + scores[token]) > best[end]:
                    best[end], begins[end], chosen[end] = total, start, token
                code = followed[end]
                node = bases[node] + code
                if checks[node] != code:
                    break
                end += 1
        return self._backtrack(begins, chosen)

    def _backtrack(self, begins: list[int], chosen: list[int]) -> list[tuple[int, int, int]]:
        """Follow the best tokens back from the text's end."""
        spans: list[tuple[int, int, int]] = []
        end, last = len(begins) - 1, NO_TOKEN
        while end:
            token, begin = chosen[end], begins[end]
            if token != self._unknown:
                spans.append((token, begin, end))
            elif last != self._unknown:
                spans.append((self._unknown_id, begin, end))
            else:  # consecutive unknown tokens are merged into one
                spans[-1] = (self._unknown_id, begin, spans[-1][2])
            last = token
            end = begin
        return spans[::-1]

    def codes(self, token: int) -> list[int]:
        """Return the character codes of a token, or those of the unknown token if no text can contain it."""
        of_token, of_base = self._cells
        cell = int(of_token[token]) or int(of_token[self._unknown_id])
        codes = []
        while cell >= self._end:
            codes.append(self._checks[cell])
            cell = int(of_base[cell - codes[-1]])
        return [cell, *codes[::-1]]

    @cached_property
    def _cells(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Cell of each token, or 0, and cell of each base: 5 MB for 250,000 tokens, computed at first use."""
        backwards = np.arange(self._table.shape[1], dtype=np.int32)[::-1]
        maps = []
        for row in (self._table[2], self._table[0]):
            cells = np.zeros(row.max() + 1, np.int32)
            held = backwards[row[backwards] != NO_TOKEN]
            cells[row[held]] = (
                held  # the first cell wins: an added token's own cell comes before that of its characters
            )
            maps.append(cells)
        return maps[0], maps[1]
