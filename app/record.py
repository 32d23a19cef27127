"""What is known of one request, from its arrival to its answer: for its headers, its log line and the metrics."""

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.encoder import Embeddings

# Under this key the WSGI environment has the record.
RECORD = "embedding.record"
# A route that is not in the app's list: labels of metrics must be few.
OTHER = "other"
# Whose clients look for more in an error than its one shape, by path. POST /embed is text-embeddings-inference's, too,
# if the body has `inputs`.
TEI, BIGQUERY = "tei", "bigquery"
DIALECTS = {"/": TEI, "/similarity": TEI, "/tokenize": TEI, "/decode": TEI, "/info": TEI, "/bigquery": BIGQUERY}
LENGTH = re.compile(r"[0-9]{1,15}")  # int() refuses some of what isdigit() takes
REQUEST_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)
# https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT = re.compile(
    r"(?!ff)[\da-f]{2}-(?!0{32})(?P<trace>[\da-f]{32})-(?!0{16})(?P<span>[\da-f]{16})-[\da-f]{2}(?:-.*)?"
)
# https://cloud.google.com/trace/docs/trace-context#legacy-http-header
CLOUD_TRACE = re.compile(r"(?P<trace>[\da-fA-F]{32})(?:/(?P<span>\d{1,20}))?(?:;.*)?")


class Record:
    """One request. Times are seconds of time.monotonic(), durations seconds.

    route: the app's rule, or OTHER. stages: how long each of STAGES took, of those that there were.
    """

    STAGES = ("queue", "tokenize", "inference", "serialize")

    def __init__(self, arrived: float | None = None) -> None:
        self.arrived = time.monotonic() if arrived is None else arrived
        # What it says of itself, read only for its line: of a request that is refused unparsed.
        self.head: Callable[[], Mapping[str, Any]] | None = None
        self.method = ""
        self.path = ""
        self.route = OTHER
        self.dialect = ""
        self.protocol = ""
        self.request_id = ""
        self.trace = ""
        self.span = ""
        self.remote = ""
        self.forwarded_for = ""
        self.user_agent = ""
        self.status = 0
        self.error = ""
        self.request_bytes = 0
        self.answer_bytes = 0
        self.stages: dict[str, float] = {}
        self.texts = 0
        self.tokens = 0
        self.truncated = 0
        self.cache_hits = 0
        self.seconds = 0.0
        self.ended = 0.0

    def begin(self, environ: Mapping[str, Any]) -> None:
        """Take over what the request says of itself."""
        self.method = environ["REQUEST_METHOD"]
        # WSGI's strings are bytes in disguise (PEP 3333).
        self.path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        self.dialect = DIALECTS.get(self.path, "")
        self.protocol = environ.get("SERVER_PROTOCOL", "")
        self.remote = environ.get("REMOTE_ADDR", "")
        self.forwarded_for = environ.get("HTTP_X_FORWARDED_FOR", "")
        self.user_agent = environ.get("HTTP_USER_AGENT", "")
        length = environ.get("CONTENT_LENGTH") or ""
        self.request_bytes = int(length) if LENGTH.fullmatch(length) else 0
        if not self.request_id:
            self.identify(environ.get("HTTP_X_REQUEST_ID", ""))
        if found := TRACEPARENT.fullmatch(environ.get("HTTP_TRACEPARENT", "")):
            self.trace, self.span = found["trace"], found["span"]
        elif found := CLOUD_TRACE.fullmatch(environ.get("HTTP_X_CLOUD_TRACE_CONTEXT", "")):
            span = int(found["span"] or 0)
            self.trace, self.span = found["trace"].lower(), f"{span:016x}" if 0 < span < 2**64 else ""

    def identify(self, given: str) -> None:
        """The client's own X-Request-Id, or a new one."""
        self.request_id = given if REQUEST_ID.fullmatch(given) else os.urandom(8).hex()

    def add(self, result: "Embeddings") -> None:
        """What the encoder did for this request."""
        self.stages["tokenize"] = self.stages.get("tokenize", 0.0) + result.tokenize_seconds
        self.stages["inference"] = self.stages.get("inference", 0.0) + result.inference_seconds
        self.texts += len(result.tokens)
        self.tokens += sum(result.tokens)
        self.truncated += sum(result.truncated)
        self.cache_hits += result.cache_hits

    def end(self, status: int, answer_bytes: int) -> None:
        """ended: by the clock, in seconds of time.time(). seconds: since it arrived."""
        self.status = status
        self.answer_bytes = answer_bytes
        self.seconds = time.monotonic() - self.arrived
        self.ended = time.time()

    def server_timing(self) -> str:
        """The header of that name, in milliseconds: https://www.w3.org/TR/server-timing/"""
        return ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in self.stages.items())
