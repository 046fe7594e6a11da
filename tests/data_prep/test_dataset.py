import dataclasses
import gc
import os
from pathlib import Path

import numpy as np
import pytest

import data_prep.dataset
from data_prep.check import check
from data_prep.chunks import ShardRecord
from data_prep.dataset import TokenDataset
from data_prep.domain import domain
from data_prep.manifest import new_manifest, save_manifest
from data_prep.shard_reader import MAP_FROM
from data_prep.shards import ShardWriter

IMAGE, MATHEMATICS = domain("image-8x8"), domain("mathematics")


def write_dataset(folder: Path, here, blocks) -> None:
    """A dataset whose train split has one shard for each block (tokens, lengths, modes, parts)."""
    folder.mkdir(exist_ok=True)
    records = []
    for number, block in enumerate(blocks):
        with ShardWriter(folder / f"train-{number:05d}", here) as writer:
            writer.add_block(*block)
        rows, rest = divmod(writer.summary.tokens, here.seq_length)
        records.append(ShardRecord(**vars(writer.summary), rows=rows, dropped_tokens=rest))
    save_manifest(
        folder, new_manifest(here).model_copy(update={"splits": {"train": tuple(records)}})
    )


def image_block(rows: int, seed: int = 0):
    tokens = np.random.default_rng(seed).integers(0, 256, rows * 192, dtype=np.uint8)
    ones = np.ones(rows, np.int64)
    return tokens, ones * 192, ones * 0, ones


def problem_block(problems: int, seed: int = 0, longest: int = 60):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest, 2 * problems)
    tokens = random.integers(0, 256, int(lengths.sum()), dtype=np.uint8)
    return tokens, lengths, np.tile([0, 1], problems), np.full(problems, 2)


def expected_rows(blocks, length: int):
    """Tokens and kinds [rows, length] the slow and obvious way."""
    tokens, kinds = [], []
    for stored, lengths, modes, _ in blocks:
        full = len(stored) // length * length
        tokens.append(stored[:full].reshape(-1, length))
        kinds.append(np.repeat(modes, lengths)[:full].reshape(-1, length))
    return np.concatenate(tokens), np.concatenate(kinds)


@pytest.mark.parametrize("batch", [1, MAP_FROM - 1, MAP_FROM, 100])
@pytest.mark.parametrize("longest", [3, 60, 2000])
def test_packed_rows_and_kinds(tmp_path, batch, longest):
    """Rows of hundreds of short sequences, of a few, and inside one; by bisect and all at once."""
    blocks = [
        problem_block(problems, seed, longest) for seed, problems in enumerate((3000, 1500, 2000))
    ]
    write_dataset(tmp_path, MATHEMATICS, blocks)
    tokens, kinds = expected_rows(blocks, 512)
    dataset = TokenDataset(tmp_path, "train")
    assert dataset.num_rows == len(tokens)
    random = np.random.default_rng(1)
    for _ in range(20):
        rows = random.integers(0, dataset.num_rows, batch)
        found = dataset.rows(rows)
        assert np.array_equal(found.tokens, tokens[rows])
        assert np.array_equal(found.kinds, kinds[rows])
        assert (found.tokens.dtype, found.kinds.dtype) == (np.uint8, np.uint8)
    last = dataset.rows(np.array([dataset.num_rows - 1, 0]))
    assert np.array_equal(last.kinds, kinds[[-1, 0]])


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_unpacked_rows(tmp_path, batch):
    blocks = [image_block(rows, seed) for seed, rows in enumerate((10, 1, 30))]
    write_dataset(tmp_path, IMAGE, blocks)
    tokens, kinds = expected_rows(blocks, 192)
    dataset = TokenDataset(tmp_path, "train")
    for seed in range(10):
        rows = np.random.default_rng(seed).integers(0, 41, batch)
        found = dataset.rows(rows)
        assert np.array_equal(found.tokens, tokens[rows])
        assert np.array_equal(found.kinds, kinds[rows])


def test_unpacked_rows_of_several_parts(tmp_path):
    """As pictures with captions will be: two sequences of fixed length make one row."""
    kinds = (
        data_prep.domain.TokenRange("text", 0, 256),
        data_prep.domain.TokenRange("pixel", 0, 256),
    )
    here = dataclasses.replace(MATHEMATICS, packed=False, kinds=kinds, seq_length=10)
    tokens = np.arange(50, dtype=np.uint8)
    block = (tokens, np.tile([4, 6], 5), np.tile([0, 1], 5), np.full(5, 2))
    with ShardWriter(tmp_path / "x", here) as writer:
        writer.add_block(*block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_prep.dataset, "domain", lambda name: here)
        found = TokenDataset(tmp_path / "x", "train", domain="x").rows(np.arange(5))
    assert np.array_equal(found.kinds, np.tile([0] * 4 + [1] * 6, (5, 1)))


