"""The Prometheus series of GET /metrics, right across all workers, dead ones too.

Each worker writes its values into files in memory (PROMETHEUS_MULTIPROC_DIR, which gunicorn.conf.py makes); the worker
that answers GET /metrics adds them up. Without that folder a worker reports its own.
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
# Codes of errors that are due to load.
REJECTIONS = ("queue_full", "deadline_exceeded", "shutting_down")

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Room for series that only some workers have, such as of unusual statuses.
NEW_KEYS_BYTES = 64 * 1024
LOCK_TRIES, LOCK_SECONDS = 20, 0.05

# Turn off `_created` series: unused, and unsupported with multiprocess files.
disable_created_metrics()  # type: ignore[no-untyped-call]

logger = logging.getLogger(__name__)
_served: tuple[str, ...] = ()
_enabled = True
# The order in which requests for the text arrive and texts are begun; the last text and its place in that order.
_order = itertools.count()
_turn = threading.Lock()
_rendered = -1, b""
_registry = CollectorRegistry()
requests = Counter(
    "embedding_requests", "Requests that were answered.", ["method", "route", "status"], registry=_registry
)
request_seconds = Histogram(
    "embedding_request_seconds",
    "From the whole request to its answer; without those refused because of load, or not waited for.",
    ["method", "route"],
    buckets=SECONDS,
    registry=_registry,
)
stage_seconds = Histogram(
    "embedding_stage_seconds",
    "Parts of the time of a request that computes: queue, tokenize, inference, serialize.",
    ["stage"],
    buckets=SECONDS,
    registry=_registry,
)
texts = Counter("embedding_texts", "Texts that got a vector.", registry=_registry)
tokens = Counter("embedding_tokens", "Their tokens, before truncation.", registry=_registry)
truncated = Counter("embedding_truncated_texts", "Texts that were cut at MAX_LENGTH.", registry=_registry)
cache_hits = Counter("embedding_cache_hits", "Texts whose vector was in the cache.", registry=_registry)
refused = Counter("embedding_refused_requests", "Requests refused because of load.", ["reason"], registry=_registry)
queue = Gauge(
    "embedding_queue_requests", "Requests that wait for a slot.", multiprocess_mode="livesum", registry=_registry
)
queue_limit = Gauge(
    "embedding_queue_limit_requests", "How many may (MAX_QUEUE).", multiprocess_mode="livesum", registry=_registry
)
in_flight = Gauge(
    "embedding_in_flight_requests",
    "Requests that wait or are being answered.",
    multiprocess_mode="livesum",
    registry=_registry,
)
slots = Gauge("embedding_slots", "Texts computed at once.", multiprocess_mode="livesum", registry=_registry)
workers = Gauge("embedding_workers", "Worker processes.", multiprocess_mode="livesum", registry=_registry)
build_info = Gauge(
    "embedding_build_info",
    "What is served; always 1.",
    ["version", "model", "revision", "precision", "recipe", "stand_in"],
    multiprocess_mode="max",
    registry=_registry,
)


def declare(routes: Iterable[tuple[str, str]], version: str, model_folder: ModelFolder) -> None:
    """Make all series at zero: rates and alerts need a first value.

    routes: method and rule of each.
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
    """Make the files of a new worker. Without room for them it has no metrics of its own, and serves."""
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
    """Give this process's files their bytes now, as many as the parent's have: a write without room would kill it."""
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
    """Set the gauges of this worker: requests that wait, and all that are being served."""
    if _enabled:
        queue.set(waiting)
        in_flight.set(served)


@cache
def _series(metric: Any, *labels: str) -> Any:
    """Return one of a metric's series; the library's own look-up takes as long as counting."""
    return metric.labels(*labels)


def observe(context: RequestContext) -> None:
    """Count one answered request."""
    if not _enabled:
        return
    method = context.method if context.method in METHODS else OTHER
    _series(requests, method, context.route, str(context.status)).inc()
    if context.error in REJECTIONS:
        _series(refused, context.error).inc()
    elif context.status not in UNTIMED:  # nor a refusal's few milliseconds, which would hide what the others wait
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


def remove_worker(pid: int) -> None:
    """Drop the gauges of an exited worker, and add its counts to those of other exited ones.

    Its files are removed; a thousand of them would fill the memory that they are in, and /metrics reads all.
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
    except Exception:  # the server goes on, with some files more
        logger.exception("the counts of worker %d stay in files of their own", pid)


def _add(own: Path, sums: Path) -> None:
    """Add the values of one file to another, and remove it."""
    if not own.is_file():
        return
    part = sums.with_suffix(".part")
    part.unlink(missing_ok=True)
    if sums.is_file():
        shutil.copy(sums, part)
    # All of it now: a write where there is no room would kill this process. Nearly all keys are in both, since the
    # series are made before the fork.
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
    """Keep files from being made and removed while they are read; wait a second at most."""
    with Path(os.environ[FOLDER], "lock").open("a") as file:
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(file, how | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_SECONDS)  # its holder may be stopped, and must not stop others
        yield


def render() -> bytes:
    """Return all series, as text. Requests that wait while one text is made share the next: each takes some 10 ms."""
    global _rendered
    arrived = next(_order)
    with _turn:
        time.sleep(0)  # in the server: lets those arrive that are there already
        if _rendered[0] < arrived:
            _rendered = next(_order), _text()
        return _rendered[1]


def _text() -> bytes:
    if FOLDER not in os.environ:
        return generate_latest(_registry)
    collected = CollectorRegistry()
    MultiProcessCollector(collected)  # type: ignore[no-untyped-call]
    with _locked(fcntl.LOCK_SH):
        return generate_latest(collected)
