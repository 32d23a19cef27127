"""RequestContext: the facts of one request that headers, log line and metrics use."""

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from app import paths
from app.engine.embeddings import Embeddings
from app.engine.runner import Runner
from app.errors import ServiceError

# Key of the context in the WSGI environ.
CONTEXT = "embedding.context"
# Route label of unknown paths: a metric must have few labels.
OTHER = "other"
LENGTH = re.compile(r"[0-9]{1,15}")  # isdigit() accepts characters that int() refuses
REQUEST_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)
# https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT = re.compile(
    r"(?!ff)[\da-f]{2}-(?!0{32})(?P<trace>[\da-f]{32})-(?!0{16})(?P<span>[\da-f]{16})-[\da-f]{2}(?:-.*)?"
)
# https://cloud.google.com/trace/docs/trace-context#legacy-http-header
CLOUD_TRACE = re.compile(r"(?P<trace>[\da-fA-F]{32})(?:/(?P<span>\d{1,20}))?(?:;.*)?")

# (context, status, message) -> the fields that a dialect adds to the body of an error.
ErrorFields = Callable[["RequestContext", int, str], dict[str, Any]]


class RequestContext:
    """Facts of one request. Times are seconds of time.monotonic(), durations seconds.

    path: as the client sent it. canonical_path: the documented path for it. route: the app's rule, or OTHER.
    stages: duration of each of STAGES that the request went through.
    runner: computes this request's texts; None: the encoder's own runner.
    error_fields: function of the dialect that adds fields to an error. origin: the Origin header, or "".
    error: code of the error that is sent, or "". exception: its exception, if it is one of the service's.
    surrogates: number of lone surrogates in the body that were replaced.
    """

    STAGES = ("queue", "tokenize", "inference", "serialize")

    def __init__(self, arrived: float | None = None) -> None:
        self.arrived = time.monotonic() if arrived is None else arrived
        self.runner: Runner | None = None
        self.error_fields: ErrorFields | None = None
        self.method = ""
        self.path = ""
        self.canonical_path = ""
        self.route = OTHER
        self.protocol = ""
        self.request_id = ""
        self.trace = ""
        self.span = ""
        self.remote = ""
        self.forwarded_for = ""
        self.user_agent = ""
        self.origin = ""
        self.status = 0
        self.error = ""
        self.exception: ServiceError | None = None
        self.request_bytes = 0
        self.response_bytes = 0
        self.stages: dict[str, float] = {}
        self.texts = 0
        self.tokens = 0
        self.truncated = 0
        self.cache_hits = 0
        self.surrogates = 0
        self.seconds = 0.0
        self.ended = 0.0

    def read_environ(self, environ: Mapping[str, Any]) -> None:
        """Set the fields that come from the request line and the headers."""
        self.method = environ["REQUEST_METHOD"]
        # WSGI decodes bytes as Latin-1 (PEP 3333).
        self.path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        self.canonical_path = paths.canonical(self.path)
        self.protocol = environ.get("SERVER_PROTOCOL", "")
        self.remote = environ.get("REMOTE_ADDR", "")
        self.forwarded_for = environ.get("HTTP_X_FORWARDED_FOR", "")
        self.user_agent = environ.get("HTTP_USER_AGENT", "")
        self.origin = environ.get("HTTP_ORIGIN", "")
        length = environ.get("CONTENT_LENGTH") or ""
        self.request_bytes = int(length) if LENGTH.fullmatch(length) else 0
        self.identify(environ.get("HTTP_X_REQUEST_ID", ""))
        if match := TRACEPARENT.fullmatch(environ.get("HTTP_TRACEPARENT", "")):
            self.trace, self.span = match["trace"], match["span"]
        elif match := CLOUD_TRACE.fullmatch(environ.get("HTTP_X_CLOUD_TRACE_CONTEXT", "")):
            span = int(match["span"] or 0)
            self.trace, self.span = match["trace"].lower(), f"{span:016x}" if 0 < span < 2**64 else ""

    def identify(self, request_id: str = "") -> None:
        """Keep the client's own X-Request-Id, or make a new one."""
        self.request_id = request_id if REQUEST_ID.fullmatch(request_id) else os.urandom(8).hex()

    def add(self, result: Embeddings) -> None:
        """Add the encoder's counts and times. The wait for a free thread counts as queue, not as inference."""
        waited = min(result.queue_seconds, result.inference_seconds)
        for stage, seconds in (
            ("queue", waited),
            ("tokenize", result.tokenize_seconds),
            ("inference", result.inference_seconds - waited),
        ):
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        self.texts += len(result.tokens)
        self.tokens += sum(result.tokens)
        self.truncated += sum(result.truncated)
        self.cache_hits += result.cache_hits

    def finish(self, status: int, response_bytes: int) -> None:
        """Record the response. Sets ended, seconds of time.time(), and seconds, the time since the request arrived."""
        self.status = status
        self.response_bytes = response_bytes
        self.seconds = time.monotonic() - self.arrived
        self.ended = time.time()

    def server_timing(self) -> str:
        """Return the value of the Server-Timing header, in milliseconds: https://www.w3.org/TR/server-timing/"""
        return ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in self.stages.items())
