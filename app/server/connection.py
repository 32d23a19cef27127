"""Connection: a client's socket with limits of time and bytes, for Gunicorn's parser and response."""

import errno
import socket
import struct
import time
from contextlib import suppress
from typing import Any

import gevent
from gunicorn.http.errors import LimitRequestHeaders

from app.errors import ServiceError
from app.server.connections import Connections, State
from app.server.hub import yield_to_hub
from app.settings import RECEIVE_SECONDS

# Longest head of a request, bytes: Gunicorn parses the whole head again at each packet.
MAX_HEAD_BYTES = 64 * 1024
# Number of packets of one request that are read at once. Small packets after that are read one in PACKET_SECONDS for
# all clients together. That bounds the CPU cost of bytes sent one by one; the kernel joins them meanwhile.
FREE_PACKETS = 50
PACKET_SECONDS = 0.002
# Slowest allowed reading of a response, bytes per second, after RECEIVE_SECONDS of grace.
MIN_BYTES_PER_SECOND = 50_000
# Time after which a client with an unread part of its response may be closed to make room for others, seconds. A reader
# with 1 MB/s is five times as fast.
STALLED_SECONDS = 2

# SO_LINGER value that makes close() reset the connection: on, 0 seconds.
RESET = struct.pack("ii", 1, 0)


class Connection:
    """One client's socket.

    arrived: time of the current request's first byte, seconds of time.monotonic().
    has_ended: whether the client stopped, or ran out of time, in the middle of a request.
    body_bytes: received bytes of the body. holds_body: whether the client waits for 100 Continue before its body.
    """

    def __init__(self, client: Any, connections: Connections, idle_seconds: float) -> None:
        self.arrived = 0.0
        self.has_ended = self.holds_body = self._sends_body = False
        self._rejection: ServiceError | None = None
        self._socket = client
        self._connections = connections
        self._idle_seconds = idle_seconds
        self._state = State.NEW
        connections[State.NEW][self] = None
        self._until = self._send_until = 0.0  # ends of this state's time and of the response's
        self._part_began = 0.0
        self.body_bytes = self._received = self._packets = self._sent = 0

    def _enter(self, state: State) -> None:
        self._connections[self._state].pop(self, None)
        self._connections[state][self] = None
        self._state = state

    def await_request(self, is_begun: bool) -> None:
        """Prepare to receive a head. is_begun: whether its first bytes came together with the previous request."""
        if is_begun:
            yield_to_hub()  # bytes already received cause no greenlet switch
        if is_begun or self._state is not State.NEW:
            self._enter(State.HEAD if is_begun else State.IDLE)
        self.forget_received()
        self._sent = 0
        self.arrived = time.monotonic()
        self._until = self.arrived + (RECEIVE_SECONDS if is_begun else self._idle_seconds)

    def await_body(self, until: float, holds_body: bool) -> None:
        """Prepare to receive a body and to answer. until: seconds of time.monotonic()."""
        self._enter(State.SERVED)
        self._until, self.holds_body, self._sends_body = until, holds_body, False

    def recv(self, size: int) -> bytes:
        """Return received bytes of a request; b"" when the client has stopped sending or its time is over.

        Raises:
            TimeoutError: no further byte of a request came in time.
            LimitRequestHeaders: the head is over MAX_HEAD_BYTES.
            TooManyBytes: all bodies together take too much memory, and this one is the largest.
        """
        is_head = self._state in (State.NEW, State.IDLE, State.HEAD)
        if not is_head:
            if self.holds_body:
                self._ask_for_body()
            self._enter(State.BODY)
            self._sends_body = True
            yield_to_hub(is_small=not self.body_bytes)
        self._packets += 1
        if self._packets > FREE_PACKETS and self._received < self._packets * 1000:
            with self._connections.small_packet:
                gevent.sleep(PACKET_SECONDS)
        seconds = self._until - time.monotonic()
        data = self._recv(size, seconds if is_head else min(seconds, RECEIVE_SECONDS))
        if self._rejection:
            raise self._rejection
        self._received += len(data)
        if is_head:
            if self._state is not State.HEAD and data:
                self._enter(State.HEAD)
                self.arrived = time.monotonic()
                self._until = self.arrived + RECEIVE_SECONDS
            if self._received > MAX_HEAD_BYTES:
                raise LimitRequestHeaders("max head bytes")
            return data
        self._enter(State.SERVED)
        self._connections.add_body_bytes(self, len(data))
        return data

    def _recv(self, size: int, seconds: float) -> bytes:
        self._socket.settimeout(max(0.001, seconds))
        try:
            data: bytes = self._socket.recv(size)
            self.has_ended = not data
            return data
        except TimeoutError:
            self.has_ended = True
            # Silence between requests ends the connection; a body ends with the request's deadline.
            if self._state in (State.NEW, State.IDLE) or self._state is State.BODY and time.monotonic() >= self._until:
                return b""
            raise
        except OSError as error:
            if error.errno != errno.EBADF:  # EBADF: `end` or `end_receiving` shut the socket down during the wait
                raise
            self.has_ended = True
            return b""

    def sendall(self, data: bytes) -> None:
        """Send a part of a response.

        Raises:
            TimeoutError: the client reads slower than MIN_BYTES_PER_SECOND.
        """
        self.holds_body = False
        if self._sent:
            yield_to_hub()
        self._enter(State.SENDING)
        self._part_began = now = time.monotonic()
        if not self._sent:
            self._send_until = now + RECEIVE_SECONDS
        self._sent += len(data)
        self._socket.settimeout(max(0.001, self._send_until + self._sent / MIN_BYTES_PER_SECOND - now))
        self._socket.sendall(data)

    def _ask_for_body(self) -> None:
        self.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._sent = 0  # the response's time has not begun

    def is_stalled(self) -> bool:
        """Return whether the client has left a part of its response unread for STALLED_SECONDS."""
        return time.monotonic() - self._part_began > STALLED_SECONDS

    def is_gone(self) -> bool:
        """Return whether the client has disconnected. A half-close counts as one."""
        self._socket.settimeout(0)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def reject_body(self, error: ServiceError) -> None:
        """Stop receiving the body, and send the client an error."""
        self._rejection = error
        gevent.get_hub().cancel_wait(self._socket._read_event, error)

    def end_receiving(self) -> None:
        """Stop receiving the body."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def end(self) -> None:
        """Shut the socket down. The greenlet that waits for it wakes and closes it."""
        self._enter(State.SERVED)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self, linger_seconds: float) -> None:
        """Close the connection so that the client gets the whole response.

        Further bytes are read for linger_seconds: unread bytes would make the kernel reset the connection. A client
        that still sends a body after that is reset, or it would wait for a minute.
        """
        self.forget_received()
        until = time.monotonic() + linger_seconds
        is_over = False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while (seconds := until - time.monotonic()) > 0 and not is_over:
                yield_to_hub()
                self._socket.settimeout(seconds)
                is_over = not self._socket.recv(64 * 1024)
        if self._sends_body and not is_over:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._connections[self._state].pop(self, None)
        self._socket.close()

    def forget_received(self) -> None:
        """Stop counting the current request's bytes: the app has released them."""
        self._connections.received_bytes -= self.body_bytes
        self.body_bytes = self._received = self._packets = 0
