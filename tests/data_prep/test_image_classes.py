"""Labelled pictures: where a class comes from, how it is numbered and counted, and what is refused."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.blend import Blend
from data_prep.build import build
from data_prep.check import check
from data_prep.classes import MOST, Seen, classes_of, folder_of, in_bytes, number_in
from data_prep.dataset import TokenDataset
from data_prep.domain import domain, family
from data_prep.manifest import load_manifest
from data_prep.pictures import decode
from data_prep.plan import How, Request
from data_prep.show import show
from tests.data_prep.conftest import picture_bytes
from tests.data_prep.test_image_domain import make_tar

ALL = (1.0, 0.0, 0.0)
NAMES = ("ape", "bee", "cat")


def files(per_class: int = 8, names: tuple[str, ...] = NAMES) -> dict[str, bytes]:
    """class/NNN.png, another picture each."""
    return {
        f"{name}/{number:03d}.png": picture_bytes(1000 * place + number)
        for place, name in enumerate(names)
        for number in range(per_class)
    }


def webdataset(per_class: int = 8, classes: int = 3) -> dict[str, bytes]:
    found = {}
    for number in range(per_class * classes):
        found[f"{number:04d}.png"] = picture_bytes(number)
        found[f"{number:04d}.cls"] = b"%d\n" % (number % classes)
    return found


def unpack(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def make(raw: Path, out: Path, how: How | None = None, **changes) -> Path:
    request = Request("image-8x8-classes", str(raw), **({"fractions": ALL} | changes))
    build(request, out, how or How())
    return out


def rows(out: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Pixels [rows, 192] and classes [rows]."""
    dataset = TokenDataset(out, split)
    tokens = dataset.rows(np.arange(dataset.num_rows)).tokens
    return tokens[:, :-2], classes_of(tokens)


