"""Encoder: texts -> vectors. The only object with state.

One text per run, unpadded: a vector depends on its text alone, bit for bit, and no time
goes into padding. Parallelism comes from texts, not from inside one.
"""

import os

# Read at import. onnxruntime (since 1.29) reports its use to its maker from a thread of its own:
# nothing leaves this machine, and that thread breaks the exit after a fork.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.artifact import Artifact
from app.cache import TextCache
from app.errors import BootError, InvalidRequest, NotReady, TextTooLong, WrongText
from app.slots import Slots
from app.tokenizer import Tokenizer

# Longer texts are tokenized piece by piece, and one at a time: the memory of it grows with the
# piece, and some characters become 18 (NFKC of U+FDFA). 8 MiB of "a a a …" took 1,490 MB as one
# piece and 35 MB so.
PIECE_CHARACTERS = 2_000
# What has no space is one piece. Japanese pages have none; whole books are refused.
MAX_PIECE_CHARACTERS = 100_000
# After texts as long as this freed memory is given back (glibc keeps it for each thread).
TRIM_CHARACTERS = 20_000
FIRST_SPACE = re.compile(r"(?<=\S) ")

_malloc_trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)

Vector = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Embeddings:
    """What `Encoder.encode` gives for n texts.

    vectors: (n, dim) float32. tokens: what each text has before truncation, prompt and
    specials included. truncated: whether that is over max_length. tokenize_seconds and
    inference_seconds: for all of them; the latter with the wait for other requests' texts.
    cache_hits: texts whose vector was there already.
    """

    vectors: Vector
    tokens: list[int]
    truncated: list[bool]
    tokenize_seconds: float = 0.0
    inference_seconds: float = 0.0
    cache_hits: int = 0


@dataclass(frozen=True)
class Token:
    """start and stop: where it is in the text, in characters; None for one that the model puts around it."""

    id: int
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True)
class _Tokenized:
    ids: Ids  # (seq,), at most max_length
    tokens: int  # before truncation


@dataclass(frozen=True)
class _Entry:
    vector: Vector  # (dim,)
    tokens: int


