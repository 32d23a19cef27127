"""Access log: counts and logs answered requests in rounds, outside the request path."""

import os
import time
from _queue import SimpleQueue  # the native one: gevent's would block the hub
from collections import deque
from contextlib import suppress

import gevent

from app import logs, metrics
from app.context import RequestContext
from app.errors import QueueFull
from app.http_errors import status_and_code
from app.server.threads import start_native_thread

# Interval between rounds of counting and logging, seconds.
ROUND_SECONDS = 0.1
# Log lines for rejected requests per second. The rest is summed up in one line: a line costs more CPU than a rejection.
MAX_REJECTION_LINES = 100
# Buffer for lines that a slow reader of stderr has not read, bytes; over it new lines are dropped and counted.
MAX_WAITING_BYTES = 4 * 1024 * 1024
# Longest write to stderr, bytes: a pipe never mixes writes up to PIPE_BUF with those of other processes.
PIECE_BYTES = 4096
# Longest wait at the end of the process for the last lines to be written, seconds.
LAST_SECONDS = 0.3
REJECTED, _ = status_and_code(QueueFull(0))


class AccessLog:
    """Collects answered requests, and counts and logs them every ROUND_SECONDS."""

    def __init__(self) -> None:
        self._answered: deque[RequestContext] = deque()
        self._second = self._rejected = 0

    def add(self, context: RequestContext) -> None:
        """Add an answered request."""
        self._answered.append(context)

    def run(self) -> None:
        """Count and log in rounds, for ever; runs in a greenlet."""
        while True:
            gevent.sleep(ROUND_SECONDS)
            self.count()

    def count(self) -> None:
        """Count and log the requests added so far."""
        while self._answered:
            context = self._answered.popleft()
            try:
                metrics.observe(context)
                self._log(context)
            except Exception:  # must not stop the server
                logs.logger.exception("a response was not counted or logged")
        if self._second != int(time.time()):
            self._log_rejected()

    def _log(self, context: RequestContext) -> None:
        second = int(context.ended)
        if second != self._second:
            self._log_rejected()
            self._second = second
        if context.status == REJECTED:
            self._rejected += 1
            if self._rejected > MAX_REJECTION_LINES:
                return
        logs.log_request(context)

    def _log_rejected(self) -> None:
        """Log one summary line for rejections over the per-second limit."""
        more = self._rejected - MAX_REJECTION_LINES
        self._rejected = 0
        if more > 0:
            logs.write("WARNING", f"{more} more requests were refused within a second (429)", {"refused": more})


class LineWriter:
    """Writes lines to stderr in a native thread: a slow or missing reader does not block the server."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._is_awake = False
        self._added_bytes = self._written_bytes = self._dropped = 0  # each is written by one thread only
        start_native_thread(self._run, ())

    def write(self, line: bytes) -> None:
        """Add a line to the buffer, or drop it if the buffer is full."""
        waiting_bytes = self._added_bytes - self._written_bytes
        if waiting_bytes > MAX_WAITING_BYTES:
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            logs.write("WARNING", f"{dropped} log lines were dropped: nobody read them in time", {"dropped": dropped})
        self._added_bytes += len(line)
        self._lines.append(line)
        if (
            not self._is_awake
        ):  # waking the thread for each line would take the interpreter lock from the native threads
            self._is_awake = True
            self._wake.put(None)

    def close(self) -> None:
        """Wait until everything is written, for LAST_SECONDS at most."""
        until = time.monotonic() + LAST_SECONDS
        while self._written_bytes < self._added_bytes and time.monotonic() < until:
            gevent.sleep(0.01)

    def _run(self) -> None:
        while True:
            self._wake.get()
            self._is_awake = False
            while self._lines:
                piece = self._lines.popleft()
                while self._lines and len(piece) + len(self._lines[0]) <= PIECE_BYTES:
                    piece += self._lines.popleft()
                with suppress(OSError):  # stderr is closed
                    os.write(2, piece)
                self._written_bytes += len(piece)
