"""Encoder: texts -> vectors. It owns the tokenizer, the cache and the session."""

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from app.engine.cache import TextCache
from app.engine.embeddings import Embeddings, Ids, Vector
from app.engine.model_folder import ModelFolder
from app.engine.runner import Runner, Threads, run_longest_first
from app.engine.session import Session
from app.engine.tokenizer import Tokenized, Tokenizer
from app.errors import BootError, InvalidRequest, NotReady, TextTooLong

# Default of MAX_LENGTH, tokens. The build verifies the model at this length.
MAX_LENGTH = 256
# Name that stands for no prompt.
NO_PROMPT = "none"


class Cached(NamedTuple):
    """Cache entry of a text: its vector, (dim,) float32, and its token count before truncation."""

    vector: Vector
    tokens: int


class Encoder:
    """Computes vectors of texts with one model. Thread-safe.

    It is created before Gunicorn forks, which shares the tokenizer copy-on-write, and opened in each worker, since a
    session's threads do not survive a fork.

    threads: number of texts that its own runner computes at once; a request may bring a runner of its own.
    default_prompt_name: prompt of texts without one; "": the model's own default, NO_PROMPT: none.

    Raises:
        BootError: max_length is over the model's limit, or the model has no prompt of that name.
    """

    def __init__(
        self,
        model_folder: ModelFolder,
        tokenizer: Tokenizer,
        *,
        max_length: int = MAX_LENGTH,
        threads: int = 1,
        cache_size: int = 0,
        default_prompt_name: str = "",
    ) -> None:
        manifest = model_folder.manifest
        if max_length > manifest.max_positions:
            raise BootError(
                f"MAX_LENGTH is {max_length}, over the model's {manifest.max_positions} positions; "
                f"set it to {manifest.max_positions} or less."
            )
        if default_prompt_name not in ("", NO_PROMPT, *manifest.prompts):
            known = ", ".join(repr(name) for name in (*manifest.prompts, NO_PROMPT))
            raise BootError(f"DEFAULT_PROMPT_NAME is {default_prompt_name[:60]!r}; the model's prompts are: {known}.")
        self.default_prompt_name = (
            None if default_prompt_name == NO_PROMPT else default_prompt_name or manifest.default_prompt_name
        )
        self.model_folder = model_folder
        self.max_length = max_length
        # Reason why texts are refused; None once the self-check has passed.
        self.not_ready_reason: str | None = "The model is not open yet."
        self.tokenizer = tokenizer
        self._cache: TextCache[Cached] = TextCache(cache_size)
        self.runner = Threads(self.compute, self.texts_per_run, threads)
        self._opening = threading.Lock()
        self._session: Session | None = None

    @classmethod
    def load(cls, model_folder: ModelFolder, **options: Any) -> "Encoder":
        """Load the tokenizer and create the encoder. options: those of `Encoder`.

        Raises:
            BootError: the tokenizer cannot be read, or max_length is over the model's limit.
        """
        try:
            tokenizer = Tokenizer.load(model_folder.tokenizer_file)
        except Exception as error:
            raise BootError(f"{model_folder.tokenizer_file} cannot be read by tokenizers: {error}") from None
        return cls(model_folder, tokenizer, **options)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.model_folder.manifest.dimension

    def open(self, *, self_check: bool = True) -> None:
        """Open the session and run the self-check, once, in the process that serves.

        self_check: False in the build, before the golden vector exists.

        Raises:
            BootError: the model cannot be opened.
        """
        with self._opening:
            if self._session is not None:
                return
            self.model_folder.check()  # the files may have been replaced since they were loaded
            self._session = Session(self.model_folder)
            self.not_ready_reason = self._self_check() if self_check else None

    def _self_check(self) -> str | None:
        """Return None if the golden text gives its golden vector, else a sentence with the difference."""
        name, golden = self.model_folder.model_file.name, self.model_folder.manifest.golden
        known = np.asarray(golden.vectors[name], np.float32)
        ids = self.tokenizer.encode(golden.text, self.model_folder.manifest.max_positions, self.runner).ids
        vector = self.compute([ids])[0]
        cosine = float(vector @ known / (np.linalg.norm(vector) * np.linalg.norm(known)))
        if cosine >= golden.min_cosine[name]:  # False for NaN
            return None
        return (
            f"The self-check failed: {name} gave another vector on this CPU than where it was built "
            f"(cosine {cosine:.6f}, at least {golden.min_cosine[name]} is needed)."
        )

    def compute(self, rows: Sequence[Ids]) -> list[Vector]:
        """Compute rows of token ids of equal length in the calling thread; runners call this."""
        assert self._session is not None
        return self._session.compute(rows)

    def texts_per_run(self, tokens: int) -> int:
        """Return how many texts of so many tokens may be computed in one run."""
        assert self._session is not None
        return self._session.texts_per_run(tokens)

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
        runner: Runner | None = None,
    ) -> Embeddings:
        """Compute the vectors of texts, in their order, as SentenceTransformer.encode does.

        Args:
            texts: any strings; the empty one is a text like any other.
            prompt: text put before each text.
            prompt_name: name of one of the model's prompts, used in the same way. Without both, the default prompt
                applies, if there is one.
            truncate: False refuses texts over max_length instead of truncating them.
            runner: runner of this request; None: the encoder's own.

        Raises:
            InvalidRequest: the model has no prompt of that name.
            TextTooLong: truncate is False and a text is over max_length, or a text is too long without white space.
            DeadlineExceeded: the request's deadline has passed. Finished vectors stay in the cache.
            NotReady: the self-check failed on this CPU, or the model's files have changed.
        """
        runner = self._check_ready(len(texts), runner)
        began = time.monotonic()
        prefix = self.prompt(prompt, prompt_name)
        full = [prefix + text for text in texts] if prefix else list(texts)
        entries: dict[str, Cached] = {}
        missing: dict[str, Tokenized] = {}
        tokens: list[int] = []
        hits = 0
        for index, text in enumerate(full):
            found = entries.get(text) or missing.get(text)
            if found is None:
                if index:
                    runner.pause()
                if entry := self._cache.get(text):
                    found = entries[text] = entry
                else:
                    found = self.tokenizer.encode(text, self.max_length, runner, texts=len(full), index=index)
                    missing[text] = found
            hits += text in entries
            tokens.append(found.tokens)
        truncated = self._truncated(tokens, truncate)
        tokenized = time.monotonic()
        order = list(missing)

        def keep(index: int, vector: Vector) -> None:
            text = order[index]
            entries[text] = entry = Cached(vector, missing[text].tokens)
            self._cache.put(text, entry)

        run_longest_first(runner, [missing[text].ids for text in order], keep)
        rows = [entries[text].vector for text in full]
        inference_seconds = time.monotonic() - tokenized
        return Embeddings(
            rows, self.dimension, tokens, truncated, tokenized - began, inference_seconds, runner.queue_seconds, hits
        )

    def encode_ids(
        self, rows: Sequence[list[int]], *, truncate: bool = True, runner: Runner | None = None
    ) -> Embeddings:
        """Compute the vectors of texts given as token ids, special tokens included.

        Args:
            rows: the ids of each text, each from 0 to vocabulary_size - 1.

        Raises:
            InvalidText: a row is empty, or one of its ids within max_length is not in the vocabulary.
            TextTooLong: truncate is False and a row is over max_length.
            DeadlineExceeded, NotReady: as `encode`.
        """
        runner = self._check_ready(len(rows), runner)
        began = time.monotonic()
        lengths = [len(ids) for ids in rows]
        cut = []
        for index, ids in enumerate(rows):
            short = self.tokenizer.truncate(ids, self.max_length)
            self.tokenizer.check_ids(short, index)
            cut.append(np.array(short, np.int64))
            runner.pause()
        truncated = self._truncated(lengths, truncate)
        vectors: dict[int, Vector] = {}
        run_longest_first(runner, cut, vectors.__setitem__)
        in_order = [vectors[index] for index in range(len(rows))]
        inference_seconds = time.monotonic() - began
        return Embeddings(in_order, self.dimension, lengths, truncated, 0.0, inference_seconds, runner.queue_seconds)

    def _check_ready(self, texts: int, runner: Runner | None) -> Runner:
        """Open the session if needed, and check self-check and deadline. Return the runner to use."""
        if self._session is None:
            self.open()
        if self.not_ready_reason is not None:
            raise NotReady(self.not_ready_reason)
        runner = runner or self.runner
        runner.check_deadline(texts)
        return runner

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
        """Return the text put before each text: prompt, the model's prompt of that name, or the default prompt.

        Raises:
            InvalidRequest: the model has no prompt of that name.
        """
        if prompt is not None:
            return prompt
        prompts = self.model_folder.manifest.prompts
        if name is None:
            name = self.default_prompt_name
            return prompts[name] if name is not None else ""
        if name not in prompts:
            known = ", ".join(repr(known) for known in prompts) or "none"
            raise InvalidRequest(f"prompt_name is {name[:60]!r}; the model's prompts are: {known}.", "prompt_name")
        return prompts[name]
