"""Batch: the rows of one request in the scheduler's queue, and their state."""

import time
from collections.abc import Callable, Sequence

from gevent.event import Event

from app.engine.embeddings import Ids, Vector


class Batch:
    """Rows of one request. A row is the token ids of one text, (seq,) int64.

    started, done: counts of rows. queue_seconds: time that the first row waited.
    on_vector: called with the index and the vector of each computed row.
    check: called with done and the number of rows before each row; raises an error to end the request.
    """

    def __init__(
        self,
        rows: Sequence[Ids],
        on_vector: Callable[[int, Vector], None],
        check: Callable[[int, int], None],
    ) -> None:
        self.rows = rows
        self.ticket = self.started = self.done = 0
        self.queue_seconds = 0.0
        self._on_vector = on_vector
        self._check = check
        self._submitted = time.monotonic()
        self._error: BaseException | None = None
        self._ended = Event()

    @property
    def length(self) -> int:
        """Number of tokens of the next row."""
        return len(self.rows[self.started])

    @property
    def has_rows(self) -> bool:
        """True while a row has not started."""
        return self.started < len(self.rows)

    def start(self, most: int) -> range:
        """Start the next row, and further ones of the same length, `most` in all. Return their indexes."""
        first, length = self.started, self.length
        while self.has_rows and self.length == length and self.started < first + most:
            self.started += 1
        return range(first, self.started)

    def check(self) -> None:
        """Raise the error that ends the request before its next row, if there is one."""
        if not self.started:
            self.queue_seconds = time.monotonic() - self._submitted
        self._check(self.done, len(self.rows))

    def finish(self, index: int, vector: Vector) -> None:
        """Pass on the vector of a row, also after the request has failed: the cache keeps it for a retry."""
        self._on_vector(index, vector)
        self.done += 1
        if self.done == len(self.rows):
            self._ended.set()

    def fail(self, error: BaseException) -> None:
        """End the request with an error. Rows that are being computed are still passed on."""
        self._error = self._error or error
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Wait until all rows are done; return whether they were done in time. Raises the batch's error."""
        is_over = bool(self._ended.wait(seconds))
        if self._error is not None:
            raise self._error
        return is_over
