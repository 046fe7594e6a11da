"""Which files lie below a folder: in sorted order, links and devices refused, and those of no use counted."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Ending -> how many files were passed over because they are not of the domain.
PassedOver = Counter[str]


class Found(NamedTuple):
    """One file: where it is, its name in the ledger, its size in bytes; a `reason` means that it is refused."""

    path: str
    key: str
    size: int
    reason: str = ""


def walk(
    folder: str,
    prefix: str,
    wanted: Callable[[str], bool],
    passed_over: PassedOver,
    together: Callable[[str], str] | None = None,
) -> Iterator[Found]:
    """Every file below `folder` whose name is `wanted`, keys beginning with `prefix`, and whatever is no plain file.

    Names of which `together` says the same follow one another, where the first of them stands. Other files are counted.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    if together is not None:
        first: dict[str, int] = {}
        places = [first.setdefault(together(e.name), n) for n, e in enumerate(ordered)]
        ordered = [ordered[n] for n in sorted(range(len(ordered)), key=places.__getitem__)]
    for entry in ordered:
        key = prefix + entry.name
        if entry.is_symlink():
            if wanted(entry.name) or os.path.isdir(entry.path):
                reason = "a symbolic link: give --raw the place that it points to"
                yield Found(entry.path, key, 0, reason)
            else:
                passed_over[ending(entry.name)] += 1
        elif entry.is_dir():
            yield from walk(entry.path, f"{key}/", wanted, passed_over, together)
        elif not entry.is_file():
            yield Found(entry.path, key, 0, "not a plain file (device, socket or pipe)")
        elif wanted(entry.name):
            yield Found(entry.path, key, entry.stat().st_size)
        else:
            passed_over[ending(entry.name)] += 1


def ending(name: str) -> str:
    """The last ending of a name in small letters, as files are counted by it."""
    return os.path.splitext(name)[1].lower() or "no ending"
