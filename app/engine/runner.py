"""Runner: computes token rows, several at once. Plain threads here; the server's is in app/server/scheduler.py."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from app.engine.embeddings import Ids, Vector

T = TypeVar("T")
# Computes rows of token ids, (seq,) int64 each, in one thread: their vectors, (dim,) float32 each, in order.
Compute = Callable[[Sequence[Ids]], list[Vector]]


class Runner(Protocol):
    """Interface through which the encoder computes. An instance belongs to one request, or has no deadline.

    queue_seconds: how long the request's rows waited until the first one began.
    """

    queue_seconds: float

    def run_all(self, rows: Sequence[Ids], on_vector: Callable[[int, Vector], None]) -> None:
        """Compute every row and call on_vector(index, vector) as each is done, in any order.

        Raises:
            DeadlineExceeded: the request's time was up before its last row began.
        """

    def offload(self, function: Callable[[], T]) -> T:
        """Return function(), called where it holds up nobody else: for milliseconds of work and more."""

    def pause(self) -> None:
        """Let others go on, between two pieces of work of a millisecond or so."""

    def check_deadline(self, texts: int) -> None:
        """Raise DeadlineExceeded if the request's time is up; texts: how many it has."""

    def texts_in_time(self, tokens: int) -> int | None:
        """Return how many texts of so many tokens fit into one request; None if that is not known."""


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
