"""Connection: a client's socket with limits of time and bytes, as Gunicorn's parser and response use it."""

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
from app.server.turns import let_others_go_on
from app.settings import RECEIVE_SECONDS

# Longest head of a request, bytes: Gunicorn looks through all of it at each packet.
MAX_HEAD_BYTES = 64 * 1024
# Packets of one request from which on small ones wait for a turn, all clients' together one in PACKET_SECONDS: bytes
# one by one would cost more than what they say. Meanwhile the kernel joins them.
FREE_PACKETS = 50
PACKET_SECONDS = 0.002
# Slowest reader of a response, bytes per second; each response has RECEIVE_SECONDS besides.
MIN_BYTES_PER_SECOND = 50_000
# A client that leaves a part of its response unread for so long makes room for others, where there is none left; 1 MB/s
# is five times as fast.
STALLED_SECONDS = 2

# SO_LINGER's value for a close that resets the connection: on, for 0 seconds.
RESET = struct.pack("ii", 1, 0)


class Connection:
    """One client's socket.

    arrived: when the first byte of the current request came, in seconds of time.monotonic().
    has_ended: whether the client, or its time, ended in the middle of a request. body_bytes: received of its body.
    holds_body: whether the client waits to be asked for the body (`Expect: 100-continue`), and was not yet.
    """

    def __init__(self, client: Any, connections: Connections, idle_seconds: float) -> None:
        self.arrived = 0.0
        self.has_ended = self.holds_body = self._sends_body = False
        self._refusal: ServiceError | None = None
        self._socket = client
        self._connections = connections
        self._idle_seconds = idle_seconds
        self._state = State.NEW
        connections[State.NEW][self] = None
        self._until = self._send_until = 0.0  # when the time of this state, and of a response, is up
        self._part_began = 0.0
        self.body_bytes = self._received = self._packets = self._sent = 0

    def _enter(self, state: State) -> None:
        self._connections[self._state].pop(self, None)
        self._connections[state][self] = None
        self._state = state

    def await_request(self, is_begun: bool) -> None:
        """Receive a head next. is_begun: whether some of it was received with the request before."""
        if is_begun:
            let_others_go_on()  # bytes that are there already make no greenlet switch
        if is_begun or self._state is not State.NEW:
            self._enter(State.HEAD if is_begun else State.IDLE)
        self.forget_received()
        self._sent = 0
        self.arrived = time.monotonic()
        self._until = self.arrived + (RECEIVE_SECONDS if is_begun else self._idle_seconds)

    def await_body(self, until: float, holds_body: bool) -> None:
        """Receive a body, if there is one, and then serve; until: in seconds of time.monotonic()."""
        self._enter(State.SERVED)
        self._until, self.holds_body, self._sends_body = until, holds_body, False

    def recv(self, size: int) -> bytes:
        """Receive bytes of a request; none when the client has ended, or the time for them has.

        Raises:
            TimeoutError: nothing more of a request came in time.
            LimitRequestHeaders: too much came of a head.
            TooManyBytes: all bodies together take too much memory, and this is the largest.
        """
        is_head = self._state in (State.NEW, State.IDLE, State.HEAD)
        if not is_head:
            if self.holds_body:
                self._ask_for_body()
            self._enter(State.BODY)
            self._sends_body = True
            let_others_go_on(is_small=not self.body_bytes)
        self._packets += 1
        if self._packets > FREE_PACKETS and self._received < self._packets * 1000:
            with self._connections.small_packet:
                gevent.sleep(PACKET_SECONDS)
        seconds = self._until - time.monotonic()
        data = self._recv(size, seconds if is_head else min(seconds, RECEIVE_SECONDS))
        if self._refusal:
            raise self._refusal
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
            # Silence between requests ends a connection; a body ends where the request's time does.
            if self._state in (State.NEW, State.IDLE) or self._state is State.BODY and time.monotonic() >= self._until:
                return b""
            raise
        except OSError as error:
            if error.errno != errno.EBADF:  # gevent's, where `end` or `end_receiving` shut down what is waited for
                raise
            self.has_ended = True
            return b""

    def sendall(self, data: bytes) -> None:
        """Send a part of a response.

        Raises:
            TimeoutError: the client reads less than MIN_BYTES_PER_SECOND.
        """
        self.holds_body = False
        if self._sent:
            let_others_go_on()
        self._enter(State.SENDING)
        self._part_began = now = time.monotonic()
        if not self._sent:
            self._send_until = now + RECEIVE_SECONDS
        self._sent += len(data)
        self._socket.settimeout(max(0.001, self._send_until + self._sent / MIN_BYTES_PER_SECOND - now))
        self._socket.sendall(data)

    def _ask_for_body(self) -> None:
        self.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._sent = 0  # the response has its own time

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

    def refuse_body(self, error: ServiceError) -> None:
        """Let the body that is being received end here, with an error for the client."""
        self._refusal = error
        gevent.get_hub().cancel_wait(self._socket._read_event, error)

    def end_receiving(self) -> None:
        """Let the body that is being received end here."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def end(self) -> None:
        """Let whoever waits for this client wait no longer; its greenlet closes the socket."""
        self._enter(State.SERVED)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self, linger_seconds: float) -> None:
        """Close in a way that the client gets the whole answer.

        What it still sends is read for a while: unread bytes would make the kernel reset the connection. One that sends
        a body for longer is reset: the kernel would leave it waiting for a minute.
        """
        self.forget_received()
        until = time.monotonic() + linger_seconds
        is_over = False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while (seconds := until - time.monotonic()) > 0 and not is_over:
                let_others_go_on()
                self._socket.settimeout(seconds)
                is_over = not self._socket.recv(64 * 1024)
        if self._sends_body and not is_over:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._connections[self._state].pop(self, None)
        self._socket.close()

    def forget_received(self) -> None:
        """Count the bytes of a request no longer: the app has no more use for them."""
        self._connections.received_bytes -= self.body_bytes
        self.body_bytes = self._received = self._packets = 0
