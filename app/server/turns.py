"""Turns: work in gevent's hub that could last long lets others go on."""

import time

import gevent
from gevent.lock import Semaphore

# Longest round of the hub, seconds, before what is at work in it waits for the next one.
ROUND_SECONDS = 0.005
# A wait that is over at once, after a look for new events; gevent.sleep(0) goes on without one, 50 times.
NO_TIME = 1e-6

_turn = Semaphore()


def let_others_go_on(is_small: bool = False) -> None:
    """Wait for the hub's next round, if this one is long.

    is_small: it has done little so far and does not queue behind large work, of which one greenlet at a time returns:
    the next round stays short.
    """
    if time.time() - gevent.get_hub().loop.now() <= ROUND_SECONDS:
        return
    if is_small:
        gevent.sleep(NO_TIME)
        return
    with _turn:
        gevent.sleep(NO_TIME)
