"""One video file -> clips of 16 small frames, as a person sees them. The only place where videos are decoded.

A clip is 16 frames of 64 x 64 RGB at `RATE` frames a second: for each of 16 times, the decoded frame that is nearest
(the earlier one of two), so that a slow video repeats frames and a fast one leaves some out. Times count from the first
frame. Clips follow each other without a gap; of a long video at most `MOST_CLIPS` are taken, evenly spaced.

The centre square of each frame is cut out, shrunk by averaging areas (swscale's AREA), and mirrored and turned as the
file's display matrix says. Pixels that are not square count as wide as they are shown.
"""

import io
import math
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from heapq import heappop, heappush
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from data_prep.video_files import container_of

EXTENSIONS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
SIDE = 64
FRAMES = 16
RATE = 30
MOST_CLIPS = 64
# 8K video has 33 million pixels; a header that claims more is no video. Nor is a strip of 64 : 1.
MAX_PIXELS = 1 << 26
MAX_ASPECT = 64
# A day at 60 a second, about an hour of work: a hostile file ends at some time. What lies behind is not looked at.
MAX_FRAMES = 5_184_000
# Codecs reorder few frames, and four of the largest are 400 MB.
_REORDERED = 4
# FULL_CHR_H_INT: colour at full width, 10 dB better where 64 pixels are all of it. The last two: the same bits on every
# processor. Measured to cost nothing.
_AREA = (
    Interpolation.AREA
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)
# AVCOL_SPC_UNSPECIFIED of FFmpeg's libavutil/pixfmt.h; and from when on pictures count as HD.
_UNSAID, _HD_LINES, _HD_WIDTH = 2, 720, 1280
# What PyAV raises for hostile input; OSError for a disk that fails.
_DAMAGE = (av.FFmpegError, OSError, MemoryError, ArithmeticError, RuntimeError)


