"""Runner: computes the rows (token ids) of several texts at once.

Threads here is the plain one; app/server/scheduler.py has the server's.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from app.engine.embeddings import Ids, Vector

T = TypeVar("T")
# Function that computes rows of token ids, (seq,) int64 each, in one thread -> vectors, (dim,) float32, in order.
Compute = Callable[[Sequence[Ids]], list[Vector]]


class Runner(Protocol):
    """Interface through which the encoder computes. An instance belongs to one request, or has no deadline.

    queue_seconds: time that the request's rows waited before the first one started.
    """

    queue_seconds: float

    def run_all(self, rows: Sequence[Ids], on_vector: Callable[[int, Vector], None]) -> None:
        """Compute every row and call on_vector(index, vector) as each is done, in any order.

        Raises:
            DeadlineExceeded: the request's deadline passed before its last row started.
        """

    def offload(self, function: Callable[[], T]) -> T:
        """Return function(), called in a thread that blocks no other request: for work of milliseconds or more."""

    def pause(self) -> None:
        """Yield to other requests, between two pieces of work of about a millisecond."""

    def check_deadline(self, texts: int) -> None:
        """Raise DeadlineExceeded if the request's deadline has passed. texts: number of its texts."""

    def texts_in_time(self, tokens: int) -> int | None:
        """Return how many texts of `tokens` tokens can be computed within the deadline, or None if unknown."""


class Threads:
    """Runner on plain threads, without deadlines: for the build, tests and tools."""

    queue_seconds = 0.0

    def __init__(self, compute: Compute, count: int) -> None:
        self._compute = compute
        self._pool = ThreadPoolExecutor(count)

    def run_all(self, rows: Sequence[Ids], on_vector: Callable[[int, Vector], None]) -> None:
        if len(rows) == 1:
            on_vector(0, self._compute(rows)[0])
            return
        for index, vectors in enumerate(self._pool.map(lambda row: self._compute([row]), rows)):
            on_vector(index, vectors[0])

    def offload(self, function: Callable[[], T]) -> T:
        return function()

    def pause(self) -> None:
        pass

    def check_deadline(self, texts: int) -> None:
        pass

    def texts_in_time(self, tokens: int) -> int | None:
        return None
