"""Hostile .idx files: opening and reading gives an error that names the file, or the right tokens; never a crash.

The reading is done in a process of its own: a segmentation fault or a hang there is a failed test here.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.check import check_shard
from data_prep.dataset import TokenDataset
from data_prep.domain import Domain, domain
from data_prep.manifest import ShardRecord
from data_prep.shard_index import HEADER
from data_prep.shards import ShardWriter
from tests.data_prep.conftest import add_document
from tests.data_prep.test_interchange import in_rows, random_documents

ROOT = Path(__file__).parents[2]
# One kind and one part a row; packed with two kinds; four kinds and two bytes a token, several parts a row.
NAMES = ["image-8x8", "mathematics", "text-to-image-v300"]
SEED = 7


def write(prefix: Path, here: Domain) -> tuple[np.ndarray, np.ndarray, ShardRecord]:
    """A small shard; its rows of tokens and kinds, and its record."""
    documents = random_documents(here, 200 if here.packed else 30)
    with ShardWriter(prefix, here) as writer:
        for document in documents:
            add_document(writer, document)
    tokens, kinds = in_rows(here, documents)
    rest = writer.summary.tokens - tokens.size
    record = ShardRecord(**vars(writer.summary), rows=len(tokens), dropped_tokens=rest)
    return tokens, kinds, record


def mutate(good: bytes, random: np.random.Generator) -> bytes:
    """Random bytes anywhere, often in the header; sometimes cut off or grown."""
    data = bytearray(good)
    places = HEADER.size if random.random() < 0.5 else len(data)
    for place in random.integers(0, places, random.integers(1, 6)):
        data[place] = random.choice([0, 1, 127, 128, 255, random.integers(0, 256)])
    if random.random() < 0.2:
        return bytes(data[: random.integers(0, len(data))])
    return bytes(data) + bytes(int(random.integers(0, 40)) if random.random() < 0.1 else 0)


def read_back(prefix: Path, here: Domain, tokens: np.ndarray, kinds: np.ndarray | None) -> str:
    """What the reader complains of; "" if all its tokens are right, and all kinds where they are given."""
    try:
        dataset = TokenDataset(prefix, "train", domain=here.name)
        for rows in (np.arange(dataset.num_rows), np.array([dataset.num_rows - 1, 0])):
            batch = dataset.rows(rows)
            assert np.array_equal(batch.tokens, tokens[rows])
            assert batch.kinds.max() < len(here.kinds)
            assert kinds is None or np.array_equal(batch.kinds, kinds[rows])
    except ValueError as error:
        return str(error) or "nothing"
    return ""


def fuzz(folder: Path, name: str, times: int) -> dict[str, int]:
    """Counts of mutated files that were refused and that gave right tokens; run in a process of its own."""
    here = domain(name)
    tokens, kinds, record = write(folder / "x", here)
    index, data = folder / "x.idx", folder / "x.bin"
    good, good_data = index.read_bytes(), data.read_bytes()
    random = np.random.default_rng(SEED)
    counts = {"refused": 0, "right": 0}
    for number in range(times):
        print(number, file=sys.stderr, flush=True)  # the last one names the mutation that crashed
        changed = mutate(good, random)
        index.write_bytes(changed)
        said = read_back(folder / "x", here, tokens, kinds if changed == good else None)
        assert not said or "x.idx" in said or "x.bin" in said or "holds no full row" in said
        counts["refused" if said else "right"] += 1
        if changed != good:
            with pytest.raises(ValueError, match="x.idx"):
                check_shard(folder, record, here)
        if number % 10 == 0:  # the other file too: cut off or grown beside a good index
            index.write_bytes(good)
            cut = int(random.integers(0, len(good_data)))
            for other in (good_data[:cut], good_data + bytes(1 + cut)):
                data.write_bytes(other)
                said = read_back(folder / "x", here, tokens, kinds)
                assert "x.idx" in said or "x.bin" in said
            data.write_bytes(good_data)
    return counts


def fuzz_apart(folder: Path, name: str, times: int) -> None:
    program = (
        "import json, pathlib, sys; from tests.data_prep.test_fuzz import fuzz; "
        "print(json.dumps(fuzz(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))"
    )
    # Generous: a mutation takes milliseconds, and a hang is for ever.
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), name, str(times)],
        cwd=ROOT, capture_output=True, text=True, timeout=60 + times, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"mutation {done.stderr[-2000:]} ended with {done.returncode}"
    counts = json.loads(done.stdout)
    assert counts["refused"] + counts["right"] == times
    assert counts["refused"], "some mutations must be noticed"
    assert counts["right"], "some mutations are harmless to the reader"


@pytest.mark.parametrize("name", NAMES)
def test_mutated_indices(tmp_path, name):
    fuzz_apart(tmp_path, name, 400)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_many_mutated_indices(tmp_path, name):
    fuzz_apart(tmp_path, name, 5000)


def test_a_crash_is_a_failure(tmp_path):
    """Proof that this can fail: a reader that dies, in the place of ours."""
    program = f"import os; os.chdir({str(ROOT)!r}); import tests.data_prep.test_fuzz as f, pathlib, ctypes\n"
    program += f"f.read_back = lambda *_: ctypes.string_at(0)\nf.fuzz(pathlib.Path({str(tmp_path)!r}), 'image-8x8', 3)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)  # fmt: skip
    assert done.returncode < 0
