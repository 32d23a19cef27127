"""Gunicorn's settings: `gunicorn` in this folder starts the server."""

# Before everything else: modules that are imported first would keep the blocking functions.
from gevent import monkey

monkey.patch_all()

import atexit
import fcntl
import gc
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

# In a container this is process 1, whose signals the kernel drops while nobody handles them: a stop
# during the start would be lost. Gunicorn's own handlers replace this one, and a reload must not undo that.
if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))

# Before numpy is imported: its products here are small, a pool of threads only costs memory.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Folder of heartbeat files, and of the metrics: on a real disk they can block a worker.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "embedding-metrics-"
# File that the server's processes keep locked as long as one of them lives.
OWNER = "owner"
# Free bytes that a folder needs: a worker has less than 1 MB there, and would be killed (SIGBUS) without them.
MIN_FREE_BYTES = 16_000_000
# Fewest open files to start a worker with, which counts its own (app/server/worker.py).
MIN_FILES = 32


def _make_metrics_folder():
    """Make the folder where workers keep their metrics and name it in the environment, once in this process.

    Without room there is none, and each worker reports its own. Folders of servers that were killed are removed.
    """
    folder = Path(worker_tmp_dir or tempfile.gettempdir(), f"{PREFIX}{os.getpid()}")
    if os.environ.get(FOLDER) == str(folder):  # a reload
        return
    os.environ.pop(FOLDER, None)
    for other in folder.parent.glob(f"{PREFIX}*"):
        if not _is_used(other):
            shutil.rmtree(other, ignore_errors=True)
    try:
        folder.mkdir(0o700)
        owner = os.open(folder / OWNER, os.O_CREAT | os.O_RDWR, 0o600)  # open, and locked, until the last process ends
        fcntl.flock(owner, fcntl.LOCK_SH)
        space = os.statvfs(folder)
        if space.f_bavail * space.f_frsize < MIN_FREE_BYTES:
            raise OSError(f"less than {MIN_FREE_BYTES} bytes are free")
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        return
    os.environ[FOLDER] = str(folder)
    atexit.register(_remove_metrics_folder, folder, os.getpid())


def _remove_metrics_folder(folder, owner_pid):
    if os.getpid() == owner_pid:  # not in a worker
        shutil.rmtree(folder, ignore_errors=True)


def _is_used(folder):
    """Return whether a process of the server that made it lives, or may live."""
    try:
        owner = os.open(folder / OWNER, os.O_RDWR)
    except FileNotFoundError:  # just made, or an older version's
        return Path(f"/proc/{folder.name.removeprefix(PREFIX)}").exists()
    except OSError:  # another user's
        return True
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(owner)


# Before prometheus_client is imported, which looks for the folder.
_make_metrics_folder()

from gunicorn.arbiter import Arbiter

from app import logs, metrics
from app.errors import BootError
from app.routes import ops
from app.server.worker import Worker
from app.settings import Settings

try:
    settings = Settings.from_env(os.environ)
except BootError as error:
    sys.exit(f"Error: {error}")
logs.configure(settings.log_format, settings.log_level, settings.google_cloud_project)
if "THREADS" in os.environ:
    logs.write(
        "WARNING", "THREADS has no effect any more: take it out. CPUS sets how many texts are computed at once.", {}
    )

# Connections beyond the soft limit of open files would be refused, where the system allows more.
with suppress(OSError, ValueError):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
if (files := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < MIN_FILES:
    sys.exit(f"Error: The limit of open files (ulimit -n) is {files}: raise it to {MIN_FILES} or more.")

wsgi_app = "app:create_app()"
bind = f"0.0.0.0:{settings.port}"
worker_class = Worker
workers = settings.web_concurrency
# Connections of a worker; over it those that never sent anything are closed first (app/server/connection.py).
worker_connections = 2048 + settings.max_queue
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
# Silence of a worker, seconds, not of a request: workers beat while their threads work.
timeout = 60
# The longest that Gunicorn allows: GET /embed?q= has its text in it.
limit_request_line = 8190
# A client's SCRIPT_NAME means nothing here.
forwarder_headers = ""
# Proxies say whether a client came by https; that means nothing here either, so no address has to be compared.
forwarded_allow_ips = "*"
secure_scheme_headers = {}
# The parser that app/server/ was tested with, even where the faster one is installed.
http_parser = "python"
# It would be opened under $HOME, which a read-only container has not.
control_socket_disable = True


def on_starting(server):
    """Report at once that the port is busy; Gunicorn itself tries for five seconds and logs it ten times."""
    if "GUNICORN_FD" in os.environ:  # an upgrade in place takes over the socket
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", settings.port))
        except OSError as error:
            sys.exit(f"Error: Port {settings.port} cannot be used ({error.strerror}): set PORT to a free one.")


def when_ready(server):
    """Log what is served, and keep what is loaded out of the garbage collector's reach, for workers to share it."""
    logs.write("INFO", *ops.startup_message(server.app.wsgi()))
    gc.freeze()


def child_exit(server, worker):
    """Drop the gauges of an exited worker."""
    metrics.remove_worker(worker.pid)


def pre_fork(server, worker):
    """Make the metrics' folder again, if it is gone: without it a worker cannot start."""
    if folder := os.environ.get(FOLDER):
        os.makedirs(folder, 0o700, exist_ok=True)


def post_worker_init(worker):
    """Open the session after the fork: its threads would not survive one."""
    try:
        worker.open()
    except BootError as error:
        worker.log.critical("%s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)  # stops the server instead of trying for ever
