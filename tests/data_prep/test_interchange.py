"""Shards of every domain in megatron-core's reader, its builder's shards in ours, and what we refuse that it takes."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset import TokenDataset
from data_prep.domain import Document, Domain, domain, domain_names
from data_prep.shards import ShardWriter
from tests.data_prep.conftest import add_document

# With a small vocabulary of captions too: other ids, the same parts.
NAMES = (*domain_names(), "text-to-image-v300")


@pytest.fixture(scope="module")
def megatron():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        # megatron-core remarks on packages that it does without.
        warnings.simplefilter("ignore")
        indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    return torch, indexed_dataset


def random_documents(here: Domain, count: int, seed: int = 3) -> list[Document]:
    """Documents with parts of random kinds, lengths and ids; of one row's length in all where rows are documents."""
    random = np.random.default_rng(seed)
    documents = []
    for number in range(count):
        parts = int(random.integers(1, 4)) if len(here.kinds) > 1 or here.packed else 1
        if here.packed:
            lengths = random.integers(1, 80, parts)
        else:
            cuts = np.sort(random.choice(np.arange(1, here.seq_length), parts - 1, replace=False))
            lengths = np.diff([0, *cuts, here.seq_length])
        modes = random.integers(0, len(here.kinds), parts).tolist()
        made = [
            (mode, random.integers(here.kinds[mode].start, here.kinds[mode].stop, length))
            for mode, length in zip(modes, lengths, strict=True)
        ]
        documents.append(Document(str(number), tuple(made)))
    return documents


def in_rows(here: Domain, documents: list[Document]) -> tuple[np.ndarray, np.ndarray]:
    """The rows that these documents make, tokens and kinds [rows, S]."""
    parts = [part for document in documents for part in document.parts]
    tokens = np.concatenate([ids for _, ids in parts])
    kinds = np.concatenate([np.full(ids.size, mode) for mode, ids in parts])
    whole = tokens.size // here.seq_length * here.seq_length
    return tuple(each[:whole].reshape(-1, here.seq_length) for each in (tokens, kinds))