class Encoder:
    """Texts to vectors with one model.

    Made before Gunicorn forks (the tokenizer is shared copy-on-write) and opened in each
    worker, since a session's threads do not survive a fork. Safe to use from many threads.

    Raises:
        BootError: max_length is over the model's limit.
    """

    def __init__(
        self,
        artifact: Artifact,
        tokenizer: Tokenizer,
        *,
        max_length: int = 256,
        slots: int = 1,
        threads: int = 1,
        cache_size: int = 0,
    ) -> None:
        manifest = artifact.manifest
        if max_length > manifest.max_positions:
            raise BootError(
                f"MAX_LENGTH is {max_length}, over the model's {manifest.max_positions} positions; "
                f"set it to {manifest.max_positions} or less."
            )
        self.artifact = artifact
        self.max_length = max_length
        # Why nothing is encoded; None once the golden text gave its golden vector here.
        self.problem: str | None = "The model is not open yet."
        self._tokenizer = tokenizer
        self._cache: TextCache[_Entry] = TextCache(cache_size)
        self.slots: Slots[Ids, Vector] = Slots(slots, self._run, threads)
        self._one_long_text = threading.Lock()
        self._opening = threading.Lock()
        self._session: ort.InferenceSession | None = None

    @classmethod
    def load(cls, artifact: Artifact, **options: int) -> "Encoder":
        """Load the tokenizer. The options are those of `Encoder`.

        Raises:
            BootError: the tokenizer cannot be read, or max_length is over the model's limit.
        """
        try:
            tokenizer = Tokenizer.load(artifact.tokenizer_file)
        except Exception as error:
            raise BootError(f"{artifact.tokenizer_file} cannot be read by tokenizers: {error}") from None
        return cls(artifact, tokenizer, **options)

    @property
    def dimension(self) -> int:
        return self.artifact.manifest.dimension

    def open(self, *, self_check: bool = True) -> None:
        """Open the session and compare the golden text's vector; once, in the process that serves.

        self_check: False where there is no golden vector yet, in the build.

        Raises:
            BootError: the model cannot be opened.
        """
        with self._opening:
            if self._session is not None:
                return
            self.artifact.check()  # the files may have been replaced since
            session = _open_session(self.artifact)
            self.slots.start()
            self.problem = self._self_check(session) if self_check else None
            self._session = session

    def _self_check(self, session: ort.InferenceSession) -> str | None:
        """None, or a sentence that says how the golden text's vector differs."""
        name, golden = self.artifact.model_file.name, self.artifact.manifest.golden
        known = np.asarray(golden.vectors[name], np.float32)
        vector = _run(session, self._tokenize(golden.text, self.artifact.manifest.max_positions).ids)
        cosine = float(vector @ known / (np.linalg.norm(vector) * np.linalg.norm(known)))
        if cosine >= golden.min_cosine[name]:  # False for NaN
            return None
        return (
            f"The self-check failed: {name} gave another vector on this CPU than where it was built "
            f"(cosine {cosine:.6f}, at least {golden.min_cosine[name]} is needed)."
        )

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
    ) -> Embeddings:
        """Compute the vectors of texts, in their order, as SentenceTransformer.encode does.

        Args:
            texts: any strings; the empty one is a text like any other.
            prompt: put before each text.
            prompt_name: the same by the model's own name for it. With neither, the model's
                default prompt applies, if it has one.
            truncate: False refuses texts over max_length instead of cutting them.

        Raises:
            InvalidRequest: the model has no prompt of that name.
            TextTooLong: truncate is False and a text is over max_length, or it is a book
                without a space.
            DeadlineExceeded: the request's time is up.
            NotReady: the self-check failed on this CPU.
        """
        self._check(len(texts))
        began = time.monotonic()
        before = self.prompt(prompt, prompt_name)
        full = [before + text for text in texts] if before else list(texts)
        indexes: dict[str, int] = {}
        for index, text in enumerate(full):
            indexes.setdefault(text, index)
        found = {text: entry for text in indexes if (entry := self._cache.get(text))}
        missing = {
            text: self._tokenize(text, self.max_length, len(full), index)
            for text, index in indexes.items()
            if text not in found
        }
        lengths = {text: item.tokens for text, item in (found | missing).items()}
        tokens = [lengths[text] for text in full]
        truncated = self._truncated(tokens, truncate)
        hits = sum(text in found for text in full)
        tokenized = time.monotonic()
        # the longest first, so that all slots end at about the same time
        order = sorted(missing, key=lambda text: -len(missing[text].ids))
        vectors = self.slots.map([missing[text].ids for text in order])
        for text, vector in zip(order, vectors, strict=True):
            found[text] = _Entry(vector, lengths[text])
            self._cache.put(text, found[text])
        if len(full) > 1:  # the answer to one fits into the socket's buffer, others may wait for a slow client
            self.slots.leave()
        rows = np.array([found[text].vector for text in full], np.float32).reshape(len(full), self.dimension)
        return Embeddings(rows, tokens, truncated, tokenized - began, time.monotonic() - tokenized, hits)

    def encode_ids(self, rows: Sequence[Sequence[int]], *, truncate: bool = True) -> Embeddings:
        """The same for texts that are tokens already, the model's special ones included: those of `tokens`.

        Args:
            rows: the ids of each text, each from 0 to vocabulary_size - 1.

        Raises:
            WrongText: a row is empty, or an id is not one of the model's.
            TextTooLong: truncate is False and a row is over max_length.
            DeadlineExceeded, NotReady: as `encode`.
        """
        self._check(len(rows))
        began = time.monotonic()
        for index, ids in enumerate(rows):
            self._check_ids(ids, index)
        lengths = [len(ids) for ids in rows]
        truncated = self._truncated(lengths, truncate)
        suffix = self._tokenizer.suffix
        vectors = self.slots.map([np.array(_cut(list(ids), self.max_length, suffix), np.int64) for ids in rows])
        if len(rows) > 1:
            self.slots.leave()
        matrix = np.array(vectors, np.float32).reshape(len(rows), self.dimension)
        return Embeddings(matrix, lengths, truncated, inference_seconds=time.monotonic() - began)

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """The tokens of a text, not truncated.

        Raises:
            TextTooLong, DeadlineExceeded: as `encode`.
        """
        tokenizer = self._tokenizer
        content: list[Token] = []
        offset = 0
        for piece in self._checked_pieces(text, 1, 0):
            spans = tokenizer.spans(piece)
            content += [Token(number, offset + start, offset + stop) for number, start, stop in spans]
            offset += len(piece)
        if not add_special_tokens:
            return content
        return [*map(Token, tokenizer.prefix), *content, *map(Token, tokenizer.suffix)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids.

        Raises:
            WrongText: there is none, or one is not the model's.
            DeadlineExceeded: the request's time is up.
        """
        self.slots.check(1)
        self._check_ids(ids, 0)
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _check(self, texts: int) -> None:
        """Open what is not open, and refuse what cannot be answered (right, or in time)."""
        if self.problem is not None:
            self.open()
        if self.problem is not None:
            raise NotReady(self.problem)
        self.slots.check(texts)

    @property
    def vocabulary_size(self) -> int:
        """Token ids are from 0 to this - 1."""
        return self._tokenizer.vocabulary_size

    def _check_ids(self, ids: Sequence[int], index: int) -> None:
        if not ids:
            raise WrongText(index, "has no token ids; at least one is needed.")
        for number in (min(ids), max(ids)):
            if not 0 <= number < self.vocabulary_size:
                raise WrongText(index, f"has the token id {number}; the model's are 0 to {self.vocabulary_size - 1}.")

    def _truncated(self, tokens: list[int], truncate: bool) -> list[bool]:
        truncated = [n > self.max_length for n in tokens]
        if not truncate and True in truncated:
            index = truncated.index(True)
            raise TextTooLong(
                index,
                f"has {tokens[index]} tokens, over the limit of {self.max_length} (MAX_LENGTH), "
                "and truncate is false: shorten it, or allow truncation.",
                "truncate",
            )
        return truncated

    def prompt(self, prompt: str | None, name: str | None) -> str:
        """What is put before each text: prompt, or the model's own one of that name, or its default.

        Raises:
            InvalidRequest: the model has no prompt of that name.
        """
        if prompt is not None:
            return prompt
        prompts = self.artifact.manifest.prompts
        if name is None:
            name = self.artifact.manifest.default_prompt_name
            return prompts[name] if name is not None else ""
        if name not in prompts:
            known = ", ".join(repr(known) for known in prompts) or "none"
            raise InvalidRequest(f"prompt_name is {name[:60]!r}; the model's prompts are: {known}.", "prompt_name")
        return prompts[name]

    def _tokenize(self, text: str, max_length: int, texts: int = 1, index: int = 0) -> _Tokenized:
        room = max_length - len(self._tokenizer.prefix) - len(self._tokenizer.suffix)
        content: list[int] = []
        count = 0
        for piece in self._checked_pieces(text, texts, index):
            with self._one_long_text if len(text) > PIECE_CHARACTERS else nullcontext():
                ids = self._tokenizer(piece)
            content += ids[: room - len(content)]
            count += len(ids)
        if len(text) > TRIM_CHARACTERS:
            _malloc_trim(0)
        ids = self._tokenizer.prefix + content + self._tokenizer.suffix
        return _Tokenized(np.array(ids, np.int64), len(self._tokenizer.prefix) + count + len(self._tokenizer.suffix))

    def _checked_pieces(self, text: str, texts: int, index: int) -> Iterator[str]:
        for piece in _pieces(text):
            if len(piece) > MAX_PIECE_CHARACTERS:
                raise TextTooLong(
                    index,
                    f"has {len(piece)} characters without a space, over the limit of {MAX_PIECE_CHARACTERS}: "
                    "split it into several.",
                )
            self.slots.check(texts)
            yield piece

    def _run(self, ids: Ids) -> Vector:
        assert self._session is not None
        return _run(self._session, ids)


def _cut(ids: list[int], max_length: int, suffix: list[int]) -> list[int]:
    """Cut as a text is: in front of the special tokens at its end."""
    if len(ids) <= max_length:
        return ids
    last = suffix if suffix and ids[-len(suffix) :] == suffix else []
    return ids[: max_length - len(last)] + last


def _pieces(text: str) -> list[str]:
    """Cut a long text into pieces of about PIECE_CHARACTERS, before spaces: no token crosses these."""
    pieces = []
    start = 0
    while cut := FIRST_SPACE.search(text, start + PIECE_CHARACTERS):
        pieces.append(text[start : cut.start()])
        start = cut.start()
    return [*pieces, text[start:]]


def _run(session: ort.InferenceSession, ids: Ids) -> Vector:
    """(seq,) int64 -> (dim,) float32, read-only since requests share it through the cache."""
    vector: Vector = session.run(None, {"input_ids": ids})[0]
    vector.setflags(write=False)
    return vector


def _open_session(artifact: Artifact) -> ort.InferenceSession:
    """Open the model file and check its inputs and outputs.

    Raises:
        BootError: it cannot be opened, or is not a one-text graph of the manifest's dimension.
    """
    path: Path = artifact.model_file
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BootError(f"{path} cannot be opened by onnxruntime: {' '.join(str(error).split())}") from None
    inputs = [(item.name, item.type, len(item.shape)) for item in session.get_inputs()]
    outputs = [(item.name, item.type, item.shape) for item in session.get_outputs()]
    dimension = artifact.manifest.dimension
    if inputs != [("input_ids", "tensor(int64)", 1)] or outputs != [("embedding", "tensor(float)", [dimension])]:
        raise BootError(
            f"{path} takes {inputs} and gives {outputs}; needed is input_ids (seq,) int64 in, "
            f"embedding ({dimension},) float32 out – run `make model`."
        )
    return session
