"""Video to 64 x 64 frames: decoding, full RGB and OpenCV's resize against shrinking inside swscale.

The peer squeezes the whole frame, ours cuts the centre square; a peer that cuts first is up to 1.3 times as fast.

The input is every whole video of the folder of sample files that SAMPLE_DATA names, else one that is made here. A unit
is one decoded frame.
"""

import os
from pathlib import Path

import av
import cv2
import numpy as np

from benchmarks.cases import Case
from data_prep.raw_files import Entry, list_items
from data_prep.video_files import open_entry
from data_prep.videos import EXTENSIONS, SIDE, clips


def cases(scratch: Path) -> list[Case]:
    """One case: all videos, start to end."""
    samples = os.environ.get("SAMPLE_DATA")
    raw = Path(samples) / "videos" if samples else _make(scratch)
    entries = [entry for entry in list_items(raw, EXTENSIONS) if "edge" not in entry.key]
    frames = [_count(entry) for entry in entries]
    # At most 40 s each: of longer ones `clips` leaves some out, which is no faster decoding.
    entries = [entry for entry, count in zip(entries, frames, strict=True) if count <= 1000]
    total = sum(count for count in frames if count <= 1000)
    return [
        Case(
            "video to 64x64 frames", "frames", 2.2, lambda: _peer(entries), lambda: _ours(entries, total)
        )
    ]  # fmt: skip


def _make(scratch: Path) -> Path:
    """Ten seconds of a moving texture, 640 x 480, h264."""
    path = scratch / "texture.mp4"
    noise = np.random.default_rng(0).integers(0, 40, (480, 640, 3))
    rows, columns = np.mgrid[:480, :640]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for number in range(300):
            wave = 100 + 80 * np.sin((rows + 2 * columns) / 40 + number / 5)
            pixels = wave[..., None] + np.roll(noise, number, 1)
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _count(entry: Entry) -> int:
    with av.open(entry.file) as container:
        return sum(1 for _ in container.decode(video=0))


def _peer(entries: list[Entry]) -> int:
    count = 0
    for entry in entries:
        with av.open(entry.file) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for frame in container.decode(video=0):
                pixels = frame.to_ndarray(format="rgb24")
                cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
                count += 1
    return count


def _ours(entries: list[Entry], total: int) -> int:
    for entry in entries:
        with open_entry(entry) as stream:
            for _ in clips(stream):
                pass
    return total