def test_rows_are_copies(tmp_path):
    write_dataset(tmp_path, IMAGE, [image_block(50)])
    dataset = TokenDataset(tmp_path, "train")
    batch = dataset.rows(np.arange(50))
    before = batch.tokens.copy()
    assert batch.tokens.flags.owndata
    del dataset
    gc.collect()
    for path in tmp_path.glob("*.bin"):
        path.write_bytes(b"\0" * path.stat().st_size)
    assert np.array_equal(batch.tokens, before)


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(data_prep.dataset, "MAX_FILES", 4)
    write_dataset(tmp_path, IMAGE, [image_block(3, seed) for seed in range(20)])
    dataset = TokenDataset(tmp_path, "train")
    before = len(os.listdir("/proc/self/fd"))
    assert dataset.rows(np.arange(60)).tokens.shape == (60, 192)
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before


def test_opening_reads_no_data(tmp_path, monkeypatch):
    write_dataset(tmp_path, IMAGE, [image_block(3, seed) for seed in range(5)])
    opened = []
    monkeypatch.setattr(data_prep.dataset, "OpenShard", lambda *a: opened.append(a))
    monkeypatch.setattr(data_prep.dataset, "map_index", lambda *a: opened.append(a))
    assert TokenDataset(tmp_path, "train").num_rows == 15
    assert opened == []


