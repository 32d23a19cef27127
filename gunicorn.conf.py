"""Gunicorn's settings: `gunicorn` in this folder starts the server."""

# First of all imports: modules imported earlier would keep the blocking functions.
from gevent import monkey

monkey.patch_all()

import atexit
import errno
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

# In a container this is process 1: the kernel drops its signals while it has no handler, so a stop during the start
# would be lost. Gunicorn's own handler replaces this one later, and a reload must not undo that.
if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))

# Read when numpy is imported. The matrices here are small: a thread pool would only use memory.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Folder of heartbeat files and metrics, in memory: writes to a disk can block a worker.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "embedding-metrics-"
# File in the metrics folder that all processes of a server keep locked while they live.
OWNER = "owner"
# Free space required for the metrics folder, bytes. A worker uses less than 1 MB; without room the kernel would kill it
# (SIGBUS).
MIN_FREE_BYTES = 16_000_000
# Lowest limit of open files to start with; app/server/open_files.py checks it again in each worker.
MIN_FILES = 32
# New objects after which a worker looks for garbage, instead of Python's 700: a short request makes some hundred.
# Nearly all are freed without the garbage collector, which took a tenth of the server's own time.
GARBAGE_THRESHOLD = 20_000


def _make_metrics_folder():
    """Create the folder of the workers' metrics and put its path into the environment, once per server.

    Without room for it, each worker reports only its own metrics. Folders of killed servers are removed.
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
        owner = os.open(
            folder / OWNER, os.O_CREAT | os.O_RDWR, 0o600
        )  # stays open and locked until the last process exits
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
    if os.getpid() == owner_pid:  # not when a worker exits
        shutil.rmtree(folder, ignore_errors=True)


def _is_used(folder):
    """Return whether a process of the server that created the folder is alive, or may be."""
    try:
        owner = os.open(folder / OWNER, os.O_RDWR)
    except FileNotFoundError:  # just created, or by an older version
        return Path(f"/proc/{folder.name.removeprefix(PREFIX)}").exists()
    except OSError:  # owned by another user
        return True
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(owner)


def _addresses(host):
    """Return the addresses to listen on: HOST, or those that mean all of IPv6 and IPv4."""
    if host:
        return [host]
    try:
        with socket.socket(socket.AF_INET6) as probe:
            is_dual = not probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            probe.bind(("::", 0))
    except OSError:  # the kernel or the container has no IPv6
        return ["0.0.0.0"]
    return ["::"] if is_dual else ["::", "0.0.0.0"]


# Before the import of prometheus_client, which reads the path.
_make_metrics_folder()

from gunicorn.arbiter import Arbiter

from app import logs, metrics
from app.errors import BootError
from app.routes import ops
from app.server.worker import Worker
from app.settings import Settings, without_effect

try:
    settings = Settings.from_env(os.environ)
except BootError as error:
    sys.exit(f"Error: {error}")
logs.configure(settings.log_format, settings.log_level, settings.google_cloud_project)
for sentence in without_effect(os.environ):
    logs.write("WARNING", sentence, {})

# Raises the soft limit of open files to the hard limit: each connection needs a file.
with suppress(OSError, ValueError):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
if (files := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < MIN_FILES:
    sys.exit(f"Error: The limit of open files (ulimit -n) is {files}: raise it to {MIN_FILES} or more.")

wsgi_app = "app:create_app()"
addresses = _addresses(settings.host)
bind = [f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}" for host in addresses]
worker_class = Worker
workers = settings.web_concurrency
# Connections of a worker. Over this limit, those that never sent anything are closed first (app/server/connections.py).
worker_connections = 2048 + settings.max_queue
# Off: sendfile would wait for ever for a client that does not read.
sendfile = False
loglevel = settings.log_level
logger_class = logs.Logger
# The app is loaded once and shared copy-on-write.
preload_app = True
# Seconds. Load balancers reuse connections; closing them first would give their clients 502.
keepalive = 75
# Seconds. Cloud Run sends SIGKILL 10 s after SIGTERM.
graceful_timeout = 8
# Seconds without a heartbeat of a worker; long requests do not stop the heartbeat.
timeout = 60
# Bytes, the most that Gunicorn allows: GET /embed?q= has its text in the URL.
limit_request_line = 8190
# A client must not set SCRIPT_NAME.
forwarder_headers = ""
# No response has a URL with a scheme, so the scheme headers of proxies are ignored and no address is compared.
forwarded_allow_ips = "*"
secure_scheme_headers = {}
# The parser that app/server/ is tested with, even if Gunicorn's C parser is installed.
http_parser = "python"
# The socket would be created under $HOME, which a read-only container does not have.
control_socket_disable = True


def on_starting(server):
    """Exit at once if the port is busy; Gunicorn would retry for five seconds with ten log lines."""
    if "GUNICORN_FD" in os.environ:  # an in-place upgrade inherits the socket
        return
    for host in addresses:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, settings.port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    sys.exit(f"Error: HOST is {host}, which is no address of this machine.")
                sys.exit(f"Error: Port {settings.port} cannot be used ({error.strerror}): set PORT to a free one.")


def when_ready(server):
    """Log the first line, and freeze loaded objects: workers share memory that the garbage collector leaves alone."""
    logs.write("INFO", *ops.startup_message(server.app.wsgi()))
    gc.freeze()


def child_exit(server, worker):
    """Drop the gauges of an exited worker."""
    metrics.remove_worker(worker.pid)


def pre_fork(server, worker):
    """Create the metrics folder again if it was deleted: a worker cannot start without it."""
    if folder := os.environ.get(FOLDER):
        os.makedirs(folder, 0o700, exist_ok=True)


def post_worker_init(worker):
    """Open the session after the fork, which its threads would not survive, and set up the garbage collector."""
    try:
        worker.open()
    except BootError as error:
        worker.log.critical("%s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)  # stops the server instead of restarting the worker for ever
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
