"""The Gunicorn worker: from the socket to the app and back.

Gunicorn's threaded worker gives each readable connection to a thread, and those that find none free wait in a queue
without end. Here the main thread watches all connections and receives the requests:

    not all there yet       stays with the main thread, for RECEIVE_SECONDS: a slow client costs no thread
    /health and the like    a few threads of their own: they wait for nobody
    something to compute    waits for a slot, unparsed (app/slots.py); over MAX_QUEUE it is refused at once
    all others              threads that may wait for the client: large bodies, /docs

The parser and WSGI's environ are Gunicorn's. The thread that serves a request parses it, calls the app and answers.
"""

import logging
import queue
import re
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import gunicorn.http.message
import gunicorn.http.wsgi
import gunicorn.util
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.gthread import TConn as GunicornConnection
from gunicorn.workers.gthread import ThreadWorker

from app import access, logs, metrics
from app.errors import FAULT, QUEUE_RETRY_SECONDS, RECEIVE_SECONDS, QueueFull, error_body
from app.record import DIALECTS, RECORD, TEI, Record

# How long a stopping worker keeps idle connections for a request that is on its way, and a connection that is closed
# is read from: what nobody reads would make the kernel reset it, and the client lose the answer.
LINGER_SECONDS = 2
LAST_LINGER_SECONDS = 0.5  # within ANSWER_SECONDS, when the worker stops
# A stopping worker's last deadline is so long before its end, for answers to be sent.
ANSWER_SECONDS = 1.5
# Who has waited longer is looked for before its request is begun: under overload clients give up and go.
PATIENCE_SECONDS = 0.1
# How often it is looked whose time is up, and what was answered.
LOOK_SECONDS = 0.1
BUFFER_BYTES = 64 * 1024
SECURITY = "".join(f"{name}: {value}\r\n" for name, value in {**access.SECURITY, access.POLICY: access.NOTHING}.items())
PROBE_THREADS = 2
OTHER_THREADS = 16
PROBE = re.compile(rb"(?:GET|HEAD) /(?:healthz?|readyz)? ")
REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) (/[^ ?\r\n]*)[^\r\n]* (HTTP/1\.\d)\r?\n")
HEADER = rb"\r\n%s:[ \t]*([^\r\n]*?)[ \t]*\r\n"
ORIGIN = re.compile(HEADER % rb"origin", re.IGNORECASE)
REQUEST_ID = re.compile(HEADER % rb"x-request-id", re.IGNORECASE)
MAX_RECORDS = 10_000
# Refusals that have a line of their own, in a second; of more there is one that counts them.
MAX_REFUSAL_LINES = 100
# Of a head that is not parsed: no more are looked at.
MAX_LINES = 100
# A client that has left before its answer, in logs and metrics only.
CLIENT_HAS_LEFT = 499
# Requests that compute nothing, either. A path with % might be any.
LIGHT = re.compile(rb"(?:(?:GET|HEAD) /(?!/|embed[? ])|OPTIONS /)[^ %]* ")
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})\r\n")
# With these the length of a request, and whether it is one, is for Gunicorn to find out.
UNKNOWN_LENGTH = re.compile(rb"transfer-encoding|\n(?:expect|upgrade)|[ \t]:|[^\r]\n")
# After a refusal these are closed: who wants it, HTTP/1.0, and who would take the body for the next answer.
CLOSES = re.compile(rb"\AHEAD |\A[^\r]* HTTP/1\.0\r|\r\nconnection:[ \t]*close", re.IGNORECASE)

logger = logging.getLogger(__name__)


