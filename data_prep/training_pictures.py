"""Small pictures for `train-codebook`: a random sample of what lies below a folder or tar of pictures and videos.

Which items are taken depends on the list of items and the seed alone, so the number of workers changes nothing.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep import pictures, videos
from data_prep.raw_files import Entry, close_all, list_items, read_entry
from data_prep.video_files import open_entry
from data_prep.watch import Watch
from data_prep.workers import run_tasks

SIDE = 64
PATIENCE = 240.0
# Items that one worker reads at a time.
_TASK = 32
# Neighbouring frames of a video are nearly the same: one of so many is taken.
_FRAME_STEP = 5

Task = tuple[int, int, tuple[Entry, ...]]


def sample_pictures(
    raw: Path, most: int, seed: int, workers: int, tell: Callable[..., None]
) -> tuple[np.ndarray, Counter[str]]:
    """At most `most` different pictures, uint8 [n, 64, 64, 3] in random order, and how often each reason for refusing
    an item came. `tell` hears (tasks done, all tasks, Progress)."""
    draw = random.Random(seed)
    entries = _sample(list_items(raw, pictures.EXTENSIONS | videos.EXTENSIONS), most, draw)
    each = max(1, -(-most // max(1, len(entries))))  # frames of one video
    tasks: list[Task] = [
        (number, each, tuple(entries[start : start + _TASK]))
        for number, start in enumerate(range(0, len(entries), _TASK))
    ]
    done: dict[int, np.ndarray] = {}
    refused: Counter[str] = Counter()
    for progress in run_tasks(_read, tasks, workers, PATIENCE):
        if progress.task is not None:
            done[progress.task[0]], reasons = progress.result
            refused.update(reasons)
        tell(len(done), len(tasks), progress)
    found = list({picture.tobytes(): picture for n in sorted(done) for picture in done[n]}.values())
    if len(found) < 2:
        reasons = "; ".join(f"{count} x {why}" for why, count in refused.most_common(3)) or "none"
        raise ValueError(
            f"{raw}: {len(found)} different pictures in {len(entries)} items (refused: {reasons}); wanted at least 2, "
            f"and thousands for a useful codebook. Give --raw more pictures or videos."
        )
    draw.shuffle(found)
    return np.stack(found[:most]), refused


def _sample(entries: Iterator[Entry], most: int, draw: random.Random) -> list[Entry]:
    """`most` of the entries, each as likely as any other, in one pass and little memory (Vitter 1985, algorithm R)."""
    kept: list[Entry] = []
    for count, entry in enumerate(entries):
        if count < most:
            kept.append(entry)
        elif (place := draw.randrange(count + 1)) < most:
            kept[place] = entry
    return kept


def _read(task: Task, watch: Watch) -> tuple[np.ndarray, Counter[str]]:
    """Worker's side: the pictures of some items."""
    found: list[np.ndarray] = []
    refused: Counter[str] = Counter()
    opened: dict[str, BinaryIO] = {}
    for entry in task[2]:
        try:
            watch.begin(entry.key)
            if Path(entry.key).suffix.lower() in videos.EXTENSIONS:
                _add_frames(entry, task[1], found, watch)
            else:
                data = read_entry(entry, pictures.MAX_BYTES, opened)
                found.append(pictures.decode(data, SIDE))
        except ValueError as error:
            refused[str(error)] += 1
        watch.beat(1)
    watch.end()
    close_all(opened)
    return np.array(found, np.uint8).reshape(-1, SIDE, SIDE, 3), refused


def _add_frames(entry: Entry, most: int, found: list[Any], watch: Watch) -> None:
    """Every _FRAME_STEP-th frame of a video's clips, `most` at most; those before damage stay."""
    left = most
    with open_entry(entry, watch.beat) as stream:
        for _, clip in videos.clips(stream, watch.beat):
            frames = clip[::_FRAME_STEP][:left]
            found.extend(frames)
            left -= len(frames)
            if not left:
                return
