"""Hostile .idx files: opening and reading gives an error that names the file, or the right tokens; never a crash."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.check import check_shard
from data_prep.dataset import TokenDataset
from data_prep.domain import Domain, domain
from data_prep.manifest import ShardRecord
from data_prep.shards import HEADER, ShardWriter


def write(prefix: Path, here: Domain) -> tuple[np.ndarray, ShardRecord]:
    """A small shard; its rows of tokens, and its record."""
    random = np.random.default_rng(0)
    if here.packed:
        lengths, modes, parts = random.integers(1, 90, 400), np.tile([0, 1], 200), np.full(200, 2)
    else:
        lengths, modes, parts = np.full(60, here.seq_length), np.zeros(60, int), np.ones(60, int)
    tokens = random.integers(0, 256, int(lengths.sum()), dtype=np.uint8)
    with ShardWriter(prefix, here) as writer:
        writer.add_block(tokens, lengths, modes, parts)
    rows, rest = divmod(len(tokens), here.seq_length)
    record = ShardRecord(**vars(writer.summary), rows=rows, dropped_tokens=rest)
    return tokens[: rows * here.seq_length].reshape(rows, -1), record


def mutate(good: bytes, random: np.random.Generator) -> bytes:
    """Random bytes anywhere, often in the header; sometimes cut off or grown."""
    data = bytearray(good)
    places = HEADER.size if random.random() < 0.5 else len(data)
    for place in random.integers(0, places, random.integers(1, 6)):
        data[place] = random.choice([0, 1, 127, 128, 255, random.integers(0, 256)])
    if random.random() < 0.2:
        return bytes(data[: random.integers(0, len(data))])
    return bytes(data) + bytes(int(random.integers(0, 40)) if random.random() < 0.1 else 0)


def read_back(prefix: Path, here: Domain, expected: np.ndarray) -> str:
    """What the reader complains of; "" if all its tokens are right."""
    try:
        dataset = TokenDataset(prefix, "train", domain=here.name)
        for rows in (np.arange(dataset.num_rows), np.array([dataset.num_rows - 1, 0])):
            batch = dataset.rows(rows)
            assert np.array_equal(batch.tokens, expected[rows])
            assert batch.kinds.max() < len(here.kinds)
    except ValueError as error:
        return str(error)
    return ""


def fuzz(tmp_path: Path, name: str, times: int) -> None:
    here = domain(name)
    prefix = tmp_path / "x"
    expected, record = write(prefix, here)
    index = tmp_path / "x.idx"
    good = index.read_bytes()
    random = np.random.default_rng(7)
    opened = 0
    for _ in range(times):
        changed = mutate(good, random)
        index.write_bytes(changed)
        said = read_back(prefix, here, expected)
        opened += not said
        assert not said or "x.idx" in said or "x.bin" in said or "holds no full row" in said
        if changed != good:
            with pytest.raises(ValueError, match="x.idx"):
                check_shard(tmp_path, record, here)
    assert 0 < opened < times, "some mutations are harmless to the reader, but not all"


@pytest.mark.parametrize("name", ["mathematics", "image-8x8"])
def test_mutated_indices(tmp_path, name):
    fuzz(tmp_path, name, 250)


@pytest.mark.long
@pytest.mark.parametrize("name", ["mathematics", "image-8x8"])
def test_many_mutated_indices(tmp_path, name):
    fuzz(tmp_path, name, 5000)
