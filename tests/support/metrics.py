"""GET /metrics of a real server, read as Prometheus does."""

import time
from collections import Counter
from collections.abc import Callable

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.support.server import Server

# A name, and the names and values of labels.
Series = tuple[str, tuple[tuple[str, str], ...]]


class Scrape:
    """One answer of GET /metrics. values: by series."""

    def __init__(self, server: Server) -> None:
        response = requests.get(f"{server.url}/metrics", timeout=30)
        assert response.ok, response.text
        self.type = response.headers["Content-Type"]
        self.families = {family.name: family for family in text_string_to_metric_families(response.text)}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self.values: dict[Series, float] = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}
        assert len(self.values) == len(samples) == len([x for x in response.text.splitlines() if x[0] != "#"])

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of all series that have these labels; there must be at least one."""
        found = [
            value
            for (own, there), value in self.values.items()
            if own == name and labels.items() <= dict(there).items()
        ]
        assert found, (name, labels)
        return sum(found)

    def counters(self) -> dict[Series, float]:
        """Return the series that must never decrease."""
        ends = ("_total", "_bucket", "_count", "_sum")
        return {series: value for series, value in self.values.items() if series[0].endswith(ends)}


def wait_for(server: Server, holds: Callable[[Scrape], bool]) -> Scrape:
    """Return the first scrape for which this holds: counts of another worker may come a little later."""
    until = time.monotonic() + 20
    while not holds(scrape := Scrape(server)):
        assert time.monotonic() < until, {series: value for series, value in scrape.values.items() if value}
        time.sleep(0.02)
    return scrape


def wait_until_idle(server: Server) -> Scrape:
    """Wait until no request is in flight except the scrape itself."""
    return wait_for(server, lambda scrape: scrape("embedding_in_flight_requests") == 1)


def wait_until_queued(server: Server, least: int) -> Scrape:
    """Wait until at least so many requests are in the queue."""
    return wait_for(server, lambda scrape: scrape("embedding_queue_requests") >= least)


def answered(server: Server) -> Counter[str]:
    """Count answered requests by status, without those for /metrics itself."""
    found: Counter[str] = Counter()
    for (name, pairs), value in Scrape(server).values.items():
        labels = dict(pairs)
        if name == "embedding_requests_total" and labels["route"] != "/metrics":
            found[labels["status"]] += int(value)
    return found
