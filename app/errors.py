"""The exceptions of this service, pure: what they are in HTTP is in http_errors.py.

BootError                 the server cannot start (no HTTP: one line on stderr)
ServiceError              a request cannot be answered
├── InvalidRequest        the request itself is wrong
│   └── InvalidText       one of the texts is wrong
│       └── TextTooLong   over MAX_LENGTH with truncate false, or a book without white space
├── Unauthorized          no API key, or a wrong one
├── UnknownModel          another model than the one that is served
├── TooLarge              more texts than MAX_TEXTS, or than can be computed in time
├── UnsupportedMedia      the body is not JSON by its headers
├── QueueFull             too many requests wait already
│   └── TooManyBytes      or their bodies take too much memory
├── DeadlineExceeded      the time for the request was up before its work was done
│   └── ShuttingDown      the same, because the server ends
├── ClientGone            the client has left before its answer
└── NotReady              the model has not proved itself on this CPU (yet), or its files have changed
"""

# Longest client-supplied value quoted in an error message, characters.
MAX_QUOTED_CHARACTERS = 60


class BootError(RuntimeError):
    """The server cannot start; the message is one line that says why and what to do.

    A RuntimeError, since Gunicorn prints the line of these and leaves the stack trace out.
    """


class ServiceError(Exception):
    """A request cannot be answered; the message is a sentence for the client.

    param is the field or parameter that is wrong, if it is one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(ServiceError):
    """The request itself is wrong."""


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
    """Another model is asked for than the one that is served."""


class TooLarge(ServiceError):
    """There are more texts than allowed, or than can be computed in time."""


class UnsupportedMedia(ServiceError):
    """The body is not JSON by its headers."""


class QueueFull(ServiceError):
    """Too many requests wait already. limit: how many may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The queue is full: {limit} requests wait already (MAX_QUEUE). Try again later.")


class TooManyBytes(QueueFull):
    """The bodies of requests that wait already take too much memory. limit: bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.args = (f"The requests that wait already have over {limit} bytes in their bodies. Try again later.",)


class DeadlineExceeded(ServiceError):
    """The time for the request was up. done: texts of `texts` that have their vectors."""

    def __init__(self, done: int, texts: int) -> None:
        super().__init__(
            f"The request's time was up (REQUEST_DEADLINE, or the server is shutting down) after {done} of {texts} "
            "texts: try again (finished vectors are kept for a while), or send fewer texts at once."
        )


class ShuttingDown(DeadlineExceeded):
    """The time for the request was up because the server ends."""


class ClientGone(ServiceError):
    """The client has left before its answer."""


class NotReady(ServiceError):
    """The model has not proved itself on this CPU yet, or its files have changed."""
