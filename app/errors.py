"""The exceptions of this service. app/http_errors.py maps them to HTTP statuses.

BootError                 the server cannot start (no HTTP: one line on stderr)
ServiceError              a request cannot be answered
├── InvalidRequest        the request itself is wrong
│   ├── EmptyList         a list that needs an item has none
│   └── InvalidText       one of the texts is wrong
│       └── TextTooLong   over MAX_LENGTH with truncate false, or too long without white space
├── Unauthorized          no API key, or a wrong one
├── UnknownModel          the request names a model that is not served
├── TooLarge              more texts than MAX_TEXTS, or more than can be computed in time
├── UnsupportedMedia      the headers say that the body is not JSON
├── QueueFull             too many requests are waiting
│   └── TooManyBytes      the bodies of waiting requests take too much memory
├── DeadlineExceeded      the request's deadline passed before its vectors were computed
│   └── ShuttingDown      the same, because the server is shutting down
├── ClientGone            the client disconnected before its response
└── NotReady              the model has not passed its self-check on this CPU, or its files have changed
"""

# Longest client-supplied value quoted in an error message, characters.
MAX_QUOTED_CHARACTERS = 60


class BootError(RuntimeError):
    """The server cannot start; the message is one line that says why and what to do.

    It is a RuntimeError because Gunicorn prints these without a stack trace.
    """


class ServiceError(Exception):
    """A request cannot be answered; the message is a sentence for the client.

    param: the field or parameter that is wrong, or None.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(ServiceError):
    """The request itself is wrong."""


class EmptyList(InvalidRequest):
    """A list that needs at least one item has none."""


class InvalidText(InvalidRequest):
    """One of the texts is wrong. index: of that text. reason: the rest of the sentence."""

    def __init__(self, index: int, reason: str, param: str | None = None) -> None:
        super().__init__(f"Text {index} {reason}", param)
        self.index = index
        self.reason = reason

    def with_name(self, name: str) -> "InvalidText":
        """Return the same error with the client's own name for the text."""
        self.args = (f"{name} {self.reason}",)
        return self


class TextTooLong(InvalidText):
    """A text is longer than it may be."""


class Unauthorized(ServiceError):
    """The API key is missing or wrong."""


class UnknownModel(ServiceError):
    """The request names a model that is not served."""


class TooLarge(ServiceError):
    """The request has more texts than allowed, or more than can be computed in time."""


class UnsupportedMedia(ServiceError):
    """The headers say that the body is not JSON."""


class QueueFull(ServiceError):
    """Too many requests are waiting. limit: MAX_QUEUE."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The queue is full: {limit} requests wait already (MAX_QUEUE). Try again later.")


class TooManyBytes(QueueFull):
    """The bodies of waiting requests take too much memory. limit: bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.args = (f"The requests that wait already have over {limit} bytes in their bodies. Try again later.",)


class DeadlineExceeded(ServiceError):
    """The request's deadline has passed. done: how many of `texts` texts have their vectors."""

    def __init__(self, done: int, texts: int) -> None:
        super().__init__(
            f"The request's time was up (REQUEST_DEADLINE, or the server is shutting down) after {done} of {texts} "
            "texts: try again (finished vectors are kept for a while), or send fewer texts at once."
        )


class ShuttingDown(DeadlineExceeded):
    """The request was ended because the server is shutting down."""


class ClientGone(ServiceError):
    """The client disconnected before its response."""


class NotReady(ServiceError):
    """The model has not passed its self-check on this CPU, or its files have changed."""
