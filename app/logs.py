"""Lines on stderr, as Cloud Logging reads them or as people do (LOG_FORMAT). No text, vector or key is in them.

The names of the fields: https://cloud.google.com/logging/docs/structured-logging#structured_logging_special_fields
"""

import logging
import os
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import gunicorn.glogging
import orjson

from app.record import Record

# Whose answers are not worth a line as long as they are right.
PROBES = ("/health", "/healthz", "/readyz")
MAX_CHARACTERS = 200  # of what a client chooses, in a line

# What would make a line two, or move a terminal.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_format = "text"
_level = logging.INFO
_project = ""


def configure(log_format: str, log_level: str, project: str) -> None:
    """One handler for everything, this app's, Gunicorn's and the libraries'.

    project: of Google Cloud, whose traces the lines belong to; may be empty.
    """
    global _format, _level, _project
    _format, _level, _project = log_format, logging.getLevelNamesMapping()[log_level.upper()], project
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.root.handlers = [handler]
    logging.root.setLevel(max(_level, logging.INFO))  # the libraries' debug lines are not this server's
    logging.getLogger("app").setLevel(_level)
    logging.captureWarnings(True)


class Logger(gunicorn.glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's, whose lines go where the others go."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.setLevel(max(self.error_log.level, logging.INFO))  # its debug lines have parts of requests
        self.error_log.handlers = []
        self.error_log.propagate = True


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return line(record.levelname, message, {}, record.created).rstrip("\n")


def line(severity: str, message: str, fields: dict[str, Any], at: float) -> str:
    """One line, in the format that is set; at: in seconds of time.time()."""
    now = datetime.fromtimestamp(at, UTC)
    if _format == "json":
        content = {"severity": severity, "time": now, "message": message, **fields}
        return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z, default=str).decode()
    details = "".join(f" {name}={value}" for name, value in fields.items())
    return f"{now:%Y-%m-%d %H:%M:%S} {severity} {message}{details}\n"


def write(severity: str, message: str, fields: dict[str, Any], at: float | None = None) -> None:
    """Write a line as one piece, without the cost of logging's records."""
    if logging.getLevelNamesMapping()[severity] < _level:
        return
    with suppress(OSError):  # nobody reads it
        os.write(2, line(severity, message, fields, time.time() if at is None else at).encode("utf-8", "replace"))


def answered(record: Record) -> None:
    """The line of one request."""
    severity = "ERROR" if record.status >= 500 and record.status not in (501, 503) else "INFO"
    if record.status in (429, 503):
        severity = "WARNING"
    elif record.status == 200 and record.path in PROBES:
        severity = "DEBUG"
    if logging.getLevelNamesMapping()[severity] < _level:
        return
    if record.head is not None:
        record.begin(record.head())
    path = CONTROLS.sub(lambda found: repr(found[0])[1:-1], record.path[:MAX_CHARACTERS])[:MAX_CHARACTERS]
    message = f"{record.method} {path} {record.status} in {record.seconds * 1e3:.1f} ms"
    ms = {stage: round(seconds * 1e3, 3) for stage, seconds in record.stages.items()}
    fields: dict[str, Any] = {"requestId": record.request_id, "route": record.route}
    if record.error:
        fields["error"] = record.error
    if record.texts:
        fields |= {"texts": record.texts, "tokens": record.tokens}
        fields |= {"truncated": record.truncated, "cacheHits": record.cache_hits}
    if _format == "json":
        fields["ms"] = {**ms, "total": round(record.seconds * 1e3, 3)}
        fields["httpRequest"] = {
            "requestMethod": record.method,
            "requestUrl": path,  # without the query, which may be a text
            "requestSize": str(record.request_bytes),
            "status": record.status,
            "responseSize": str(record.answer_bytes),
            "userAgent": record.user_agent[:MAX_CHARACTERS],
            "remoteIp": record.remote,
            "latency": f"{record.seconds:.6f}s",
            "protocol": record.protocol,
        }
        if record.forwarded_for:  # remoteIp is then a proxy's; whoever asks may write here what they like
            fields["forwardedFor"] = record.forwarded_for[:MAX_CHARACTERS]
        if record.trace:
            trace = f"projects/{_project}/traces/{record.trace}" if _project else record.trace
            fields["logging.googleapis.com/trace"] = trace
            if record.span:
                fields["logging.googleapis.com/spanId"] = record.span
    else:
        fields |= {f"{stage}_ms": milliseconds for stage, milliseconds in ms.items()}
    write(severity, message, fields, record.ended)
