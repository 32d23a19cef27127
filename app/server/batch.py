"""Batch: the rows of one request in the scheduler's queue, and what came of them."""

import time
from collections.abc import Callable, Sequence

from gevent.event import Event

from app.engine.embeddings import Ids, Vector


class Batch:
    """begun, done: numbers of rows. queue_seconds: how long the first row waited.

    check: called with done and the number of rows before each row; it raises what keeps the row from being computed.
    """

    def __init__(
        self,
        rows: Sequence[Ids],
        on_vector: Callable[[int, Vector], None],
        check: Callable[[int, int], None],
    ) -> None:
        self.rows = rows
        self.ticket = self.begun = self.done = 0
        self.queue_seconds = 0.0
        self._on_vector = on_vector
        self._check = check
        self._submitted = time.monotonic()
        self._error: BaseException | None = None
        self._ended = Event()

    def check(self) -> None:
        """Raise what keeps the next row from being computed."""
        if not self.begun:
            self.queue_seconds = time.monotonic() - self._submitted
        self._check(self.done, len(self.rows))

    def finish(self, index: int, vector: Vector) -> None:
        """Hand over the vector of a row, even when the request has given up: it is kept for the next one."""
        self._on_vector(index, vector)
        self.done += 1
        if self.done == len(self.rows):
            self._ended.set()

    def fail(self, error: BaseException) -> None:
        """End the request with an error; rows that are being computed are handed over all the same."""
        self._error = self._error or error
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Wait until all rows are done; return whether they are in time. Raises what the batch failed with."""
        is_over = bool(self._ended.wait(seconds))
        if self._error is not None:
            raise self._error
        return is_over
