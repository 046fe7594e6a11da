"""The sources of known entropy: what they state, against enumeration and against what was built."""

import itertools

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.chunks import Chunk, make_chunk
from data_prep.dataset import TokenDataset
from data_prep.domain import Piece, domain, family
from data_prep.domains.known_entropy import blank, chain, pairs
from data_prep.known_sources import markov_source, pair_source
from data_prep.manifest import load_manifest
from data_prep.watch import Watch

CHAIN, PAIRS = domain("known-entropy"), domain("known-entropy-pairs")
# Five standard errors: one chance in two million that a right source fails.
LIMIT = 5.0


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    for name in (CHAIN.name, PAIRS.name):
        command = ["build", name, "--raw", "generator", "--rows", "9000", "--out", folder / name]
        assert main([*map(str, command), "--workers", "2", "--fractions", "0.8,0.1,0.1"]) == 0
    return folder


def rows_of(folder, split="train"):
    dataset = TokenDataset(folder, split)
    return dataset.rows(np.arange(dataset.num_rows))


# --- against enumeration


def enumerated(source, length):
    """Chances of all rows of a length, each a product along the row, from the eigenvector of the explicit matrix."""
    states = list(itertools.product(range(source.symbols), repeat=source.order))
    matrix = np.zeros((len(states), len(states)))
    for (row, state), symbol in itertools.product(enumerate(states), range(source.symbols)):
        matrix[row, states.index((*state[1:], symbol))] += source.transition[row, symbol]
    values, vectors = np.linalg.eig(matrix.T)
    first = np.real(vectors[:, np.argmax(np.real(values))])
    first /= first.sum()
    chances = {}
    for tokens in itertools.product(range(source.symbols), repeat=length):
        chance = first[states.index(tokens[: source.order])]
        for place in range(source.order, length):
            before = states.index(tokens[place - source.order : place])
            chance *= source.transition[before, tokens[place]]
        chances[tokens] = chance
    return chances


@pytest.mark.parametrize(("symbols", "order", "length"), [(2, 1, 6), (2, 3, 7), (3, 2, 5)])
def test_entropies_equal_those_of_all_rows_listed(symbols, order, length):
    source = markov_source(symbols, order, strength=1.3, decay=0.6, seed=7)
    chances = enumerated(source, length)
    blocks = [0.0]
    for stop in range(1, length + 1):
        joint: dict[tuple[int, ...], float] = {}
        for tokens, chance in chances.items():
            joint[tokens[:stop]] = joint.get(tokens[:stop], 0.0) + chance
        blocks.append(-sum(p * np.log(p) for p in joint.values()))
    # 1e-14 is how far the power iteration goes; logarithms of small chances make ten times that of it.
    np.testing.assert_allclose(source.position_entropies(length), np.diff(blocks), atol=1e-12)
    assert source.entropy_rate == pytest.approx(np.diff(blocks)[-1], abs=1e-12)
    tokens = np.array(list(chances))
    np.testing.assert_allclose(
        source.losses(tokens).sum(1), -np.log(list(chances.values())), atol=1e-10
    )


def test_the_shipped_chain_is_stationary_and_its_rate_that_of_its_blocks():
    source = chain()
    blocks = source.stationary[:, None] * source.transition  # all rows of 9 symbols
    later = np.zeros_like(source.stationary)
    np.add.at(later, np.arange(blocks.size) % len(later), blocks.reshape(-1))
    np.testing.assert_allclose(later, source.stationary, atol=1e-14)

    def entropy(chances):
        return -np.sum(chances * np.log(chances))

    rate = entropy(blocks) - entropy(source.stationary)
    # Sums of 262,144 terms that add up to about 9: rounding of 1e-16 each, as a random walk.
    assert source.entropy_rate == pytest.approx(rate, abs=1e-11)


def test_every_order_of_the_chain_tells_less_by_about_the_same_factor():
    """What makes the reducible loss a power law: the factor between orders lies in a narrow band."""
    source = chain()
    above = source.position_entropies(source.order)[1:] - source.entropy_rate
    exponents = -np.diff(np.log(above)) / np.log(source.symbols)
    assert ((exponents > 0.35) & (exponents < 0.6)).all()


@pytest.mark.parametrize("blocks", [(1,), (2,), (1, 2)])
def test_the_mutual_information_equals_that_of_all_pairs_listed(blocks):
    source = pair_source(3, blocks, noise=0.2, seed=5)
    lefts = np.array(list(itertools.product(range(3), repeat=sum(blocks))))
    rights = np.array(list(itertools.product(range(3), repeat=len(blocks))))
    joint = np.array([
        [np.exp(-source.right_losses(left[None], right[None]).sum()) for right in rights]
        for left in lefts
    ]) / len(lefts)  # fmt: skip
    assert joint.sum() == pytest.approx(1.0, abs=1e-12)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    shared = float(np.sum(joint * np.log(joint / apart)))
    assert source.mutual_information == pytest.approx(shared, abs=1e-12)


# --- against what was built