class Connection(GunicornConnection):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's connection, what was received of its next request, and when it is given up.

    until: in seconds of time.monotonic(); None while a thread serves it.
    cut_off: when nothing more of a body is received that a thread waits for.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received = b""
        self.is_whole = False
        self.record = Record()
        self.until: float | None = None
        self.cut_off: float | None = None
        self.closing = False


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


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's threaded worker for an app of `create_app`."""

    alive: bool

    def open(self) -> None:
        """Open the encoder in this process, and let the app see when the worker is shutting down.

        Raises:
            BootError: the model cannot be opened.
        """
        encoder, settings = self.wsgi.extensions["encoder"], self.wsgi.extensions["settings"]
        encoder.open()
        self.paths = {rule.rule for rule in self.wsgi.url_map.iter_rules()}
        self.cors_origins = settings.cors_origins
        metrics.begin(settings.slots, settings.max_queue)
        self.wsgi.extensions["shutting_down"] = lambda: not self.alive
        self.slots = encoder.slots
        self.max_queue = settings.max_queue
        self.deadline_seconds = settings.request_deadline
        self.connections: set[Connection] = set()
        self.other_threads = _Threads(OTHER_THREADS)
        # Of requests that were answered, not yet counted and logged: that is done for many at once, which takes a
        # fraction of the time that it takes between two runs of the model.
        # While nobody reads the log they wait, and the oldest are lost rather than the memory.
        self.records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self.lines: deque[Record] = deque(maxlen=MAX_RECORDS)  # counted, not yet logged
        self.second = self.refusals = 0  # of how many lines there was a second's worth already
        self.are_records = threading.Event()
        self.counting = threading.Lock()
        self.wsgi.extensions["count"] = self._count
        threading.Thread(target=self._count_now_and_then, name="count", daemon=True).start()
        self.accept_after = self.next_look = 0.0
        for listener in self.sockets:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # accepted sockets inherit them
                listener.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", RECEIVE_SECONDS, 0))

    def get_thread_pool(self) -> "_Threads":
        """Gunicorn asks for it; here it is for probes."""
        return _Threads(PROBE_THREADS)

    def run(self) -> None:
        """The main thread's loop; then answer what was admitted, in time or with 503, and end."""
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        while self.alive and self.is_parent_alive():
            is_full = len(self.connections) >= self.worker_connections or time.monotonic() < self.accept_after
            self.set_accept_enabled(not is_full)
            self._turn(1.0)
        self.alive = False
        self.set_accept_enabled(False)
        for listener in self.sockets:
            while self.accept(listener):  # those are connected already, as far as their clients know
                pass
            listener.close()
        now = time.monotonic()
        end = now + self.cfg.graceful_timeout - ANSWER_SECONDS
        self.slots.end(end)
        latest = now + LINGER_SECONDS
        while self.connections and time.monotonic() < now + self.cfg.graceful_timeout:
            for connection in self.connections:
                if connection.until is not None:
                    connection.until = min(connection.until, latest)
                if connection.cut_off is not None:
                    connection.cut_off = min(connection.cut_off, end)
            latest = end
            self._turn(LOOK_SECONDS)
        self._count()
        self._log()

    def _turn(self, timeout_seconds: float) -> None:
        self.notify()
        self.wait_for_and_dispatch_events(timeout_seconds)
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + LOOK_SECONDS
        for connection in list(self.connections):
            if connection.until is not None and connection.until < now:
                self._give_up(connection)
            elif connection.cut_off is not None and connection.cut_off < now:
                connection.cut_off = None
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RD)
        self._measure()

    def _measure(self) -> None:
        """In any thread."""
        metrics.in_flight.set(sum(connection.until is None for connection in list(self.connections)))
        metrics.queue.set(self.slots.waiting)

    def _note(self, record: Record) -> None:
        self.records.append(record)
        if not self.are_records.is_set():
            self.are_records.set()

    def _count_now_and_then(self) -> None:
        """In a thread of its own: who does not read the log stops nothing else."""
        while True:
            self.are_records.wait(1 if self.refusals > MAX_REFUSAL_LINES else None)
            time.sleep(LOOK_SECONDS)
            self.are_records.clear()
            try:
                self._count()
                self._log()
            except Exception:  # whatever it is, the server goes on
                logger.exception("some answers were not counted or logged")

    def _count(self) -> None:
        """Count what was answered; in any thread."""
        self._measure()
        with self.counting:
            while self.records:
                record = self.records.popleft()
                self.lines.append(record)
                metrics.answered(record)

    def _log(self) -> None:
        while self.lines:
            with suppress(IndexError):  # another thread had it
                record = self.lines.popleft()
                second = int(record.ended)
                if second != self.second:
                    self._log_the_rest()
                    self.second, self.refusals = second, 0
                self.refusals += record.status == QueueFull.status
                if record.status != QueueFull.status or self.refusals <= MAX_REFUSAL_LINES:
                    logs.answered(record)
        if self.second != int(time.time()):
            self._log_the_rest()

    def _log_the_rest(self) -> None:
        """Say how many refusals have no line of their own: those of an overload cost more than the refusals."""
        more = self.refusals - MAX_REFUSAL_LINES
        self.refusals = 0
        if more > 0:
            logs.write("WARNING", f"{more} more requests were refused within a second (429)", {"refused": more})

    def accept(self, listener: Any) -> bool:
        """Take a new connection and wait for its request; whether there was one."""
        try:
            client, address = listener.accept()
        except BlockingIOError:  # another worker has it
            return False
        except ConnectionAbortedError:
            return True
        except OSError as error:
            self.log.error("No connection can be accepted for a second: %s", error)
            self.accept_after = time.monotonic() + 1
            return False
        connection = Connection(self.cfg, client, address, listener.getsockname())
        self.connections.add(connection)
        self._watch(connection)
        return True

    def _watch(self, connection: Connection) -> None:
        """Wait for a request, in the main thread from now on."""
        connection.sock.setblocking(False)
        connection.until = time.monotonic() + (self.cfg.keepalive if self.alive else LAST_LINGER_SECONDS)
        self.poller.register(connection.sock, selectors.EVENT_READ, partial(self._receive, connection))

    def _receive(self, connection: Connection, client: socket.socket) -> None:
        try:
            data = client.recv(BUFFER_BYTES)
        except BlockingIOError:
            return
        except OSError:  # reset
            self._close(connection)
            return
        if connection.closing or not (data or connection.received):
            if not data:
                self._close(connection)
            return
        if not connection.received:
            connection.until = time.monotonic() + RECEIVE_SECONDS
        connection.received += data
        self._dispatch(connection, is_ended=not data)

    def _dispatch(self, connection: Connection, is_ended: bool = False) -> None:
        """Give a request to who serves it, if enough of it is there."""
        received = connection.received
        length = _length(received)
        is_whole = length is not None and len(received) >= length
        if not is_whole and not is_ended and len(received) < BUFFER_BYTES and (length or 0) <= BUFFER_BYTES:
            return
        is_probe = is_whole and PROBE.match(received)
        is_light = is_whole and LIGHT.match(received)
        waiting = 0 if is_light else self.slots.waiting
        if not is_whole or is_light:
            waiting = max(waiting, self.other_threads.waiting)
        if waiting >= self.max_queue and not is_probe:
            self._refuse(connection, keep=self.alive and len(received) == length and not CLOSES.search(received))
            return
        self.poller.unregister(connection.sock)
        connection.until = None
        connection.is_whole = bool(is_whole)
        now = time.monotonic()
        deadline = now + self.deadline_seconds
        connection.record = Record(now)
        serve = partial(self._serve, connection, now + PATIENCE_SECONDS)
        if is_probe:
            self.tpool.submit(serve)
        elif is_whole and not is_light:
            self.slots.submit(serve, deadline)
        else:
            connection.cut_off = deadline
            self.other_threads.submit(partial(self.slots.run, serve, deadline))

    def _refuse(self, connection: Connection, keep: bool) -> None:
        """Answer 429 right here; the request is not parsed, so that refusing costs next to nothing."""
        error = QueueFull(self.max_queue)
        headers = f"Retry-After: {QUEUE_RETRY_SECONDS}\r\n" + ("" if keep else "Connection: close\r\n")
        try:
            is_sent = self._tell(connection, error.status, str(error), error.code, headers)
        except OSError:
            self._close(connection)
            return
        if keep and is_sent:
            connection.received = b""
            connection.until = time.monotonic() + self.cfg.keepalive
        else:
            self._close_gently(connection)

    def _tell(self, connection: Connection, status: HTTPStatus, message: str, code: str, headers: str) -> bool:
        """Send an error without the app; whether all of it was sent."""
        record = self._record_of(connection)
        if status == HTTPStatus.REQUEST_TIMEOUT:
            record.arrived -= RECEIVE_SECONDS
        origin = ORIGIN.search(connection.received)
        answer = self._error(record, status, message, code, headers, origin[1].decode("latin-1") if origin else "")
        sent: int = connection.sock.send(answer)
        self._note(record)
        return sent == len(answer)

    def _error(
        self, record: Record, status: HTTPStatus, message: str, code: str, headers: str, origin: str = ""
    ) -> bytes:
        """An error's answer without the app, with which the record ends; origin: of the page that asks, if any."""
        record.error = code
        body = error_body(status, message, code, dialect=record.dialect)
        allowed = access.cors(self.cors_origins, origin) if self.cors_origins else {}
        headers += "".join(f"{name}: {value}\r\n" for name, value in allowed.items())
        record.end(status, len(body))
        return _answer(status, body, f"X-Request-Id: {record.request_id}\r\n{headers}")

    def _record_of(self, connection: Connection) -> Record:
        """Of a request that is not parsed: as little as its answer and the metrics need."""
        record, received = Record(), connection.received
        if found := REQUEST_LINE.match(received):
            record.method, record.path, record.protocol = (part.decode("latin-1") for part in found.groups())
        given = REQUEST_ID.search(received)
        record.identify(given[1].decode("latin-1") if given else "")
        if record.path in self.paths:
            record.route = record.path
        record.dialect = DIALECTS.get(record.path, "")
        if record.path == "/embed" and b'"inputs"' in received:
            record.dialect = TEI
        record.head = partial(_unparsed, received, str(connection.client[0]), record)
        return record

    def _serve(self, connection: Connection, patient_until: float) -> None:
        """Let Gunicorn and the app answer a request, in this thread. A client that has left meanwhile gets nothing."""
        keep = False
        now = time.monotonic()
        connection.record.stages["queue"] = now - connection.record.arrived
        if now > patient_until and has_left(connection.sock):
            record = self._record_of(connection)
            record.arrived = connection.record.arrived
            record.end(CLIENT_HAS_LEFT, 0)
            self._note(record)
            self.method_queue.defer(self._served, connection, keep)
            return
        try:
            connection.init()
            connection.sock.setblocking(True)
            connection.parser.unreader.unread(connection.received)
            connection.received = b""
            keep = self.handle(connection)
            if keep:
                connection.received = connection.parser.unreader.take_buffered()
        except Exception:
            self.log.exception("unexpected error")
        connection.cut_off = None
        if keep and not connection.received:
            self._watch(connection)
        else:
            self.method_queue.defer(self._served, connection, keep)

    def _served(self, connection: Connection, keep: bool) -> None:
        """In the main thread: close, or go on with a request that came with the last one."""
        if connection.sock.fileno() < 0:
            self.connections.discard(connection)
            return
        self._watch(connection)
        if keep:
            connection.until = time.monotonic() + RECEIVE_SECONDS
            self._dispatch(connection)
        else:
            self._close_gently(connection)

    def handle(self, connection: Connection) -> bool:
        """Parse a request and answer it; whether the connection can be kept."""
        try:
            request = next(connection.parser)
            if self.handle_request(request, connection):
                return bool(connection.parser.finish_body(deadline=time.monotonic() + RECEIVE_SECONDS))
        except (StopIteration, OSError):  # the client has left, or does not read
            pass
        except Exception as error:
            self._tell_why_not(connection, error)
        return False

    def handle_request(self, request: Any, connection: Connection) -> bool:
        """Call the app and send what it answers; whether the connection can be kept."""
        response, environ = gunicorn.http.wsgi.create(
            request, connection.sock, connection.client, connection.server, self.cfg, Response
        )
        environ["wsgi.multithread"] = True
        if not request.path.isascii():  # Gunicorn encodes once more what came without percent signs
            environ["PATH_INFO"] = unquote_to_bytes(request.path.encode("latin-1")).decode("latin-1")
        record = environ[RECORD] = connection.record
        record.begin(environ)
        body = self.wsgi(environ, response.start_response)
        # Gunicorn would close a connection with much of a body left in it, after it was told to be kept.
        has_read = request.method == "POST" and response.status_code < HTTPStatus.BAD_REQUEST
        if not self.alive or not (has_read or connection.is_whole):
            response.force_close()
        status = response.status_code
        try:
            for part in body:
                response.write(part)
            response.close()
        except OSError:
            status = CLIENT_HAS_LEFT
            response.force_close()
        except Exception:
            if response.head or not response.headers_sent:
                raise  # it can still be told
            self.log.exception("The answer broke off")
            response.force_close()
        finally:
            if hasattr(body, "close"):
                with suppress(Exception):  # the answer is complete
                    body.close()
        record.end(status, response.sent)
        self._note(record)
        return not response.should_close()

    def _tell_why_not(self, connection: Connection, error: Exception) -> None:
        """Tell what is wrong with a request that Gunicorn cannot read, without writing it into the log."""
        status, message = _unreadable(error, self.cfg)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.error("unexpected error", exc_info=error)
        record = connection.record
        record.remote = str(connection.client[0])
        if not record.request_id:
            record.identify("")
        answer = self._error(record, status, message, status.name.lower(), "Connection: close\r\n")
        with suppress(OSError):
            gunicorn.util.write_nonblock(connection.sock, answer)
        self._note(record)

    def _give_up(self, connection: Connection) -> None:
        """Its time is up: in the middle of a request it is told why."""
        if connection.received and not connection.closing:
            message = f"The request did not arrive within {RECEIVE_SECONDS} s."
            with suppress(OSError):
                self._tell(connection, HTTPStatus.REQUEST_TIMEOUT, message, "request_timeout", "Connection: close\r\n")
            self._close_gently(connection)
        else:
            self._close(connection)

    def _close_gently(self, connection: Connection) -> None:
        """Say that no more comes, and read what is on its way, without waiting for it."""
        connection.closing = True
        connection.until = time.monotonic() + (LINGER_SECONDS if self.alive else LAST_LINGER_SECONDS)
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        with suppress(KeyError):  # a thread is about to register it; closed sockets are forgotten
            self.poller.unregister(connection.sock)
        self.connections.discard(connection)
        connection.sock.close()


