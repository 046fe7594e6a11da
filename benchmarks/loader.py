"""How fast rows come out of shards, beside megatron-core's reader: `python -m benchmarks.loader`.

Prints a Markdown table: tokens per second of CPU time, of random rows for pictures (192 tokens, one document a row) and
packed mathematics (512 tokens, with the kind of each token), batches of 4, 32 and 256, ours and megatron-core's
`IndexedDataset.get` on the same files in turn; then the time to the first batch of 100 billion tokens (sparse files)
and the growth of private memory over many batches. Needs about 200 MB of disk; the sparse files take none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.dataset import TokenDataset
from data_prep.domain import Domain, domain
from data_prep.manifest import ShardRecord, new_manifest, save_manifest
from data_prep.shards import CODES, HEADER, MAGIC, ShardWriter

BATCHES = (4, 32, 256)
SPARSE_TOKENS = 10**11
# As many documents as a shard of `build` holds.
SPARSE_ROWS = 1 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="how long to run each case, each time"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="times each case is run, in turn; the median counts"
    )
    parser.add_argument(
        "--memory-batches", type=int, default=100_000, help="batches over which memory is watched"
    )
    parser.add_argument("--no-peer", action="store_true", help="leave megatron-core out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loader-") as scratch:
        _print_rates(Path(scratch), options)
        _print_sparse(Path(scratch), options.memory_batches)


def _print_rates(scratch: Path, options: argparse.Namespace) -> None:
    images = write_images(scratch / "image", domain("image-8x8"), 200_000)
    problems = write_problems(scratch / "mathematics", domain("mathematics"), 400_000)
    print(
        "| rows | batch | ours, M tokens/s | megatron-core `get`, M tokens/s | ratio |\n|---|---:|---:|---:|---:|"
    )
    for name, prefix in (("image-8x8", images), ("mathematics", problems)):
        dataset = TokenDataset(prefix, "train", domain=name)
        peer = None if options.no_peer else megatron_peer(prefix, dataset)
        for batch in BATCHES:
            ours, theirs = _alternate(dataset, peer, batch, options.seconds, options.repeats)
            shown = f"{theirs / 1e6:.1f} | {ours / theirs:.1f}x" if theirs else "- | -"
            print(f"| {name} | {batch} | {ours / 1e6:.1f} | {shown} |")


def _alternate(
    dataset: TokenDataset,
    peer: Callable[[np.ndarray], object] | None,
    batch: int,
    seconds: float,
    repeats: int,
) -> tuple[float, float]:
    """Median tokens/s of ours and of the peer (0.0 without one), run in turn."""
    ours, theirs = [], [0.0]
    for repeat in range(repeats):
        indices = np.random.default_rng(repeat).integers(0, dataset.num_rows, (4096, batch))
        ours.append(_rate(dataset.rows, indices, seconds) * dataset.domain.seq_length)
        if peer is not None:
            theirs.append(_rate(peer, indices, seconds) * dataset.domain.seq_length)
    return float(np.median(ours)), float(np.median(theirs[1:] or theirs))


def _rate(read: Callable[[np.ndarray], object], indices: np.ndarray, seconds: float) -> float:
    """Rows per second of CPU time (user and kernel): all data is in the page cache, so nothing else is waited for."""
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds:
        read(indices[done % len(indices)])
        done += 1
    return done * indices.shape[1] / (time.process_time() - start)


def megatron_peer(prefix: Path, dataset: TokenDataset) -> Callable[[np.ndarray], object]:
    """megatron-core reading the same rows: `get` of a sequence, or of the stretch of tokens that a packed row is.

    It knows no packed rows by itself; the sequence that a row starts in comes from np.searchsorted on pointers in
    memory, and then `get` is called for each sequence of the row, as its GPTDataset does.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    indexed = IndexedDataset(str(prefix), multimodal=True)
    length = dataset.domain.seq_length
    if not dataset.domain.packed:
        return lambda rows: np.stack([indexed.get(int(row))[0] for row in rows])
    starts = np.concatenate([[0], np.cumsum(indexed.index.sequence_lengths, dtype=np.int64)])

    def packed(rows: np.ndarray) -> np.ndarray:
        found = []
        for row in rows:
            first, stop = int(row) * length, (int(row) + 1) * length
            low, high = np.searchsorted(starts, [first, stop - 1], side="right") - 1
            pieces, kinds = [], []
            for number in range(low, high + 1):
                tokens, mode = indexed.get(
                    number,
                    max(0, first - starts[number]),
                    min(stop, starts[number + 1]) - max(first, starts[number]),
                )
                pieces.append(tokens)
                kinds.append(np.full(len(tokens), mode))
            found.append((np.concatenate(pieces), np.concatenate(kinds)))
        return np.stack([tokens for tokens, _ in found]), np.stack([kinds for _, kinds in found])

    return packed


