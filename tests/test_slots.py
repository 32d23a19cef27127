"""Slots: bounded, fair, in order, and not stopped by errors."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.slots import Slots


def started(count: int, work: Any) -> Any:
    slots = Slots[Any, Any](count, work)
    slots.start()
    return slots


class Gate:
    """Work that counts who is inside and lets nobody out before it is opened."""

    def __init__(self) -> None:
        self.inside, self.most = 0, 0
        self.order: list[str] = []
        self.open = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, item: str) -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.order.append(item)
        assert self.open.wait(10)
        with self._lock:
            self.inside -= 1
        return item.upper()

    def wait_until_inside(self, count: int) -> None:
        while self.inside < count:
            time.sleep(0.001)


def test_never_more_than_the_count_at_once() -> None:
    """With 3 slots, 12 requests of one to eight items have 3 inside at most, and every result is in order."""
    gate = Gate()
    slots = started(3, gate)
    requests = [[f"{n} {i}" for i in range(n % 8 + 1)] for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(slots.map, request) for request in requests]
        gate.wait_until_inside(3)
        gate.open.set()
        assert [answer.result() for answer in answers] == [[item.upper() for item in request] for request in requests]
    assert gate.most == 3


def test_many_items_use_every_slot() -> None:
    """One request of many items is worked on in all slots at once."""
    gate = Gate()
    slots = started(4, gate)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(slots.map, [str(n) for n in range(9)])
        gate.wait_until_inside(4)
        gate.open.set()
        assert answer.result() == [str(n) for n in range(9)]


def test_a_single_item_runs_in_its_own_thread_while_a_slot_is_free() -> None:
    """No other thread is involved."""
    slots = started(2, lambda item: threading.get_ident())
    assert slots.map(["a"]) == [threading.get_ident()]
    assert threading.get_ident() not in slots.map(["a", "b"])


def test_a_request_of_many_does_not_hold_up_one() -> None:
    """Requests take turns: the single item comes after one of the others', not after all of them."""
    gate = Gate()
    slots = started(1, gate)
    with ThreadPoolExecutor(2) as pool:
        many = pool.submit(slots.map, [f"many {n}" for n in range(100)])
        gate.wait_until_inside(1)
        one = pool.submit(slots.map, ["one"])
        while len(slots._line) < 2:  # both stand in line
            time.sleep(0.001)
        gate.open.set()
        assert one.result() == ["ONE"]
        many.result()
    assert gate.order.index("one") <= 2


@pytest.mark.parametrize("items", [["bad"], ["good", "bad", *["late"] * 50]])
def test_an_error_goes_to_its_request_alone(items: list[str]) -> None:
    """What work raises is raised in the request, its rest is left undone, and the slots are free again."""
    done = []

    def work(item: str) -> str:
        if item == "bad":
            raise ValueError("bad item")
        done.append(item)
        return item

    slots = started(1, work)
    for _ in range(3):
        with pytest.raises(ValueError, match="bad item"):
            slots.map(items)
    assert slots.map(["a", "b"]) == ["a", "b"]
    assert slots.map(["c"]) == ["c"]
    assert "late" not in done


def test_no_items() -> None:
    """Nothing to do, nothing done."""
    assert started(1, str).map([]) == []


def test_all_slots_come_back_under_load() -> None:
    """After 2,000 requests from 16 threads no slot is lost and none was made up."""
    inside, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        with lock:
            inside -= 1
        return -item

    slots = started(2, work)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: slots.map(list(range(n % 4))), range(2000)))
    assert answers == [[-i for i in range(n % 4)] for n in range(2000)]
    assert most <= 2
    while slots._free < 2:  # the last thread is on its way out
        time.sleep(0.001)
    assert slots._free == 2