class _Threads:
    """A pool of threads. Those of concurrent.futures would hold up the process's end."""

    def __init__(self, count: int) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        for _ in range(count):
            threading.Thread(target=self._run, daemon=True).start()

    @property
    def waiting(self) -> int:
        """Those that no idle thread is about to take."""
        return max(0, self._waiting.qsize() - self._idle)

    def submit(self, run: Callable[[], None]) -> None:
        self._waiting.put(run)

    def shutdown(self, wait: bool) -> None:
        """Gunicorn calls it at SIGQUIT; there is nothing to do."""

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            run = self._waiting.get()
            with self._lock:
                self._idle -= 1
            run()


def _length(received: bytes) -> float | None:
    """A request's bytes; None while its head is not all there, infinite where Gunicorn must find out."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[: end + 2].lower()
    length = LENGTH.search(head)
    if head.count(b"content-length") != bool(length) or UNKNOWN_LENGTH.search(head):
        return float("inf")
    return end + 4 + (int(length[1]) if length else 0)


def has_left(client: socket.socket) -> bool:
    """Whether it has closed the connection, or its own half, which cannot be told apart."""
    try:
        return not client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _unparsed(received: bytes, remote: str, record: Record) -> dict[str, str]:
    """What a request seems to say of itself, as in WSGI's environ."""
    lines = received.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n", MAX_LINES)
    environ = {"REQUEST_METHOD": record.method, "PATH_INFO": record.path, "SERVER_PROTOCOL": record.protocol}
    for line in lines[1:MAX_LINES]:
        name, _, value = line.partition(":")
        environ[f"HTTP_{name.upper().replace('-', '_')}"] = value.strip(" \t")
    environ["CONTENT_LENGTH"] = environ.get("HTTP_CONTENT_LENGTH", "")
    environ["REMOTE_ADDR"] = remote
    return environ


