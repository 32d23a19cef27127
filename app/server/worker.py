"""Worker: Gunicorn's gevent worker with what it lacks: limits of time, early 429, errors in JSON, a graceful end.

README.md in this folder lists what is used of Gunicorn.
"""

import re
import resource
import time
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import gevent
import gunicorn.http
import gunicorn.http.message
import gunicorn.http.wsgi
import gunicorn.util
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.ggevent import GeventWorker

from app import access, logs, metrics
from app.context import CONTEXT, RequestContext
from app.errors import BootError, QueueFull, ServiceError
from app.http_errors import CLIENT_CLOSED_REQUEST, INTERNAL_ERROR, RETRY_AFTER, error_body, status_and_code
from app.server.access_log import AccessLog, LineWriter
from app.server.connection import MAX_HEAD_BYTES, Connection, Connections
from app.server.scheduler import Scheduler
from app.settings import RECEIVE_SECONDS

# Time that a stopping worker keeps idle connections for a request on its way, and reads on after an error, seconds.
LINGER_SECONDS = 2
LAST_LINGER_SECONDS = 0.5  # within ANSWER_SECONDS, when the worker stops
# On shutdown, deadlines end this long before the process does, so that responses can still be sent.
ANSWER_SECONDS = 1.5
# Interval of the heartbeat, and of the check for a signal to stop, seconds.
BEAT_SECONDS = 0.25
# Largest body that is read after an error to keep the connection, bytes.
SMALL_BODY_BYTES = 64 * 1024
# Memory for bodies of unanswered requests, in bodies of MAX_BODY_BYTES.
MAX_LARGE_BODIES = 8
# Files a worker may open besides connections, and the fewest connections it can work with.
SPARE_FILES, MIN_CONNECTIONS = 16, 8
# Interval between looks at the model's files, seconds.
MODEL_CHECK_SECONDS = 20


