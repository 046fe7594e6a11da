"""A progress bar with rate and time left on stderr, if that is a terminal; silence otherwise."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(unit: str) -> Iterator[Callable[..., None]]:
    """`with bar("chunks") as tell: tell(3, 9, progress)`: 3 of 9 are done, and `progress.items` more raw items."""
    if not sys.stderr.isatty():
        yield lambda done, total, progress=None: None
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
