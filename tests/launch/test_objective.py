"""What falls: plain means, weighted kinds, blanked parts; against plain autograd, for any micro-batches and ranks."""

import numpy as np
import pytest
import torch

from data_prep.__main__ import main as data_prep
from data_prep.domain import domain
from launch.batches import BLANKING_BLOCK, Batch, TrainingBatches, evaluation_batch, open_dataset
from launch.engine import Engine, start_process
from launch.folder import run_folder
from launch.results import read_result
from launch.run import run_all
from launch.strict import validate
from launch.study import Study, expand
from megatron_ext.model import build_model
from tests.launch.small import study

CPU = torch.device("cpu")
LENGTH, ROWS = 24, 16
SINGLE = 2.0**-24


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "pairs"
    words = ["build", "known-entropy-pairs", "--raw", "generator", "--rows", "600"]
    assert data_prep([*words, "--out", str(folder), "--workers", "1"]) == 0
    return folder


def config(steps: int = 4, **changes):
    tables = study(
        **{
            "domain": "known-entropy-pairs",
            "budget": {"tokens": float(steps * ROWS * LENGTH)},
            "batch": {"train_batch_size": ROWS},
            **changes,
        }
    )
    (run,) = expand(validate(Study, tables, "pairs.toml"), "pairs.toml")
    return run


def batches(run, data, rank=0, ranks=1):
    return TrainingBatches(open_dataset(data, "train", run), run, rank, ranks)


BLANKED = {"blanked": {"part": "left", "share": 0.5}}


def test_blanks_are_a_function_of_the_sample_alone(pairs):
    """Any number of ranks sees the same; the kept rows are those of the plain order."""
    run, plain = config(data=BLANKED), config()
    left, blank = domain(run.domain).kinds[0], domain(run.domain).kinds[1]
    for step in (0, 1, 50):
        whole, kept = batches(run, pairs).at(step, CPU), batches(plain, pairs).at(step, CPU)
        shared = [batches(run, pairs, rank, 4).at(step, CPU) for rank in range(4)]
        assert torch.equal(torch.cat([each.tokens for each in shared]), whole.tokens)
        assert torch.equal(torch.cat([each.kinds for each in shared]), whole.kinds)
        chosen = (whole.kinds == 1).any(1)
        assert 0 < chosen.sum() < ROWS
        assert torch.equal(whole.tokens[~chosen], kept.tokens[~chosen])
        assert (whole.tokens[chosen][:, :16] == blank.start).all()
        assert torch.equal(whole.tokens[chosen][:, 16:], kept.tokens[chosen][:, 16:])
        assert (kept.tokens[:, :16] < left.stop).all()
        assert whole.count == ROWS * LENGTH - 16 * chosen.sum(), "blanks are not in the loss"


def test_the_share_is_exact_and_another_seed_or_epoch_blanks_other_rows(pairs):
    steps = BLANKING_BLOCK // ROWS
    found = {}
    for seed in (0, 1):
        run = config(seeds=[seed], data={"blanked": {"part": "right", "share": 0.05}})
        reader = batches(run, pairs)
        kinds = torch.cat([reader.at(step, CPU).kinds for step in range(steps)])
        chosen = (kinds == 3).any(1).numpy()
        assert chosen.sum() == 0.05 * BLANKING_BLOCK
        found[seed] = chosen
    assert (found[0] & found[1]).mean() < 0.05 / 4, "independent ones: 0.05 squared"
    rows = 400  # less than an epoch and more than half: the same rows come again
    assert not np.array_equal(found[0][:rows], found[0][rows : 2 * rows])


def test_evaluations_are_never_blanked(pairs):
    run = config(data={"blanked": {"part": "left", "share": 1.0}})
    held_out = evaluation_batch(open_dataset(pairs, "valid", run), np.arange(8), CPU)
    assert (held_out.kinds == 0).any()
    assert (batches(run, pairs).at(0, CPU).kinds != 0).all()


WEIGHTS = {"weights": {"left": 1.0, "right": 9.0}}


