"""Clips of real and made videos: which frame at which time, upright and centred; hostile files end with a reason."""

import io
import itertools
import os
import struct
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_prep import videos
from data_prep.raw_files import Entry, list_items
from data_prep.video_files import Window, open_entry

# Frame n is plain grey of 8 + STEP (n mod CYCLE): such steps survive every codec at this quality.
STEP, CYCLE = 6, 40


def make(path, frames, codec="mpeg4", rate=30, size=(96, 64), stamps=None, picture=None, **options):
    """A video of grey frames, frame n as above; `stamps` in milliseconds; `picture(n)` paints others."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 4_000_000
        if stamps:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), 8 + STEP * (number % CYCLE), np.uint8)
            pixels = grey if picture is None else picture(number)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if stamps:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def entry(path):
    return Entry(str(path), 0, Path(path).stat().st_size, Path(path).name)


def read(path):
    """(numbers, clips, reason why there are no more)."""
    numbers, clips = [], []
    try:
        with open_entry(entry(path)) as stream:
            for number, clip in videos.clips(stream):
                numbers.append(number)
                clips.append(clip)
    except ValueError as error:
        return numbers, clips, str(error)
    return numbers, clips, ""


def shown(clips):
    """The numbers of the made frames that are in the clips."""
    values = np.concatenate(clips).mean((1, 2, 3))
    return np.round((values - 8) / STEP).astype(int).tolist()


def encoder(codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg cannot write {codec}")
    return codec


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"),
        ("a.mp4", "libx264"),
        ("a.mov", "libx265"),
        ("a.avi", "mpeg4"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.webm", "libvpx-vp9"),
        ("a.mkv", "libsvtav1"),
    ],
)
def test_every_container_and_codec_gives_its_frames_in_order(tmp_path, name, codec):
    path = make(tmp_path / name, 34, encoder(codec))
    # SVT-AV1 gives whoever encodes as root real-time priority, which would take a core from all later tests' jobs.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    numbers, clips, reason = read(path)
    assert (numbers, reason) == ([0, 1], "")
    assert [clip.shape for clip in clips] == [(16, 64, 64, 3)] * 2
    assert shown(clips) == list(range(32))


def test_stamps_in_the_order_of_decoding_do_not_shuffle_frames():
    """As in AVI with B-frames: the frames come rightly, their stamps do not."""
    stamps = [1, 2, 4, 3, 5, 7, 6, 8, 10, 9]
    pairs = [(Fraction(stamp), number) for number, stamp in enumerate(stamps)]
    assert list(videos._in_order(pairs)) == [(n + 1, n) for n in range(10)]


def test_a_real_avi_with_b_frames_keeps_its_order(sample_data):
    path = sample_data / "videos" / "mma_test.avi"
    with av.open(str(path)) as container:
        frames = [(frame.pts, frame) for frame in container.decode(video=0)]
    assert [stamp for stamp, _ in frames] != sorted(stamp for stamp, _ in frames)
    shrink = videos._Shrink(None)
    numbers, clips, reason = read(path)
    assert (len(numbers), reason) == (12, "")
    for k in range(16):  # 25 frames a second shown at 30
        nearest = min(range(164), key=lambda n: (abs(Fraction(n, 25) - Fraction(k, 30)), n))
        np.testing.assert_array_equal(clips[0][k], shrink(frames[nearest][1]))


@pytest.mark.parametrize(
    ("stamps", "wanted"),
    [
        # 15 a second: the clip's times fall on frames and half-way between them, where the earlier one counts.
        ([n * 1000 // 15 for n in range(12)], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
        # 60 a second: every other frame.
        ([n * 1000 // 60 for n in range(40)], list(range(0, 32, 2))),
        # Starts at 5 s: times count from there.
        ([5000 + n * 100 for n in range(8)], [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]),
        # Irregular: the nearest of what there is.
        ([0, 10, 20, 300, 310, 320, 600], [0, 2, 2, 2, 2, *[3] * 5, *[5] * 4, 6, 6]),
    ],
)
def test_frames_are_chosen_by_their_time(tmp_path, stamps, wanted):
    path = make(tmp_path / "t.mkv", len(stamps), "libx264", stamps=stamps)
    with av.open(str(path)) as container:
        times = np.array(
            [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
        )
    numbers, clips, _ = read(path)
    assert numbers == [0]
    by_hand = []
    for k in range(16):  # the definition, in milliseconds so that ties are exact
        distances = np.abs(np.round((times - times[0]) * 1000) * 3 - k * 100)
        by_hand.append(int(distances.argmin()))
    assert shown(clips) == by_hand
    assert shown(clips) == pytest.approx(wanted, abs=1)  # and as a person would say


def test_of_a_long_video_clips_are_taken_evenly(tmp_path, monkeypatch):
    path = make(tmp_path / "long.mp4", 100)
    assert read(path)[0] == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(videos, "MOST_CLIPS", 3)
    numbers, clips, reason = read(path)
    assert (numbers, reason) == ([0, 2, 4], "")
    assert shown(clips)[:48] == [
        n % CYCLE for start in (0, 32, 64) for n in range(start, start + 16)
    ]


def test_no_more_frames_are_decoded_than_the_limit(tmp_path, monkeypatch):
    path = make(tmp_path / "long.mp4", 60)
    monkeypatch.setattr(videos, "MAX_FRAMES", 40)
    numbers, _, reason = read(path)
    assert numbers == [0, 1]
    assert "only the first 40 frames of a video are read" in reason


def test_a_long_video_shows_life_between_its_clips(tmp_path, monkeypatch):
    """Every decoded frame counts, and every read of the file: 300 frames lie between the two clips taken of 600."""
    monkeypatch.setattr(videos, "MOST_CLIPS", 2)
    path = make(tmp_path / "a.mkv", 600)
    beats, heard = [], []
    with open_entry(entry(path), beats.append) as stream:
        for number, _ in videos.clips(stream, beats.append):
            heard.append((number, len(beats)))
    (first, early), (second, late) = heard
    assert (first, second) == (0, 18)
    assert late - early >= (18 - 1) * videos.FRAMES
    with open_entry(entry(path), beats.append) as stream:
        before = len(beats)
        stream.read()
    assert len(beats) > before


def test_a_hole_in_time_does_not_hang(tmp_path):
    stamps = [*range(0, 1000, 33), 10**9]  # eleven days without a frame
    numbers, _, reason = read(make(tmp_path / "hole.mkv", len(stamps), stamps=stamps))
    assert len(numbers) <= videos.MOST_CLIPS
    assert reason == ""


def halves(number):
    """320 x 64: red to the left of the centre square, green and blue inside it, red to the right."""
    pixels = np.zeros((64, 320, 3), np.uint8)
    pixels[:, :128] = pixels[:, 192:] = 255, 0, 0
    pixels[:, 128:160] = 0, 255, 0
    pixels[:, 160:192] = 0, 0, 255
    return pixels


def turned(path, matrix):
    """Set the display matrix of an mp4's only track: (a, b, c, d) of ISO 14496-12, 8.3.2."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = matrix
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *values)
    path.write_bytes(data)
    return path


