"""Our shards in megatron-core's reader, and its builder's shards in ours."""

import warnings

import numpy as np
import pytest

from data_prep.dataset import TokenDataset
from data_prep.domain import domain
from data_prep.shards import ShardWriter


@pytest.fixture(scope="module")
def megatron():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        # megatron-core remarks on packages that it does without.
        warnings.simplefilter("ignore")
        indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    return torch, indexed_dataset


def problems(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(3)
    return [
        tuple(random.integers(0, 256, random.integers(1, 80), dtype=np.uint8) for _ in range(2))
        for _ in range(count)
    ]


def test_megatron_reads_our_shards(tmp_path, megatron):
    _, indexed_dataset = megatron
    documents = problems(50)
    with ShardWriter(tmp_path / "x", domain("mathematics")) as writer:
        for question, answer in documents:
            lengths = np.array([len(question), len(answer)])
            writer.add_block(
                np.concatenate([question, answer]), lengths, np.array([0, 1]), np.array([2])
            )
    theirs = indexed_dataset.IndexedDataset(str(tmp_path / "x"), multimodal=True)
    assert len(theirs) == 100
    assert theirs.document_indices.tolist() == list(range(0, 101, 2))
    for number, parts in enumerate(documents):
        for mode, expected in enumerate(parts):
            tokens, found = theirs.get(2 * number + mode)
            assert np.array_equal(tokens, expected)
            assert found == mode
    text_only = indexed_dataset.IndexedDataset(str(tmp_path / "x"), multimodal=False)
    assert np.array_equal(text_only.get(99), documents[-1][1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_we_read_megatrons_multimodal_shards(tmp_path, megatron, dtype):
    torch, indexed_dataset = megatron
    builder = indexed_dataset.IndexedDatasetBuilder(
        str(tmp_path / "x.bin"), dtype=dtype, multimodal=True
    )
    documents = problems(60)
    for parts in documents:
        for mode, part in enumerate(parts):
            builder.add_item(torch.from_numpy(part.astype(np.int64)), mode)
        builder.end_document()
    builder.finalize(str(tmp_path / "x.idx"))
    stream = np.concatenate([part for parts in documents for part in parts])
    kinds = np.concatenate(
        [np.full(len(part), mode) for parts in documents for mode, part in enumerate(parts)]
    )
    dataset = TokenDataset(tmp_path / "x", "train", domain="mathematics")
    batch = dataset.rows(np.arange(dataset.num_rows))
    assert dataset.num_rows == len(stream) // 512
    assert batch.tokens.dtype == dtype
    assert np.array_equal(batch.tokens.reshape(-1), stream[: dataset.num_tokens])
    assert np.array_equal(batch.kinds.reshape(-1), kinds[: dataset.num_tokens])


def build_pictures(tmp_path, megatron, high: int) -> np.ndarray:
    torch, indexed_dataset = megatron
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=np.uint16)
    rows = np.random.default_rng(0).integers(0, high, (30, 192))
    for row in rows:
        builder.add_item(torch.from_numpy(row))
        builder.end_document()
    builder.finalize(str(tmp_path / "x.idx"))
    return rows


def test_we_read_megatrons_text_shards(tmp_path, megatron):
    """Without modes, as most of its shards are: fine where there is only one kind of token."""
    rows = build_pictures(tmp_path, megatron, 256)
    dataset = TokenDataset(tmp_path / "x", "train", domain="image-8x8")
    assert np.array_equal(dataset.rows(np.arange(30)).tokens, rows)
    with pytest.raises(
        ValueError, match="without modes; wanted uint16 with modes for domain mathematics"
    ):
        TokenDataset(tmp_path / "x", "train", domain="mathematics")


def test_ids_of_another_vocabulary_are_refused(tmp_path, megatron):
    build_pictures(tmp_path, megatron, 1000)
    dataset = TokenDataset(tmp_path / "x", "train", domain="image-8x8")
    with pytest.raises(
        ValueError, match=r"x\.bin: token ids from \d+ to \d+; wanted 0 to 255 \(domain image-8x8\)"
    ):
        dataset.rows(np.arange(30))
