"""image-codes-* and video-codes-*: from raw files to shards and back to pictures, with codebooks trained here."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_prep.build import build
from data_prep.check import check
from data_prep.codebook import Codebook
from data_prep.codebook_training import train
from data_prep.dataset import TokenDataset
from data_prep.domain import Block, Item, Refusal, domain, family
from data_prep.domains.video_codes import check_codec
from data_prep.pictures import decode
from data_prep.plan import How, Request
from data_prep.show import show


def paint(folder, count, start=0):
    """So many pictures of 48 x 80, each another one."""
    folder.mkdir(exist_ok=True)
    for number in range(start, start + count):
        small = np.random.default_rng(number).integers(0, 256, (3, 5, 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((80, 48), Image.Resampling.BICUBIC)
        large.save(folder / f"{number:03d}.png")
    return folder


def film(path, frames, seed):
    """A video of a picture that slides, so that every frame is another one."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (4, 16, 3), dtype=np.uint8))
    wide = np.asarray(small.resize((640, 64), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(frames):
            pixels = np.ascontiguousarray(wide[:, 4 * number : 4 * number + 96])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with `pictures`, `videos`, and a tiny codebook of each shape: 16.safetensors, 32.safetensors."""
    folder = tmp_path_factory.mktemp("codes")
    pictures = paint(folder / "pictures", 150)
    videos = folder / "videos"
    videos.mkdir()
    for number in range(6):
        film(videos / f"{number}.mp4", 20 + 16 * number, number)
    for codes in (16, 32):
        train(str(pictures), folder / f"{codes}.safetensors", codes, steps=4, batch=16, hidden=8)
    train(str(videos), folder / "film.safetensors", steps=2, batch=16, hidden=4)
    return folder


def request(name, made, raw=None, codec=None, **more):
    """A request for a build of `name` from what `made` holds."""
    side = name.split("-")[2].split("x")[0]
    kind = "videos" if name.startswith("video") else "pictures"
    return Request(
        name, str(raw or made / kind), codec=codec or made / f"{side}.safetensors", **more
    )


def built(out):
    return {
        path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".bin", ".idx")
    }


@pytest.mark.parametrize(("name", "side"), [("image-codes-16x16", 16), ("image-codes-32x32", 32)])
def test_pictures_to_codes_and_back(made, tmp_path, name, side):
    out = tmp_path / "data"
    build(request(name, made, fractions=(0.8, 0.1, 0.1)), out, How())
    check(out)
    codebook = Codebook.load(made / f"{side}.safetensors")
    paths = sorted((made / "pictures").iterdir())
    pictures = np.stack([decode(path.read_bytes(), 64) for path in paths])
    wanted = {
        codes.tobytes(): n for n, codes in enumerate(codebook.encode(pictures).reshape(150, -1))
    }
    seen = set()
    for split in ("train", "valid", "test"):
        dataset = TokenDataset(out, split)
        for row in dataset.rows(np.arange(dataset.num_rows)).tokens:
            seen.add(wanted[row.astype(np.uint16).tobytes()])
    assert len(seen) == len(wanted)
    show(out, "train", [0], tmp_path / "row.png")
    row = TokenDataset(out, "train").rows(np.array([0])).tokens.reshape(1, side, side)
    picture = np.asarray(Image.open(tmp_path / "row.png").convert("RGB"))
    scale = picture.shape[0] // 64
    np.testing.assert_array_equal(picture[::scale, ::scale], codebook.decode(row)[0])
    assert (out / "preview.png").stat().st_size > 0


def test_clips_to_codes_and_back(made, tmp_path):
    out = tmp_path / "data"
    build(request("video-codes-16x16x16", made, split="train"), out, How())
    check(out)
    dataset = TokenDataset(out, "train")
    # 20, 36, ... 100 frames: 1, 2, ... 6 clips.
    assert dataset.num_rows == 21
    rows = dataset.rows(np.arange(21)).tokens
    assert rows.shape == (21, 4096)
    show(out, "train", [0], tmp_path / "row.png")
    sheet = np.asarray(Image.open(tmp_path / "row.png").convert("RGB"))
    frames = Codebook.load(made / "16.safetensors").decode(rows[0].reshape(16, 16, 16))
    np.testing.assert_array_equal(sheet[64:128, 128:192], frames[6])  # second line, third column
    manifest = json.loads((out / "manifest.json").read_text())
    assert {"av", "torch", "processor"} <= set(manifest["builds"][0]["versions"])


def test_a_codebook_trained_on_videos_serves_too(made):
    facts = Codebook.load(made / "film.safetensors").facts
    # 21 clips of 16 frames, every fifth frame: 4 of each clip.
    assert facts.pictures + facts.held_out == 84
    check_codec(domain("video-codes-16x16x16"), made / "film.safetensors")


def test_the_number_of_workers_and_parts_changes_no_byte(made, tmp_path):
    """Six videos are two pieces, so two shards."""
    wanted = request("video-codes-16x16x16", made, chunks_per_shard=1, split="train")
    build(wanted, tmp_path / "one", How(workers=2))
    build(wanted, tmp_path / "two", How(part=1, parts=2))
    build(wanted, tmp_path / "two", How(part=0, parts=2))
    assert built(tmp_path / "one") == built(tmp_path / "two")
    assert len(built(tmp_path / "one")) == 4


def read(name, made, raw, tmp_path):
    """Everything that the domain makes of `raw`, in one piece after another."""
    here, module = domain(name), family(name)
    codec = made / "16.safetensors"
    pieces = list(module.plan(here, str(raw), None, tmp_path / "listing"))
    return pieces, [each for piece in pieces for each in module.read(here, piece, 0, codec)]


def test_all_clips_of_a_video_go_to_one_split(made, tmp_path):
    pieces, items = read("video-codes-16x16x16", made, made / "videos", tmp_path)
    assert len(pieces) == 2
    assert all(isinstance(each, Item) for each in items)
    assert [each.document.key for each in items[:3]] == ["0.mp4#0", "1.mp4#0", "1.mp4#1"]
    groups = {each.document.key.split("#")[0]: each.group for each in items}
    assert len(set(groups.values())) == 6
    assert all(each.group == groups[each.document.key.split("#")[0]] for each in items)
    assert len({each.content for each in items}) == 21


def test_bad_pictures_are_refused_and_the_others_stay(made, tmp_path):
    folder = paint(tmp_path / "raw", 70)
    (folder / "003.png").write_bytes(b"")
    (folder / "004.jpg").write_bytes(b"<html>")
    _, found = read("image-codes-16x16", made, folder, tmp_path)
    refused = [each for each in found if isinstance(each, Refusal)]
    blocks = [each for each in found if isinstance(each, Block)]
    assert [each.key for each in refused] == ["003.png", "004.jpg"]
    assert "empty file" in refused[0].reason
    assert sum(len(block.keys) for block in blocks) == 69
    assert all(len(block.tokens) == len(block.keys) == len(block.contents) for block in blocks)


def test_bad_videos_are_refused_and_whole_clips_before_damage_stay(made, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    film(folder / "a.avi", 60, 0)
    data = (folder / "a.avi").read_bytes()
    (folder / "a.avi").write_bytes(data[: len(data) * 2 // 3])
    film(folder / "b.mp4", 9, 0)
    (folder / "c.mkv").write_bytes(b"")
    (folder / "d.webm").write_bytes(b"<html>")
    (folder / "e.mp4").symlink_to(made / "videos" / "0.mp4")
    _, found = read("video-codes-16x16x16", made, folder, tmp_path)
    clips = [each.document.key for each in found if isinstance(each, Item)]
    reasons = {each.key: each.reason for each in found if isinstance(each, Refusal)}
    assert clips == [f"a.avi#{n}" for n in range(len(clips))]
    assert len(clips) in (1, 2)
    assert "damaged or cut off" in reasons["a.avi"]
    assert "too short: 9 frames" in reasons["b.mp4"]
    assert reasons["c.mkv"] == "empty file"
    assert "no mp4, mov, mkv, webm or avi" in reasons["d.webm"]
    assert "symbolic link" in reasons["e.mp4"]


def test_a_lost_video_counts_as_much_as_a_long_one(made, tmp_path):
    """Eight clips of one video do not hide that the other one is lost."""
    folder = tmp_path / "raw"
    folder.mkdir()
    film(folder / "good.mp4", 130, 0)
    (folder / "bad.mp4").write_bytes(b"<html>")
    wanted = request("video-codes-16x16x16", made, raw=folder, split="train")
    with pytest.raises(ValueError, match=r"1 of 2 items \(50.00%\) refused; wanted at most 20.00%"):
        build(wanted, tmp_path / "out", How(max_refused=0.2))
    (record,) = build(wanted, tmp_path / "out", How(max_refused=0.5)).builds
    assert (record.written, record.usable, record.refused) == (8, 1, 1)


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("image-codes-16x16", "32", "32 x 32 codes and 1024 entries; wanted 16 x 16 and 4096"),
        ("image-codes-32x32", "16", "16 x 16 codes and 4096 entries; wanted 32 x 32 and 1024"),
        ("video-codes-16x16x16", "32", "wanted 16 x 16 and 4096"),
    ],
)
def test_a_codebook_of_the_wrong_shape_is_refused(made, tmp_path, name, codec, message):
    wanted = request(name, made, codec=made / f"{codec}.safetensors")
    with pytest.raises(ValueError, match=message):
        build(wanted, tmp_path / "out", How())


def test_a_cut_off_codebook_is_refused(made, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((made / "16.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match="wanted a safetensors file"):
        build(request("image-codes-16x16", made, codec=cut), tmp_path / "out", How())


@pytest.mark.parametrize("name", ["image-codes-16x16", "video-codes-16x16x16"])
def test_raw_input_that_holds_none_and_rows_are_refused(made, tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no (pictures|videos); wanted .* Give --raw"):
        build(request(name, made, raw=tmp_path / "empty"), tmp_path / "out", How())
    with pytest.raises(ValueError, match=r"--rows 5: (pictures|videos) are all taken"):
        build(request(name, made, rows=5), tmp_path / "out2", How())


def test_real_pictures_and_videos(made, sample_data, tmp_path):
    raw = sample_data / "labelled" / "tinyimagenet10-val-000000.tar"
    build(request("image-codes-16x16", made, raw=raw), tmp_path / "pictures", How())
    check(tmp_path / "pictures")
    some = tmp_path / "some"
    shutil.copytree(sample_data / "videos" / "edge", some)
    for name in ("mma_test.avi", "tc_av1_video.mkv", "tc_testsrc2_vp8.webm", "tc_h265_video.mp4"):
        shutil.copy(sample_data / "videos" / name, some)
    wanted = request("video-codes-16x16x16", made, raw=some, split="test")
    manifest = build(wanted, tmp_path / "videos", How(max_refused=0.5))
    check(tmp_path / "videos")
    refused = [
        json.loads(line) for line in (tmp_path / "videos/refused.jsonl").read_text().splitlines()
    ]
    # 5 clips before the damage, 12 of the .avi, 9 of the av1, and one each of the vp8 and the hevc.
    assert (manifest.rows("test"), len(refused)) == (28, 4)
    assert {Path(each["key"]).name for each in refused} == {
        "decord_corrupted.mp4", "decord_unordered.mov", "decord_video_90.mov", "tc_test_non_zero_start.mp4",
    }  # fmt: skip