GREEN, BLUE = (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("matrix", "first", "second", "axis"),
    [
        ((1, 0, 0, 1), GREEN, BLUE, 1),  # left to right
        ((0, 1, -1, 0), GREEN, BLUE, 0),  # a quarter clockwise: left comes to the top
        ((-1, 0, 0, -1), BLUE, GREEN, 1),
        ((0, -1, 1, 0), BLUE, GREEN, 0),
    ],
)
def test_the_centre_square_is_cut_and_turned_as_the_file_says(
    tmp_path, matrix, first, second, axis
):
    path = make(tmp_path / "r.mp4", 16, "libx264", size=(320, 64), picture=halves)
    clip = read(turned(path, matrix))[1][0]
    parts = np.array_split(clip.astype(int), 2, axis=axis + 1)
    for part, colour in zip(parts, (first, second), strict=True):
        middle = part[:, 4:-4, 4:-4].mean((0, 1, 2))
        assert np.abs(middle - colour).max() < 40  # far nearer to this colour than to any other


def quarters(number):
    """Red, green, blue and white: top left, top right, bottom left, bottom right."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:64, :64, 0] = pixels[:64, 64:, 1] = pixels[64:, :64, 2] = pixels[64:, 64:] = 255
    return pixels


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ((1, 0, 0, 1), "rg bw"),
        ((0, 1, -1, 0), "br wg"),
        ((-1, 0, 0, -1), "wb gr"),
        ((0, -1, 1, 0), "gw rb"),
        ((-1, 0, 0, 1), "gr wb"),
        ((1, 0, 0, -1), "bw rg"),
        ((0, 1, 1, 0), "rb gw"),
        ((0, -1, -1, 0), "wg br"),
    ],
)
def test_all_ways_to_turn_and_mirror(tmp_path, matrix, wanted):
    path = make(tmp_path / "r.mp4", 16, size=(128, 128), picture=quarters)
    (clip,) = read(turned(path, matrix))[1]
    # By the definition: (x, y) of a stored pixel, from the centre, times the matrix is its place on the screen.
    a, b, c, d = matrix
    stored = {(-1, -1): "r", (1, -1): "g", (-1, 1): "b", (1, 1): "w"}
    screen = {(a * x + c * y, b * x + d * y): colour for (x, y), colour in stored.items()}
    places = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
    assert "".join(screen[place] for place in places) == wanted.replace(" ", "")
    names = {
        (True, False, False): "r",
        (False, True, False): "g",
        (False, False, True): "b",
        (True,) * 3: "w",
    }
    shown = [names[tuple((clip[0][32 + 16 * y, 32 + 16 * x] > 128).tolist())] for x, y in places]
    assert "".join(shown) == wanted.replace(" ", "")


@pytest.mark.parametrize(
    ("size", "red"),  # Y, U, V of pure red: BT.601 and BT.709 in 8 bits of limited range
    [((640, 480), (81, 90, 240)), ((960, 720), (63, 102, 240)), ((1280, 544), (63, 102, 240))],
)
def test_colours_of_a_video_that_does_not_say_which(tmp_path, size, red):
    """As players show it: HD is BT.709. The wrong matrix would be 20 and more of 255 off."""
    width, height = size
    path = tmp_path / "a.mp4"
    planes = np.empty((height * 3 // 2, width), np.uint8)
    planes[:height] = red[0]
    planes[height:].reshape(2, -1)[:] = np.array(red[1:])[:, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(videos.FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    _, (clip,), _ = read(path)
    # 8-bit YUV is 1.2 of RGB a step, and mpeg4 may move each value by one or two.
    assert np.abs(clip.astype(int) - [255, 0, 0]).max() <= 6


def test_pixels_that_are_not_square_count_as_wide_as_shown(tmp_path):
    """96 x 96 stored, shown as 192 x 96: the middle half of the columns is the centre square."""

    def painted(number):
        pixels = np.zeros((96, 96, 3), np.uint8)
        pixels[:, 24:72] = 255
        return pixels

    path = tmp_path / "s.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for number in range(16):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(painted(number), format="rgb24"))
            )
        container.mux(stream.encode(None))
    clip = read(path)[1][0]
    assert clip[:, :, 3:-3].min() > 200


def test_shrinking_is_as_good_as_averaging_the_full_frame(sample_data):
    """Median of the sample videos above the 34 dB that pictures are held to, and none far below."""
    found = []
    for item in list_items(sample_data / "videos", videos.EXTENSIONS):
        with av.open(item.file) as container:
            frame = next(container.decode(video=0))
        full = frame.to_ndarray(format="rgb24")
        edge = min(full.shape[:2])
        if edge < 64:  # would be enlarged
            continue
        top, left = (full.shape[0] - edge) // 2, (full.shape[1] - edge) // 2
        square = Image.fromarray(full[top : top + edge, left : left + edge])
        best = np.asarray(square.resize((64, 64), Image.Resampling.BOX), np.float64)
        small = np.rot90(videos._Shrink(None)(frame), -round(frame.rotation / 90))
        error = np.square(small - best).mean()
        found.append(10 * np.log10(255**2 / max(error, 1e-3)))  # a black frame has none
    assert np.median(found) > 34
    assert min(found) > 25  # a test pattern of hard edges, shrunk by 1.75


# --- bad input


def test_a_video_too_short_for_a_clip_is_refused(tmp_path):
    assert read(make(tmp_path / "s.mp4", 15)) == (
        [], [], "too short: 15 frames at 30 a second; one clip is 16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>not found</body></html>", "no mp4, mov, mkv, webm or avi"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100), "no mp4, mov, mkv, webm or avi"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "no mp4, mov, mkv, webm or avi"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n", "no mp4, mov, mkv, webm or avi"),
        (b"\x00\x00\x00\x10ftypisom\x00\x00\x02\x00", "damaged or cut off"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "damaged or cut off"),
        (b"\x1a\x45\xdf\xa3\x01\xff", "damaged or cut off"),
        (b"RIFF\xff\xff\xff\xffAVI LIST", "damaged or cut off"),
        (b"\x00\x00\x00\x08free" * 300_000, "damaged or cut off"),
    ],
)
def test_what_is_no_video_says_so(tmp_path, data, reason):
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    numbers, _, found = read(path)
    assert numbers == []
    assert reason in found


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for _ in range(20):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert read(path)[2] == "no video stream"


@pytest.mark.parametrize("size", [(8192 + 64, 8192), (16 * 65, 16)])
def test_absurd_dimensions_are_refused(size):
    with pytest.raises(
        ValueError, match=r"frames of \d+ x \d+ pixels; at most 67108864 and 64 : 1"
    ):
        videos._check_size(*size)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mpeg4"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
def test_a_cut_off_video_keeps_its_whole_clips_and_says_so(tmp_path, name, codec):
    """At any place: what comes out is what the whole file gives, up to the damage, and there is always a reason."""
    whole = make(tmp_path / name, 50, encoder(codec), movflags="faststart")
    if name == "a.mp4":  # the index first, or every cut loses all
        whole = make_faststart(tmp_path / "fast.mp4")
    _, good, reason = read(whole)
    assert (len(good), reason) == (3, "")
    data = whole.read_bytes()
    lengths = set()
    for share in np.linspace(0.02, 0.98, 13):
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes(data[: int(share * len(data))])
        _, clips, reason = read(cut)
        assert reason
        lengths.add(len(clips))
        for clip, wanted in zip(clips[:-1], good, strict=False):  # FFmpeg patches the last frames
            np.testing.assert_array_equal(clip, wanted)
    assert lengths >= {0, 1, 2}


def make_faststart(path):
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(50):
            grey = np.full((64, 96, 3), 8 + STEP * (number % CYCLE), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libvpx"), ("a.avi", "mpeg4")]
)
def test_mutated_videos_give_clips_or_a_reason(tmp_path, name, codec):
    whole = make(tmp_path / name, 20, encoder(codec)).read_bytes()
    draw = np.random.default_rng(0)
    reasons = 0
    for _ in range(60):
        data = np.frombuffer(whole, np.uint8).copy()
        places = draw.integers(0, len(data), 8)
        places[:4] = draw.integers(0, min(800, len(data)), 4)  # headers matter most
        data[places] = draw.integers(0, 256, 8)
        path = tmp_path / f"mutated-{name}"
        path.write_bytes(data.tobytes())
        _, clips, reason = read(path)
        reasons += bool(reason)
        assert all(clip.shape == (16, 64, 64, 3) and clip.dtype == np.uint8 for clip in clips)
    assert reasons  # or nothing was broken


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reason": "a symbolic link"}, "a symbolic link"),
        ({"size": 0}, "empty file"),
        ({"size": 10**9}, "cut off"),
        ({"file": "/nonexistent.mp4"}, "cannot be read"),
        ({"file": "/dev/null"}, "not a plain file"),
    ],
)
def test_an_entry_that_cannot_be_read_says_why(tmp_path, change, reason):
    path = make(tmp_path / "a.mp4", 16)
    found = entry(path)._replace(**change)
    with pytest.raises(ValueError, match=reason), open_entry(found):
        pass


def test_a_video_in_a_tar_is_read_where_it_lies(tmp_path):
    path = make(tmp_path / "a.mp4", 20)
    with tarfile.open(tmp_path / "v.tar", "w") as tar:
        tar.add(path, "class/before.mp4")
        tar.add(path, "class/a.mp4")
    inside = list(list_items(tmp_path / "v.tar", videos.EXTENSIONS))[1]
    with open_entry(inside) as stream:
        clips = [clip for _, clip in videos.clips(stream)]
    np.testing.assert_array_equal(clips, read(path)[1])


def test_a_window_reads_like_a_file(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    with open(path, "rb") as file:
        window, plain = Window(file.fileno(), 10, 50), io.BytesIO(bytes(range(10, 60)))
        for offset, whence, size in itertools.product((0, 3, -3, 60), (0, 1, 2), (0, 7, 100)):
            if whence or offset >= 0:
                plain.seek(20)
                window.seek(20)
                assert window.seek(offset, whence) == plain.seek(offset, whence) == window.tell()
                assert window.read(size) == plain.read(size)


def test_the_sample_videos_give_clips_or_a_reason(sample_data):
    found = {
        each.key: read(each.file) for each in list_items(sample_data / "videos", videos.EXTENSIONS)
    }
    without = {key for key, (_, clips, _) in found.items() if not clips}
    assert without == {f"edge/{name}" for name in (
        "decord_unordered.mov", "decord_video_90.mov", "tc_test_non_zero_start.mp4",
    )}  # fmt: skip
    assert all(
        reason.startswith("too short") for key, (_, _, reason) in found.items() if key in without
    )
    numbers, _, reason = found["edge/decord_corrupted.mp4"]
    assert len(numbers) == 5
    assert "damaged or cut off after 5 whole clips: InvalidDataError" in reason
