"""Random rows out of a shard, beside megatron-core's `IndexedDataset.get` on the same files.

Pictures of 8x8 (one sequence a row), packed mathematics (pieces of some 14 sequences a row) and caption pairs (three
sequences a row), each with the kind of every token.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.cases import Case
from benchmarks.loader import megatron_peer, write_images, write_problems
from data_prep.dataset import TokenDataset
from data_prep.domain import Domain, domain
from data_prep.shards import ShardWriter

_BATCHES = (32, 256)
# Batches in one call: far longer than the clock's grain.
_AT_ONCE = 20


def cases(scratch: Path) -> list[Case]:
    """Every kind of row in batches of 32 and 256."""
    shards = {
        "image-8x8": write_images(scratch / "images", domain("image-8x8"), 200_000),
        "mathematics": write_problems(scratch / "problems", domain("mathematics"), 400_000),
        "text-to-image": _write_pairs(scratch / "pairs", domain("text-to-image"), 8_000),
    }
    return [_case(name, prefix, batch) for name, prefix in shards.items() for batch in _BATCHES]


def _case(name: str, prefix: Path, batch: int) -> Case:
    dataset = TokenDataset(prefix, "train", domain=name)
    peer = (
        _pairs_peer(prefix, dataset) if name == "text-to-image" else megatron_peer(prefix, dataset)
    )
    rows = np.random.default_rng(0).integers(0, dataset.num_rows, (4096, batch))
    return Case(
        f"random rows of {name}, batch {batch}", "rows", 10.0,
        _reading(peer, rows), _reading(dataset.rows, rows),
    )  # fmt: skip


def _reading(read: Callable[[np.ndarray], object], rows: np.ndarray) -> Callable[[], int]:
    """The next batches of `rows` at each call, around and around."""
    batches = itertools.cycle(rows)

    def work() -> int:
        for batch in itertools.islice(batches, _AT_ONCE):
            read(batch)
        return _AT_ONCE * rows.shape[1]

    return work


def _pairs_peer(prefix: Path, dataset: TokenDataset) -> Callable[[np.ndarray], object]:
    """megatron-core reading documents of several sequences: `get` of each, then put together with their modes."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    indexed = IndexedDataset(str(prefix), multimodal=True)
    starts = indexed.document_indices.tolist()

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, kinds = [], []
        for row in rows.tolist():
            parts = [indexed.get(number) for number in range(starts[row], starts[row + 1])]
            tokens.append(np.concatenate([ids for ids, _ in parts]))
            kinds.append(np.repeat([mode for _, mode in parts], [len(ids) for ids, _ in parts]))
        return np.stack(tokens), np.stack(kinds)

    theirs, ours = read(np.arange(5)), dataset.rows(np.arange(5))
    assert np.array_equal(theirs[0], ours.tokens)
    assert np.array_equal(theirs[1], ours.kinds)
    return read


def _write_pairs(prefix: Path, here: Domain, rows: int) -> Path:
    """Random captions of 8 to 30 tokens, padding, random pictures."""
    random = np.random.default_rng(0)
    text, padding, pixel, _ = here.kinds
    captions = random.integers(8, 31, rows)
    tokens = random.integers(pixel.start, pixel.stop, (rows, here.seq_length)).astype(np.uint16)
    tokens[:, :128] = padding.start
    words = random.integers(text.start, text.stop, (rows, 128)).astype(np.uint16)
    mask = np.arange(128) < captions[:, None]
    tokens[:, :128][mask] = words[mask]
    lengths = np.stack([captions, 128 - captions, np.full(rows, here.seq_length - 128)], axis=1)
    with ShardWriter(prefix, here) as writer:
        writer.add_block(
            tokens.reshape(-1), lengths.reshape(-1), np.tile([0, 1, 2], rows), np.full(rows, 3)
        )
    return prefix
