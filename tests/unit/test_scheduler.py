"""Scheduler: bounded, fair, in order, on time, and not stopped by errors. Each case runs gevent in a process."""

import subprocess
import sys

import pytest

from tests.support import ROOT

BEGIN = """
import threading, time
import gevent
import numpy as np
from gevent import monkey
from app.errors import ClientGone, DeadlineExceeded, ShuttingDown, TooLarge
from app.server.request_runner import RequestRunner
from app.server.scheduler import Scheduler

Lock, Event = (monkey.get_original("threading", name) for name in ("Lock", "Event"))
guard, opened = Lock(), Event()
inside = most = 0
order = []
runs = []

def row(name):  # its tokens are its number; (number, length) has several
    number, length = name if isinstance(name, tuple) else (name, 1)
    return np.full(length, number)

def several(tokens):
    return 1 if tokens == 1 else 4

def work(rows):
    global inside, most
    with guard:
        inside += 1
        most = max(most, inside)
        order.append(int(rows[0][0]))
        runs.append([int(row[0]) for row in rows])
    assert opened.wait(10)
    with guard:
        inside -= 1
    if rows[0][0] < 0:
        raise ValueError("bad row")
    return [-row for row in rows]

def run(scheduler, numbers, seconds=100, is_gone=lambda: False, done=None):
    found = {} if done is None else done
    job = RequestRunner(scheduler, time.monotonic() - scheduler.deadline_seconds + seconds, is_gone)
    try:
        job.run_all([row(number) for number in numbers], found.__setitem__)
    except Exception as error:
        return error
    return [-int(found[index][0]) for index in range(len(numbers))]

def start(scheduler, *arguments, **options):
    started = gevent.spawn(run, scheduler, *arguments, **options)
    gevent.sleep(0.01)
    return started

def until(holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        gevent.sleep(0.001)

def error_of(greenlet):
    return greenlet.get(timeout=10)
"""


