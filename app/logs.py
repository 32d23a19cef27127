"""Log lines on stderr, as JSON for Cloud Logging or as text (LOG_FORMAT). They never contain a text, vector or key.

Field names: https://cloud.google.com/logging/docs/structured-logging#structured_logging_special_fields
"""

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import gunicorn.glogging
import orjson

from app.context import RequestContext

# Probe paths: successful responses are logged at DEBUG.
PROBES = ("/health", "/healthz", "/readyz")
# Longest client-supplied value in a line, characters.
MAX_CHARACTERS = 200

# Control characters: they break a line, move a terminal's cursor or reverse the text direction.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

logger = logging.getLogger(__name__)
_format = "text"
_level = logging.INFO
_project = ""


def _write_directly(line: bytes) -> None:
    with suppress(OSError):  # stderr is closed
        os.write(2, line)


_output: Callable[[bytes], None] = _write_directly


def set_output(output: Callable[[bytes], None]) -> None:
    """Pass each line to output(line) from now on, instead of writing it to stderr."""
    global _output
    _output = output


def configure(log_format: str, log_level: str, project: str) -> None:
    """Set up one log handler for this app, Gunicorn and the libraries.

    project: the Google Cloud project of the trace field, or "".
    """
    global _format, _level, _project
    _format, _level, _project = log_format, logging.getLevelNamesMapping()[log_level.upper()], project
    handler = _Handler()
    handler.setFormatter(_Formatter())
    logging.root.handlers = [handler]
    logging.root.setLevel(max(_level, logging.INFO))  # no debug lines of libraries
    logging.getLogger("app").setLevel(_level)
    logging.captureWarnings(True)


class Logger(gunicorn.glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's logger, writing to the root handler."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.setLevel(max(self.error_log.level, logging.INFO))  # its debug lines quote requests
        self.error_log.handlers = []
        self.error_log.propagate = True


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            _output(f"{self.format(record)}\n".encode("utf-8", "replace"))
        except Exception:
            self.handleError(record)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return format_line(record.levelname, message, {}, record.created).rstrip("\n")


def format_line(severity: str, message: str, fields: dict[str, Any], at: float) -> str:
    """Return one line in the configured format. at: seconds of time.time()."""
    now = datetime.fromtimestamp(at, UTC)
    if _format == "json":
        content = {"severity": severity, "time": now, "message": message, **fields}
        return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z, default=str).decode()
    details = "".join(f" {name}={value}" for name, value in fields.items())
    return f"{now:%Y-%m-%d %H:%M:%S} {severity} {message}{details}\n"


def write(severity: str, message: str, fields: dict[str, Any], at: float | None = None) -> None:
    """Write one line directly: the logging module's records cost more CPU."""
    if logging.getLevelNamesMapping()[severity] < _level:
        return
    _output(format_line(severity, message, fields, time.time() if at is None else at).encode("utf-8", "replace"))


def log_request(context: RequestContext) -> None:
    """Log the line of one answered request."""
    severity = "ERROR" if context.status >= 500 and context.status not in (501, 503) else "INFO"
    if context.status in (429, 503):
        severity = "WARNING"
    elif context.status == 200 and context.canonical_path in PROBES:
        severity = "DEBUG"
    if logging.getLevelNamesMapping()[severity] < _level:
        return
    path = CONTROLS.sub(lambda match: repr(match[0])[1:-1], context.path[:MAX_CHARACTERS])[:MAX_CHARACTERS]
    message = f"{context.method} {path} {context.status} in {context.seconds * 1e3:.1f} ms"
    ms = {stage: round(seconds * 1e3, 3) for stage, seconds in context.stages.items()}
    fields: dict[str, Any] = {"requestId": context.request_id, "route": context.route}
    if context.error:
        fields["error"] = context.error
    if context.texts:
        fields |= {"texts": context.texts, "tokens": context.tokens}
        fields |= {"truncated": context.truncated, "cacheHits": context.cache_hits}
    if _format == "json":
        fields["ms"] = {**ms, "total": round(context.seconds * 1e3, 3)}
        fields["httpRequest"] = {
            "requestMethod": context.method,
            "requestUrl": path,  # without the query, which may contain a text
            "requestSize": str(context.request_bytes),
            "status": context.status,
            "responseSize": str(context.response_bytes),
            "userAgent": context.user_agent[:MAX_CHARACTERS],
            "remoteIp": context.remote,
            "latency": f"{context.seconds:.6f}s",
            "protocol": context.protocol,
        }
        if context.forwarded_for:  # not verified: clients can send any value
            fields["forwardedFor"] = context.forwarded_for[:MAX_CHARACTERS]
        if context.trace:
            trace = f"projects/{_project}/traces/{context.trace}" if _project else context.trace
            fields["logging.googleapis.com/trace"] = trace
            if context.span:
                fields["logging.googleapis.com/spanId"] = context.span
    else:
        fields |= {f"{stage}_ms": milliseconds for stage, milliseconds in ms.items()}
    write(severity, message, fields, context.ended)