def write_images(prefix: Path, here: Domain, rows: int) -> Path:
    tokens = np.random.default_rng(0).integers(0, 256, rows * here.seq_length, dtype=np.uint8)
    ones = np.ones(rows, np.int64)
    with ShardWriter(prefix, here) as writer:
        writer.add_block(tokens, ones * here.seq_length, ones * 0, ones)
    return prefix


def write_problems(prefix: Path, here: Domain, problems: int) -> Path:
    """Random problems with the generator's mean lengths: questions of 67 bytes, answers of 7."""
    random = np.random.default_rng(0)
    lengths = np.stack(
        [random.integers(10, 125, problems), random.integers(2, 12, problems)], axis=1
    ).reshape(-1)
    tokens = random.integers(32, 127, int(lengths.sum()), dtype=np.uint8)
    with ShardWriter(prefix, here) as writer:
        writer.add_block(tokens, lengths, np.tile([0, 1], problems), np.full(problems, 2))
    return prefix


def _print_sparse(scratch: Path, batches: int) -> None:
    """Time to the first batch, in a fresh process, and memory growth, over 100 billion tokens of holes."""
    folder = scratch / "sparse"
    folder.mkdir()
    shards = write_sparse(folder, domain("image-8x8"), SPARSE_TOKENS)
    program = (
        "import sys; from benchmarks.loader import watch; watch(sys.argv[1], int(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", program, str(folder), str(batches)]
    start = time.perf_counter()
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    found["start_up"] = time.perf_counter() - start - found["watched"]
    print(f"\n| {SPARSE_TOKENS:.0e} tokens in {shards} shards | |\n|---|---:|")
    print(f"| process start to first batch of 32 | {found['start_up']:.2f} s |")
    print(f"| of which opening and reading it | {found['first']:.2f} s |")
    print(
        f"| random batches of 32 afterwards, over all shards | {found['rate'] / 1e6:.1f} M tokens/s |"
    )
    print(f"| growth of private memory over {batches:,} batches | {found['growth'] / 1e6:.1f} MB |")


def write_sparse(folder: Path, here: Domain, tokens: int) -> int:
    """A dataset of `tokens` zeros that takes no disk: files with holes, but right headers, first and last entries."""
    rows = tokens // here.seq_length
    records = []
    for number, start in enumerate(range(0, rows, SPARSE_ROWS)):
        count = min(SPARSE_ROWS, rows - start)
        prefix, size = folder / f"train-{number:05d}", count * here.seq_length * here.dtype.itemsize
        with open(f"{prefix}.bin", "wb") as stream:
            stream.truncate(size)
        with open(f"{prefix}.idx", "wb") as stream:
            idx_size = HEADER.size + 12 * count + 8 * (count + 1) + count
            stream.truncate(idx_size)
            stream.write(HEADER.pack(MAGIC, 1, CODES[here.dtype], count, count + 1))
            for place, value, width in (
                (HEADER.size, here.seq_length, 4),
                (HEADER.size + 4 * (count - 1), here.seq_length, 4),
                (HEADER.size + 12 * count - 8, size - here.seq_length * here.dtype.itemsize, 8),
                (HEADER.size + 12 * count + 8 * count, count, 8),
            ):
                stream.seek(place)
                stream.write(value.to_bytes(width, "little"))
        records.append(ShardRecord(
            file=prefix.name, sequences=count, documents=count, tokens=count * here.seq_length, rows=count,
            dropped_tokens=0, bin_bytes=size, idx_bytes=idx_size, bin_sha256="0" * 64, idx_sha256="0" * 64,
        ))  # fmt: skip
    save_manifest(
        folder, new_manifest(here).model_copy(update={"splits": {"train": tuple(records)}})
    )
    return len(records)


def watch(folder: str, batches: int) -> None:
    """In a process of its own: open, read, and print what it took as JSON."""
    start = time.perf_counter()
    dataset = TokenDataset(folder, "train")
    random = np.random.default_rng(0)
    dataset.rows(random.integers(0, dataset.num_rows, 32))
    first = time.perf_counter() - start
    for _ in range(
        min(1000, batches)
    ):  # every cache and allocator pool fills up before the count begins
        dataset.rows(random.integers(0, dataset.num_rows, 32))
    before, begin = private_bytes(), time.process_time()
    for _ in range(batches):
        dataset.rows(random.integers(0, dataset.num_rows, 32))
    rate = batches * 32 * dataset.domain.seq_length / (time.process_time() - begin)
    growth = private_bytes() - before
    watched = time.perf_counter() - start - first
    print(json.dumps({"first": first, "rate": rate, "growth": growth, "watched": watched}))


def private_bytes() -> int:
    """This process's own memory: dirty and anonymous pages, not what it merely maps of files."""
    lines = Path(f"/proc/{os.getpid()}/smaps_rollup").read_text().splitlines()
    fields = {line.split(":")[0]: line.split() for line in lines[1:]}
    return int(fields["Private_Dirty"][1]) * 1024


if __name__ == "__main__":
    main()