def _answer(status: HTTPStatus, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{SECURITY}{headers}\r\n".encode("latin1") + body


def _unreadable(error: Exception, config: Any) -> tuple[HTTPStatus, str]:
    """What is told about a request that never reaches the app; status and sentence."""
    if isinstance(error, LimitRequestLine):
        limit = f"The URL is over the limit of {config.limit_request_line} bytes: send long texts with POST /embed."
        return HTTPStatus.REQUEST_URI_TOO_LONG, limit
    if isinstance(error, LimitRequestHeaders):
        limits = f"{config.limit_request_fields} fields, or of {config.limit_request_field_size} bytes in one of them"
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The headers are over the limit of {limits}."
    if not isinstance(error, ParseException) or isinstance(error, InvalidResponseHeader):
        return HTTPStatus.INTERNAL_SERVER_ERROR, FAULT
    status = HTTPStatus.BAD_REQUEST
    if isinstance(error, UnsupportedTransferCoding):
        status = HTTPStatus.NOT_IMPLEMENTED
    elif isinstance(error, ExpectationFailed):
        status = HTTPStatus.EXPECTATION_FAILED
    return status, f"The request cannot be read: {str(error).rstrip('.')}."


# Gunicorn has no setting for the request target, where it refuses what `curl 'host/embed?q=日本語'` sends, UTF-8
# without percent signs.
gunicorn.http.message.RFC9112_TARGET_INVALID = re.compile(r"[^\x21-\x7e\x80-\xff]")
