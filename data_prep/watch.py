"""What a worker process says of itself while it works: that it lives, and which item is under its hands.

A hostile item can kill its process or never end. The parent then knows its key (`data_prep/workers.py`), and when the
task is tried for the last time, `begin` refuses that item, so that it costs no other.
"""

from collections.abc import Callable, Mapping

# Bytes of a key that are kept; none that a person has chosen is longer.
KEY_BYTES = 1000


class Watch:
    """One attempt at a task. `attempt` counts from 0; `beat(n)` tells of n more items done, and of life; `begin(key)`
    says which item is next. `blamed`: the keys of items that cost earlier attempts their process, and how.

    Without arguments nobody listens: for callers that are no workers.
    """

    def __init__(
        self,
        attempt: int = 0,
        blamed: Mapping[bytes, str] | None = None,
        beat: Callable[[int], None] = lambda items: None,
        mark: Callable[[bytes], None] = lambda key: None,
    ) -> None:
        self.attempt, self.beat = attempt, beat
        self._blamed, self._mark = blamed or {}, mark

    @property
    def careful(self) -> bool:
        """An attempt has failed: items are to be taken one by one, so that the one to blame is known."""
        return self.attempt > 0

    def begin(self, key: str) -> None:
        """The item called `key` is next. ValueError if it is to be refused."""
        mark = shortened(key)
        if mark in self._blamed:
            raise ValueError(self._blamed[mark])
        self._mark(mark)
        self.beat(0)

    def end(self) -> None:
        """No item is under our hands."""
        self._mark(b"")


def shortened(key: str) -> bytes:
    """A key as it is marked."""
    return key.encode("utf-8", "surrogateescape")[:KEY_BYTES].replace(b"\0", b"?")
