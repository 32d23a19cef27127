"""Worker: Gunicorn's gevent worker with what it lacks: limits of time, early 429, errors in JSON, a graceful end.

README.md in this folder lists what is used of Gunicorn.
"""

import time
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import gevent
import gunicorn.http
import gunicorn.http.wsgi
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker

from app import logs, metrics
from app.context import CONTEXT, RequestContext
from app.errors import QueueFull, ServiceError
from app.http_errors import CLIENT_CLOSED_REQUEST, status_and_code
from app.server import http
from app.server.access_log import AccessLog, LineWriter
from app.server.connection import MAX_HEAD_BYTES, Connection
from app.server.connections import Connections
from app.server.open_files import MIN_CONNECTIONS, connections_allowed
from app.server.scheduler import Scheduler

# Time that a stopping worker keeps idle connections for a request on its way, and reads on after an error, seconds.
LINGER_SECONDS = 2
LAST_LINGER_SECONDS = 0.5  # within ANSWER_SECONDS, when the worker stops
# On shutdown, deadlines end this long before the process does, so that responses can still be sent.
ANSWER_SECONDS = 1.5
# Interval of the heartbeat, and of the check for a signal to stop, seconds.
BEAT_SECONDS = 0.25
# Memory for bodies of unanswered requests, in bodies of MAX_BODY_BYTES.
MAX_LARGE_BODIES = 8
# Interval between looks at the model's files, seconds.
MODEL_CHECK_SECONDS = 20


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's gevent worker for an app of `create_app`."""

    alive: bool
    worker_connections: int
    stopped = 0.0  # when it was told to stop, in seconds of time.monotonic()

    def open(self) -> None:
        """Open the encoder in this process, and connect the app with this worker.

        Raises:
            BootError: the model cannot be opened, or too few files may be.
        """
        app = self.wsgi
        self.encoder, settings = app.extensions["encoder"], app.extensions["settings"]
        self.worker_connections = min(self.worker_connections, connections_allowed())
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
        gevent.spawn(self.access_log.run)
        gevent.spawn(self._watch_model)
        # A little more than the limit: it is up to Connections.close_one who goes.
        pool = Pool(self.worker_connections + MIN_CONNECTIONS // 2)
        servers = [StreamServer(port, partial(self.handle, port.getsockname()), spawn=pool) for port in self.sockets]
        for server in servers:
            if self.cfg.workers > 1:
                server.max_accept = 1
            server.start()
        while self.alive:
            self.notify()
            metrics.set_load(self.scheduler.waiting, self.connections.served)
            gevent.sleep(BEAT_SECONDS)
        for server in servers:
            server.stop_accepting()
            with suppress(OSError):
                while not server.full() and (accepted := server.do_read()):  # connected already, as its client knows
                    server.do_handle(*accepted)
            server.close()
        self._shut_down()

    def handle_exit(self, signal: int, frame: Any) -> None:
        """Stop accepting new connections soon, and note when that was asked for."""
        super().handle_exit(signal, frame)
        self.stopped = self.stopped or time.monotonic()
        if self.booted:
            self.scheduler.end = self.stopped + self.cfg.graceful_timeout - ANSWER_SECONDS

    def _shut_down(self) -> None:
        now = time.monotonic()
        self.stopped = self.stopped or now
        end = self.stopped + self.cfg.graceful_timeout - ANSWER_SECONDS
        self.scheduler.shut_down(end)
        gevent.spawn_later(max(0, end - now), self.connections.end_receiving)
        last = self.stopped + self.cfg.graceful_timeout - LAST_LINGER_SECONDS
        while self.connections.count and time.monotonic() < last:
            self.notify()
            if time.monotonic() > now + LINGER_SECONDS:
                self.connections.close_idle()
            gevent.sleep(0.02)
        self.scheduler.expire()  # what nobody waits for
        while self.scheduler.running and time.monotonic() < last:
            gevent.sleep(0.01)
        self._count()
        self.writer.close()

    def handle(self, server: Any, client: Any, address: Any) -> None:
        """Serve one connection, in a greenlet of its own."""
        if self.connections.count >= self.worker_connections:
            self.connections.close_one()
        idle_seconds = self.cfg.keepalive if self.alive else LAST_LINGER_SECONDS
        connection = Connection(client, self.connections, idle_seconds)
        parser = gunicorn.http.get_parser(self.cfg, connection, address)
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
            http.check(request)
        except (StopIteration, ConnectionError):
            return False
        except Exception as error:
            self._reject_unread(connection, address, error)
            return False
        request.body.reader.limit_trailer_section = MAX_HEAD_BYTES  # Gunicorn's own limit is 800 kB
        # Gunicorn would ask for the body at once; here the body's first read does.
        expects, request._expected_100_continue = request._expected_100_continue, False
        connection.await_body(connection.arrived + self.scheduler.deadline_seconds, expects)
        context, head = RequestContext(connection.arrived), http.head_environ(request, address)
        context.read_environ(head)
        path = "/" + context.path.lstrip("/")  # as werkzeug reads it
        context.error_fields = self.wsgi.extensions["error_fields"].get(path)
        computes = context.method not in ("GET", "HEAD", "OPTIONS") or path == "/embed" and context.method != "OPTIONS"
        if computes and self.scheduler.waiting >= self.settings.max_queue:
            # With Expect, its body may never come.
            keeps = self.alive and not expects and http.has_small_body(head) and not request.should_close()
            self._reject(connection, context, QueueFull(self.settings.max_queue), keeps)
        else:
            response, environ = gunicorn.http.wsgi.create(request, connection, address, server, self.cfg, http.Response)
            environ[CONTEXT] = context
            if not request.path.isascii():  # Gunicorn encodes once more what came without percent signs
                environ["PATH_INFO"] = head["PATH_INFO"]
            self._answer(response, context, environ, connection)
            keeps = not response.should_close()
        try:
            return keeps and bool(parser.finish_body())
        except ServiceError:  # too many bytes
            return False

    def _answer(self, response: Any, context: RequestContext, environ: dict[str, Any], connection: Connection) -> None:
        """Call the app and send what it answers."""
        context.runner = job = self.scheduler.job(context.arrived, connection.is_gone)
        context.stages["queue"] = time.monotonic() - context.arrived
        try:
            body = self.wsgi(environ, response.start_response)
        finally:
            job.end()
            connection.forget_received()
        status = response.status_code
        # A large body is not read after an error.
        is_read = status < HTTPStatus.BAD_REQUEST and context.method == "POST"
        # Neither is one that was not asked for, which may come or not.
        is_readable = http.has_small_body(environ) and not connection.holds_body
        if not self.alive or connection.has_ended or not (is_read or is_readable):
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

    def _reject(self, connection: Connection, context: RequestContext, error: ServiceError, keeps: bool) -> None:
        """Answer with an error before the app is called: refusing must cost next to nothing."""
        status, context.error = status_and_code(error)
        if context.path in self.paths:
            context.route = context.path
        self._send_error(connection, context, status, str(error), keeps)

    def _reject_unread(self, connection: Connection, address: Any, error: Exception) -> None:
        """Answer a request that cannot be read. None of its bytes are in the log."""
        status, message = http.unreadable(error, self.cfg)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.error("unexpected error", exc_info=error)
        context = RequestContext(connection.arrived)
        context.identify()
        context.remote = str(address[0])
        context.error = "request_timeout" if status == HTTPStatus.REQUEST_TIMEOUT else status.name.lower()
        self._send_error(connection, context, status, message)

    def _send_error(
        self, connection: Connection, context: RequestContext, status: int, message: str, keeps: bool = False
    ) -> None:
        response, body_bytes = http.error_response(context, status, message, self.settings.cors_origins, keeps)
        with suppress(OSError):
            connection.sendall(response)
        context.finish(status, body_bytes)
        self.access_log.add(context)

    def _count(self) -> None:
        metrics.set_load(self.scheduler.waiting, self.connections.served)
        self.access_log.count()

    def _watch_model(self) -> None:
        """Measure the speed once, then check that the model's files stay as they were opened."""
        self.scheduler.measure(self.encoder.max_length)
        self_check = self.encoder.not_ready_reason
        while True:
            gevent.sleep(MODEL_CHECK_SECONDS)
            try:
                change = self.scheduler.offloaded.apply(self.encoder.model_folder.changed)
            except Exception:  # look again
                self.log.exception("unexpected error")
            else:
                self.encoder.not_ready_reason = self_check or change
