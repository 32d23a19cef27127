"""Tokenizer: text -> token ids, exactly those of the model's own tokenizer.

It is the `tokenizers` library's, but for one thing: a Unigram vocabulary of 250,000 tokens takes the library 0.7 to
1.0 s and 285 MB to load, most of it for its trie. The build therefore writes the trie as a table that is mapped from
the disk in a millisecond (build/pieces.py). The library still turns a text into characters (normalization, added
tokens, words); which tokens these become is searched in unigram.py, as the library searches it.
"""

import os

# Read at import. The library's thread pool does not survive a fork, and one text at a time has no use for it.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from app.engine.chunks import CHUNK_CHARACTERS, MAX_CHUNK_CHARACTERS, chunks, cut_pattern
from app.engine.embeddings import Ids
from app.engine.runner import Runner
from app.engine.unigram import WORD_START, Unigram
from app.errors import InvalidText, TextTooLong

CHARACTERS = "characters.json"
PIECES = "pieces.npy"
# Texts from this length on, characters: freed memory is returned to the system after them (glibc keeps it).
TRIM_CHARACTERS = 20_000

# Rows of token id, start and stop: its place in the text, in characters; -1 for a special token around it. (n, 3) int32
Spans = NDArray[np.int32]

_malloc_trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)


@dataclass(frozen=True)
class Tokenized:
    """A text for the model. ids: (seq,), truncated. tokens: how many the whole text has, specials included."""

    ids: Ids
    tokens: int


class Tokenizer:
    """The tokens of texts. prefix and suffix: ids that the model wants around those of a text."""

    def __init__(self, library: tokenizers.Tokenizer, unigram: Unigram | None = None) -> None:
        self._library = library
        self._unigram = unigram
        self._cuts = cut_pattern(library)
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
        return cls(library, Unigram.load(file.with_name(PIECES), library))

    def __call__(self, text: str) -> list[int]:
        """Return all ids of a text without special ones, in one go."""
        # The batch form lets other threads run, and this one leaves out the offsets.
        return self._ids(self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode(self, text: str, max_length: int, runner: Runner, *, texts: int = 1, index: int = 0) -> Tokenized:
        """Tokenize a text of any length and truncate it to max_length tokens. It is text `index` of `texts`.

        Raises:
            TextTooLong: it is a book without white space.
            DeadlineExceeded: the request's time is up.
        """
        room = max_length - len(self.prefix) - len(self.suffix)
        content: list[int] = []
        count = 0
        is_long = len(text) > CHUNK_CHARACTERS
        for chunk in self._chunks(text, index):
            runner.check_deadline(texts)
            ids = runner.offload(partial(self, chunk)) if is_long else self(chunk)
            content += ids[: room - len(content)]
            count += len(ids)
        if len(text) > TRIM_CHARACTERS:
            _malloc_trim(0)
        ids = self.prefix + content + self.suffix
        return Tokenized(np.array(ids, np.int64), len(self.prefix) + count + len(self.suffix))

    def spans(self, text: str, *, add_special_tokens: bool = True) -> Spans:
        """Return the tokens of a text, not truncated, and their places: (n, 3) int32, see Spans.

        Raises:
            TextTooLong: it is a book without white space.
        """
        content: list[tuple[int, int, int]] = []
        offset = 0
        for chunk in self._chunks(text, 0):
            content += [(token, offset + start, offset + stop) for token, start, stop in self._spans(chunk)]
            offset += len(chunk)
        if add_special_tokens:
            before, after = ([(token, -1, -1) for token in ids] for ids in (self.prefix, self.suffix))
            content = [*before, *content, *after]
        return np.array(content, np.int32).reshape(-1, 3)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids.

        Raises:
            InvalidText: there is no id, or one is not the model's.
        """
        self.check_ids(ids, 0)
        library = self._library
        if self._unigram is None:
            return library.decode(list(ids), skip_special_tokens=skip_special_tokens)
        names = []
        special = {code for code, token in library.get_added_tokens_decoder().items() if token.special}
        for codes in map(self._unigram.codes, ids):
            if not (skip_special_tokens and codes[0] in special):
                names.append("".join(library.id_to_token(code) or "" for code in codes))
        return (library.decoder or tokenizers.decoders.Metaspace(WORD_START)).decode(names)

    @property
    def specials(self) -> list[int]:
        """The ids around a text's own."""
        return self.prefix + self.suffix

    @property
    def vocabulary_size(self) -> int:
        """Token ids are from 0 to this - 1."""
        return self._unigram.size if self._unigram is not None else self._library.get_vocab_size()

    def check_ids(self, ids: Sequence[int], index: int) -> None:
        """Raise InvalidText if text `index` has no ids, or one that is not the model's."""
        if not ids:
            raise InvalidText(index, "has no token ids; at least one is needed.")
        for number in (min(ids), max(ids)):
            if not 0 <= number < self.vocabulary_size:
                raise InvalidText(index, f"has the token id {number}; the model's are 0 to {self.vocabulary_size - 1}.")

    def truncate(self, ids: list[int], max_length: int) -> list[int]:
        """Cut ids as a text is cut: in front of the special tokens at its end."""
        if len(ids) <= max_length:
            return ids
        last = self.suffix if self.suffix and ids[-len(self.suffix) :] == self.suffix else []
        return ids[: max_length - len(last)] + last

    def _spans(self, text: str) -> list[tuple[int, int, int]]:
        """Return the ids of `__call__`, each with where it begins and ends in the text, in characters."""
        encoding = self._library.encode_batch([text], add_special_tokens=False)[0]
        offsets = encoding.offsets
        if self._unigram is None:
            return [(number, *offset) for number, offset in zip(encoding.ids, offsets, strict=True)]
        spans = self._unigram.spans(encoding.ids)
        return [(number, offsets[begin][0], offsets[end - 1][1]) for number, begin, end in spans]

    def _ids(self, ids: list[int]) -> list[int]:
        return self._unigram.viterbi(ids) if self._unigram is not None else ids

    def _chunks(self, text: str, index: int) -> Iterator[str]:
        for chunk in chunks(text, self._cuts):
            if len(chunk) > MAX_CHUNK_CHARACTERS:
                raise TextTooLong(
                    index,
                    f"has {len(chunk)} characters without white space, over the limit of {MAX_CHUNK_CHARACTERS}: "
                    "split it into several.",
                )
            yield chunk
