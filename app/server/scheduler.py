"""Fair scheduler: bounds concurrent inference, and interleaves the texts of large requests with small ones.

A row is the token ids of one text. The scheduler runs in gevent's hub, so it needs no locks; only `compute` runs in
native threads.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import gevent
import numpy as np
from gevent.lock import Semaphore

from app.engine.embeddings import Ids, Vector
from app.engine.runner import Compute
from app.errors import ClientGone, DeadlineExceeded, ServiceError, ShuttingDown, TooLarge
from app.server.batch import Batch
from app.server.hub import yield_to_hub
from app.server.speed import Speed
from app.server.threads import NativeThreads

T = TypeVar("T")
# Interval between checks for a disconnected client of a waiting request, seconds.
DISCONNECT_CHECK_SECONDS = 0.2
# Time without single-text requests after which large requests may queue one row more than there are CPUs, seconds. The
# extra row makes batches of 32 texts 1.1 times as fast; always allowed, it would make a short text beside two large
# requests take 1.8 times as long as alone instead of 1.45 times.
QUIET_SECONDS = 0.1
# Share of the deadline that the recommended largest request fills. Before the first long row, its time is estimated
# from short ones: that gives 0.7 of the real time on a CPU with AMX, 0.8 with AVX2.
MARGIN = 0.7


class Scheduler:
    """Runs `compute` on the rows of many requests, about `capacity` rows at the same time.

    Requests are served in the order of their tickets. A large request (more than one row) draws a new ticket for each
    row, so that a thousand texts do not delay one. The rows of large requests fill all CPUs, and one single row runs
    beside them without waiting for a long row to end. The native threads may get one row more than there are CPUs, so
    that no CPU idles while the hub is busy.

    compute: computes a list of rows in a native thread. capacity: CPUs to use.
    """

    def __init__(self, compute: Compute, capacity: int, deadline_seconds: float) -> None:
        self._compute = compute
        self._capacity = capacity
        self.deadline_seconds = deadline_seconds
        self._single_threads = NativeThreads(capacity + 1)
        self._large_threads = NativeThreads(capacity)
        self.offloaded = NativeThreads(1)
        self.offload_turn = Semaphore(1)
        self._last_ticket = 0
        self._single: deque[Batch] = deque()
        self._large: deque[Batch] = deque()
        self.preparing = 0
        self._last_single = 0.0  # time of the last single-text request, seconds of time.monotonic()
        self._speed = Speed()
        self.end = float("inf")  # latest end of every deadline, seconds of time.monotonic()

    def runner(self, arrived: float, is_gone: Callable[[], bool]) -> "RequestRunner":
        """Return the runner of one request. arrived: seconds of time.monotonic(). is_gone: checks for a disconnect."""
        return RequestRunner(self, arrived + self.deadline_seconds, is_gone)

    @property
    def running(self) -> int:
        """Number of calls in native threads. The process must not exit while ONNX Runtime computes: that aborts it."""
        return sum(threads.running for threads in (self._single_threads, self._large_threads, self.offloaded))

    @property
    def waiting(self) -> int:
        """Number of requests that are being prepared (read, tokenized) or have a row that has not started."""
        return self.preparing + len(self._single) + len(self._large)

    def seconds(self, rows: int, tokens: int) -> float:
        """Return the estimated time for rows on an otherwise idle server, seconds, from recent measurements."""
        return self._speed.seconds(rows, tokens) / self._capacity

    def shut_down(self, end: float) -> None:
        """End all deadlines at `end`, seconds of time.monotonic()."""
        self.end = end
        gevent.spawn_later(max(0.0, end - time.monotonic()), self.expire)

    def measure(self, tokens: int) -> None:
        """Measure the speed with a few rows. tokens: length of the longest possible row.

        The measured rows are shorter: ONNX Runtime keeps the memory of the longest one.
        """
        lengths = [max(1, tokens // part) for part in (16, 4, 16, 8, 4)]
        for is_counted in (False, True):  # the first run of each length is slower
            for length in lengths:
                _, _, seconds = self.offloaded.apply(partial(self._measured, np.zeros(length, np.int64)))
                if is_counted:
                    self._speed.add(length, seconds)

    def submit(self, batch: Batch) -> None:
        """Add the rows of a request to the queue."""
        batch.ticket = self._next_ticket()
        if len(batch.rows) == 1:
            self._last_single = time.monotonic()
            self._single.append(batch)
        else:
            self._large.append(batch)
        self._dispatch()

    def discard(self, batch: Batch) -> None:
        """Remove a request from the queue, if it is there."""
        queue = self._single if len(batch.rows) == 1 else self._large
        if batch.started < len(batch.rows) and batch in queue:
            queue.remove(batch)

    def check_deadline(self, deadline: float, done: int, texts: int) -> None:
        """Raise DeadlineExceeded if the deadline, seconds of time.monotonic(), has passed."""
        now = time.monotonic()
        if now > self.end:
            raise ShuttingDown(done, texts)
        if now > deadline:
            raise DeadlineExceeded(done, texts)

    def _next_ticket(self) -> int:
        self._last_ticket += 1
        return self._last_ticket

    def _dispatch(self) -> None:
        while batch := self._pick():
            index = batch.started
            batch.started += 1
            threads = self._large_threads if len(batch.rows) > 1 else self._single_threads
            if batch.started < len(batch.rows):
                batch.ticket = self._next_ticket()
                self._large.append(batch)
            threads.spawn(partial(self._measured, batch.rows[index]), partial(self._finish, batch, index))

    def _pick(self) -> Batch | None:
        """Return the batch with the lowest ticket, if a native thread may get its next row."""
        while True:
            large = self._large_threads.running
            busy = self._single_threads.running + min(large, self._capacity)
            queues = []
            if self._single and busy <= self._capacity + (not large and not self._large):
                queues.append(self._single)
            most_large = self._capacity + (time.monotonic() - self._last_single > QUIET_SECONDS)
            if self._large and large < most_large and busy <= self._capacity:
                queues.append(self._large)
            if not queues:
                return None
            batch = min(queues, key=lambda queue: queue[0].ticket).popleft()
            try:
                batch.check()
                return batch
            except ServiceError as error:
                batch.fail(error)

    def _measured(self, row: Ids) -> tuple[Vector, int, float]:
        """Compute one row in a native thread. Returns its vector, its token count and its CPU time, seconds."""
        began = time.thread_time()
        vector = self._compute([row])[0]
        return vector, len(row), time.thread_time() - began

    def _finish(self, batch: Batch, index: int, value: Any, error: BaseException | None) -> None:
        """Store the vector or the error of one row; called in the hub."""
        try:
            if error is not None:
                raise error
            vector, tokens, seconds = value
            self._speed.add(tokens, seconds)
            batch.finish(index, vector)
        except Exception as raised:  # this request's error, not the scheduler's
            self.discard(batch)
            batch.fail(raised)
        self._dispatch()

    def expire(self) -> None:
        """End all queued requests with 503."""
        for batch in [*self._single, *self._large]:
            self.discard(batch)
            batch.fail(ShuttingDown(batch.done, len(batch.rows)))


class RequestRunner:
    """Runner of one request (interface: app/engine/runner.py). deadline: seconds of time.monotonic()."""

    def __init__(self, scheduler: Scheduler, deadline: float, is_gone: Callable[[], bool]) -> None:
        self.queue_seconds = 0.0
        self.deadline = deadline
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