def gradient(run, batch: Batch, weights: dict[int, float]) -> dict[str, torch.Tensor]:
    """By plain autograd: the weighted mean of the means of the kinds that the batch has."""
    model = build_model(run.shape, seed=run.seed, init_std=run.model.init_std, device=CPU)
    losses = model(batch.tokens).view(batch.tokens.T.shape).T
    means = {kind: losses[batch.kinds == kind].mean() for kind in weights}
    means = {kind: mean for kind, mean in means.items() if torch.isfinite(mean)}
    total = sum(weights[kind] for kind in means)
    sum(weights[kind] / total * mean for kind, mean in means.items()).backward()
    return model


@pytest.mark.parametrize("micro_batch", [4, 16])
@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_weights_are_of_the_means_of_kinds(share, stage, micro_batch, pairs):
    """Half or all of the left parts blanked: a kind that the batch has none of leaves its weight to the others."""
    parallel = {"train_micro_batch_size_per_gpu": micro_batch, "zero_stage": stage}
    data = {"blanked": {"part": "left", "share": share}} if share else {}
    run = config(loss=WEIGHTS, data=data, parallel=parallel)
    device = start_process()
    batch = batches(run, pairs).at(0, device)
    engine = Engine(run, device)
    result = engine.train_step(batch, 1e-3)
    engine.close()
    model = gradient(run, batch, {0: 1.0, 2: 9.0})
    wanted = torch.stack([p.grad.double().square().sum() for p in model.parameters()]).sum().sqrt()
    # Sums over the tokens of a batch in another order, through two layers and back
    assert result.grad_norm == pytest.approx(wanted.item(), rel=2 * ROWS * LENGTH * SINGLE)
    plain = model(batch.tokens, batch.counted).mean().item()
    assert result.loss == pytest.approx(plain, rel=2 * ROWS * LENGTH * SINGLE), "as ever: plain"


def test_a_weighted_run_reports_plain_losses(pairs, tmp_path):
    """The mean over all counted tokens is that of the kinds by their numbers, not by the weights."""
    run = config(12, loss=WEIGHTS, data=BLANKED, evaluation={"rows": 20})
    assert run_all([run], pairs, tmp_path) == 0
    result = read_result(run_folder(tmp_path, run))
    last = {kind: result.eval_rows("valid", kind)[-1] for kind in ("loss", "left", "right")}
    mean = (16 * last["left"]["loss"] + 8 * last["right"]["loss"]) / 24
    assert last["loss"]["loss"] == pytest.approx(mean, rel=1e-12)
    again = config(12, loss={"weights": {"left": 9.0, "right": 1.0}}, data=BLANKED)
    assert again.run_id != run.run_id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": {"weights": {"left": 1.0}}}, "loss.weights of left; wanted one for each kind of"),
        ({"loss": {"weights": {"image": 9.0, "left": 1.0}}}, "pairs: left, right. Give each a weight"),
        ({"loss": {"weights": {"left": 0.0, "right": 1.0}}}, "greater than 0"),
        ({"loss": {"weights": {"left": -1.0, "right": 1.0}}}, "greater than 0"),
        ({"data": {"blanked": {"part": "text", "share": 0.5}}}, "'text': wanted 'left' or 'right'"),
        ({"data": {"blanked": {"part": "left", "share": 0.0}}}, "greater than 0"),
        ({"data": {"blanked": {"part": "left", "share": 1.5}}}, "less than or equal to 1"),
        ({"data": {"blanked": {"part": "left"}}}, "share"),
        ({"domain": "image-8x8", "data": BLANKED}, "rows of domain image-8x8 are no pairs"),
        ({"start": {"study": "small"}}, "start.study = 'small' is this study itself; wanted another"),
        ({"start": {"study": "../elsewhere"}}, "start.study"),
        ({"start": {}}, "start.study"),
        ({"model": {"dropout": 1.0}}, "less than 1"),
        ({"model": {"dropout": -0.1}}, "greater than or equal to 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(ValueError, match="pairs.toml") as error:
        config(**change)
    assert words in str(error.value)