def within(values: np.ndarray, wanted: float) -> None:
    """The mean of independent values equals what is stated, within its own standard error."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - wanted) < LIMIT * error, (values.mean(), wanted, error)


def test_the_true_source_loses_on_the_built_rows_what_the_manifest_says(built):
    known = load_manifest(built / CHAIN.name).known
    losses = chain().losses(rows_of(built / CHAIN.name).tokens)
    within(losses.mean(1), known["loss"])
    within(losses[:, chain().order :].mean(1), known["entropy_rate"])
    for position, wanted in enumerate(known["position_loss"]):
        within(losses[:, position], wanted)


def test_built_pairs_share_what_the_manifest_says(built):
    known = load_manifest(built / PAIRS.name).known
    batch = rows_of(built / PAIRS.name)
    assert (batch.kinds[:, :16] == 0).all()
    assert (batch.kinds[:, 16:] == 2).all()
    left, right = batch.tokens[:, :16].astype(int), batch.tokens[:, 16:].astype(int) - 5
    losses = pairs().right_losses(left, right)
    within(losses.mean(1), known["right_loss"])
    alone = np.log(4)
    assert known["mutual_information"] == pytest.approx(8 * (alone - known["right_loss"]))
    for column in range(8):  # uniform, and independent of what is left of it
        for symbol in range(4):
            within((right[:, column] == symbol).astype(float), 0.25)
        if column:
            within((right[:, column] == right[:, column - 1]).astype(float), 0.25)
    total = left.shape[1] * alone + right.shape[1] * known["right_loss"]
    assert known["loss"] == pytest.approx(total / PAIRS.seq_length)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(built, tmp_path):
    for name, (workers, seed) in {"same": ("1", "0"), "other": ("1", "1")}.items():
        command = ["build", CHAIN.name, "--raw", "generator", "--rows", "9000", "--seed", seed]
        command += ["--fractions", "0.8,0.1,0.1", "--workers", workers]
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    first = load_manifest(built / CHAIN.name)
    assert load_manifest(tmp_path / "same").splits == first.splits
    assert load_manifest(tmp_path / "other").splits != first.splits
    assert first.builds[0].reproducible
    assert sum(first.rows(split) for split in first.splits) == 9000


def test_a_worker_that_died_changes_no_row(tmp_path):
    """The second attempt at a piece draws the same rows."""
    piece = Piece("generator", 0, 100)
    chunks = [Chunk(tmp_path / n, CHAIN.name, piece, "0 0 0", (("train", 1.0),)) for n in "ab"]
    for attempt, chunk in enumerate(chunks):
        make_chunk(chunk, Watch(attempt))
    first, second = (np.load(chunk.path)["0.train.tokens"] for chunk in chunks)
    np.testing.assert_array_equal(first, second)


def test_a_row_as_a_person_sees_it(built, capsys):
    assert main(["list"]) == 0
    assert "known-entropy-pairs" in capsys.readouterr().out
    for name, parts in ((CHAIN.name, [32]), (PAIRS.name, [16, 8])):
        assert main(["check", str(built / name)]) == 0
        capsys.readouterr()
        assert main(["show", str(built / name), "--row", "1"]) == 0
        shown = capsys.readouterr().out.split()
        assert [len(each) for each in shown] == parts
        assert set(shown[0]) <= set("abcd")


def test_a_blanked_half_keeps_the_other(built):
    batch = rows_of(built / PAIRS.name, "valid")
    for part, where, other in (
        ("left", slice(16), slice(16, None)),
        ("right", slice(16, None), slice(16)),
    ):
        tokens, kinds = blank(PAIRS, batch.tokens, batch.kinds, part)
        (mode,) = np.unique(kinds[:, where])
        assert not PAIRS.kinds[mode].in_loss
        assert (tokens[:, where] == PAIRS.kinds[mode].start).all()
        np.testing.assert_array_equal(tokens[:, other], batch.tokens[:, other])
        np.testing.assert_array_equal(kinds[:, other], batch.kinds[:, other])
    shown = family(PAIRS.name).render(PAIRS, tokens[0], kinds[0], None)
    assert shown.text.endswith(" ........")


# --- bad input


@pytest.mark.parametrize(
    ("raw", "more", "message"),
    [
        ("/data/x.txt", ["--rows", "5"], "--raw /data/x.txt: known-entropy is drawn from a source"),
        ("generator:easy", ["--rows", "5"], "wanted --raw generator. For instance"),
        ("generator", [], "--raw generator: --rows is None; wanted how many rows of 32 tokens"),
        ("generator", ["--rows", "0"], "--rows is 0; wanted how many rows"),
        ("generator", ["--rows", str(1 << 40)], "1 to 4294967296. Add for instance --rows 100000."),
        ("generator", ["--rows", "5", "--tokenizer", "x"], "domain known-entropy takes none"),
    ],
)
def test_bad_input_is_refused(tmp_path, capsys, raw, more, message):
    out = tmp_path / "out"
    assert main(["build", CHAIN.name, "--raw", raw, "--out", str(out), *more]) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_blanked_is_refused():
    tokens = np.zeros((2, 24), np.uint8)
    with pytest.raises(ValueError, match=r"part = 'top': wanted 'left' or 'right'.*Pass one"):
        blank(PAIRS, tokens, tokens, "top")
    with pytest.raises(ValueError, match=r"tokens \(2, 23\), kinds \(2, 24\): wanted \[B, 24\]"):
        blank(PAIRS, tokens[:, 1:], tokens, "left")
