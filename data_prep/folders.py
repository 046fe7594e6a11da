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
    # Folders within folders: their entries that are still to come, the innermost last.
    open_folders = [(folder, prefix, _entries(folder, together))]
    while open_folders:
        folder, prefix, entries = open_folders[-1]
        name, kind = next(entries, ("", _END))
        path, key = os.path.join(folder, name), prefix + name
        if kind == _END:
            open_folders.pop()
        elif kind == _LINK and (wanted(name) or os.path.isdir(path)):
            yield Found(path, key, 0, "a symbolic link: give --raw the place that it points to")
        elif kind == _FOLDER:
            open_folders.append((path, f"{key}/", _entries(path, together)))
        elif kind == _OTHER:
            yield Found(path, key, 0, "not a plain file (device, socket or pipe)")
        elif kind == _FILE and wanted(name):
            yield Found(path, key, os.stat(path).st_size)
        else:
            passed_over[ending(name)] += 1


_FILE, _FOLDER, _LINK, _OTHER, _END = "file", "directory", "link", "other", "end"
_KINDS = {kind[0]: kind for kind in (_FILE, _FOLDER, _LINK, _OTHER)}


def _entries(folder: str, together: Callable[[str], str] | None) -> Iterator[tuple[str, str]]:
    """(name, kind) of what is in one folder, in order. Memory: some 60 bytes and its name for each."""
    with os.scandir(folder) as found:
        # One string each, which sorts as its name does: no name holds a zero byte.
        ordered = sorted(f"{entry.name}\0{_kind(entry)[0]}" for entry in found)
    if together is not None:
        first: dict[str, int] = {}
        places = [first.setdefault(together(e[:-2]), n) for n, e in enumerate(ordered)]
        ordered = [ordered[n] for n in sorted(range(len(ordered)), key=places.__getitem__)]
    for entry in ordered:
        yield entry[:-2], _KINDS[entry[-1]]


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return _LINK
    if entry.is_dir():
        return _FOLDER
    return _FILE if entry.is_file() else _OTHER


def ending(name: str) -> str:
    """The last ending of a name in small letters, as files are counted by it."""
    return os.path.splitext(name)[1].lower() or "no ending"
