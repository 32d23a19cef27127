"""Native threads for work that would block gevent's hub. Results are delivered in the hub."""

import logging
from _queue import SimpleQueue  # the native one: gevent's would block the hub
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent import monkey
from gevent.event import AsyncResult

T = TypeVar("T")
logger = logging.getLogger(__name__)
# Callback in the hub: (the function's value, the error that it raised or None).
Done = Callable[[Any, BaseException | None], None]

start_native_thread = monkey.get_original("_thread", "start_new_thread")


class NativeThreads:
    """Pool of native daemon threads.

    gevent.threadpool creates a watcher for each call and may block the hub; one watcher for all calls costs a tenth.

    running: number of calls whose result was not delivered yet.
    """

    def __init__(self, count: int) -> None:
        self.running = 0
        self._calls: SimpleQueue[tuple[Callable[[], Any], Done]] = SimpleQueue()
        self._outcomes: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._deliver)
        for _ in range(count):
            start_native_thread(self._run, ())

    def spawn(self, function: Callable[[], Any], done: Done) -> None:
        """Call function() in one of the threads, then done(value, error) in the hub. `done` must not block."""
        self.running += 1
        self._calls.put((function, done))

    def apply(self, function: Callable[[], T]) -> T:
        """Return function(), called in one of the threads while other greenlets go on."""
        result = AsyncResult()
        self.spawn(function, lambda value, error: result.set((value, error)))
        value, error = result.get()
        if error is not None:
            raise error
        outcome: T = value
        return outcome

    def _run(self) -> None:
        while True:
            function, done = self._calls.get()
            try:
                value, error = function(), None
            except BaseException as raised:
                value, error = None, raised
            self._outcomes.append((done, value, error))
            self._wake.send()
            del function, done, value, error  # releases them before the next wait

    def _deliver(self) -> None:
        while self._outcomes:
            done, value, error = self._outcomes.popleft()
            self.running -= 1
            try:
                done(value, error)
            except Exception:  # the other results are still delivered
                logger.exception("unexpected error")
