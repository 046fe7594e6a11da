import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_prep.check import check, check_shard
from data_prep.domain import domain
from data_prep.manifest import ShardRecord, load_manifest, new_manifest, save_manifest
from data_prep.shard_index import HEADER
from data_prep.shards import ShardWriter

MATHEMATICS = domain("mathematics")


@pytest.fixture
def folder(tmp_path):
    """Two shards of a few hundred problems."""
    records = []
    for number in range(2):
        random = np.random.default_rng(number)
        lengths = random.integers(1, 60, 600)
        with ShardWriter(tmp_path / f"train-{number:05d}", MATHEMATICS) as writer:
            tokens = random.integers(0, 256, int(lengths.sum()))
            writer.add_block(tokens, lengths, np.tile([0, 1], 300), np.full(300, 2))
        rows, rest = divmod(writer.summary.tokens, 512)
        records.append(ShardRecord(**vars(writer.summary), rows=rows, dropped_tokens=rest))
    manifest = new_manifest(MATHEMATICS).model_copy(update={"splits": {"train": tuple(records)}})
    save_manifest(tmp_path, manifest)
    return tmp_path


def test_a_good_dataset_passes(folder):
    told = []
    assert "2 shards" in check(folder, lambda *counts: told.append(counts))
    assert told == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("ending", ["bin", "idx"])
@pytest.mark.parametrize("place", [0, 40, -1])
def test_any_changed_byte_is_found(folder, ending, place):
    path = folder / f"train-00001.{ending}"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ValueError,
        match=rf"train-00001\.{ending}: sha256 .* says the manifest. The shard is damaged",
    ):
        check(folder)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (lambda n: HEADER.size, b"\0\0\0\0", "a sequence without tokens"),
        (lambda n: HEADER.size, b"\xff\x00\x00\x00", "pointers that do not follow the lengths"),
        (lambda n: HEADER.size + 4 * n + 8, b"\xff", "pointers that do not follow the lengths"),
        (lambda n: HEADER.size + 12 * n + 8, b"\x09\x09", "document starts that do not rise"),
        (lambda n: -1, b"\x05", "modes 0 to 5; wanted 0 to 1"),
    ],
)
def test_an_index_that_contradicts_itself(folder, monkeypatch, at, value, message):
    """As a faulty writer would leave it: the hash is right, the content is not."""
    monkeypatch.setattr("data_prep.check._check_hash", lambda path, wanted: None)
    path = folder / "train-00000.idx"
    data = bytearray(path.read_bytes())
    place = at(600) % len(data)
    data[place : place + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"train-00000\.idx: .*{message}"):
        check(folder)


def test_ids_outside_their_kind(folder):
    record = load_manifest(folder).splits["train"][0]
    narrow = tuple(dataclasses.replace(kind, stop=200) for kind in MATHEMATICS.kinds)
    here = dataclasses.replace(MATHEMATICS, kinds=narrow)
    with pytest.raises(
        ValueError, match=r"train-00000\.bin: question ids outside their range; wanted 0 to 199"
    ):
        check_shard(folder, record, here)


def test_documents_of_the_wrong_length(folder):
    record = load_manifest(folder).splits["train"][0]
    with pytest.raises(
        ValueError, match=r"train-00000\.idx: document 0 has .* tokens; wanted 512, one row"
    ):
        check_shard(folder, record, dataclasses.replace(MATHEMATICS, packed=False))


def test_a_missing_shard(folder):
    (folder / "train-00001.bin").unlink()
    with pytest.raises(ValueError, match=r"train-00001\.bin: is missing"):
        check(folder)


def test_a_bare_prefix(folder):
    """What another project wrote has no manifest: its domain must be named."""
    prefix = folder / "train-00000"
    with pytest.raises(ValueError, match="domain not given; wanted .* Add --domain NAME"):
        check(prefix)
    assert "mathematics, 300 documents" in check(prefix, name="mathematics")
    with pytest.raises(ValueError, match="modes 0 to 1; wanted 0 to 0, as image-8x8 has"):
        check(prefix, name="image-8x8")
    data = bytearray(Path(f"{prefix}.bin").read_bytes())
    Path(f"{prefix}.bin").write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"\d+ bytes; wanted \d+, the size of the .bin"):
        check(prefix, name="mathematics")


def test_ids_outside_their_kind_in_a_bare_pair(tmp_path):
    here = domain("text-to-image-v300")
    row = np.repeat([0, 300, 301], [100, 28, 3072])
    row[50] = 300  # padding among the words: inside the vocabulary, outside its kind
    loose = dataclasses.replace(
        here, kinds=tuple(dataclasses.replace(kind, start=0, stop=558) for kind in here.kinds)
    )
    with ShardWriter(tmp_path / "x", loose) as writer:
        writer.add_block(row, np.array([100, 28, 3072]), np.array([0, 1, 2]), np.array([3]))
    with pytest.raises(ValueError, match=r"x\.bin: text ids outside their range; wanted 0 to 299"):
        check(tmp_path / "x", name=here.name)


def test_another_domain_than_the_folder_holds(folder):
    with pytest.raises(ValueError, match="holds domain 'mathematics'; wanted 'image-8x8'"):
        check(folder, name="image-8x8")
