"""Scheduler: who computes next. Bounds concurrent inference; texts of large requests and small ones take turns.

It lives in gevent's hub, so it needs no locks: only `compute` runs in native threads.
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
from app.server.speed import Speed
from app.server.threads import NativeThreads
from app.server.turns import let_others_go_on

T = TypeVar("T")
# Time between two checks whether the client of a request is still there, seconds.
DISCONNECT_CHECK_SECONDS = 0.2
# Time without lone rows from which on large requests may have a row ready beside those that run, seconds. With it
# batches of 32 are 1.1 times as fast, and a short text beside two large requests takes 1.8 times as long as alone
# instead of 1.45 times.
QUIET_SECONDS = 0.1
# Part of a deadline that a batch should fill at the most, where a client asks how large it may be. Until the first
# long row was computed, its time is estimated from short ones: 0.7 of what it takes on a CPU with AMX, 0.8 with AVX2.
MARGIN = 0.7


class Scheduler:
    """Runs `compute` on the rows of many requests, about `capacity` rows at the same time.

    Requests take turns in the order of their tickets. A request of many rows draws a new ticket for each row, so that
    a thousand texts do not hold up one. The rows of large requests fill all CPUs, and one lone row runs beside them: it
    does not wait for a page to end. One row more than can run may be given to the native threads, so that no CPU
    idles while the hub is at work.

    compute: called with the token ids of the rows a thread takes. capacity: CPUs to use.
    """

    def __init__(self, compute: Compute, capacity: int, deadline_seconds: float) -> None:
        self._compute = compute
        self._capacity = capacity
        self.deadline_seconds = deadline_seconds
        self._lone_threads = NativeThreads(capacity + 1)
        self._large_threads = NativeThreads(capacity)
        self.offloaded = NativeThreads(1)
        self.offload_turn = Semaphore(1)
        self._last_ticket = 0
        self._lone: deque[Batch] = deque()
        self._large: deque[Batch] = deque()
        self.preparing = 0
        self._last_lone = 0.0  # when one was submitted, in seconds of time.monotonic()
        self._speed = Speed()
        self.end = float("inf")  # of all deadlines

    def job(self, arrived: float, is_gone: Callable[[], bool]) -> "Job":
        """Return the runner of one request. arrived: seconds of time.monotonic(). is_gone: whether its client left."""
        return Job(self, arrived + self.deadline_seconds, is_gone)

    @property
    def running(self) -> int:
        """Calls in native threads: a process that ends while ONNX Runtime computes is aborted."""
        return sum(threads.running for threads in (self._lone_threads, self._large_threads, self.offloaded))

    @property
    def waiting(self) -> int:
        """Requests that are prepared, or have a row that has not begun."""
        return self.preparing + len(self._lone) + len(self._large)

    def seconds(self, rows: int, tokens: int) -> float:
        """Return the time that rows take when nobody else asks for anything, as measured lately."""
        return self._speed.seconds(rows, tokens) / self._capacity

    def shut_down(self, end: float) -> None:
        """End all deadlines at `end`, seconds of time.monotonic()."""
        self.end = end
        gevent.spawn_later(max(0.0, end - time.monotonic()), self.expire)

    def measure(self, tokens: int) -> None:
        """Compute a few rows to know the speed. tokens: of the longest row that requests can have.

        The rows are shorter, since ONNX Runtime keeps the memory of the longest one.
        """
        lengths = [max(1, tokens // part) for part in (16, 4, 16, 8, 4)]
        for is_counted in (False, True):  # the first time of each length takes longer
            for length in lengths:
                _, _, seconds = self.offloaded.apply(partial(self._measured, np.zeros(length, np.int64)))
                if is_counted:
                    self._speed.add(length, seconds)

    def submit(self, batch: Batch) -> None:
        """Put the rows of a request into the queue."""
        batch.ticket = self._next_ticket()
        if len(batch.rows) == 1:
            self._last_lone = time.monotonic()
            self._lone.append(batch)
        else:
            self._large.append(batch)
        self._dispatch()

    def discard(self, batch: Batch) -> None:
        """Take a request out of the queue, if it is there."""
        queue = self._lone if len(batch.rows) == 1 else self._large
        if batch.begun < len(batch.rows) and batch in queue:
            queue.remove(batch)

    def check(self, deadline: float, done: int, texts: int) -> None:
        """Raise DeadlineExceeded if a request's time is up."""
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
            index = batch.begun
            batch.begun += 1
            threads = self._large_threads if len(batch.rows) > 1 else self._lone_threads
            if batch.begun < len(batch.rows):
                batch.ticket = self._next_ticket()
                self._large.append(batch)
            threads.spawn(partial(self._measured, batch.rows[index]), partial(self._finish, batch, index))

    def _pick(self) -> Batch | None:
        """Return the batch whose turn it is, if the threads may be given its next row."""
        while True:
            large = self._large_threads.running
            busy = self._lone_threads.running + min(large, self._capacity)
            queues = []
            if self._lone and busy <= self._capacity + (not large and not self._large):
                queues.append(self._lone)
            most_large = self._capacity + (time.monotonic() - self._last_lone > QUIET_SECONDS)
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
        """Compute one row, in a native thread. Returns its vector, its tokens and the thread's CPU time in seconds."""
        began = time.thread_time()
        vector = self._compute([row])[0]
        return vector, len(row), time.thread_time() - began

    def _finish(self, batch: Batch, index: int, value: Any, error: BaseException | None) -> None:
        """Take over what a native thread has computed; called in the hub."""
        try:
            if error is not None:
                raise error
            vector, tokens, seconds = value
            self._speed.add(tokens, seconds)
            batch.finish(index, vector)
        except Exception as raised:  # it belongs to the request
            self.discard(batch)
            batch.fail(raised)
        self._dispatch()

    def expire(self) -> None:
        """End what is in the queue with 503."""
        for batch in [*self._lone, *self._large]:
            self.discard(batch)
            batch.fail(ShuttingDown(batch.done, len(batch.rows)))


