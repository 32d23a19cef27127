"""Gunicorn's settings: `gunicorn` in this folder starts the server."""

import atexit
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile

# In a container this is process 1, whose signals the kernel drops while nobody handles them: a stop
# during the start would be lost. Gunicorn's own handlers replace this one, and a reload must not undo that.
if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))

# Before numpy is imported: its products here are small, a pool of threads only costs memory.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Heartbeat files, and those of the metrics: on a real disk they can block a worker.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None


# A worker has less than 1 MB there; it would be killed, by SIGBUS, where that is not to be had.
METRICS_BYTES = 16_000_000


def _make_metrics_folder():
    """Name the folder where workers keep their metrics, before prometheus_client is imported; once in this process."""
    folder = f"{worker_tmp_dir or tempfile.gettempdir()}/embedding-metrics-{os.getpid()}"
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR") == folder:  # a reload
        return
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed and had the same number
    try:
        os.mkdir(folder, 0o700)
        space = os.statvfs(folder)
        if space.f_bavail * space.f_frsize < METRICS_BYTES:
            raise OSError(f"less than {METRICS_BYTES} bytes are free")
    except OSError:  # each worker tells its own
        shutil.rmtree(folder, ignore_errors=True)
        return
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))


_make_metrics_folder()

from gunicorn.arbiter import Arbiter

from app import logs, metrics
from app.errors import BootError
from app.routes import ops
from app.settings import Settings
from app.server.worker import Worker

try:
    settings = Settings.from_env(os.environ)
except BootError as error:
    sys.exit(f"Error: {error}")
logs.configure(settings.log_format, settings.log_level, settings.google_cloud_project)

wsgi_app = "app:create_app()"
bind = f"0.0.0.0:{settings.port}"
worker_class = Worker
workers = settings.web_concurrency
threads = settings.threads
# Idle connections, and those that the queue and the threads may have.
worker_connections = 1000 + settings.max_queue + settings.threads
# It would wait for a client that does not read for ever.
sendfile = False
loglevel = settings.log_level
logger_class = logs.Logger
# The app is loaded once and shared copy-on-write.
preload_app = True
# Load balancers keep connections open and reuse them: closing first gives their clients 502s.
keepalive = 75
# Cloud Run kills 10 s after SIGTERM.
graceful_timeout = 8
# Only silence counts, not slow requests: workers beat while their threads work.
timeout = 60
# The longest that Gunicorn allows: GET /embed?q= has its text in it.
limit_request_line = 8190
# A client's SCRIPT_NAME means nothing here.
forwarder_headers = ""
# The parser that app/server/worker.py knows, even where the faster one is installed.
http_parser = "python"
# It would be opened under $HOME, which a read-only container has not.
control_socket_disable = True


def on_starting(server):
    """Say at once that the port is busy; Gunicorn itself tries for five seconds and says it ten times."""
    if "GUNICORN_FD" in os.environ:  # an upgrade in place takes over the socket
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", settings.port))
        except OSError as error:
            sys.exit(f"Error: Port {settings.port} cannot be used ({error.strerror}): set PORT to a free one.")


def when_ready(server):
    """Say what is served, and keep what is loaded out of the garbage collector's reach, for workers to share it."""
    logs.write("INFO", *ops.introduction(server.app.wsgi()))
    gc.freeze()


def child_exit(server, worker):
    """What a worker was doing when it ended, nobody does any more."""
    metrics.forget(worker.pid)


def pre_fork(server, worker):
    """A worker cannot start without the metrics' folder, whoever took it away."""
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        os.makedirs(folder, 0o700, exist_ok=True)


def post_worker_init(worker):
    """Open the session after the fork: its threads would not survive one."""
    try:
        worker.open()
    except BootError as error:
        worker.log.critical("%s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)  # stops the server instead of trying for ever
