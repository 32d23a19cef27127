"""Who may compute, when: requests, and the texts of large ones, take turns at a few slots."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from app.errors import DeadlineExceeded, ShuttingDown

T = TypeVar("T")
R = TypeVar("R")
NEVER = float("inf")

logger = logging.getLogger(__name__)


class Slots(Generic[T, R]):
    """Runs work(item) for many requests, about `count` at the same time.

    A request given to `submit` waits for a slot before anything is done for it, and then runs in one thread from its
    first byte to its last: the one text that most requests have is computed right there, without a change of threads.
    One request more than there are CPUs may run, or a CPU is idle while another is parsed or answered (a tenth of the
    time).
    A request of many texts gives its slot back, and its texts are computed by threads of this object. Whole requests
    and such texts take turns in the order of their tickets; a request of many draws a new ticket for each text, so
    that a thousand texts do not hold up one.

    Requests do not wait for the texts of others that are being computed: they run beside these and share the CPUs with
    them. Otherwise a word would wait for a page.

    Nothing is begun after its deadline. Call `start` in the process that works: threads do not survive a fork.

    count: CPUs to use. threads: the most submitted requests at once that run or wait for their texts.
    """

    def __init__(self, count: int, work: Callable[[T], R], threads: int = 1) -> None:
        self._work = work
        self._count = count
        self._threads = threads
        self._lock = threading.Lock()
        self._last_ticket = 0
        self._requests: deque[_Request] = deque()
        self._batches: deque[_Batch[T, R]] = deque()
        self._running = 0  # slots of requests
        self._computing = 0  # slots of single texts
        self._idle_threads = 0
        self._started_threads = 0
        self._granted_requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._granted_texts: queue.SimpleQueue[_Text[T, R]] = queue.SimpleQueue()
        self._end = NEVER
        self._here = _Here()

    def start(self) -> None:
        for _ in range(self._count):
            threading.Thread(target=self._compute_texts, name="texts", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot, or for one more text of theirs to be begun."""
        return len(self._requests) + len(self._batches)

    def submit(self, run: Callable[[], None], deadline: float) -> None:
        """Call run() in a thread of this object as soon as a slot is free.

        deadline: in seconds of time.monotonic(), for what run() gives to `map`. run() is called even when it is too
        late, so that it can say so.
        """
        with self._lock:
            self._requests.append(_Request(self._ticket(), run, deadline))
            self._hand_out()

    def run(self, run: Callable[[], None], deadline: float) -> None:
        """Call run() in this thread without a slot: for a request that is not all there yet."""
        self._here.request = _Request(0, run, deadline)
        try:
            run()
        finally:
            self._here.request = None

    def end(self, at: float) -> None:
        """From now on no deadline is later than this, in seconds of time.monotonic()."""
        self._end = at

    def leave(self) -> None:
        """Give back the slot of the request that this thread runs: nothing is left to compute."""
        with self._lock:
            self._give_back(self._here.request)
            self._hand_out()

    def check(self, texts: int) -> None:
        """
        Raises:
            DeadlineExceeded: the time of the request that this thread runs is up.
        """
        if self._here.request:
            self._check(self._here.request.deadline, 0, texts)

    def map(self, items: Sequence[T]) -> list[R]:
        """work(item) of each, in order. What work raises is raised here, and the rest is left undone.

        Raises:
            DeadlineExceeded: the time was up before the last item was begun.
        """
        if not items:
            return []
        request = self._here.request
        self.check(len(items))
        if request and request.has_slot and len(items) == 1:
            return [self._work(items[0])]
        with self._lock:
            self._give_back(request)
            alone = len(items) == 1 and self._running + self._computing < self._count
            if alone:
                self._computing += 1
            else:
                batch = _Batch[T, R](self._ticket(), items, request.deadline if request else NEVER)
                self._batches.append(batch)
                self._hand_out()
        if not alone:
            return batch.results()
        try:
            return [self._work(items[0])]
        finally:
            with self._lock:
                self._computing -= 1
                self._hand_out()

    def _give_back(self, request: "_Request | None") -> None:
        if request and request.has_slot:
            request.has_slot = False
            self._running -= 1

    def _check(self, deadline: float, begun: int, texts: int) -> None:
        now = time.monotonic()
        if now > deadline:
            raise DeadlineExceeded(begun, texts)
        if now > self._end:
            raise ShuttingDown(begun, texts)

    def _ticket(self) -> int:
        self._last_ticket += 1
        return self._last_ticket

    def _hand_out(self, mine: type | None = None) -> Any:
        """Give free slots to those whose turn it is. The caller holds the lock.

        mine: what the calling thread can go on with itself; the first one is returned, and no thread is woken for it.
        """
        taken = None
        while turn := self._next():
            if taken is None and mine is not None and isinstance(turn, mine):
                taken = turn
            elif isinstance(turn, _Request):
                self._granted_requests.put(turn)
            else:
                self._granted_texts.put(turn)
        return taken

    def _next(self) -> "_Request | _Text[T, R] | None":
        """Whose turn it is, if there is a slot and a thread for it."""
        most = self._count + 1
        request = self._requests[0] if self._requests and self._running < most and self._has_thread() else None
        free = self._computing < self._count and self._running + self._computing < most
        batch = self._batches[0] if self._batches and free else None
        if batch and (not request or batch.ticket < request.ticket):
            self._computing += 1
            return self._next_text()
        if request:
            self._idle_threads -= 1
            self._running += 1
            request.has_slot = True
            return self._requests.popleft()
        return None

    def _has_thread(self) -> bool:
        """Whether a thread is idle; one more is started if there may be."""
        if not self._idle_threads and self._started_threads < self._threads:
            try:
                threading.Thread(target=self._run_requests, name="request", daemon=True).start()
            except RuntimeError:  # the system's limit: those that are there go on
                logger.exception("no more threads than %d", self._started_threads)
                return False
            self._started_threads += 1
            self._idle_threads += 1
        return self._idle_threads > 0

    def _next_text(self) -> "_Text[T, R]":
        batch = self._batches.popleft()
        text = _Text(batch, batch.begun)
        batch.begun += 1
        if batch.begun < len(batch.items):
            batch.ticket = self._ticket()
            self._batches.append(batch)
        return text

    def _run_requests(self) -> None:
        request: _Request | None = None
        while True:
            request = request or self._granted_requests.get()
            self._here.request = request
            try:
                request.run()
            except Exception:
                logger.exception("unexpected error")
            self._here.request = None
            with self._lock:
                self._running -= request.has_slot
                self._idle_threads += 1
                request = self._hand_out(_Request)

    def _compute_texts(self) -> None:
        text: _Text[T, R] | None = None
        while True:
            text = text or self._granted_texts.get()
            batch = text.batch
            try:
                self._check(batch.deadline, text.index, len(batch.items))
                batch.finish(text.index, self._work(batch.items[text.index]))
            except BaseException as error:  # it belongs to the request's thread
                batch.fail(error)
            with self._lock:
                self._computing -= 1
                if batch.error and batch in self._batches:
                    self._batches.remove(batch)
                text = self._hand_out(_Text)


class _Here(threading.local):
    """The submitted request that this thread runs."""

    request: "_Request | None" = None


class _Request:
    def __init__(self, ticket: int, run: Callable[[], None], deadline: float) -> None:
        self.ticket = ticket
        self.run = run
        self.deadline = deadline
        self.has_slot = False


class _Text(Generic[T, R]):
    """One item of a batch, begun."""

    def __init__(self, batch: "_Batch[T, R]", index: int) -> None:
        self.batch = batch
        self.index = index


class _Batch(Generic[T, R]):
    """One request's items and what came of them."""

    def __init__(self, ticket: int, items: Sequence[T], deadline: float) -> None:
        self.ticket = ticket
        self.items = items
        self.deadline = deadline
        self.begun = 0
        self.error: BaseException | None = None
        self._results: dict[int, R] = {}
        self._done = threading.Event()

    def finish(self, index: int, result: R) -> None:
        self._results[index] = result
        if len(self._results) == len(self.items):
            self._done.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self._done.set()

    def results(self) -> list[R]:
        self._done.wait()
        if self.error is not None:
            raise self.error
        return [self._results[index] for index in range(len(self.items))]
