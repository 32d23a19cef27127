"""The Prometheus series of GET /metrics, summed over all workers, exited ones included.

Each worker writes its values to files in a memory file system (PROMETHEUS_MULTIPROC_DIR, created by gunicorn.conf.py).
The worker that answers GET /metrics adds them up. Without that folder a worker reports only its own values.
"""

import fcntl
import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client import values as library
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from app.context import OTHER, RequestContext
from app.engine.model_folder import ModelFolder

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METHODS = ("GET", "POST")
STATUSES = ("200", "400", "401", "408", "413", "415", "429", "499", "500", "503")
# Excluded from the latency histogram: the client decides how long these take.
UNTIMED = (408, 499)
# Error codes of requests that were rejected because of load.
REJECTIONS = ("queue_full", "deadline_exceeded", "shutting_down")

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Room in a file for series that only some workers have, e.g. of rare statuses, bytes.
NEW_KEYS_BYTES = 64 * 1024
LOCK_TRIES, LOCK_SECONDS = 20, 0.05

# Turn off `_created` series: unused, and unsupported with multiprocess files.
disable_created_metrics()  # type: ignore[no-untyped-call]

_pid = os.getpid()


def _note_pid() -> None:
    global _pid
    _pid = os.getpid()


os.register_at_fork(after_in_child=_note_pid)
if FOLDER in os.environ:
    # By default, the library asks the system for the process id at each of the 14 counts of a request.
    library.ValueClass = library.MultiProcessValue(lambda: _pid)  # type: ignore[no-untyped-call]  # it has no types

logger = logging.getLogger(__name__)
_served: tuple[str, ...] = ()
_enabled = True
# Sequence numbers of requests for the text and of renderings; the last text with the number of its rendering.
_sequence = itertools.count()
_render_lock = threading.Lock()
_rendered = -1, b""
_registry = CollectorRegistry()
requests = Counter("embedding_requests", "Answered requests.", ["method", "route", "status"], registry=_registry)
request_seconds = Histogram(
    "embedding_request_seconds",
    "Time from the whole request received to the response sent; without requests rejected because of load.",
    ["method", "route"],
    buckets=SECONDS,
    registry=_registry,
)
stage_seconds = Histogram(
    "embedding_stage_seconds",
    "Time of each stage of requests that compute: queue, tokenize, inference, serialize.",
    ["stage"],
    buckets=SECONDS,
    registry=_registry,
)
texts = Counter("embedding_texts", "Texts whose vector was returned.", registry=_registry)
tokens = Counter("embedding_tokens", "Tokens of these texts, before truncation.", registry=_registry)
truncated = Counter("embedding_truncated_texts", "Texts truncated at MAX_LENGTH.", registry=_registry)
cache_hits = Counter("embedding_cache_hits", "Texts whose vector was in the cache.", registry=_registry)
surrogates = Counter(
    "embedding_replaced_surrogates", "Halves of surrogate pairs in texts, replaced by U+FFFD.", registry=_registry
)
refused = Counter("embedding_refused_requests", "Requests rejected because of load.", ["reason"], registry=_registry)
queue = Gauge(
    "embedding_queue_requests", "Requests that wait for a free slot.", multiprocess_mode="livesum", registry=_registry
)
queue_limit = Gauge(
    "embedding_queue_limit_requests",
    "Highest number of waiting requests (MAX_QUEUE).",
    multiprocess_mode="livesum",
    registry=_registry,
)
in_flight = Gauge(
    "embedding_in_flight_requests",
    "Requests that are waiting or being answered.",
    multiprocess_mode="livesum",
    registry=_registry,
)
slots = Gauge("embedding_slots", "Texts computed at the same time.", multiprocess_mode="livesum", registry=_registry)
workers = Gauge("embedding_workers", "Worker processes.", multiprocess_mode="livesum", registry=_registry)
build_info = Gauge(
    "embedding_build_info",
    "Version and model that are served; always 1.",
    ["version", "model", "revision", "precision", "recipe", "stand_in"],
    multiprocess_mode="max",
    registry=_registry,
)


def declare(routes: Iterable[tuple[str, str]], version: str, model_folder: ModelFolder) -> None:
    """Create all series with the value zero: rates and alerts need a first value.

    routes: (method, rule) pairs.
    """
    for method, route in [*routes, *((method, OTHER) for method in METHODS)]:
        request_seconds.labels(method, route)
        for status in STATUSES:
            requests.labels(method, route, status)
    for stage in RequestContext.STAGES:
        stage_seconds.labels(stage)
    for reason in REJECTIONS:
        refused.labels(reason)
    manifest = model_folder.manifest
    stand_in = str(manifest.stand_in).lower()
    recipe = manifest.recipe if model_folder.precision == "int8" else ""
    global _served
    _served = (version, manifest.model, manifest.revision or "", model_folder.precision, recipe, stand_in)
    build_info.labels(*_served).set(1)


