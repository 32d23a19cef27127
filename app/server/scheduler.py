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
from gevent.event import Event
from gevent.lock import Semaphore

from app.engine.embeddings import Ids, Vector
from app.engine.runner import Compute
from app.errors import ClientGone, DeadlineExceeded, ServiceError, ShuttingDown, TooLarge
from app.server.threads import NativeThreads

T = TypeVar("T")
# Requests queued longer than this are checked for a disconnected client before they start, seconds.
DISCONNECT_CHECK_SECONDS = 0.1
# Longest turn of a request at work in the hub, such as tokenizing many texts, seconds.
TURN_SECONDS = 0.005
# Weight of what was measured before, for each second of computing.
DECAY_PER_SECOND = 0.9
# Part of a deadline that a batch should fill at the most, where a client asks how large it may be.
MARGIN = 0.8


class Scheduler:
    """Runs `compute` on the rows of many requests, about `capacity` rows at the same time.

    Requests take turns in the order of their tickets. A request of many rows draws a new ticket for each row, so that
    a thousand texts do not hold up one. The rows of large requests fill all CPUs but never the one native thread more
    than there are CPUs: a lone text does not wait for a page to end, and no CPU idles while the hub parses.

    compute: called with the token ids of the rows a thread takes. capacity: CPUs to use.
    """

    def __init__(self, compute: Compute, capacity: int, deadline_seconds: float) -> None:
        self._compute = compute
        self._capacity = capacity
        self.deadline_seconds = deadline_seconds
        self._threads = NativeThreads(capacity + 1)
        self._offloaded = NativeThreads(1)
        self._turn = Semaphore(1)
        self._last_ticket = 0
        self._lone: deque[_Batch] = deque()
        self._large: deque[_Batch] = deque()
        self.preparing = self._running = self._running_large = 0
        self._measured_tokens = self._measured_seconds = 0.0
        self._end = float("inf")

    def job(self, arrived: float, is_gone: Callable[[], bool]) -> "Job":
        """Return the runner of one request. arrived: seconds of time.monotonic(). is_gone: whether its client left."""
        return Job(self, arrived + self.deadline_seconds, is_gone)

    @property
    def waiting(self) -> int:
        """Requests that are prepared, or have a row that has not begun."""
        return self.preparing + len(self._lone) + len(self._large)

    @property
    def seconds_per_token(self) -> float | None:
        """CPU time of a token, as measured lately; None before anything was computed."""
        return self._measured_seconds / self._measured_tokens if self._measured_tokens else None

    def texts_in_time(self, tokens: int, seconds: float) -> int | None:
        """Return how many texts of so many tokens can be computed within a time; None if that is not known yet."""
        cost = self.seconds_per_token
        return int(seconds * self._capacity / (cost * tokens)) if cost else None

    def shut_down(self, end: float) -> None:
        """End all deadlines at `end`, seconds of time.monotonic()."""
        self._end = end
        gevent.spawn_later(max(0.0, end - time.monotonic()), self._expire)

    def measure(self, tokens: int) -> None:
        """Compute a few rows of so many tokens to know the speed."""
        Job(self, float("inf"), lambda: False).run_all([np.zeros(tokens, np.int64)] * 3, lambda index, vector: None)

    def submit(self, batch: "_Batch") -> None:
        """Put the rows of a request into the queue."""
        batch.ticket = self._next_ticket()
        (self._lone if len(batch.rows) == 1 else self._large).append(batch)
        self._dispatch()

    def discard(self, batch: "_Batch") -> None:
        """Take a request out of the queue."""
        for queue in (self._lone, self._large):
            if batch in queue:
                queue.remove(batch)

    def check(self, deadline: float, done: int, texts: int) -> None:
        """Raise DeadlineExceeded if a request's time is up."""
        now = time.monotonic()
        if now > self._end:
            raise ShuttingDown(done, texts)
        if now > deadline:
            raise DeadlineExceeded(done, texts)

    def offload(self, function: Callable[[], T]) -> T:
        """Return function(), called in the one native thread for long work."""
        return self._offloaded.apply(function)

    def let_others_go_on(self) -> None:
        """Run what else is ready. Only one request at a time returns to the hub's queue: its round stays short."""
        with self._turn:
            gevent.sleep(0)

    def _next_ticket(self) -> int:
        self._last_ticket += 1
        return self._last_ticket

    def _dispatch(self) -> None:
        while batch := self._pick():
            index = batch.begun
            batch.begun += 1
            is_large = len(batch.rows) > 1
            self._running += 1
            self._running_large += is_large
            if batch.begun < len(batch.rows):
                batch.ticket = self._next_ticket()
                self._large.append(batch)
            self._threads.spawn(partial(self._measured, batch.rows[index]), partial(self._finish, batch, index))

    def _pick(self) -> "_Batch | None":
        """Return the batch whose turn it is, if there is a thread for its next row."""
        while self._running <= self._capacity:
            queues = [self._lone] if self._lone else []
            if self._large and self._running_large < self._capacity:
                queues.append(self._large)
            if not queues:
                return None
            batch = min(queues, key=lambda queue: queue[0].ticket).popleft()
            try:
                batch.check()
                return batch
            except ServiceError as error:
                batch.fail(error)
        return None

    def _measured(self, row: Ids) -> tuple[Vector, int, float]:
        """Compute one row, in a native thread. Returns its vector, its tokens and the thread's CPU time in seconds."""
        began = time.thread_time()
        vector = self._compute([row])[0]
        return vector, len(row), time.thread_time() - began

    def _finish(self, batch: "_Batch", index: int, value: Any, error: BaseException | None) -> None:
        """Take over what a native thread has computed; called in the hub."""
        self._running -= 1
        self._running_large -= len(batch.rows) > 1
        if error is not None:  # it belongs to the request
            self.discard(batch)
            batch.fail(error)
        else:
            vector, tokens, seconds = value
            decay = DECAY_PER_SECOND**seconds
            self._measured_tokens = self._measured_tokens * decay + tokens
            self._measured_seconds = self._measured_seconds * decay + seconds
            batch.finish(index, vector)
        self._dispatch()

    def _expire(self) -> None:
        for batch in [*self._lone, *self._large]:
            self.discard(batch)
            batch.fail(ShuttingDown(batch.done, len(batch.rows)))


