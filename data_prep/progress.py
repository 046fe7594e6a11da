"""Progress on stderr with rate and time left: a bar on a terminal, elsewhere (a log) a line a minute."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINE_SECONDS = 60.0

Tell = Callable[..., None]


@contextmanager
def bar(unit: str, line_seconds: float = _LINE_SECONDS) -> Iterator[Tell]:
    """`with bar("chunks") as tell: tell(3, 9, progress)`: 3 of 9 are done, and `progress.items` more raw items."""
    if not sys.stderr.isatty():
        yield _Lines(unit, line_seconds)
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    shown = tqdm(unit=f" {unit}", file=sys.stderr, dynamic_ncols=True)
    start, items = time.monotonic(), 0

    def tell(done: int, total: int, progress: object = None) -> None:
        nonlocal items
        items += getattr(progress, "items", 0)
        if shown.total is None:
            # What an earlier, interrupted run had finished tells nothing about this one's speed.
            shown.initial, shown.total = done, total
        if items:
            rate = items / max(1e-9, time.monotonic() - start)
            shown.set_postfix_str(f"{rate:,.0f} items/s", refresh=False)
        shown.n = done
        shown.refresh()

    try:
        yield tell
    finally:
        shown.close()


@contextmanager
def during(what: str, line_seconds: float = _LINE_SECONDS) -> Iterator[None]:
    """Around what takes long and cannot be counted: a line a minute says that it goes on; none for what ends sooner."""
    ended = threading.Event()
    start = time.monotonic()

    def speak() -> None:
        while not ended.wait(line_seconds):
            _say(f"{what}: {(time.monotonic() - start) / 60:,.0f} min so far")

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()


def _say(line: str) -> None:
    """A line of its own, above the bar if there is one."""
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
        return
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


class _Lines:
    """A line now and then, none for what is done sooner."""

    def __init__(self, unit: str, seconds: float) -> None:
        self._unit, self._seconds = unit, seconds
        self._start = self._last = time.monotonic()
        self._first: int | None = None
        self._items = 0

    def __call__(self, done: int, total: int, progress: object = None) -> None:
        self._items += getattr(progress, "items", 0)
        # What an earlier, interrupted run had finished tells nothing about this one's speed.
        self._first = done if self._first is None else self._first
        now = time.monotonic()
        if now - self._last < self._seconds:
            return
        self._last, spent = now, now - self._start
        line = f"{done} of {total} {self._unit}"
        if self._items:
            line += f", {self._items / spent:,.0f} items/s"
        if done > self._first:
            left = (total - done) * spent / (done - self._first)
            line += f", about {left / 60:,.0f} min left"
        print(line, file=sys.stderr, flush=True)
