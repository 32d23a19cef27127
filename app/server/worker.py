"""Worker: Gunicorn's gevent worker with time limits, early 429 responses, JSON errors and a graceful shutdown.

README.md in this folder lists the parts of Gunicorn and gevent that are used.
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
from app.server.request_runner import RequestRunner
from app.server.scheduler import Scheduler

# Time that a stopping worker keeps idle connections open, and that a closed connection is read on, seconds.
LINGER_SECONDS = 2
LAST_LINGER_SECONDS = 0.5  # the same at the end of a shutdown, within ANSWER_SECONDS
# On shutdown, deadlines end this long before the process does, so that responses can still be sent.
ANSWER_SECONDS = 1.5
# Interval of the heartbeat and of the check for a stop signal, seconds.
BEAT_SECONDS = 0.25
# Memory for the bodies of unanswered requests, in multiples of MAX_BODY_BYTES.
MAX_LARGE_BODIES = 8
# Interval between checks of the model's files, seconds.
MODEL_CHECK_SECONDS = 20


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn worker that serves an app of `create_app`."""

    alive: bool
    worker_connections: int
    stop_requested = 0.0  # time of the first stop signal, seconds of time.monotonic()

    def open(self) -> None:
        """Open the encoder in this process, and connect the app with this worker.

        Raises:
            BootError: the model cannot be opened, or the limit of open files is too low.
        """
        app = self.wsgi
        self.encoder, settings = app.extensions["encoder"], app.extensions["settings"]
        self.worker_connections = min(self.worker_connections, connections_allowed())
        self.encoder.open()
        # Gunicorn reads some 20 settings for each request, through Config.__getattr__: attributes are found at once.
        self.cfg.__dict__.update((name, setting.get()) for name, setting in self.cfg.settings.items())
        metrics.start_worker(settings.capacity, settings.max_queue)
        self.settings = settings
        self.paths = {rule.rule for rule in app.url_map.iter_rules()}
        self.scheduler = Scheduler(
            self.encoder.compute, self.encoder.texts_per_run, settings.capacity, settings.request_deadline
        )
        self.access_log = AccessLog()
        self.connections = Connections(MAX_LARGE_BODIES * settings.max_body_bytes)
        app.extensions["shutting_down"] = lambda: not self.alive
        app.extensions["count_answered"] = self._count
        self.writer = LineWriter()
        logs.set_output(self.writer.write)

    def run(self) -> None:
        """Serve until a stop signal; then answer the admitted requests, in time or with 503, and return."""
        gevent.spawn(self.access_log.run)
        gevent.spawn(self._watch_model)
        # A little above the limit: `handle` closes a connection over it, and the pool never blocks before.
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
                while not server.full() and (accepted := server.do_read()):  # its client is connected already
                    server.do_handle(*accepted)
            server.close()
        gevent.sleep(0)  # the greenlets of the last connections begin: `connections` counts them from then on
        self._shut_down()

    def handle_exit(self, signal: int, frame: Any) -> None:
        """Handle a stop signal: `run` stops accepting soon. Records the time of the first one."""
        super().handle_exit(signal, frame)
        self.stop_requested = self.stop_requested or time.monotonic()
        if self.booted:
            self.scheduler.end = self.stop_requested + self.cfg.graceful_timeout - ANSWER_SECONDS

    def _shut_down(self) -> None:
        now = time.monotonic()
        self.stop_requested = self.stop_requested or now
        end = self.stop_requested + self.cfg.graceful_timeout - ANSWER_SECONDS
        self.scheduler.shut_down(end)
        gevent.spawn_later(max(0, end - now), self.connections.end_receiving)
        last = self.stop_requested + self.cfg.graceful_timeout - LAST_LINGER_SECONDS
        while self.connections.count and time.monotonic() < last:
            self.notify()
            if time.monotonic() > now + LINGER_SECONDS:
                self.connections.close_idle()
            gevent.sleep(0.02)
        self.scheduler.expire()  # requests without a client
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
        address = http.client_address(address)
        parser = gunicorn.http.get_parser(self.cfg, connection, address)
        try:
            while self._serve(connection, parser, address, server):
                pass
        except OSError:  # the client has disconnected, or does not read
            pass
        except Exception:
            self.log.exception("unexpected error")
        finally:
            connection.close(LINGER_SECONDS if self.alive else LAST_LINGER_SECONDS)

    def _serve(self, connection: Connection, parser: Any, address: tuple[str, int], server: Any) -> bool:
        """Receive one request and answer it. Return whether the connection is kept."""
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
        # Gunicorn would send 100 Continue at once; here the first read of the body does.
        expects, request._expected_100_continue = request._expected_100_continue, False
        connection.await_body(connection.arrived + self.scheduler.deadline_seconds, expects)
        context, head = RequestContext(connection.arrived), http.head_environ(request, address)
        context.read_environ(head)
        path = context.canonical_path
        context.error_fields = self.wsgi.extensions["error_fields"](path)
        computes = context.method not in ("GET", "HEAD", "OPTIONS") or path == "/embed" and context.method != "OPTIONS"
        if computes and self.scheduler.waiting >= self.settings.max_queue:
            # With Expect: 100-continue the body may never come.
            keeps = self.alive and not expects and http.has_small_body(head) and not request.should_close()
            self._reject(connection, context, QueueFull(self.settings.max_queue), keeps)
        else:
            response, environ = gunicorn.http.wsgi.create(request, connection, address, server, self.cfg, http.Response)
            environ[CONTEXT] = context
            if not request.path.isascii():  # Gunicorn encodes non-ASCII bytes twice
                environ["PATH_INFO"] = head["PATH_INFO"]
            self._answer(response, context, environ, connection)
            keeps = not response.should_close()
        try:
            return keeps and bool(parser.finish_body())
        except ServiceError:  # TooManyBytes
            return False

    def _answer(self, response: Any, context: RequestContext, environ: dict[str, Any], connection: Connection) -> None:
        """Call the app and send its response."""
        context.runner = runner = RequestRunner(self.scheduler, context.arrived, connection.is_gone)
        context.stages["queue"] = time.monotonic() - context.arrived
        try:
            body = self.wsgi(environ, response.start_response)
        finally:
            runner.end()
            connection.forget_received()
        status = response.status_code
        # A large body is not read after an error.
        is_read = status < HTTPStatus.BAD_REQUEST and context.method == "POST"
        # Nor is a body that still waits for 100 Continue: it may never come.
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
            self.log.exception("The response was not completed")
            response.force_close()
        finally:
            body.close()
        context.finish(status, response.sent)
        self.access_log.add(context)

    def _reject(self, connection: Connection, context: RequestContext, error: ServiceError, keeps: bool) -> None:
        """Answer with an error without calling the app: a rejection must cost little CPU."""
        status, context.error = status_and_code(error)
        if context.canonical_path in self.paths:
            context.route = context.canonical_path
        self._send_error(connection, context, status, str(error), keeps)

    def _reject_unread(self, connection: Connection, address: tuple[str, int], error: Exception) -> None:
        """Answer a request that cannot be parsed. None of its bytes are logged."""
        status, message = http.unreadable(error, self.cfg)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.error("unexpected error", exc_info=error)
        context = RequestContext(connection.arrived)
        context.identify()
        context.remote = address[0]
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
        """Measure the speed once, then check at intervals that the model's files have not changed."""
        self.scheduler.measure(self.encoder.max_length)
        self_check = self.encoder.not_ready_reason
        while True:
            gevent.sleep(MODEL_CHECK_SECONDS)
            try:
                change = self.scheduler.offloaded.apply(self.encoder.model_folder.changed)
            except Exception:  # tries again after the next interval
                self.log.exception("unexpected error")
            else:
                self.encoder.not_ready_reason = self_check or change