CASES = [
    """# Never more rows at once than CPUs and one, every result is in order, and nothing is left over.
scheduler = Scheduler(work, several, 3, 100)
requests = [[100 * n + i for i in range(n % 8 + 1)] for n in range(40)]
greenlets = [start(scheduler, request) for request in requests]
until(lambda: inside == 4)
opened.set()
assert [greenlet.get(timeout=10) for greenlet in greenlets] == requests
assert most == 4 and scheduler.waiting == 0
""",
    """# The rows of one large request use all CPUs, and leave one thread to a lone row.
scheduler = Scheduler(work, several, 2, 100)
large = start(scheduler, range(100, 200))
until(lambda: inside == 2)
lone = start(scheduler, [1])
until(lambda: inside == 3)
assert order[2] == 1
opened.set()
assert lone.get(timeout=10) == [1] and large.get(timeout=10) == [*range(100, 200)]
""",
    """# Requests take turns: a hundred rows do not hold up two, and small ones without end do not hold up a hundred.
scheduler = Scheduler(work, several, 1, 100)
large, other = start(scheduler, range(100, 200)), start(scheduler, [1, 2])
opened.set()
other.join(10)
assert order.index(2) < 20
def small():
    while not large.ready():
        run(scheduler, [1])
greenlets = [gevent.spawn(small) for _ in range(8)]
assert len(large.get(timeout=10)) == 100
gevent.joinall(greenlets)
""",
    """# Nothing begins after its deadline; the error says how many are done, and these were handed over.
scheduler = Scheduler(work, several, 1, 100)
blocker = start(scheduler, [1, 2])
late = start(scheduler, [3, 4], seconds=0.2)
assert isinstance(error := error_of(late), DeadlineExceeded) and " after 0 of 2 texts" in str(error)
assert isinstance(error_of(start(scheduler, [5], seconds=-1)), DeadlineExceeded)
opened.set()
blocker.join(10)
assert not {3, 4, 5} & set(order)
assert run(scheduler, [6]) == [6] and scheduler.waiting == 0
""",
    """# Rows that end after their request has given up are handed over all the same.
scheduler = Scheduler(work, several, 1, 100)
done = {}
late = start(scheduler, [7, 8, 9, 10], seconds=0.2, done=done)
assert isinstance(error_of(late), DeadlineExceeded)
opened.set()
until(lambda: len(done) == 2)
gevent.sleep(0.05)
assert list(done) == [0, 1] and scheduler.waiting == 0
""",
    """# At the end of all deadlines what still waits is given up, however long its own deadline is.
scheduler = Scheduler(work, several, 1, 100)
large = start(scheduler, range(100, 200))
scheduler.shut_down(time.monotonic() + 0.1)
assert isinstance(error_of(large), ShuttingDown)
""",
    """# What work raises belongs to its request alone, whose rest is left undone.
opened.set()
scheduler = Scheduler(work, several, 1, 100)
for numbers in ([-1], [1, -2, *range(100, 150)]):
    assert isinstance(error_of(start(scheduler, numbers)), ValueError)
assert run(scheduler, [3]) == [3] and run(scheduler, [4, 5]) == [4, 5] and run(scheduler, []) == []
assert len(order) < 20 and scheduler.waiting == 0
""",
    """# A request whose client left while it waited does not begin.
scheduler = Scheduler(work, several, 1, 100)
blockers = [start(scheduler, [n]) for n in (1, 2, 4)]
gone = start(scheduler, [3], is_gone=lambda: True)
gevent.sleep(0.2)
opened.set()
assert isinstance(error_of(gone), ClientGone) and 3 not in order
""",
    """# A request whose client left while it was computed goes on no further.
scheduler = Scheduler(work, several, 1, 100)
opened.set()
gone = start(scheduler, range(100_000, 1_000_000), is_gone=lambda: len(order) > 100)
assert isinstance(error_of(gone), ClientGone) and scheduler.waiting == 0
""",
    """# Rows of one length run together, as many as one run takes; none waits for others, and results stay in order.
scheduler = Scheduler(work, several, 1, 100)
blockers = [start(scheduler, [n]) for n in (1, 2, 3)]
names = [(10, 3), (11, 5), (12, 3), (13, 3), (14, 3), (15, 3)]
greenlets = [start(scheduler, [name]) for name in names]
opened.set()
assert [greenlet.get(timeout=10) for greenlet in greenlets] == [[number] for number, _ in names]
assert runs == [[1], [2], [3], [10, 12, 13, 14], [11], [15]] and scheduler.waiting == 0
""",
    """# The rows of a request are shared among the CPUs: the runs get smaller towards its end.
opened.set()
scheduler = Scheduler(work, several, 2, 100)
assert run(scheduler, [(number, 3) for number in range(10)]) == [*range(10)]
assert sorted(map(len, runs)) == [1, 2, 3, 4]
runs.clear()
assert run(scheduler, [(1, 3), (2, 3)]) == [1, 2] and sorted(runs) == [[1], [2]]
""",
    """# Texts of several large requests share runs, and each request gets its own results.
scheduler = Scheduler(work, several, 1, 100)
blocker = start(scheduler, [1, 2])
requests = [[(10 * n + i, 3) for i in range(5)] for n in (1, 2, 3)]
greenlets = [start(scheduler, request) for request in requests]
opened.set()
for n, greenlet in zip((1, 2, 3), greenlets):
    assert greenlet.get(timeout=10) == [*range(10 * n, 10 * n + 5)]
assert any(len({number // 10 for number in names}) > 1 for names in runs), runs
""",
    """# A request that has ended while it waited is left out of the run; the others of its length are computed.
scheduler = Scheduler(work, several, 1, 100)
blockers = [start(scheduler, [n]) for n in (1, 2, 3)]
gone, kept = start(scheduler, [(20, 3)], is_gone=lambda: True), [start(scheduler, [(n, 3)]) for n in (21, 22)]
gevent.sleep(0.2)
opened.set()
assert isinstance(error_of(gone), ClientGone)
assert [greenlet.get(timeout=10) for greenlet in kept] == [[21], [22]]
assert runs[3:] == [[21, 22]] and scheduler.waiting == 0
""",
    """# What cannot be computed in time even alone is refused at once, with a number that can.
def busy(rows):
    rows = [-row for row in rows]
    end = time.thread_time() + 0.002
    while time.thread_time() < end:
        pass
    return rows
scheduler = Scheduler(busy, several, 1, 1)
assert RequestRunner(scheduler, 0, lambda: False).texts_in_time(1) is None
assert len(error_of(start(scheduler, range(1, 100), seconds=10))) == 99
error = error_of(start(scheduler, range(2000)))
assert isinstance(error, TooLarge) and "over the limit of 1 s (REQUEST_DEADLINE): send at most " in str(error)
most = int(str(error).split()[-3])
assert 100 < most < 500 and RequestRunner(scheduler, 0, lambda: False).texts_in_time(1) == most
""",
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_scheduler(case: str) -> None:
    """Each case is a script; its comment says what it shows."""
    script = f"{BEGIN}\n{case}"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