def refused(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    return {line["key"]: line["reason"] for line in lines}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(family("image-8x8-classes"), "_PIECE", 5)


# --- what becomes of a picture and its class


@pytest.mark.parametrize("form", ["folder", "tar", "tar of each class", "folder images in each"])
def test_every_form_gives_the_same_rows(form, tmp_path):
    raw, content = tmp_path / "raw", files()
    if form == "tar":
        raw = make_tar(tmp_path / "raw.tar", content)
    elif form == "tar of each class":
        raw.mkdir()
        for name in NAMES:
            own = {key.split("/")[1]: data for key, data in content.items() if name in key}
            make_tar(raw / f"{name}.tar", own)
    elif form == "folder images in each":
        unpack(raw, {key.replace("/", "/images/"): data for key, data in content.items()})
    else:
        unpack(raw, content)
    pixels, classes = rows(make(raw, tmp_path / "out"))
    assert classes.tolist() == [0] * 8 + [1] * 8 + [2] * 8, (
        "sorted names, in the order of the raw data"
    )
    for row, data in zip(pixels, content.values(), strict=True):
        assert np.array_equal(row, decode(data, 8).reshape(-1))
    found = load_manifest(tmp_path / "out").classes
    assert [(each.name, each.pictures) for each in found] == [(n, {"train": 8}) for n in NAMES]
    assert TokenDataset(tmp_path / "out", "train").classes == NAMES


@pytest.mark.parametrize("packed", [True, False])
def test_a_cls_beside_a_picture_is_its_class(packed, tmp_path):
    content = webdataset()
    raw = make_tar(tmp_path / "x.tar", content) if packed else unpack(tmp_path / "x", content)
    pixels, classes = rows(make(raw, tmp_path / "out"))
    assert classes.tolist() == [number % 3 for number in range(24)]
    assert np.array_equal(pixels[5], decode(picture_bytes(5), 8).reshape(-1))
    assert [each.name for each in load_manifest(tmp_path / "out").classes] == ["0", "1", "2"]


def test_a_class_takes_two_bytes_the_low_one_first():
    assert in_bytes([0, 255, 256, MOST - 1]).tolist() == [[0, 0], [255, 0], [0, 1], [255, 255]]
    assert classes_of(in_bytes([0, 255, 256, MOST - 1])).tolist() == [0, 255, 256, MOST - 1]


def test_only_the_class_counts_in_the_loss():
    here = domain("image-32x32-classes")
    assert (here.seq_length, here.vocab_size, here.labelled) == (
        3 * 32 * 32 + 2,
        256,
        "image-32x32",
    )
    counts = {each.kind: each.in_loss for each in here.kinds}
    assert counts == {"pixel": False, "class": True, "error": False}
    assert here.only_read == {"pixel"}
    assert domain("image-32x32").only_read == frozenset()


def test_kinds_of_a_row(tmp_path):
    out = make(unpack(tmp_path / "raw", files()), tmp_path / "out")
    kinds = TokenDataset(out, "train").rows(np.arange(24)).kinds
    assert (kinds == np.repeat([0, 1, 2], [192, 1, 1])).all()


def test_any_number_of_workers_and_parts_gives_the_same_bytes(small_pieces, tmp_path):
    raw = unpack(tmp_path / "raw", files())
    halves = {"fractions": (0.5, 0.25, 0.25), "chunks_per_shard": 2}
    one = make(raw, tmp_path / "one", **halves)
    two = tmp_path / "two"
    for part in (1, 0):
        make(raw, two, How(part=part, parts=2), **halves)
    three = make(raw, tmp_path / "three", How(workers=2), **halves)
    names = sorted(path.name for path in one.glob("*-?????.*"))
    assert len(names) > 6
    for other in (two, three):
        assert [(other / name).read_bytes() for name in names] == [
            (one / name).read_bytes() for name in names
        ]
        assert load_manifest(other).classes == load_manifest(one).classes


def test_a_picture_is_in_the_split_that_it_has_without_its_class(tmp_path):
    """Or else a classifier would be tested on what its trunk was trained on."""
    raw, halves = unpack(tmp_path / "raw", files()), (0.5, 0.25, 0.25)
    labelled = make(raw, tmp_path / "labelled", fractions=halves)
    build(Request("image-8x8", str(raw), fractions=halves), tmp_path / "alone", How())
    for split in ("train", "valid", "test"):
        alone = TokenDataset(tmp_path / "alone", split)
        tokens = alone.rows(np.arange(alone.num_rows)).tokens
        assert np.array_equal(rows(labelled, split)[0], tokens)


def test_check_show_and_preview(tmp_path, capsys):
    out = make(unpack(tmp_path / "raw", files()), tmp_path / "out")
    assert "image-8x8-classes, 1 shards, train 24 rows" in check(out)
    assert show(out, None, [17], tmp_path / "row.png").startswith("class 2\nrow 17")
    assert (out / "preview.png").stat().st_size > 1000
    assert (out / "preview.txt").read_text().splitlines()[:2] == ["--- row 0", "class 0"]
    assert main(["list"]) == 0
    assert "kinds: pixel, class, error" in capsys.readouterr().out


def test_one_picture_in_two_classes_stays_in_the_first(tmp_path):
    content = files() | {"bee/again.png": picture_bytes(0)}
    out = make(unpack(tmp_path / "raw", content), tmp_path / "out")
    assert Counter(rows(out)[1].tolist()) == {0: 8, 1: 8, 2: 8}
    assert load_manifest(out).builds[0].duplicates == 1


# --- several splits


def test_splits_that_are_built_apart_share_their_numbers(tmp_path):
    out = make(unpack(tmp_path / "raw", files()), tmp_path / "out", split="train")
    later = unpack(tmp_path / "later", files(3, ("cat", "ape")))
    make(later, out, split="test")
    assert rows(out, "test")[1].tolist() == [0, 0, 0, 2, 2, 2], "ape and cat, as in train"
    found = {each.name: each.pictures for each in load_manifest(out).classes}
    assert found == {"ape": {"train": 8, "test": 3}, "bee": {"train": 8, "test": 0},
                     "cat": {"train": 8, "test": 3}}  # fmt: skip


def test_a_class_that_is_seen_in_test_alone_is_refused(tmp_path):
    out = make(unpack(tmp_path / "raw", files()), tmp_path / "out", split="train")
    with pytest.raises(ValueError, match=r"class dog is in none of the splits.*wanted the classes"):
        make(unpack(tmp_path / "later", files(2, ("ape", "dog"))), out, split="test")


def test_a_class_without_a_picture_to_train_on_is_refused(tmp_path):
    """Two pictures of one class, and nearly all go to the other splits."""
    content = files(20, ("ape", "bee")) | {"cat/1.png": picture_bytes(1), "cat/2.png": b"broken"}
    raw = unpack(tmp_path / "raw", content)
    with pytest.raises(ValueError, match=r"class cat has no usable picture in split train; wanted"):
        make(raw, tmp_path / "out", How(max_refused=0.5), fractions=(0.2, 0.4, 0.4))


def test_a_class_whose_every_picture_is_broken_is_empty(tmp_path):
    raw = unpack(tmp_path / "raw", files(9, ("ape", "bee")) | {"cat/1.png": b"broken"})
    with pytest.raises(ValueError, match="class cat has no usable picture in split train"):
        make(raw, tmp_path / "out", How(max_refused=0.5))


def test_datasets_with_other_classes_are_no_blend(tmp_path):
    one = make(unpack(tmp_path / "a", files()), tmp_path / "one")
    two = make(unpack(tmp_path / "b", files(names=("ape", "bee", "dog"))), tmp_path / "two")
    datasets = [TokenDataset(each, "train") for each in (one, two)]
    assert Blend(datasets[:1] * 2, [1, 1], 0).classes == NAMES
    with pytest.raises(
        ValueError, match="dataset 1 of a blend: has 3 classes, others or in another"
    ):
        Blend(datasets, [1, 1], 0)


# --- bad input


def test_an_empty_class_is_refused(tmp_path):
    raw = unpack(tmp_path / "raw", files() | {"dog/readme.txt": b"none yet"})
    with pytest.raises(ValueError, match=r"dog: holds no picture, so the class is empty; wanted"):
        make(raw, tmp_path / "out")


def test_pictures_without_a_class_are_counted(tmp_path):
    raw = unpack(tmp_path / "raw", files() | {"loose.png": picture_bytes(7777)})
    out = make(raw, tmp_path / "out", How(max_refused=0.1))
    assert refused(out) == {
        "loose.png": "a picture without a class: in no folder, and no .cls beside it"
    }
    assert TokenDataset(out, "train").num_rows == 24


def test_a_cls_that_is_missing_broken_or_alone_is_counted(tmp_path):
    content = webdataset() | {
        "0001.cls": b"seven", "0002.cls": b"", "0003.cls": b"70000", "0004.cls": b"1" * 40,
        "9999.cls": b"1",
    }  # fmt: skip
    del content["0000.cls"]
    raw = make_tar(tmp_path / "x.tar", {name: content[name] for name in sorted(content)})
    out = make(raw, tmp_path / "out", How(max_refused=0.5))
    found = refused(out)
    assert found["x.tar/0000.png"].startswith("a picture without a class: no .cls beside it")
    assert "says 'seven'; wanted a number from 0 to 65535" in found["x.tar/0001.png"]
    assert "says ''" in found["x.tar/0002.png"]
    assert "says '70000'" in found["x.tar/0003.png"]
    assert "its class cannot be read: 40 bytes" in found["x.tar/0004.png"]
    assert found["x.tar/9999.cls"] == "a .cls without a picture beside it"
    assert len(found) == 6
    assert Counter(rows(out)[1].tolist()) == {0: 6, 1: 6, 2: 7}


def test_a_number_that_no_picture_has_is_an_empty_class(tmp_path):
    content = webdataset() | {"0005.cls": b"40"}
    raw = make_tar(tmp_path / "x.tar", {name: content[name] for name in sorted(content)})
    with pytest.raises(ValueError, match="class 3, 4, 5, 6, 7 and 32 more has no usable picture"):
        make(raw, tmp_path / "out")


def test_a_tar_that_is_cut_off_is_damage(tmp_path):
    raw = make_tar(tmp_path / "x.tar", webdataset())
    raw.write_bytes(raw.read_bytes()[: 20 * 512])
    with pytest.raises(ValueError, match="1 damaged file: x.tar"):
        make(raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.txt": b"x"}, "holds no pictures; wanted files or tar members"),
        ({"a.png": picture_bytes(1)}, "its pictures are of 0 classes; wanted two or more"),
        ({"x/a.png": picture_bytes(1)}, r"its pictures are of 1 classes \(x\); wanted two or more"),
    ],
)
def test_raw_data_without_classes_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(unpack(tmp_path / "raw", content), tmp_path / "out")


