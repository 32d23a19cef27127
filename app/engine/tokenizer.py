"""Tokenizer: text -> token ids, exactly those of the model's own tokenizer.

The `tokenizers` library does the work, with one exception. It needs 0.7 to 1.0 s and 285 MB to load a Unigram
vocabulary of 250,000 tokens, most of it for its trie. The build therefore writes the trie as a table (build/unigram.py)
that is mapped from the disk in a millisecond. characters.py turns a text into characters with the library's help;
unigram.py then searches their tokens with the library's own algorithm.
"""

import os

# Read by the library at import. Its thread pool does not survive a fork, and single texts do not need it.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from app.engine.characters import Characters
from app.engine.chunks import CHUNK_CHARACTERS, MAX_CHUNK_CHARACTERS, chunks, cut_pattern
from app.engine.embeddings import Ids
from app.engine.runner import Runner
from app.engine.unigram import WORD_START, Unigram
from app.errors import InvalidText, TextTooLong

CHARACTERS = "characters.json"
PIECES = "pieces.npy"
# Shortest text after which freed memory is returned to the system, characters: glibc would keep it.
TRIM_CHARACTERS = 20_000

# Rows of (token id, start, stop), (n, 3) int32. start and stop: characters in the text, -1 for added special tokens.
Spans = NDArray[np.int32]

_malloc_trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)


class Tokenized(NamedTuple):
    """Token ids of a text. ids: (seq,) int64, truncated. tokens: count before truncation, special tokens included."""

    ids: Ids
    tokens: int


class Tokenizer:
    """Tokenizes texts. prefix, suffix: ids of the special tokens that the model needs around a text."""

    def __init__(self, library: tokenizers.Tokenizer, unigram: Unigram | None = None) -> None:
        self._library = library
        self._unigram = unigram
        self._characters = Characters(library) if unigram is not None else None
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
            Exception: the file cannot be read; the library raises nothing more specific.
        """
        library = tokenizers.Tokenizer.from_file(str(file))
        library.no_padding()
        library.no_truncation()
        if file.name != CHARACTERS:
            return cls(library)
        # The library's cache of 10,000 words saves no time here, and can grow to 90 MB in each worker.
        library.model._resize_cache(0)
        return cls(library, Unigram.load(file.with_name(PIECES), library))

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens and not truncated."""
        ids = self._characters(text) if self._characters is not None else None
        if ids is None:
            # encode_batch_fast releases the interpreter lock and skips the offsets.
            ids = self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return self._ids(ids)

    def encode(self, text: str, max_length: int, runner: Runner, *, texts: int = 1, index: int = 0) -> Tokenized:
        """Tokenize a text of any length and truncate it to max_length tokens. It is text `index` of `texts`.

        Raises:
            TextTooLong: the text has more than MAX_CHUNK_CHARACTERS without white space.
            DeadlineExceeded: the request's deadline has passed.
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
        """Return the tokens of a text, not truncated, with their positions: (n, 3) int32, see Spans.

        Raises:
            TextTooLong: the text has more than MAX_CHUNK_CHARACTERS without white space.
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
        """Return the text of token ids.

        Raises:
            InvalidText: the list is empty, or an id is not in the vocabulary.
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
        """Ids of the special tokens around a text."""
        return self.prefix + self.suffix

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids: they are 0 to vocabulary_size - 1."""
        return self._unigram.size if self._unigram is not None else self._library.get_vocab_size()

    def check_ids(self, ids: Sequence[int], index: int) -> None:
        """Raise InvalidText if text `index` has no ids, or one that is not in the vocabulary."""
        if not ids:
            raise InvalidText(index, "has no token ids; at least one is needed.")
        for number in (min(ids), max(ids)):
            if not 0 <= number < self.vocabulary_size:
                raise InvalidText(index, f"has the token id {number}; the model's are 0 to {self.vocabulary_size - 1}.")

    def truncate(self, ids: list[int], max_length: int) -> list[int]:
        """Truncate ids like a text: the special tokens at the end stay."""
        if len(ids) <= max_length:
            return ids
        last = self.suffix if self.suffix and ids[-len(self.suffix) :] == self.suffix else []
        return ids[: max_length - len(last)] + last

    def _spans(self, text: str) -> list[tuple[int, int, int]]:
        """Return the ids of `__call__`, each with its start and stop in the text, characters."""
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
