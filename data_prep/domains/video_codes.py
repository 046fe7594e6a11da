"""Video as codes: video-codes-16x16x16.

A row is one clip: 16 frames of 64 x 64 at 30 a second, each as the 16 x 16 codes that a trained VQ-VAE gives it
(`--codebook FILE`), frame after frame in raster order, 4,096 codes of 4,096 (Henighan et al. 2020, section 2).
"""

import hashlib
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data_prep.domain import Document, Domain, Item, Notes, Piece, Refusal, Shown, TokenRange
from data_prep.folders import PassedOver
from data_prep.watch import Watch

RAW = "a folder of videos (mp4, m4v, mov, mkv, webm, avi), one video, a .tar, or a folder of .tar files"
# Every read of a video's file and every decoded frame counts as life; torch takes long to import on a slow disk.
PATIENCE = 240.0
# 4,096 videos a shard, up to 2 GB.
CHUNKS_PER_SHARD = 1024
CODEC = "codebook"
DEDUPLICATE = True
_FRAMES, _SIDE, _ENTRIES = 16, 16, 4096
# Videos in one piece of work: some seconds, up to a minute.
_PIECE = 4

DOMAINS = (
    Domain(
        name="video-codes-16x16x16",
        summary="clips of 16 frames as 16 x 16 codes each of a trained codebook of 4096 entries",
        seq_length=_FRAMES * _SIDE * _SIDE,
        vocab_size=_ENTRIES,
        kinds=(TokenRange("code", 0, _ENTRIES),),
        packed=False,
        grid=(("frame", _FRAMES), ("row", _SIDE), ("column", _SIDE)),
    ),
)


def check_codec(domain: Domain, codec: Path) -> None:
    """ValueError if the file is no codebook of 16 x 16 codes and 4,096 entries."""
    from data_prep.codebook import check_fit

    check_fit(codec, _SIDE, domain.vocab_size)


def plan(
    domain: Domain, raw: str, rows: int | None, listing: Path, passed_over: PassedOver | None = None
) -> Iterator[Piece]:
    """Write what there is below `raw` to `listing`, one line a video, and cut it into pieces of byte ranges."""
    from data_prep.listing import cut_listing, some
    from data_prep.raw_files import list_items, listed
    from data_prep.videos import EXTENSIONS

    if rows is not None:
        raise ValueError(
            f"--rows {rows}: videos are all taken; wanted no --rows for {domain.name}. Leave it out."
        )
    entries = list_items(Path(raw), EXTENSIONS, passed_over)
    return some(
        cut_listing(map(listed, entries), listing, _PIECE, math.inf),
        f"{raw}: holds no videos; wanted files or tar members ending in {' '.join(sorted(EXTENSIONS))}. "
        f"Give --raw the folder or tar that holds them.",
    )


def read(
    domain: Domain, piece: Piece, seed: int, codec: Path | None, watch: Watch | None = None
) -> Iterator[Item | Refusal]:
    """The clips of the videos of one piece; `seed` is not needed. All clips of a video are in one split, that of the
    file's bytes. A damaged video gives its whole clips, and then the refusal of the rest."""
    from data_prep.codebook import Codebook
    from data_prep.listing import read_lines
    from data_prep.raw_files import from_line
    from data_prep.video_files import open_entry
    from data_prep.videos import clips

    assert codec is not None
    watch, codebook = watch or Watch(), Codebook.load(codec)
    for line in read_lines(piece).splitlines():
        entry, more = from_line(line), False
        try:
            watch.begin(entry.key)
            with open_entry(entry, watch.beat) as video:
                digest = hashlib.file_digest(video, _digest).digest()
                for number, clip in clips(video, watch.beat):
                    tokens = codebook.encode(clip).reshape(-1)
                    document = Document(f"{entry.key}#{number}", ((0, tokens),))
                    content = _digest(digest + number.to_bytes(8, "little")).digest()
                    yield Item(document, content, group=digest, continues=more)
                    more = True
        except ValueError as error:
            yield Refusal(entry.key, str(error), entry.damaged)


def _digest(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)


def render(domain: Domain, tokens: np.ndarray, kinds: np.ndarray, codec: Path | None) -> Shown:
    """One row back as a contact sheet of its frames in reading order, 4 x 4: uint8 [256, 256, 3]."""
    from data_prep.codebook import Codebook

    assert codec is not None
    frames = Codebook.load(codec).decode(tokens.reshape(_FRAMES, _SIDE, _SIDE))
    sheet = frames.reshape(4, 4, *frames.shape[1:]).transpose(0, 2, 1, 3, 4)
    return Shown(picture=sheet.reshape(4 * frames.shape[1], 4 * frames.shape[2], 3))


def notes(domain: Domain, raw: str, codec: Path | None) -> Notes:
    """What decides the pixels and what decides the codes."""
    from data_prep.codebook import versions

    names = ("av", "numpy")
    return Notes({name: version(name) for name in names} | versions())