class Response(gunicorn.http.wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's response, whose head waits for the beginning of the body: one packet wakes the client once."""

    head = b""
    headers_sent: bool

    def send_headers(self) -> None:
        if not self.headers_sent:
            lines = [*self.default_headers(), *(f"{name}: {value}\r\n" for name, value in self.headers), "\r\n"]
            self.head = "".join(lines).encode("latin-1")
            self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        if self.chunked:
            self.sock.sendall(self.head)
            gunicorn.util.write_chunk(self.sock, data)
        else:
            self.sock.sendall(self.head + data)
        self.head = b""

    def close(self) -> None:
        self.send_headers()
        if self.head:  # there is no body
            self.sock.sendall(self.head)
        super().close()


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's gevent worker for an app of `create_app`."""

    alive: bool
    worker_connections: int

    def open(self) -> None:
        """Open the encoder in this process, and connect the app with this worker.

        Raises:
            BootError: the model cannot be opened, or too few files may be.
        """
        app = self.wsgi
        self.encoder, settings = app.extensions["encoder"], app.extensions["settings"]
        self.worker_connections = min(self.worker_connections, _spare_files())
        if self.worker_connections < MIN_CONNECTIONS:
            raise BootError(
                f"The limit of open files (ulimit -n) leaves room for {max(0, self.worker_connections)} connections; "
                f"raise it by {MIN_CONNECTIONS - self.worker_connections} or more."
            )
        self.encoder.open()
        metrics.start_worker(settings.capacity, settings.max_queue)
        self.settings = settings
        self.paths = {rule.rule for rule in app.url_map.iter_rules()}
        self.scheduler = Scheduler(self.encoder.compute, settings.capacity, settings.request_deadline)
        self.access_log = AccessLog()
        self.connections = Connections(MAX_LARGE_BODIES * settings.max_body_bytes)
        app.extensions["shutting_down"] = lambda: not self.alive
        app.extensions["count"] = self._count
        self.writer = LineWriter()
        logs.set_output(self.writer.write)

    def run(self) -> None:
        """Serve until told to stop; then answer what was admitted, in time or with 503, and end."""
        for function in (self.access_log.run, self._watch_model):
            gevent.spawn(function)
        # A little more than the limit: it is up to Connections.close_one who goes.
        pool = Pool(self.worker_connections + MIN_CONNECTIONS // 2)
        servers = [StreamServer(listener, partial(self.handle, listener), spawn=pool) for listener in self.sockets]
        for server in servers:
            if self.cfg.workers > 1:
                server.max_accept = 1
            server.start()
        while self.alive:
            self.notify()
            self._count_gauges()
            gevent.sleep(BEAT_SECONDS)
        for server in servers:
            server.stop_accepting()
            while accepted := server.do_read():  # those are connected already, as far as their clients know
                server.do_handle(*accepted)
            server.close()
        self._shut_down()

    def _shut_down(self) -> None:
        now = time.monotonic()
        end = now + self.cfg.graceful_timeout - ANSWER_SECONDS
        self.scheduler.shut_down(end)
        gevent.spawn_later(LINGER_SECONDS, self.connections.close_idle)
        gevent.spawn_later(end - now, self.connections.end_receiving)
        while self.connections.count and time.monotonic() < now + self.cfg.graceful_timeout:
            self.notify()
            gevent.sleep(0.02)
        self._count()
        self.writer.close()

    def handle(self, listener: Any, client: Any, address: Any) -> None:
        """Serve one connection, in a greenlet of its own."""
        if self.connections.count >= self.worker_connections:
            self.connections.close_one()
        idle_seconds = self.cfg.keepalive if self.alive else LAST_LINGER_SECONDS
        connection = Connection(client, self.connections, idle_seconds)
        parser = gunicorn.http.get_parser(self.cfg, connection, address)
        server = listener.getsockname()
        try:
            while self._serve(connection, parser, address, server):
                pass
        except OSError:  # the client has left, or does not read
            pass
        except Exception:
            self.log.exception("unexpected error")
        finally:
            connection.close(LINGER_SECONDS if self.alive else LAST_LINGER_SECONDS)

    def _serve(self, connection: Connection, parser: Any, address: Any, server: Any) -> bool:
        """Receive a request and answer it; whether the connection is kept."""
        received = parser.unreader.take_buffered()
        parser.unreader.unread(received)
        connection.await_request(bool(received))
        try:
            request = next(parser)
            _check(request)
        except (StopIteration, ConnectionError):
            return False
        except Exception as error:
            self._reject_unread(connection, address, error)
            return False
        connection.await_body(connection.arrived + self.scheduler.deadline_seconds)
        expects, request._expected_100_continue = request._expected_100_continue, False
        response, environ = gunicorn.http.wsgi.create(request, connection, address, server, self.cfg, Response)
        environ["wsgi.multithread"] = True
        if not request.path.isascii():  # Gunicorn encodes once more what came without percent signs
            environ["PATH_INFO"] = unquote_to_bytes(request.path.encode("latin-1")).decode("latin-1")
        context = environ[CONTEXT] = RequestContext(connection.arrived)
        context.read_environ(environ)
        path = "/" + context.path.lstrip("/")  # as werkzeug reads it
        context.error_fields = self.wsgi.extensions["error_fields"].get(path)
        computes = context.method not in ("GET", "HEAD", "OPTIONS") or path == "/embed"
        if computes and self.scheduler.waiting >= self.settings.max_queue:
            self._reject(response, context, environ, QueueFull(self.settings.max_queue))
        else:
            if expects:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._answer(response, context, environ, connection)
        return not response.should_close() and bool(parser.finish_body())

    def _answer(self, response: Any, context: RequestContext, environ: dict[str, Any], connection: Connection) -> None:
        """Call the app and send what it answers."""
        context.runner = job = self.scheduler.job(context.arrived, connection.is_gone)
        context.stages["queue"] = time.monotonic() - context.arrived
        body = self.wsgi(environ, response.start_response)
        job.end()
        status = response.status_code
        # A large body is not read after an error.
        is_read = status < HTTPStatus.BAD_REQUEST and context.method == "POST"
        if not self.alive or connection.has_ended or not (is_read or _has_small_body(environ)):
            response.force_close()
        try:
            for part in body:
                response.write(part)
            response.close()
        except OSError:
            status = CLIENT_CLOSED_REQUEST
            response.force_close()
        except Exception:
            self.log.exception("The answer broke off")
            response.force_close()
        finally:
            body.close()
        context.finish(status, response.sent)
        self.access_log.add(context)

    def _reject(self, response: Any, context: RequestContext, environ: dict[str, Any], error: ServiceError) -> None:
        """Answer with an error before the app is called: refusing must cost next to nothing."""
        status, context.error = status_and_code(error)
        if context.path in self.paths:
            context.route = context.path
        if not self.alive or not _has_small_body(environ):
            response.force_close()
        body = error_body(context, status, str(error), context.error)
        headers = self._headers(context, environ.get("HTTP_ORIGIN", ""))
        headers |= {"Content-Length": str(len(body)), "Retry-After": str(RETRY_AFTER[context.error])}
        response.start_response(f"{status} {HTTPStatus(status).phrase}", [*headers.items()])
        with suppress(OSError):
            response.write(body)
            response.close()
        context.finish(status, response.sent)
        self.access_log.add(context)

    def _reject_unread(self, connection: Connection, address: Any, error: Exception) -> None:
        """Answer a request that cannot be read, without its bytes in the answer or in the log."""
        status, message = _unreadable(error, self.cfg)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.error("unexpected error", exc_info=error)
        context = RequestContext(connection.arrived)
        context.remote = str(address[0])
        context.identify()
        context.error = "request_timeout" if status == HTTPStatus.REQUEST_TIMEOUT else status.name.lower()
        body = error_body(context, status, message, context.error)
        headers = self._headers(context, "") | {"Content-Length": str(len(body)), "Connection": "close"}
        head = f"HTTP/1.1 {status} {status.phrase}\r\n" + "".join(f"{name}: {headers[name]}\r\n" for name in headers)
        with suppress(OSError):
            connection.sendall(f"{head}\r\n".encode("latin-1") + body)
        context.finish(status, len(body))
        self.access_log.add(context)

    def _headers(self, context: RequestContext, origin: str) -> dict[str, str]:
        allowed = access.cors(self.settings.cors_origins, origin) if self.settings.cors_origins else {}
        own = {"Content-Type": "application/json", "X-Request-Id": context.request_id}
        return {**own, **access.SECURITY_HEADERS, access.CSP: access.CSP_DENY_ALL, **allowed}

    def _count(self) -> None:
        self._count_gauges()
        self.access_log.count()

    def _count_gauges(self) -> None:
        metrics.set_load(self.scheduler.waiting, self.connections.served)

    def _watch_model(self) -> None:
        """Measure the speed once, then check that the model's files stay as they were opened."""
        self.scheduler.measure(self.encoder.max_length)
        self_check = self.encoder.not_ready_reason
        while True:
            gevent.sleep(MODEL_CHECK_SECONDS)
            change = self.scheduler.offload(self.encoder.model_folder.changed)
            self.encoder.not_ready_reason = self_check or change


def _check(request: Any) -> None:
    """Refuse what Gunicorn lets pass. https://www.rfc-editor.org/rfc/rfc9112#section-3.2-5 and #section-9.6"""
    names = {name for name, _ in request.headers}
    if request.version >= (1, 1) and "HOST" not in names:
        raise ParseException("it has no Host header")
    options = ",".join(value for name, value in request.headers if name == "CONNECTION").lower().split(",")
    if "close" in (option.strip(" \t") for option in options):
        request.force_close()


def _has_small_body(environ: dict[str, Any]) -> bool:
    """Return whether what the app left of the body can be read to keep the connection."""
    return "HTTP_TRANSFER_ENCODING" not in environ and int(environ.get("CONTENT_LENGTH") or 0) <= SMALL_BODY_BYTES


def _spare_files() -> int:
    """Return how many connections the limit of open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - len([*Path("/proc/self/fd").iterdir()]) - SPARE_FILES


def _unreadable(error: Exception, config: Any) -> tuple[HTTPStatus, str]:
    """Return the status and the sentence for a request that never reaches the app."""
    match error:
        case LimitRequestLine():
            limit = f"The URL is over the limit of {config.limit_request_line} bytes: send long texts with POST /embed."
            return HTTPStatus.REQUEST_URI_TOO_LONG, limit
        case LimitRequestHeaders():
            fields, size = config.limit_request_fields, config.limit_request_field_size
            limits = f"{fields} fields, or of {size} bytes in one of them, or of {MAX_HEAD_BYTES} bytes in all"
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The headers are over the limit of {limits}."
        case TimeoutError():
            return HTTPStatus.REQUEST_TIMEOUT, f"The request did not arrive within {RECEIVE_SECONDS} s."
        case NoMoreData():
            return HTTPStatus.BAD_REQUEST, "The request ends before its head does."
        case UnsupportedTransferCoding():
            status = HTTPStatus.NOT_IMPLEMENTED
        case ExpectationFailed():
            status = HTTPStatus.EXPECTATION_FAILED
        case InvalidResponseHeader():
            return HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR
        case ParseException():
            status = HTTPStatus.BAD_REQUEST
        case _:
            return HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR
    return status, f"The request cannot be read: {str(error).rstrip('.')}."


# Gunicorn has no setting for the request target, where it refuses what `curl 'host/embed?q=日本語'` sends, UTF-8
# without percent signs.
gunicorn.http.message.RFC9112_TARGET_INVALID = re.compile(r"[^\x21-\x7e\x80-\xff]")
