"""The classes of labelled pictures: found in the raw data, numbered, counted.

    .build/<label>/classes.json    the names in the order of their numbers, as the plan of a build found them
    .build/<label>/earlier.json    those of the dataset's other splits, whose numbers hold for this build too
    manifest.json                  the names, and how many pictures of each every split holds

A class is the folder that holds a picture (`dog/0275.jpg`, in a folder or a tar), the tar itself where that holds
pictures alone (`n01440764.tar`), and the folder above one called `images`. Where pictures have a `.cls` beside them
(webdataset), its number is the class.
"""

import functools
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.domain import Domain
from data_prep.files import beside, recorded, write_file
from data_prep.manifest import ClassRecord, Manifest, ShardRecord

# A class is written in two bytes.
MOST = 1 << 16
LABEL_TOKENS = 2
_NAMES, _EARLIER = "classes.json", "earlier.json"
# What a .cls says, or the name of a folder; "" for a picture that lies in none.
Label = int | str


@dataclass(frozen=True)
class Classes:
    """Their names in the order of their numbers; `numbered`: a .cls gave them."""

    names: tuple[str, ...]
    numbered: bool

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def number(self, label: Label) -> int:
        """The class that a picture's label means; ValueError says why it has none."""
        if isinstance(label, int):
            return self._numbers[
                str(label)
            ]  # the first split may have numbered folders of such names
        if self.numbered:
            raise ValueError("a picture without a class: no .cls beside it, as others have")
        if not label:
            raise ValueError("a picture without a class: in no folder, and no .cls beside it")
        return self._numbers[label]


def folder_of(key: str) -> str:
    """The class that the name of an item, "dog/0275.jpg", tells; "" for none."""
    folders = key.split("/")[:-1]
    if folders and folders[-1] == "images":
        folders.pop()
    name = recorded(folders[-1]) if folders else ""
    return name[: -len(".tar")] if name.lower().endswith(".tar") else name


def number_in(text: bytes) -> int:
    """The number in a .cls; ValueError if there is none that two bytes hold."""
    digits = text.strip()
    if not (digits.isdigit() and len(digits) <= 9 and int(digits) < MOST):
        shown = digits[:20].decode("ascii", "backslashreplace")
        raise ValueError(f"a .cls that says {shown!r}; wanted a number from 0 to {MOST - 1}")
    return int(digits)


class Seen:
    """The labels of a build's raw data while it is listed: no more of them than there may be classes."""

    def __init__(self, raw: str) -> None:
        self._raw = raw
        self._folders: set[str] = set()
        self._highest = -1

    def add(self, label: Label) -> None:
        """Note one; ValueError beyond the most that a dataset can have."""
        if isinstance(label, int):
            self._highest = max(self._highest, label)
        elif label:
            self._folders.add(label)
            if len(self._folders) > MOST:
                raise ValueError(
                    f"{self._raw}: holds pictures of more than {MOST} classes (folders); wanted at most {MOST}, which "
                    f"two bytes hold. Give --raw fewer of them, or the folder whose subfolders are the classes."
                )

    def classes(self, work: Path) -> Classes:
        """The classes of the build in folder `work`, kept there for the workers; ValueError where there are none, one
        alone, an empty one, or one that the dataset's earlier splits have not."""
        numbered = self._highest >= 0
        names = (
            tuple(map(str, range(self._highest + 1))) if numbered else tuple(sorted(self._folders))
        )
        earlier = _load(work / _EARLIER)
        if earlier:
            self._refuse_new(names, earlier)
            names = earlier
        elif len(names) < 2:
            raise ValueError(
                f"{self._raw}: its pictures are of {len(names)} classes{f' ({names[0]})' if names else ''}; wanted two "
                f"or more: class/x.jpg in a folder or .tar, or key.jpg beside key.cls. Give --raw the folder or tar "
                f"that holds the classes."
            )
        if not numbered:
            _refuse_empty(self._raw, names)
        found = Classes(names, numbered)
        write_file(work / _NAMES, json.dumps([found.names, numbered]).encode())
        return found

    def _refuse_new(self, names: Iterable[str], earlier: Collection[str]) -> None:
        new = [name for name in names if name not in earlier]
        if new:
            raise ValueError(
                f"{self._raw}: class {_listed(new)} is in none of the splits that are there; wanted the classes of "
                f"these ({_listed(sorted(earlier))}), whose numbers stand in their rows. Build the split that has all "
                f"classes first, in another --out, or take these pictures out."
            )


def _refuse_empty(raw: str, names: Collection[str]) -> None:
    """A folder that holds neither pictures nor folders would be a class without any."""
    known = set(names)
    for folder, below, _ in os.walk(raw):
        own = os.path.relpath(folder, raw)
        if not below and own != "." and folder_of(f"{own}/x") not in known:
            raise ValueError(
                f"{recorded(folder)}: holds no picture, so the class is empty; wanted one or more of each. Put "
                f"pictures there, or remove the folder."
            )


def load_classes(work: Path) -> Classes:
    """What the plan of the build in folder `work` has found."""
    names, numbered = json.loads((work / _NAMES).read_bytes())
    return Classes(tuple(names), numbered)


def keep_earlier(work: Path, manifest: Manifest) -> None:
    """Leave a new build the classes of the splits that its dataset has already."""
    names = [each.name for each in manifest.classes]
    write_file(work / _EARLIER, json.dumps(names).encode())


def _load(path: Path) -> tuple[str, ...]:
    return tuple(json.loads(path.read_bytes())) if path.is_file() else ()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# --- in the rows


def in_bytes(numbers: Sequence[int]) -> np.ndarray:
    """Classes as they stand behind their pictures, uint8 [n, 2], the low byte first."""
    return np.array(numbers, "<u2").view(np.uint8).reshape(-1, LABEL_TOKENS)


def classes_of(tokens: np.ndarray) -> np.ndarray:
    """The class at the end of each row, int64 [n], of tokens [n, S]."""
    low, high = tokens[:, -2].astype(np.int64), tokens[:, -1].astype(np.int64)
    return low + 256 * high


def count(
    here: Domain, out: Path, work: Path, splits: dict[str, list[ShardRecord]], manifest: Manifest
) -> tuple[ClassRecord, ...]:
    """The classes of the dataset with the splits of the build in `work`; ValueError for one without a picture to train
    on, or if another build has given other numbers meanwhile."""
    names = load_classes(work).names
    before = tuple(each.name for each in manifest.classes)
    if before and before != names:
        raise ValueError(
            f"{out}: another build has numbered its classes meanwhile: {_listed(before)}; wanted {_listed(names)}, as "
            f"this build has. Delete {work} and run this command again."
        )
    counts = {each.name: dict(each.pictures) for each in manifest.classes} or {n: {} for n in names}
    for split, records in splits.items():
        total = np.zeros(MOST, np.int64)
        for record in records:
            stored = np.memmap(beside(out / record.file, ".bin"), here.dtype, "r")
            rows = stored.reshape(-1, here.seq_length)
            total += np.bincount(classes_of(rows[:, -LABEL_TOKENS:]), minlength=MOST)
        for number, name in enumerate(names):
            counts[name][split] = int(total[number])
    untrained = [name for name in names if counts[name].get("train") == 0]
    if untrained:
        raise ValueError(
            f"{out}: class {_listed(untrained)} has no usable picture in split train; wanted one or more, for else it "
            f"is seen in the other splits alone. Give --raw more of its pictures or take it out, in another --out."
        )
    return tuple(ClassRecord(name=name, pictures=counts[name]) for name in names)
