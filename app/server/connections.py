"""Connections: all of a worker by state, and which one goes where there are too many."""

from enum import Enum
from typing import Protocol

from gevent.lock import Semaphore

from app.errors import ServiceError, TooManyBytes

# Largest body that is read after an error to keep the connection, and that no lack of memory refuses, bytes.
SMALL_BODY_BYTES = 64 * 1024


class State(Enum):
    """State of a connection. Where there are too many, those of the first states are closed first."""

    NEW = 1  # has never sent a byte
    IDLE = 2  # waits for its next request
    HEAD = 3  # sends the head of a request
    BODY = 4  # sends a body
    SENDING = 5  # reads the next part of a response, or does not
    SERVED = 6  # is computed for


class Client(Protocol):
    """Part of a Connection that Connections uses. body_bytes: received of the current request's body."""

    body_bytes: int

    def end(self) -> None: ...

    def end_receiving(self) -> None: ...

    def refuse_body(self, error: ServiceError) -> None: ...

    def is_stalled(self) -> bool: ...


class Connections(dict[State, dict[Client, None]]):
    """All connections of a worker by state, the longest in it first. received_bytes: of all unanswered requests."""

    def __init__(self, max_received_bytes: int) -> None:
        super().__init__((state, {}) for state in State)
        self.received_bytes = 0
        self.small_packet = Semaphore()
        self.max_received_bytes = max_received_bytes

    @property
    def count(self) -> int:
        """All connections."""
        return sum(map(len, self.values()))

    @property
    def served(self) -> int:
        """Connections with a request that is being received, computed or answered."""
        return sum(len(self[state]) for state in (State.BODY, State.SENDING, State.SERVED))

    def add_body_bytes(self, client: Client, count: int) -> None:
        """Count what a client has sent of a body. Where all have sent too much, the one with the most is refused.

        Raises:
            TooManyBytes: it is this one.
        """
        client.body_bytes += count
        self.received_bytes += count
        if self.received_bytes > self.max_received_bytes:
            largest = max([client, *self[State.BODY]], key=lambda other: other.body_bytes)
            if largest is not client:
                largest.refuse_body(TooManyBytes(self.max_received_bytes))
            elif client.body_bytes > SMALL_BODY_BYTES:
                raise TooManyBytes(self.max_received_bytes)

    def close_one(self) -> None:
        """Close the connection that is missed the least; none that is computed for, or reads its response."""
        for state in (State.NEW, State.IDLE, State.HEAD, State.BODY, State.SENDING):
            if self[state]:
                first = next(iter(self[state]))
                if state is not State.SENDING or first.is_stalled():
                    first.end()
                return

    def close_idle(self) -> None:
        """Close those that have sent nothing of a request."""
        for connection in [*self[State.NEW], *self[State.IDLE]]:
            connection.end()

    def end_receiving(self) -> None:
        """Let the heads and bodies that are being received end here."""
        for connection in [*self[State.HEAD], *self[State.BODY]]:
            connection.end_receiving()