def test_more_classes_than_two_bytes_hold_are_refused():
    seen = Seen("raw")
    for number in range(MOST):
        seen.add(f"class {number}")
    with pytest.raises(ValueError, match="raw: holds pictures of more than 65536 classes"):
        seen.add("one more")


def test_rows_are_not_asked_for(tmp_path):
    with pytest.raises(ValueError, match="--rows 5: pictures are all taken; wanted no --rows"):
        make(unpack(tmp_path / "raw", files()), tmp_path / "out", rows=5)


@pytest.mark.parametrize(
    ("key", "name"),
    [("dog/1.jpg", "dog"), ("a/b/dog/1.jpg", "dog"), ("n01.tar/1.jpg", "n01"), ("n2/images/1.jpg", "n2"),
     ("1.jpg", ""), ("images/1.jpg", ""), ("x.tar/dog/1.jpg", "dog"), ("\udcff/1.jpg", "\\xff")],
)  # fmt: skip
def test_the_folder_is_the_class(key, name):
    assert folder_of(key) == name


def test_numbers_in_a_cls():
    assert [number_in(each) for each in (b"0", b" 12\n", b"65535")] == [0, 12, 65535]
    for wrong in (b"-1", b"1.0", b"65536", b"", b"\xff", b"0x1"):
        with pytest.raises(ValueError, match="wanted a number from 0 to 65535"):
            number_in(wrong)


def test_a_class_beyond_the_manifest_is_damage(tmp_path):
    out = make(unpack(tmp_path / "raw", files()), tmp_path / "out")
    path = out / "train-00000.bin"
    damaged = bytearray(path.read_bytes())
    damaged[193] = 1  # the high byte of the first row
    path.write_bytes(damaged)
    with pytest.raises(
        ValueError, match="a picture of class 256; wanted 0 to 2, of which the manifest"
    ):
        TokenDataset(out, "train").rows(np.arange(3))


def test_real_pictures(sample_data, tmp_path):
    raw = sample_data / "labelled"
    out = make(raw / "cifar10_test_imagefolder.tar", tmp_path / "cifar")
    found = load_manifest(out).classes
    assert (len(found), found[3].name, found[3].pictures) == (10, "cat", {"train": 100})
    out = make(raw / "tinyimagenet10-val-000000.tar", tmp_path / "tiny")
    assert [each.pictures["train"] for each in load_manifest(out).classes] == [25] * 10