class Job:
    """The runner of one request, see app/engine/runner.py. deadline: seconds of time.monotonic()."""

    def __init__(self, scheduler: Scheduler, deadline: float, is_gone: Callable[[], bool]) -> None:
        self.queue_seconds = 0.0
        self.deadline = deadline
        self._is_gone = is_gone
        self._looked = time.monotonic()  # for the client
        self._scheduler = scheduler
        self._is_preparing = False
        self._is_small = True
        self._texts = 0

    def end(self) -> None:
        """Count as waiting no longer, but for rows in the queue."""
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
        with self._scheduler.offload_turn:  # first come, first served
            self._check(0, self._texts)
            return self._scheduler.offloaded.apply(function)

    def pause(self) -> None:
        let_others_go_on(self._is_small)
        self._is_small = False

    def check_deadline(self, texts: int) -> None:
        if not self._is_preparing:  # the request is all there: it counts as waiting from now on
            self._is_preparing = True
            self._scheduler.preparing += 1
        self._texts = texts
        self._scheduler.check(self.deadline, 0, texts)

    def texts_in_time(self, tokens: int) -> int | None:
        seconds = self._scheduler.seconds(1, tokens)
        return int(MARGIN * self._scheduler.deadline_seconds / seconds) if seconds else None

    def _check_size(self, rows: Sequence[Ids]) -> None:
        """Raise TooLarge if the rows cannot be computed in time even when nobody else asks for anything."""
        tokens, limit = sum(map(len, rows)), self._scheduler.deadline_seconds
        seconds = self._scheduler.seconds(len(rows), tokens)
        if len(rows) > 1 and seconds > limit:
            raise TooLarge(
                f"{len(rows)} texts of {tokens} tokens take about {seconds:.0f} s here, over the limit of {limit:g} s "
                f"(REQUEST_DEADLINE): send at most {max(1, int(MARGIN * len(rows) * limit / seconds))} at once."
            )

    def _check(self, done: int, texts: int) -> None:
        """Raise ClientGone if the client has left, looked at now and then, and DeadlineExceeded if the time is up."""
        if (now := time.monotonic()) - self._looked > DISCONNECT_CHECK_SECONDS:
            self._looked = now
            if self._is_gone():
                raise ClientGone("The client has left.")
        self._scheduler.check(self.deadline, done, texts)