def test_identity_follows_the_content(tmp_path):
    names = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_dataset(tmp_path / name, IMAGE, [image_block(5, seed)])
        names.append(TokenDataset(tmp_path / name, "train").identity)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("ending", [".bin", ".idx"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_the_wrong_size_is_refused(tmp_path, ending, change):
    write_dataset(tmp_path, IMAGE, [image_block(5), image_block(5)])
    path = tmp_path / f"train-00001{ending}"
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(
        ValueError,
        match=rf"train-00001\{ending}: has \d+ bytes; wanted \d+ bytes, says the manifest",
    ):
        TokenDataset(tmp_path, "train")
    path.unlink()
    with pytest.raises(ValueError, match=rf"train-00001\{ending}: is missing; wanted"):
        TokenDataset(tmp_path, "train")


def test_a_file_cut_off_after_opening_is_refused(tmp_path):
    write_dataset(tmp_path, IMAGE, [image_block(5), image_block(5)])
    dataset = TokenDataset(tmp_path, "train")
    dataset.rows(np.array([0]))
    for number in range(2):
        os.truncate(tmp_path / f"train-{number:05d}.bin", 500)
    for row in (4, 9):
        with pytest.raises(
            ValueError, match="has 500 bytes; wanted 960 bytes, says the dataset as it was opened"
        ):
            dataset.rows(np.array([row]))


@pytest.mark.parametrize("rows", [[-1], [10], [[0]]])
def test_rows_that_are_not_there_are_refused(tmp_path, rows):
    write_dataset(tmp_path, IMAGE, [image_block(10)])
    with pytest.raises(ValueError, match="wanted a one-dimensional array of numbers from 0 to 9"):
        TokenDataset(tmp_path, "train").rows(np.array(rows))


def test_no_rows_asked_for(tmp_path):
    write_dataset(tmp_path, MATHEMATICS, [problem_block(50)])
    assert TokenDataset(tmp_path, "train").rows(np.array([], np.int64)).tokens.shape == (0, 512)


def test_a_missing_split_names_those_that_are_there(tmp_path):
    write_dataset(tmp_path, IMAGE, [image_block(2)])
    with pytest.raises(
        ValueError, match=r"split 'valid' is not there; wanted one of train\. Build it"
    ):
        TokenDataset(tmp_path, "valid")


def test_another_domain_is_refused(tmp_path):
    write_dataset(tmp_path, IMAGE, [image_block(2)])
    with pytest.raises(ValueError, match="holds domain 'image-8x8'; wanted 'mathematics'"):
        TokenDataset(tmp_path, "train", domain="mathematics")


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="does not exist; wanted a dataset folder"):
        TokenDataset(tmp_path / "nothing", "train")


def test_less_than_one_row_is_refused(tmp_path):
    write_dataset(tmp_path, MATHEMATICS, [problem_block(1, longest=5)])
    with pytest.raises(ValueError, match="split 'train' holds no full row of 512 tokens"):
        TokenDataset(tmp_path, "train")


def test_a_bare_prefix_needs_its_domain(tmp_path):
    write_dataset(tmp_path, IMAGE, [image_block(2)])
    with pytest.raises(ValueError, match="domain not given; wanted the name of its domain"):
        TokenDataset(tmp_path / "train-00000", "train")
    assert TokenDataset(tmp_path / "train-00000", "train", domain="image-8x8").num_rows == 2
    with pytest.raises(ValueError, match="does not belong together, or to this domain"):
        TokenDataset(tmp_path / "train-00000", "train", domain="image-16x16")
    (tmp_path / "train-00000.bin").unlink()
    with pytest.raises(ValueError, match=r"train-00000\.bin: is missing"):
        TokenDataset(tmp_path / "train-00000", "train", domain="image-8x8")


@pytest.mark.parametrize(
    ("lengths", "modes", "said"),
    [
        ([192, 191, 193, 192], [0] * 4, "document 1 has 191 tokens; wanted 192, one row of domain"),
        ([192, 192, 1, 383], [0] * 4, "document 2 has 1 tokens; wanted 192"),
        ([192] * 4, [0, 0, 3, 0], "modes 0 to 3; wanted 0 to 0, as image-8x8 has"),
        ([192] * 4, [-1, 0, 0, 0], "modes -1 to 0; wanted 0 to 0"),
    ],
)
def test_foreign_documents_of_wrong_lengths_or_kinds_are_refused(tmp_path, lengths, modes, said):
    """Their sum fits, which is all that is looked at in shards of our own."""
    anything = dataclasses.replace(IMAGE, packed=True, kinds=IMAGE.kinds * 4)
    with ShardWriter(tmp_path / "x", anything) as writer:
        tokens = np.zeros(sum(lengths), np.int64)
        kinds = np.maximum(modes, 0)
        writer.add_block(tokens, np.array(lengths), kinds, np.ones(len(lengths), np.int64))
    data = bytearray((tmp_path / "x.idx").read_bytes())
    data[-len(modes) :] = np.array(modes, np.int8).tobytes()
    (tmp_path / "x.idx").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        TokenDataset(tmp_path / "x", "train", domain="image-8x8")
    with pytest.raises(ValueError, match=said):
        check(tmp_path / "x", name="image-8x8")


@pytest.mark.parametrize("longest", [3, 60, 2000])
def test_whole_documents_of_packed_rows(tmp_path, longest):
    """Against a list of every document's first and last token."""
    blocks = [problem_block(200, seed, longest) for seed in range(3)]
    write_dataset(tmp_path / "d", MATHEMATICS, blocks)
    dataset = TokenDataset(tmp_path / "d", "train")
    length, expected, before = MATHEMATICS.seq_length, set(), 0
    for stored, lengths, _, _ in blocks:
        ends = np.cumsum(lengths.reshape(-1, 2).sum(1)).tolist()
        for start, stop in zip([0, *ends], ends, strict=False):
            row = start // length
            if stop <= (row + 1) * length and row < len(stored) // length:
                expected.add((before + row, start - row * length, stop - row * length))
        before += len(stored) // length
    chosen = np.random.default_rng(0).permutation(dataset.num_rows)
    place, start, stop = dataset.documents(chosen)
    assert (np.diff(place) >= 0).all()
    assert set(zip(chosen[place], start, stop, strict=True)) == expected
    assert [len(each) for each in dataset.documents(np.empty(0, np.int64))] == [0, 0, 0]


def test_a_document_of_an_unpacked_domain_is_its_row(tmp_path):
    write_dataset(tmp_path / "d", IMAGE, [image_block(5)])
    found = TokenDataset(tmp_path / "d", "train").documents(np.array([4, 1]))
    assert [each.tolist() for each in found] == [[0, 1], [0, 0], [192, 192]]


def test_documents_that_go_back_are_refused(tmp_path):
    write_dataset(tmp_path / "d", MATHEMATICS, [problem_block(200)])
    path = tmp_path / "d" / "train-00000.idx"
    content = bytearray(path.read_bytes())
    at = 34 + 12 * 400 + 8 * 5  # the fifth document's first sequence
    content[at : at + 8] = (2).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"train-00000.idx: documents that do not follow one another"
    ):
        TokenDataset(tmp_path / "d", "train").documents(np.arange(3))