def start_worker(capacity: int, max_queue: int) -> None:
    """Create the files of a new worker. Without room for them the worker serves without metrics."""
    global _enabled
    if folder := os.environ.get(FOLDER):
        try:
            with _locked(fcntl.LOCK_EX):
                _reserve(Path(folder))
        except OSError as error:
            logger.error("This worker has no metrics: %s has no room for them (%s).", folder, error.strerror)
            _enabled = False
            return
    workers.set(1)
    slots.set(capacity)
    queue_limit.set(max_queue)
    build_info.labels(*_served).set(1)


def _reserve(folder: Path) -> None:
    """Allocate this process's files, as large as the parent's. A later write without room would kill it (SIGBUS)."""
    for model in folder.glob(f"*_{os.getppid()}.db"):
        own = model.with_name(model.name.replace(f"_{os.getppid()}.", f"_{os.getpid()}."))
        try:
            with own.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, model.stat().st_size + NEW_KEYS_BYTES)
        except OSError:
            for path in folder.glob(f"*_{os.getpid()}.db"):
                path.unlink()
            raise


def set_load(waiting: int, served: int) -> None:
    """Set the gauges of this worker: waiting requests, and all requests in flight."""
    if _enabled:
        queue.set(waiting)
        in_flight.set(served)


@cache
def _series(metric: Any, *labels: str) -> Any:
    """Return one series of a metric, cached: the library's lookup takes as long as counting."""
    return metric.labels(*labels)


def observe(context: RequestContext) -> None:
    """Count one answered request."""
    if not _enabled:
        return
    method = context.method if context.method in METHODS else OTHER
    _series(requests, method, context.route, str(context.status)).inc()
    if context.error in REJECTIONS:
        _series(refused, context.error).inc()
    elif (
        context.status not in UNTIMED
    ):  # rejections are excluded, too: their few milliseconds would hide how long the others wait
        _series(request_seconds, method, context.route).observe(context.seconds)
    if not context.texts:
        return
    for stage, seconds in context.stages.items():
        _series(stage_seconds, stage).observe(seconds)
    texts.inc(context.texts)
    tokens.inc(context.tokens)
    if context.truncated:
        truncated.inc(context.truncated)
    if context.cache_hits:
        cache_hits.inc(context.cache_hits)
    if context.surrogates:
        surrogates.inc(context.surrogates)


def remove_worker(pid: int) -> None:
    """Drop the gauges of an exited worker, and add its counts to the file of exited workers.

    The worker's files are removed: they use memory, and GET /metrics reads every file.
    """
    folder = os.environ.get(FOLDER)
    if folder is None:
        return
    try:
        with _locked(fcntl.LOCK_EX):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
            for kind in ("counter", "histogram"):
                _add(Path(folder, f"{kind}_{pid}.db"), Path(folder, f"{kind}_dead.db"))
            Path(folder, f"gauge_max_{pid}.db").unlink(missing_ok=True)
    except Exception:  # the server continues with the files in place
        logger.exception("the counts of worker %d stay in files of their own", pid)


def _add(own: Path, sums: Path) -> None:
    """Add the values of the file `own` to the file `sums`, and remove `own`."""
    if not own.is_file():
        return
    part = sums.with_suffix(".part")
    part.unlink(missing_ok=True)
    if sums.is_file():
        shutil.copy(sums, part)
    # Allocated now: a later write without room would kill this process (SIGBUS). Nearly all keys are in both files,
    # since the series are created before the fork.
    with part.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, max(file.tell(), own.stat().st_size + NEW_KEYS_BYTES))
    values = MmapedDict(str(part))  # type: ignore[no-untyped-call]
    for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(own)):  # type: ignore[no-untyped-call]
        values.write_value(key, values.read_value(key)[0] + value, timestamp)  # type: ignore[no-untyped-call]
    values.close()  # type: ignore[no-untyped-call]
    part.replace(sums)
    own.unlink()


@contextmanager
def _locked(how: int) -> Iterator[None]:
    """Hold the folder's lock (fcntl.LOCK_SH to read, LOCK_EX to change), after waiting one second at most."""
    with Path(os.environ[FOLDER], "lock").open("a") as file:
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(file, how | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_SECONDS)  # the holder may be suspended: continue without the lock in the end
        yield


def render() -> bytes:
    """Return all series as text. Concurrent requests share one rendering, which takes about 10 ms."""
    global _rendered
    arrived = next(_sequence)
    with _render_lock:
        time.sleep(0)  # yields to gevent, so that requests already received get a number first
        if _rendered[0] < arrived:
            _rendered = next(_sequence), _text()
        return _rendered[1]


def _text() -> bytes:
    if FOLDER not in os.environ:
        return generate_latest(_registry)
    collected = CollectorRegistry()
    MultiProcessCollector(collected)  # type: ignore[no-untyped-call]
    with _locked(fcntl.LOCK_SH):
        return generate_latest(collected)
