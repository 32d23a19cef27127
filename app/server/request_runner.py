"""Request runner: the runs of one request on the scheduler, with its deadline and its client."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from app.engine.embeddings import Ids, Vector
from app.errors import ClientGone, DeadlineExceeded, TooLarge
from app.server.batch import Batch
from app.server.hub import yield_to_hub
from app.server.scheduler import Scheduler

T = TypeVar("T")
# Interval between checks for a disconnected client of a waiting request, seconds.
DISCONNECT_CHECK_SECONDS = 0.2
# Share of the deadline that the recommended largest request fills. Before the first long row, its time is estimated
# from short ones: that gives 0.7 of the real time on a CPU with AMX, 0.8 with AVX2.
MARGIN = 0.7


class RequestRunner:
    """Runner of one request (interface: app/engine/runner.py).

    arrived, deadline: seconds of time.monotonic(). is_gone: checks for a disconnect.
    """

    def __init__(self, scheduler: Scheduler, arrived: float, is_gone: Callable[[], bool]) -> None:
        self.queue_seconds = 0.0
        self.deadline = arrived + scheduler.deadline_seconds
        self._is_gone = is_gone
        self._client_checked = time.monotonic()
        self._scheduler = scheduler
        self._is_preparing = False
        self._is_small = True
        self._texts = 0

    def end(self) -> None:
        """End the preparation: from now on only rows in the queue count as waiting."""
        self._scheduler.preparing -= self._is_preparing
        self._is_preparing = False

    def run_all(self, rows: Sequence[Ids], on_vector: Callable[[int, Vector], None]) -> None:
        if not rows:
            return
        self._check_size(rows)
        batch = Batch(rows, on_vector, self._check)
        self.end()
        self._scheduler.submit(batch)
        try:
            if not batch.wait(max(0.0, self.deadline - time.monotonic())):
                raise DeadlineExceeded(batch.done, len(rows))
        finally:
            self._scheduler.discard(batch)
            self.queue_seconds = batch.queue_seconds

    def offload(self, function: Callable[[], T]) -> T:
        with self._scheduler.offload_turn:  # one request at a time, in order of arrival
            self._check(0, self._texts)
            return self._scheduler.offloaded.apply(function)

    def pause(self) -> None:
        yield_to_hub(self._is_small)
        self._is_small = False

    def check_deadline(self, texts: int) -> None:
        if not self._is_preparing:  # first call: the request is complete and counts as waiting from now on
            self._is_preparing = True
            self._scheduler.preparing += 1
        self._texts = texts
        self._scheduler.check_deadline(self.deadline, 0, texts)

    def texts_in_time(self, tokens: int) -> int | None:
        seconds = self._scheduler.seconds(1, tokens)
        return int(MARGIN * self._scheduler.deadline_seconds / seconds) if seconds else None

    def _check_size(self, rows: Sequence[Ids]) -> None:
        """Raise TooLarge if the rows cannot be computed before the deadline even on an otherwise idle server."""
        tokens, limit = sum(map(len, rows)), self._scheduler.deadline_seconds
        seconds = self._scheduler.seconds(len(rows), tokens)
        if len(rows) > 1 and seconds > limit:
            raise TooLarge(
                f"{len(rows)} texts of {tokens} tokens take about {seconds:.0f} s here, over the limit of {limit:g} s "
                f"(REQUEST_DEADLINE): send at most {max(1, int(MARGIN * len(rows) * limit / seconds))} at once."
            )

    def _check(self, done: int, texts: int) -> None:
        """Raise ClientGone for a disconnected client (checked at intervals), or DeadlineExceeded."""
        if (now := time.monotonic()) - self._client_checked > DISCONNECT_CHECK_SECONDS:
            self._client_checked = now
            if self._is_gone():
                raise ClientGone("The client has left.")
        self._scheduler.check_deadline(self.deadline, done, texts)
