"""gevent's hub: long work in it yields to the other greenlets."""

import time

import gevent
from gevent.lock import Semaphore

# Longest round of the hub before the running greenlet yields, seconds.
ROUND_SECONDS = 0.005
# Shortest sleep that polls for new events, seconds; gevent.sleep(0) skips the poll 50 times.
NO_TIME = 1e-6

_turn = Semaphore()


def yield_to_hub(is_small: bool = False) -> None:
    """Wait for the hub's next round, if this one has lasted longer than ROUND_SECONDS.

    is_small: the caller has done little work so far and continues in the next round. All others queue, and one of them
    continues in each round, so that rounds stay short.
    """
    if time.time() - gevent.get_hub().loop.now() <= ROUND_SECONDS:
        return
    if is_small:
        gevent.sleep(NO_TIME)
        return
    with _turn:
        gevent.sleep(NO_TIME)
