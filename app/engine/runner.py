"""Runner: computes the rows (token ids) of several texts at once.

Threads here is the plain one; app/server/request_runner.py has the server's.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from app.engine.embeddings import Ids, Vector

T = TypeVar("T")
# Function that computes rows of token ids, (seq,) int64 of equal length, in one run -> vectors, (dim,) float32.
Compute = Callable[[Sequence[Ids]], list[Vector]]
# Function that returns how many rows of so many tokens may be computed in one run.
TextsPerRun = Callable[[int], int]


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

    def __init__(self, compute: Compute, texts_per_run: TextsPerRun, count: int) -> None:
        self._compute = compute
        self._texts_per_run = texts_per_run
        self._pool = ThreadPoolExecutor(count)

    def run_all(self, rows: Sequence[Ids], on_vector: Callable[[int, Vector], None]) -> None:
        if len(rows) == 1:
            on_vector(0, self._compute(rows)[0])
            return
        runs = self._runs(rows)

        def compute(run: list[int]) -> list[Vector]:
            return self._compute([rows[index] for index in run])

        for indexes, vectors in zip(runs, self._pool.map(compute, runs), strict=True):
            for index, vector in zip(indexes, vectors, strict=True):
                on_vector(index, vector)

    def _runs(self, rows: Sequence[Ids]) -> list[list[int]]:
        """Return the indexes of the rows that are computed together."""
        runs: list[list[int]] = []
        for index, row in enumerate(rows):
            if runs and len(row) == len(rows[runs[-1][0]]) and len(runs[-1]) < self._texts_per_run(len(row)):
                runs[-1].append(index)
            else:
                runs.append([index])
        return runs

    def offload(self, function: Callable[[], T]) -> T:
        return function()

    def pause(self) -> None:
        pass

    def check_deadline(self, texts: int) -> None:
        pass

    def texts_in_time(self, tokens: int) -> int | None:
        return None


def run_longest_first(runner: Runner, rows: list[Ids], on_vector: Callable[[int, Vector], None]) -> None:
    """Run all rows, the longest first: all threads finish at about the same time, and equal lengths come together."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    runner.run_all([rows[index] for index in order], lambda place, vector: on_vector(order[place], vector))
