"""Slots: bounded, fair, in order, and not stopped by errors."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.errors import DeadlineExceeded
from app.slots import Slots


def started(count: int, work: Any, threads: int = 1) -> Any:
    slots = Slots[Any, Any](count, work, threads)
    slots.start()
    return slots


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.001)


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
        wait_until(lambda: self.inside >= count)


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
        wait_until(lambda: slots.waiting == 2)
        gate.open.set()
        assert one.result() == ["ONE"]
        many.result()
    assert gate.order.index("one") <= 2


def submit(slots: Any, *requests: list[str], seconds: float = 10) -> "queue.Queue[Any]":
    """Submit them; what each one's items became, or what was raised, in the order in which they ended."""
    answers: queue.Queue[Any] = queue.Queue()

    def run(items: list[str]) -> None:
        try:
            answers.put(slots.map(items))
        except Exception as error:
            answers.put(error)

    for items in requests:
        slots.submit(lambda items=items: run(items), time.monotonic() + seconds)
    return answers


def test_submitted_requests_run_in_order_in_a_slot_each() -> None:
    """Of 20 requests of one item as many run as there are slots and one more, the first ones first; the rest wait."""
    gate = Gate()
    slots = started(2, gate, threads=22)
    answers = submit(slots, *([str(n)] for n in range(20)))
    gate.wait_until_inside(3)
    assert slots.waiting == 17
    gate.open.set()
    assert sorted(answers.get(timeout=10)[0] for _ in range(20)) == sorted(str(n) for n in range(20))
    assert gate.most == 3
    assert set(gate.order[:3]) == {"0", "1", "2"}


def test_one_text_does_not_wait_for_those_of_others() -> None:
    """While the texts of large requests have every slot, two requests of one run beside them; a third one waits."""
    gate = Gate()
    slots = started(1, gate, threads=10)
    submit(slots, ["many 1"] * 50, ["many 2"] * 50)
    gate.wait_until_inside(1)
    answers = submit(slots, ["one"], ["two"], ["three"])
    gate.wait_until_inside(3)
    assert sorted(gate.order[1:]) == ["one", "two"]
    gate.open.set()
    assert sorted(answers.get(timeout=10)[0] for _ in range(3)) == ["ONE", "THREE", "TWO"]
    assert gate.most == 3


def test_large_requests_have_their_turns_among_small_ones() -> None:
    """With a line of small requests that never ends, the items of a large one are computed, too."""
    gate = Gate()
    gate.open.set()
    slots = started(1, gate, threads=10)
    ended = threading.Event()
    answers = submit(slots, ["many"] * 100)

    def again() -> None:
        slots.map(["one"])
        if not ended.is_set():
            slots.submit(again, time.monotonic() + 10)

    for _ in range(4):
        slots.submit(again, time.monotonic() + 10)
    assert len(answers.get(timeout=10)) == 100
    ended.set()


def test_all_threads_busy_with_large_requests() -> None:
    """More large requests than threads: the others wait for a thread, and all are answered."""
    slots = started(2, str.upper, threads=3)
    answers = submit(slots, *([f"{n}", "a", "b"] for n in range(30)), ["one"])
    assert sorted(answers.get(timeout=10)[0] for _ in range(31)) == sorted([*map(str, range(30)), "ONE"])


def test_nothing_is_begun_after_the_deadline() -> None:
    """A request of many stops between items, one that waited too long does not begin, the next one works."""
    done: list[str] = []

    def work(item: str) -> str:
        time.sleep(0.02)
        done.append(item)
        return item

    slots = started(1, work, threads=4)
    late = submit(slots, ["many"] * 1000, seconds=0.1)
    later = submit(slots, ["one"], seconds=-1)
    error, other = late.get(timeout=10), later.get(timeout=10)
    assert isinstance(error, DeadlineExceeded) and " of 1000 texts" in str(error)
    assert isinstance(other, DeadlineExceeded) and " after 0 of 1 texts" in str(other)
    assert 0 < len(done) < 20 and "one" not in done
    assert submit(slots, ["good"]).get(timeout=10) == ["good"]


def test_an_end_for_all_deadlines() -> None:
    """At shutdown what would take too long is given up, whatever its own deadline is."""
    slots = started(1, lambda item: time.sleep(0.02), threads=4)
    answers = submit(slots, ["many"] * 1000, seconds=1000)
    slots.end(time.monotonic() + 0.1)
    assert isinstance(answers.get(timeout=5), DeadlineExceeded)


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
    wait_until(lambda: slots._computing == 0)  # the last thread is on its way out
    assert slots.waiting == 0