def few(here: Domain) -> list[Document]:
    return random_documents(here, max(8, 4 * 512 // 40) if here.packed else 8)


@pytest.mark.parametrize("name", NAMES)
def test_megatron_reads_our_shards(tmp_path, megatron, name):
    _, indexed_dataset = megatron
    here = domain(name)
    documents = few(here)
    with ShardWriter(tmp_path / "x", here) as writer:
        for document in documents:
            add_document(writer, document)
    theirs = indexed_dataset.IndexedDataset(str(tmp_path / "x"), multimodal=True)
    text_only = indexed_dataset.IndexedDataset(str(tmp_path / "x"), multimodal=False)
    parts = [part for document in documents for part in document.parts]
    ends = np.cumsum([len(document.parts) for document in documents])
    assert len(theirs) == len(text_only) == len(parts)
    assert theirs.document_indices.tolist() == [0, *ends.tolist()]
    for number, (mode, expected) in enumerate(parts):
        tokens, found = theirs.get(number)
        assert tokens.dtype == here.dtype
        assert np.array_equal(tokens, expected)
        assert found == mode
        assert np.array_equal(text_only.get(number), expected)


def their_shard(megatron, prefix: Path, documents: list[Document], dtype, modes: bool) -> None:
    """What megatron-core's builder writes of these documents."""
    torch, indexed_dataset = megatron
    builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=modes)
    for document in documents:
        for mode, part in document.parts:
            builder.add_item(torch.from_numpy(part.astype(np.int64)), mode if modes else 0)
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


FITTING = [
    (name, dtype)
    for name in NAMES
    for dtype in (np.uint8, np.uint16, np.int32)
    if domain(name).vocab_size <= np.iinfo(dtype).max + 1
]


@pytest.mark.parametrize(("name", "dtype"), FITTING)
def test_we_read_megatrons_multimodal_shards(tmp_path, megatron, name, dtype):
    here = domain(name)
    documents = few(here)
    their_shard(megatron, tmp_path / "x", documents, dtype, modes=True)
    dataset = TokenDataset(tmp_path / "x", "train", domain=name)
    tokens, kinds = in_rows(here, documents)
    assert dataset.num_rows == len(tokens) > 1
    for rows in (np.arange(dataset.num_rows), np.array([1, 0, 1])):
        batch = dataset.rows(rows)
        assert batch.tokens.dtype == dtype
        assert np.array_equal(batch.tokens, tokens[rows])
        assert np.array_equal(batch.kinds, kinds[rows])


@pytest.mark.parametrize("name", [name for name in NAMES if len(domain(name).kinds) == 1])
def test_we_read_megatrons_text_shards(tmp_path, megatron, name):
    """Without modes, as most of its shards are: fine where there is only one kind of token."""
    documents = few(domain(name))
    their_shard(megatron, tmp_path / "x", documents, np.int32, modes=False)
    dataset = TokenDataset(tmp_path / "x", "train", domain=name)
    tokens, _ = in_rows(domain(name), documents)
    assert np.array_equal(dataset.rows(np.arange(dataset.num_rows)).tokens, tokens)


@pytest.mark.parametrize("name", [name for name in NAMES if len(domain(name).kinds) > 1])
def test_shards_that_lack_the_kinds_are_refused(tmp_path, megatron, name):
    their_shard(megatron, tmp_path / "x", few(domain(name)), np.uint16, modes=False)
    with pytest.raises(
        ValueError, match=f"uint16, without modes; wanted uint16 with modes for domain {name}"
    ):
        TokenDataset(tmp_path / "x", "train", domain=name)


# --- what its reader and writer do not notice


def test_documents_that_are_no_rows_are_refused(tmp_path, megatron):
    """Their number and sum are right, but one is shorter and one longer than a row."""
    here = domain("text-to-image-v300")
    good = random_documents(here, 4)
    stream = np.full(4 * here.seq_length, here.kinds[0].start)
    cuts = np.cumsum(
        [0, here.seq_length, here.seq_length - 1, here.seq_length + 1, here.seq_length]
    )
    bad = [
        Document(each.key, ((0, stream[start:stop]),))
        for each, start, stop in zip(good, cuts, cuts[1:], strict=False)
    ]
    their_shard(megatron, tmp_path / "x", bad, np.uint16, modes=True)
    with pytest.raises(ValueError, match=r"x\.idx: document 1 has 3199 tokens; wanted 3200"):
        TokenDataset(tmp_path / "x", "train", domain=here.name)


@pytest.mark.parametrize("name", NAMES)
def test_a_bin_shorter_or_longer_than_its_idx_is_refused(tmp_path, megatron, name):
    here = domain(name)
    their_shard(megatron, tmp_path / "x", few(here), here.dtype.type, modes=True)
    path = tmp_path / "x.bin"
    whole = path.read_bytes()
    for data in (whole[:-1], whole[: len(whole) // 2], whole + b"\0" * here.dtype.itemsize, b""):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.(bin|idx): "):
            TokenDataset(tmp_path / "x", "train", domain=name)


@pytest.mark.parametrize("name", NAMES)
def test_ids_out_of_range_are_refused_when_read(tmp_path, megatron, name):
    """An int32 shard has room for every id; the last row holds the start token, which no data may."""
    here = domain(name)
    documents = few(here)
    if here.packed:
        documents = [*documents, *random_documents(here, 20, seed=4)]
    tokens, _ = in_rows(here, documents)
    bad = len(tokens) - 1
    where = bad * here.seq_length
    for value in (here.vocab_size, -1):
        changed, offset = [], 0
        for document in documents:
            parts = []
            for mode, ids in document.parts:
                ids = ids.copy()
                if offset <= where < offset + ids.size:
                    ids[where - offset] = value
                offset += ids.size
                parts.append((mode, ids))
            changed.append(Document(document.key, tuple(parts)))
        their_shard(megatron, tmp_path / "x", changed, np.int32, modes=True)
        dataset = TokenDataset(tmp_path / "x", "train", domain=name)
        assert np.array_equal(dataset.rows(np.array([0])).tokens[0], tokens[0])
        with pytest.raises(
            ValueError, match=rf"token ids from -?\d+ to \d+; wanted 0 to {here.vocab_size - 1} "
        ):
            dataset.rows(np.array([bad]))


@pytest.mark.parametrize("name", NAMES)
def test_ids_that_would_overflow_are_refused_when_written(tmp_path, name):
    """Megatron's builder stores 70,000 as 4,464 in a uint16 file and says nothing."""
    here = domain(name)
    for mode, kind in enumerate(here.kinds):
        for value in (kind.stop, kind.start - 1, kind.start + (1 << 8 * here.dtype.itemsize)):
            ids = np.full(here.seq_length, kind.start, np.int64)
            ids[-1] = value
            with (
                pytest.raises(ValueError, match=f"{kind.kind} ids from -?[0-9]+ to [0-9]+; wanted"),
                ShardWriter(tmp_path / "x", here) as writer,
            ):
                add_document(writer, Document("bad", ((mode, ids),)))
            assert not any(tmp_path.iterdir())
