"""The metrics of workers that end, and the folder in /dev/shm that holds them."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support.metrics import Scrape, wait_for
from tests.support.server import Server, Start


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two workers."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=2, WEB_CONCURRENCY=2, MAX_QUEUE=30).wait_until_ready()
    wait_for(server, are(2))
    return server


def are(count: int) -> Callable[[Scrape], bool]:
    return lambda scrape: scrape("embedding_workers") == count


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_worker(server: Server, number: signal.Signals) -> None:
    """When a worker ends, no counter decreases, and its gauges are gone."""
    before = Scrape(server)("embedding_texts_total")
    for n in range(40):
        requests.get(f"{server.url}/embed?q={n}", timeout=30)
    last = wait_for(server, lambda scrape: scrape("embedding_texts_total") >= before + 40)
    for _ in range(2):
        old = server.workers()
        os.kill(old[0], number)
        while set(server.workers()) == set(old) or len(server.workers()) < 2 or not are(2)(last):
            scrape = Scrape(server)
            assert {series for series, value in last.counters().items() if scrape.values[series] < value} == set()
            last = scrape
    last = wait_for(server, lambda scrape: scrape("embedding_slots") == scrape("embedding_workers") == 2)
    assert last("embedding_queue_limit_requests") == 60
    assert last("embedding_build_info") == 1


def test_a_reload_keeps_the_counts(server: Server) -> None:
    """A reload by SIGHUP, which replaces all workers, keeps the counts."""
    requests.get(f"{server.url}/embed?q=cat", timeout=30)
    before, old = Scrape(server), server.workers()
    server.process.send_signal(signal.SIGHUP)
    while set(server.workers()) & set(old):
        time.sleep(0.02)
    after = wait_for(server, are(2))
    assert {series for series, value in before.counters().items() if after.values[series] < value} == set()
    texts = after("embedding_texts_total")
    requests.get(f"{server.url}/embed?q=cat", timeout=30)
    assert wait_for(server, lambda scrape: scrape("embedding_texts_total") == texts + 1)("embedding_build_info") == 1


def folder(server: Server) -> Path:
    return Path(f"/dev/shm/embedding-metrics-{server.process.pid}")


def test_the_folder(start: Start, tiny_model: Path) -> None:
    """The folder is readable by the server only, and is removed with it."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    assert folder(server).stat().st_mode & 0o777 == 0o700
    server.stop()
    assert not folder(server).exists()


class NoFolder(Server):
    """A server that cannot make its folder, because a file has that name."""

    def run(self, command: list[str], environ: dict[str, str] | None = None, is_quiet: bool = False) -> None:
        name = "/dev/shm/embedding-metrics-$$"
        super().run(["sh", "-c", f': > {name} && exec "$0"', *command], environ, is_quiet)


def test_without_a_folder(tiny_model: Path, server: Server) -> None:
    """Without the folder the server serves, and each worker reports its own metrics."""
    server = NoFolder({"MODEL_DIR": str(tiny_model), "MAX_LENGTH": "64", "CPUS": "1"})
    try:
        server.wait_until_ready()
        assert folder(server).is_file()
        assert requests.get(f"{server.url}/embed?q=cat", timeout=30).ok
        scrape = wait_for(server, lambda scrape: scrape("embedding_texts_total") == 1)
        assert scrape("embedding_requests_total", method="GET", route="/embed", status="200") == 1
        assert scrape("embedding_workers") == scrape("embedding_slots") == scrape("embedding_build_info") == 1
        assert set(scrape.families) == set(Scrape(server).families)
    finally:
        server.stop()
        folder(server).unlink(missing_ok=True)


@pytest.mark.parametrize("environ", [{"MODEL_DIR": "nowhere"}, {"MAX_LENGTH": "long"}])
def test_a_failed_start_leaves_no_folder(start: Start, environ: dict[str, str]) -> None:
    """A server that cannot start removes its folder."""
    server = start(**environ)
    server.output_of_failed_boot()
    assert not folder(server).exists()


def kill_the_worker(server: Server) -> None:
    """Kill the only worker, and wait until the next one answers."""
    (old,) = server.workers()
    os.kill(old, signal.SIGKILL)
    while server.workers() in ([], [old]):
        time.sleep(0.02)
    server.wait_until_ready()
    wait_for(server, are(1))


def test_dead_workers_do_not_fill_the_memory(start: Start, tiny_model: Path) -> None:
    """Dead workers don't fill /dev/shm: Docker gives it 64 MB, and when it is full, every write kills a worker."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()
    blocks = []
    for _ in range(4):
        kill_the_worker(server)
        blocks.append(sum(file.stat().st_blocks for file in folder(server).iterdir()))
    assert blocks[1] == blocks[2] == blocks[3]


def test_a_removed_folder(start: Start, tiny_model: Path) -> None:
    """When the folder is removed, metrics may be lost, but the server serves."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()
    shutil.rmtree(folder(server))
    kill_the_worker(server)
    scrape = Scrape(server)
    assert scrape("embedding_workers") == scrape("embedding_build_info") == 1