class Job:
    """The runner of one request, see app/engine/runner.py. deadline: seconds of time.monotonic()."""

    def __init__(self, scheduler: Scheduler, deadline: float, is_gone: Callable[[], bool]) -> None:
        self.queue_seconds = 0.0
        self.deadline = deadline
        self.is_gone = is_gone
        self._scheduler = scheduler
        self._turn_began = time.monotonic()
        self._is_preparing = False

    def end(self) -> None:
        """Count as waiting no longer, but for rows in the queue."""
        self._scheduler.preparing -= self._is_preparing
        self._is_preparing = False

    def run_all(self, rows: Sequence[Ids], on_vector: Callable[[int, Vector], None]) -> None:
        if not rows:
            return
        self._check_size(rows)
        batch = _Batch(self, self._scheduler, rows, on_vector)
        self.end()
        self._scheduler.submit(batch)
        batch.wait()

    def offload(self, function: Callable[[], T]) -> T:
        return self._scheduler.offload(function)

    def pause(self) -> None:
        if time.monotonic() - self._turn_began > TURN_SECONDS:
            self._scheduler.let_others_go_on()
            self._turn_began = time.monotonic()

    def check_deadline(self, texts: int) -> None:
        if not self._is_preparing:  # the request is all there: it counts as waiting from now on
            self._is_preparing = True
            self._scheduler.preparing += 1
        self._scheduler.check(self.deadline, 0, texts)

    def texts_in_time(self, tokens: int) -> int | None:
        return self._scheduler.texts_in_time(tokens, MARGIN * self._scheduler.deadline_seconds)

    def _check_size(self, rows: Sequence[Ids]) -> None:
        """Raise TooLarge if the rows cannot be computed in time even when nobody else asks for anything."""
        tokens, seconds = sum(map(len, rows)), self._scheduler.deadline_seconds
        cost = self._scheduler.seconds_per_token
        texts = self._scheduler.texts_in_time(max(1, tokens // len(rows)), seconds)
        if cost and texts is not None and 1 <= texts < len(rows):
            raise TooLarge(
                f"{len(rows)} texts of {tokens} tokens take this server longer than {seconds:g} s (REQUEST_DEADLINE): "
                f"send at most {max(1, int(MARGIN * texts))} such texts at once."
            )


class _Batch:
    """The rows of one request in the queue. begun, done: how many."""

    def __init__(
        self, job: Job, scheduler: Scheduler, rows: Sequence[Ids], on_vector: Callable[[int, Vector], None]
    ) -> None:
        self.rows = rows
        self.ticket = self.begun = self.done = 0
        self._job = job
        self._scheduler = scheduler
        self._on_vector = on_vector
        self._submitted = time.monotonic()
        self._error: BaseException | None = None
        self._ended = Event()

    def check(self) -> None:
        """Raise what keeps the next row from being computed: the deadline, or a client that left before the first."""
        self._scheduler.check(self._job.deadline, self.done, len(self.rows))
        if not self.begun:
            waited = self._job.queue_seconds = time.monotonic() - self._submitted
            if waited > DISCONNECT_CHECK_SECONDS and self._job.is_gone():
                raise ClientGone("The client has left.")

    def finish(self, index: int, vector: Vector) -> None:
        """Hand over the vector of a row, even when the request has given up: it is kept for the next one."""
        self._on_vector(index, vector)
        self.done += 1
        if self.done == len(self.rows):
            self._ended.set()

    def fail(self, error: BaseException) -> None:
        """End the request with an error; rows that are being computed are kept."""
        self._error = self._error or error
        self._ended.set()

    def wait(self) -> None:
        """Wait until all rows are done.

        Raises:
            DeadlineExceeded: the time was up before.
        """
        seconds = self._job.deadline - time.monotonic()
        if not self._ended.wait(max(0.0, seconds) if seconds < float("inf") else None):
            self._scheduler.discard(self)
            self.fail(DeadlineExceeded(self.done, len(self.rows)))
        if self._error is not None:
            raise self._error
