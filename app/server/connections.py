"""Connections: all connections of a worker by state, and which one is closed when there are too many."""

from enum import Enum
from typing import Protocol

from gevent.lock import Semaphore

from app.errors import ServiceError, TooManyBytes

# Small body, bytes: read after an error to keep the connection, and never rejected for lack of memory.
SMALL_BODY_BYTES = 64 * 1024


class State(Enum):
    """State of a connection. With too many connections, those of the first states are closed first."""

    NEW = 1  # has never sent a byte
    IDLE = 2  # kept open between two requests
    HEAD = 3  # is sending the head of a request
    BODY = 4  # is sending a body
    SENDING = 5  # is being sent a response
    SERVED = 6  # its request is being computed


class Client(Protocol):
    """Interface of a Connection. body_bytes: received bytes of the current request's body."""

    body_bytes: int

    def end(self) -> None: ...

    def end_receiving(self) -> None: ...

    def reject_body(self, error: ServiceError) -> None: ...

    def is_stalled(self) -> bool: ...


class Connections(dict[State, dict[Client, None]]):
    """All connections of a worker by state, in order of entry. received_bytes: body bytes of unanswered requests."""

    def __init__(self, max_received_bytes: int) -> None:
        super().__init__((state, {}) for state in State)
        self.received_bytes = 0
        self.small_packet = Semaphore()
        self.max_received_bytes = max_received_bytes

    @property
    def count(self) -> int:
        """Number of all connections."""
        return sum(map(len, self.values()))

    @property
    def served(self) -> int:
        """Number of connections whose request is being received, computed or answered."""
        return sum(len(self[state]) for state in (State.BODY, State.SENDING, State.SERVED))

    def add_body_bytes(self, client: Client, count: int) -> None:
        """Count received body bytes. Over the limit, the client with the largest unfinished body is rejected.

        Raises:
            TooManyBytes: this client has the largest one.
        """
        client.body_bytes += count
        self.received_bytes += count
        if self.received_bytes > self.max_received_bytes:
            largest = max([client, *self[State.BODY]], key=lambda other: other.body_bytes)
            if largest is not client:
                largest.reject_body(TooManyBytes(self.max_received_bytes))
            elif client.body_bytes > SMALL_BODY_BYTES:
                raise TooManyBytes(self.max_received_bytes)

    def close_one(self) -> None:
        """Close the least valuable connection; never one that is being computed, or whose client reads a response."""
        for state in (State.NEW, State.IDLE, State.HEAD, State.BODY, State.SENDING):
            if self[state]:
                first = next(iter(self[state]))
                if state is not State.SENDING or first.is_stalled():
                    first.end()
                return

    def close_idle(self) -> None:
        """Close the connections that have sent nothing of a request."""
        for connection in [*self[State.NEW], *self[State.IDLE]]:
            connection.end()

    def end_receiving(self) -> None:
        """End the receiving of all unfinished heads and bodies."""
        for connection in [*self[State.HEAD], *self[State.BODY]]:
            connection.end_receiving()
