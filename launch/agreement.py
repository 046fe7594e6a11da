"""What ranks that start together agree on before their first collective: whether all of them can begin.

A rank that is refused alone (its node does not see the dataset) would leave the others waiting for it, and
one that is refused with all others (a study with a mistake) would say what all say. Here every rank learns
that one was refused, the first says why, and all end.
"""

import os
import time
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import TypeVar

import torch.distributed
from torch.distributed import PrefixStore, Store

from launch.exits import BAD_INPUT

LEAVING_SECONDS = 5.0  # that the process with the store waits for those that still read from it

T = TypeVar("T")
_calls = count()


def agreed(check: Callable[[], T]) -> T:
    """What `check` returns, where it returns on every rank. Called by all, in the same order; alone it is a plain call.

    Where it raises `ValueError` or `OSError` on any rank, the first of these raises it, and all others end with
    the status of bad input: they have nothing to add.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1 or "RANK" not in os.environ:
        return check()
    store = PrefixStore(f"agreement/{next(_calls)}", _store())
    problem: ValueError | OSError | None = None
    first = False
    try:
        result = check()
    except (ValueError, OSError) as error:
        problem, first = error, store.add("refused", 1) == 1
    if store.add("arrived", 1) == ranks:
        store.set("all", "")
    store.wait(["all"])
    if store.add("refused", 0) == 0:
        return result
    _leave(store, ranks)
    if problem and first:
        raise problem
    raise SystemExit(BAD_INPUT)


def _leave(store: Store, ranks: int) -> None:
    """Rank 0 may keep the store in its own process, so it goes last."""
    gone = store.add("gone", 1)
    deadline = time.monotonic() + LEAVING_SECONDS
    while os.environ["RANK"] == "0" and gone < ranks and time.monotonic() < deadline:
        time.sleep(0.05)
        gone = store.add("gone", 0)


@cache
def _store() -> Store:
    """Where the ranks meet, at MASTER_ADDR and MASTER_PORT; the process group that is made later shares it."""
    store, _, _ = next(iter(torch.distributed.rendezvous("env://")))
    return store
