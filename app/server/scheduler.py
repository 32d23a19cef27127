"""Fair scheduler: bounds concurrent inference, and interleaves the texts of large requests with small ones.

A row is the token ids of one text. The scheduler runs in gevent's hub, so it needs no locks; only `compute` runs in
native threads.
"""

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import gevent
import numpy as np
from gevent.lock import Semaphore

from app.engine.embeddings import Ids, Vector
from app.engine.runner import Compute, TextsPerRun
from app.errors import DeadlineExceeded, ServiceError, ShuttingDown
from app.server.batch import Batch
from app.server.speed import Speed
from app.server.threads import NativeThreads

# Time without single-text requests after which large requests may queue one row more than there are CPUs, seconds. The
# extra row makes batches of 32 texts 1.1 times as fast; always allowed, it would make a short text beside two large
# requests take 1.8 times as long as alone instead of 1.45 times.
QUIET_SECONDS = 0.1


class Scheduler:
    """Runs `compute` on the rows of many requests, about `capacity` rows at the same time.

    Requests are served in the order of their tickets. A large request (more than one row) draws a new ticket for each
    run, so that a thousand texts do not delay one. The rows of large requests fill all CPUs, and one single row runs
    beside them without waiting for a long row to end. The native threads may get one run more than there are CPUs, so
    that no CPU idles while the hub is busy.

    A run takes the next row and what waits beside it with the same length, as much as there is for each CPU. No row
    waits for others to come.

    compute: computes rows of equal length in a native thread. texts_per_run: how many of a length it takes at once.
    capacity: CPUs to use.
    """

    def __init__(self, compute: Compute, texts_per_run: TextsPerRun, capacity: int, deadline_seconds: float) -> None:
        self._compute = compute
        self._texts_per_run = texts_per_run
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
                _, seconds = self.offloaded.apply(partial(self._measured, [np.zeros(length, np.int64)]))
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
        if batch.has_rows and batch in queue:
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
        while queue := self._next_queue():
            if run := self._take_run(queue):
                threads = self._single_threads if queue is self._single else self._large_threads
                rows = [batch.rows[index] for batch, index in run]
                threads.spawn(partial(self._measured, rows), partial(self._finish, run))

    def _next_queue(self) -> deque[Batch] | None:
        """Return the queue of the batch with the lowest ticket, if a native thread may get its next row."""
        large = self._large_threads.running
        busy = self._single_threads.running + min(large, self._capacity)
        queues = []
        if self._single and busy <= self._capacity + (not large and not self._large):
            queues.append(self._single)
        most_large = self._capacity + (time.monotonic() - self._last_single > QUIET_SECONDS)
        if self._large and large < most_large and busy <= self._capacity:
            queues.append(self._large)
        return min(queues, key=lambda queue: queue[0].ticket) if queues else None

    def _take_run(self, queue: deque[Batch]) -> list[tuple[Batch, int]]:
        """Start the first batch's next row and others of the same length; return each with its index in its batch.

        Batches whose request has ended are removed, which may leave nothing to run.
        """
        length = queue[0].length
        waiting = sum(len(batch.rows) - batch.started for batch in queue)
        most = min(self._texts_per_run(length), -(-waiting // self._capacity))
        run: list[tuple[Batch, int]] = []
        skipped, begun = [], []
        while queue and len(run) < most:
            batch = queue.popleft()
            if batch.length != length:
                skipped.append(batch)
                continue
            try:
                batch.check()
            except ServiceError as error:
                batch.fail(error)
                continue
            run += ((batch, index) for index in batch.start(most - len(run)))
            if batch.has_rows:
                begun.append(batch)
        queue.extendleft(reversed(skipped))
        for batch in begun:
            batch.ticket = self._next_ticket()
            queue.append(batch)
        return run

    def _measured(self, rows: Sequence[Ids]) -> tuple[list[Vector], float]:
        """Compute rows in a native thread. Returns their vectors, and the CPU time for each row, seconds."""
        began = time.thread_time()
        vectors = self._compute(rows)
        return vectors, (time.thread_time() - began) / len(rows)

    def _finish(self, run: Sequence[tuple[Batch, int]], value: Any, error: BaseException | None) -> None:
        """Store the vectors or the error of a run; called in the hub."""
        vectors, seconds = value if error is None else ([None] * len(run), 0.0)
        for (batch, index), vector in zip(run, vectors, strict=True):
            try:
                if error is not None:
                    raise error
                self._speed.add(len(batch.rows[index]), seconds)
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
