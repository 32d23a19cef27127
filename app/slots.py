"""How many texts are computed at once, and whose turn it is."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Slots(Generic[T, R]):
    """Runs work(item) for many requests, never more than `count` at the same time.

    A single item that finds a slot free runs in its request's own thread. All else waits in
    line for `count` threads of this object, which go from item to item without a pause: a
    slot handed from one request's thread to the next left the CPU idle for a fifth of the
    time. Waiting requests take turns, one item each, so that a request of a thousand texts
    does not hold up requests of one.

    Call `start` in the process that works: threads do not survive a fork.
    """

    def __init__(self, count: int, work: Callable[[T], R]) -> None:
        self._work = work
        self._count = count
        self._free = count
        self._lock = threading.Lock()
        self._line: deque[_Request[T, R]] = deque()
        self._turn = threading.Semaphore(0)  # one release lets one idle thread go on, with a slot

    def start(self) -> None:
        for _ in range(self._count):
            threading.Thread(target=self._serve, name="slot", daemon=True).start()

    def map(self, items: Sequence[T]) -> list[R]:
        """work(item) of each, in order. What work raises is raised here, and the rest is left undone."""
        if not items:
            return []
        with self._lock:
            alone = len(items) == 1 and self._free > 0
            if alone:
                self._free -= 1
            else:
                request = _Request[T, R](items)
                self._line.append(request)
                self._wake(len(items))
        if not alone:
            return request.results()
        try:
            return [self._work(items[0])]
        finally:
            with self._lock:
                self._free += 1
                self._wake(1)

    def _wake(self, most: int) -> None:
        """Give free slots to idle threads as far as there is work. The caller holds the lock."""
        while self._line and self._free and most:
            self._free -= 1
            most -= 1
            self._turn.release()

    def _serve(self) -> None:
        while True:
            self._turn.acquire()
            while task := self._next():
                request, index = task
                try:
                    request.finish(index, self._work(request.items[index]))
                except BaseException as error:  # it belongs to the request's thread
                    request.fail(error)

    def _next(self) -> "tuple[_Request[T, R], int] | None":
        """The next item in turn; None gives the slot back."""
        with self._lock:
            while self._line:
                request = self._line.popleft()
                if request.error is not None:
                    continue
                index = request.begun
                request.begun += 1
                if request.begun < len(request.items):
                    self._line.append(request)
                return request, index
            self._free += 1
            return None


class _Request(Generic[T, R]):
    """One request's items and what came of them."""

    def __init__(self, items: Sequence[T]) -> None:
        self.items = items
        self.begun = 0
        self._results: dict[int, R] = {}
        self.error: BaseException | None = None
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