def clips(
    stream: io.RawIOBase, beat: Callable[[int], None] = lambda items: None
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 [16, 64, 64, 3]) of each clip of the video in `stream`, a seekable file. Number 0 starts with the
    video, and the clip that would follow directly is number 1, whether it is taken or not. `beat(0)` is called for
    every decoded frame: between two clips of a long video there may be minutes of them.

    ValueError says why there is none, or, after all whole clips, what was damaged behind them.
    """
    form, damage = container_of(stream)
    count = 0
    try:
        # The demuxer is named, never guessed: a playlist in disguise would open other files.
        with av.open(stream, format=form, metadata_errors="replace") as container:
            video = _video(container)
            numbers = _numbers(container, video)
            times = (Fraction(n * FRAMES + k, RATE) for n in numbers for k in range(FRAMES))
            frames = _decoded(container, video, damage, beat)
            clip: list[np.ndarray] = []
            shrink = _Shrink(video.sample_aspect_ratio)
            for picture in _nearest(_timed(frames, video), times, shrink):
                clip.append(picture)
                if len(clip) == FRAMES:
                    yield numbers[count], np.stack(clip)
                    count, clip = count + 1, []
    except _DAMAGE as error:
        damage.append(_words(error))
    if damage:
        raise ValueError(f"damaged or cut off after {count} whole clips: {damage[0]}")
    if not count:
        raise ValueError(f"too short: {len(clip)} frames at {RATE} a second; one clip is {FRAMES}")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


def _video(container: Any) -> Any:
    """The first video stream. The cover picture of a sound file is none, though FFmpeg calls it one."""
    for stream in container.streams.video:
        if not Disposition.attached_pic & stream.disposition:
            if stream.codec_context is None:
                raise ValueError("no decoder for its codec")
            # Workers share the cores; threads would only add copies of frames.
            stream.codec_context.thread_count = 1
            _check_size(stream.codec_context.width, stream.codec_context.height)
            return stream
    raise ValueError("no video stream")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * max(1, min(width, height)):
        raise ValueError(
            f"frames of {width} x {height} pixels; at most {MAX_PIXELS} and {MAX_ASPECT} : 1 are read"
        )


def _numbers(container: Any, video: Any) -> range | list[int]:
    """Which clips to take; the header's word on how long the video is decides only how they are spaced."""
    seconds = Fraction(container.duration or 0, av.time_base)
    if video.duration and video.time_base:
        seconds = Fraction(video.duration) * video.time_base
    fits = int(seconds * RATE) // FRAMES
    if fits <= MOST_CLIPS:
        return range(MOST_CLIPS)
    return [index * fits // MOST_CLIPS for index in range(MOST_CLIPS)]


def _decoded(
    container: Any, video: Any, damage: list[str], beat: Callable[[int], None]
) -> Iterator[Any]:
    """The frames in the order of showing; where they end too early, `damage` hears why."""
    try:
        for count, frame in enumerate(container.decode(video)):
            beat(0)
            if count == MAX_FRAMES:
                damage.append(f"only the first {MAX_FRAMES} frames of a video are read")
                return
            yield frame
    except _DAMAGE as error:
        damage.append(_words(error))


def _timed(frames: Iterable[Any], video: Any) -> Iterator[tuple[Fraction, Any]]:
    """(seconds since the first frame, frame), rising; a frame that is not later than the one before is left out."""
    tick = Fraction(video.time_base or Fraction(1, RATE))
    first = last = None
    for stamp, frame in _in_order(_stamped(frames, 1 / (tick * (video.average_rate or RATE)))):
        if first is None or last is None:
            first = stamp
        elif stamp <= last:
            continue
        last = stamp
        yield (stamp - first) * tick, frame


def _stamped(frames: Iterable[Any], step: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Each frame with its own stamp; one without any comes a step after the one before."""
    stamp = -step
    for frame in frames:
        given = frame.dts if frame.pts is None else frame.pts
        stamp = stamp + step if given is None else Fraction(given)
        yield stamp, frame


def _in_order(stamped: Iterable[tuple[Fraction, Any]]) -> Iterator[tuple[Fraction, Any]]:
    """Decoders give frames in the order of showing, but AVI stamps them in the order of decoding: so the n-th frame
    gets the n-th smallest stamp."""
    held: deque[Any] = deque()
    stamps: list[Fraction] = []
    for stamp, frame in stamped:
        held.append(frame)
        heappush(stamps, stamp)
        if len(held) > _REORDERED:
            yield heappop(stamps), held.popleft()
    while held:
        yield heappop(stamps), held.popleft()


def _nearest(
    frames: Iterable[tuple[Fraction, Any]],
    times: Iterator[Fraction],
    shrink: Callable[[Any], np.ndarray],
) -> Iterator[np.ndarray]:
    """For each of the rising `times` the nearest frame, small. The last frame counts for half a step of `RATE`."""
    before: tuple[Fraction, Any] | None = None
    time = next(times, None)
    for now, frame in frames:
        while before is not None and time is not None and time <= (before[0] + now) / 2:
            yield shrink(before[1])
            time = next(times, None)
        if time is None:
            return
        before = now, frame
    while before is not None and time is not None and time <= before[0] + Fraction(1, 2 * RATE):
        yield shrink(before[1])
        time = next(times, None)


class _Shrink:
    """The centre square of a frame, small and upright, uint8 [64, 64, 3]. Remembers what it set up for one size of
    frame, and the last frame, which may be asked for again. `shape`: width of a pixel by its height, None if unknown.
    """

    def __init__(self, shape: Fraction | None) -> None:
        self._shape = shape if shape and 1 / MAX_ASPECT < shape < MAX_ASPECT else Fraction(1)
        self._reformatter = VideoReformatter()
        self._crop: tuple[Any, Graph] | None = None
        self._last: tuple[Any, np.ndarray] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        if self._last is None or self._last[0] is not frame:
            self._last = frame, self._shrink(frame)
        return self._last[1]

    def _shrink(self, frame: Any) -> np.ndarray:
        _check_size(frame.width, frame.height)
        small = self._reformatter.reformat(
            self._square(frame),
            SIDE,
            SIDE,
            "rgb24",
            src_colorspace=_colours(frame),
            interpolation=_AREA,
            threads=1,
        )
        return _upright(small.to_ndarray(), _display_matrix(frame))

    def _square(self, frame: Any) -> Any:
        """The part of a frame that is shown as its centre square; FFmpeg's crop moves pointers, not pixels."""
        key = frame.width, frame.height, frame.format.name
        if self._crop is None or self._crop[0] != key:
            edge = min(frame.width * self._shape, Fraction(frame.height))
            width, height = max(1, round(edge / self._shape)), max(1, round(edge))
            graph = Graph()
            graph.link_nodes(
                graph.add_buffer(
                    width=frame.width,
                    height=frame.height,
                    format=frame.format,
                    time_base=Fraction(1, RATE),
                ),
                graph.add("crop", f"{width}:{height}:exact=1"),
                graph.add("buffersink"),
            ).configure()
            self._crop = key, graph
        self._crop[1].push(frame)
        return self._crop[1].pull()


def _display_matrix(frame: Any) -> tuple[int, ...]:
    """The 3 x 3 matrix that the file shows the frame by (ISO 14496-12, 6.2.2): a pixel's (x, y, 1) times it is its
    place on the screen, y downwards. (): as it is stored."""
    found = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    return () if found is None else struct.unpack("=9i", bytes(found)[:36])


def _upright(picture: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """A picture as `matrix` shows it: mirrored where its determinant is negative, then turned by quarters. A matrix is
    a mirror from left to right followed by a turn, or a turn alone."""
    if not matrix:
        return picture
    a, b, _, c, d = matrix[:5]
    if a * d - b * c < 0:
        picture, a, b = picture[:, ::-1], -a, -b
    # Axes may be stretched differently, which the crop to a square has done away with.
    angle = math.atan2(b * (math.hypot(a, c) or 1), a * (math.hypot(b, d) or 1))
    return np.rot90(picture, -round(angle / (math.pi / 2)))


def _colours(frame: Any) -> Colorspace | None:
    """What red, green and blue a frame means that does not say so: players take HD for BT.709 and what is smaller for
    BT.601, swscale's default. None: as the frame says."""
    unsaid = frame.colorspace == _UNSAID
    large = frame.height >= _HD_LINES or frame.width >= _HD_WIDTH
    return Colorspace.ITU709 if unsaid and large else None
