"""One run, and several runs in one process: what they learn, and what they may not depend on."""

import json
import math

import numpy as np
import pytest
import torch

from launch.batches import TrainingBatches, open_dataset
from launch.checkpoint import newest
from launch.config import load_config
from launch.folder import run_folder
from launch.results import read_result
from launch.run import run_all
from megatron_ext.model import build_model
from tests.launch.small import BATCH, STEP, assert_same_bits, config, expanded

CPU = torch.device("cpu")
SINGLE = 2.0**-24  # unit round-off of float32


def test_the_loss_falls_and_is_recorded_in_full(alone, pictures):
    run = config(40)
    result = alone(run)
    train, final = result.train, result.eval_rows("valid")[-1]
    assert result.finished
    assert load_config(result.path.parent).digest == run.digest
    # An untrained model knows nothing: ln 256 nats, up to the spread of its small random logits.
    assert train["loss"][0] == pytest.approx(math.log(256), abs=0.1)
    # The pictures are a ramp plus noise of 40 values: about ln 40 = 3.7 nats can be reached.
    assert train["loss"][-1] < train["loss"][0] - 0.5
    assert final["loss"] < math.log(256) - 0.5
    assert train["step"].tolist() == list(range(1, 41))
    assert train["tokens"].tolist() == [STEP * step for step in range(1, 41)]
    assert train["samples"].tolist() == [BATCH * step for step in range(1, 41)]
    np.testing.assert_array_equal(train["flops"], run.shape.flops_per_token_6nd * train["tokens"])
    assert train["flops_exact"][-1] == run.flops_exact
    assert (train["grad_norm"] > 0).all()
    assert sorted(set(result.eval["step"])) == run.evaluation_steps()
    assert (final["num_rows"], final["num_tokens"]) == (8, 8 * 192)
    position = result.eval_position["valid"]
    # float32 storage of each position's mean; then a mean of 192 of them.
    assert position["loss"][-1].mean() == pytest.approx(final["loss"], rel=2 * SINGLE)
    assert result.counts["params_non_embedding"] == run.shape.params_non_embedding


def test_mathematics_counts_answers_alone(alone, mathematics):
    tables = {"domain": "mathematics", "budget": {"tokens": 6.0 * BATCH * 512}}
    result = alone(config(**tables))
    last = result.eval[result.eval["step"] == result.eval["step"].max()]
    by_kind = {row["kind"].decode(): row for row in last}
    assert set(by_kind) == {"loss", "question", "answer"}
    assert by_kind["loss"]["num_tokens"] == by_kind["answer"]["num_tokens"]
    assert by_kind["question"]["num_tokens"] + by_kind["answer"]["num_tokens"] == 8 * 512
    assert by_kind["loss"]["loss"] == pytest.approx(by_kind["answer"]["loss"], rel=1e-12)
    assert result.train["loss"][-1] < result.train["loss"][0] - 0.5


@pytest.mark.parametrize(
    "tables", [{}, {"domain": "mathematics", "budget": {"tokens": 8.0 * BATCH * 512}}]
)
@pytest.mark.parametrize("stage", [0, 1])
def test_micro_batches_change_rounding_only(tables, stage, alone):
    """Splitting a batch reorders float32 sums; nothing else.

    A sum of n numbers taken in two orders differs by at most 2 n u of the sum of magnitudes, with
    u = 2^-24. The loss of a step sums n = 4 x 512 positive numbers at most, the gradient as many
    per weight. Later steps inherit the difference of all steps before them.
    """
    runs = [
        config(8, **tables, parallel={"zero_stage": stage, "train_micro_batch_size_per_gpu": size})
        for size in (4, 2, 1)
    ]
    whole, *parts = [alone(run).train for run in runs]
    bound = 2 * (4 * 512) * SINGLE * np.arange(1, 9)
    for part in parts:
        for name in ("loss", "grad_norm"):
            assert (abs(part[name] / whole[name] - 1) <= bound).all(), name


@pytest.mark.parametrize(
    "tables", [{}, {"domain": "mathematics", "budget": {"tokens": 8.0 * BATCH * 512}}]
)
def test_deepspeed_trains_as_plain_pytorch_does(tables, alone, pictures, mathematics):
    """The same model, batches and AdamW in a loop of ten lines; losses and norms as above.

    The loss is one mean over the counted tokens of the batch, the norm that of its gradient.
    """
    run = config(8, **tables, optimizer={"learning_rate": 3e-3, "weight_decay": 30.0})
    result = alone(run)
    torch.manual_seed(99)  # whatever came before
    model = build_model(run.shape, seed=run.seed, init_std=run.model.init_std, device=CPU)
    matrices, vectors = (
        [p for p in model.parameters() if (p.ndim > 1) == two] for two in (True, False)
    )
    groups = [{"params": matrices, "weight_decay": 30.0}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    data = mathematics if tables else pictures
    batches = TrainingBatches(open_dataset(data, "train", run), run, 0, 1)
    for step, row in enumerate(result.train):
        batch = batches.at(step, CPU)
        for group in optimizer.param_groups:
            group["lr"] = row["learning_rate"]
        loss = torch.nn.functional.cross_entropy(*model.logits(batch.tokens, batch.counted))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bound = 2 * (4 * 512) * SINGLE * (step + 1)
        assert row["loss"] == pytest.approx(loss.item(), rel=bound)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=bound)


@pytest.mark.parametrize("decay", [0.0, 30.0])
def test_precision_and_zero_stage_agree(decay, alone):
    """The same run in fp32 and bf16, with ZeRO 0 and 1. ZeRO 1 sums in another order, see above.

    A bf16 number carries a relative error of 2^-9. Logits of so young a model spread over less than
    1, so each rounding moves a loss by less than 2^-9 nats; the mean over 768 tokens moves by less.
    """
    optimizer = {"learning_rate": 3e-3, "weight_decay": decay}
    losses = {
        (precision, stage): alone(
            config(precision=precision, parallel={"zero_stage": stage}, optimizer=optimizer)
        ).train["loss"]
        for precision in ("fp32", "bf16")
        for stage in (0, 1)
    }
    exact = losses["fp32", 0]
    np.testing.assert_allclose(losses["fp32", 1], exact, rtol=2 * (4 * 192) * SINGLE * 12)
    for stage in (0, 1):
        np.testing.assert_allclose(losses["bf16", stage], exact, atol=2.0**-9, err_msg=str(stage))
    assert not np.array_equal(losses["bf16", 1], exact), "bf16 was really used"


def test_runs_that_share_a_process_equal_runs_alone(alone, pictures, tmp_path):
    ladder = [{"num_layers": 1, "hidden_size": 16}, {"num_layers": 2, "hidden_size": 32}]
    runs = expanded(6, ladder=ladder, seeds=[0, 1])
    # Each alone first (remembered), then all after one another, the largest first.
    singles = [alone(run) for run in runs]
    assert run_all(runs[::-1], pictures, tmp_path) == 0
    for run, single in zip(runs, singles, strict=True):
        assert_same_bits(read_result(run_folder(tmp_path, run)), single)
    seeds = [single.train["loss"] for single in singles[:2]]
    assert not np.array_equal(*seeds), "another seed is another run"


def test_a_branch_from_its_trunk_equals_the_run_from_scratch(alone, pictures, tmp_path):
    tables = {
        "budget": {"tokens": [20.0 * STEP, 40.0 * STEP]},
        "schedule": {"kind": "wsd", "warmup_steps": 3, "cooldown_fraction": 0.4},
    }
    short, trunk = expanded(**tables)
    assert (short.trunk.run_id, short.trunk.step) == (trunk.run_id, 12)
    assert trunk.keep_steps == [12]
    scratch = alone(short)
    assert scratch.eval["step"].min() < 12 < scratch.eval["step"].max()
    assert run_all([trunk, short], pictures, tmp_path) == 0
    branch = read_result(run_folder(tmp_path, short))
    assert [start["resumed_at_step"] for start in branch.provenance][-1] == 12
    assert_same_bits(branch, scratch)
    assert newest(run_folder(tmp_path, trunk), at_step=12) is not None, "kept for later branches"
    assert_same_bits(read_result(run_folder(tmp_path, trunk)), alone(trunk))


def test_a_shorter_run_begun_before_its_trunk_goes_on_when_there_is_one(alone, pictures, tmp_path):
    """It had steps of its own but no checkpoint yet; now its trunk has a later one."""
    from tests.launch.small import train_until

    tables = {
        "budget": {"tokens": [10.0 * STEP, 20.0 * STEP]},
        "schedule": {"kind": "wsd", "warmup_steps": 3, "cooldown_fraction": 0.4},
    }
    short, trunk = expanded(**tables)
    assert not train_until(short, pictures, tmp_path, step=2)
    folder = run_folder(tmp_path, short)
    for checkpoint in folder.glob("checkpoints/*"):
        checkpoint.rename(tmp_path / checkpoint.name)  # as if killed before the first
    assert run_all([trunk, short], pictures, tmp_path) == 0
    result = read_result(folder)
    np.testing.assert_array_equal(result.train["loss"], alone(short).train["loss"])


def test_a_loss_that_is_not_finite_fails_that_run_alone(alone, pictures, tmp_path, capfd):
    bad = config(8, optimizer={"learning_rate": 1e30}, schedule={"kind": "constant"})
    good = config(6)
    assert run_all([bad, good], pictures, tmp_path) == 1
    error = capfd.readouterr().err
    assert f"{bad.run_id}: FAILED: {bad.run_id}: step 2 has loss nan and gradient norm " in error
    assert "at learning rate 1e+30; wanted finite numbers" in error
    assert "Lower optimizer.learning_rate" in error
    assert "Traceback" not in error
    folder = run_folder(tmp_path, bad)
    reason = json.loads((folder / "failed.json").read_text())
    assert reason["error"].startswith(f"FloatingPointError: {bad.run_id}: step 2 has loss nan")
    broken = read_result(folder)
    assert not broken.finished
    assert len(broken.train) == 2
    assert_same_bits(read_result(run_folder(tmp_path, good)), alone(good))
    assert not (run_folder(tmp_path, good) / "failed.json").exists()


def test_a_failure_mark_goes_away_once_the_run_works(pictures, tmp_path):
    run = config(4)
    folder = run_folder(tmp_path, run)
    assert run_all([run], tmp_path / "missing", tmp_path) == 2
    assert (folder / "failed.json").exists()
    assert run_all([run], pictures, tmp_path) == 0
    assert not (folder / "failed.json").exists()


def test_batches_without_a_counted_token_are_refused_by_name(tmp_path, capfd):
    """A question longer than a row leaves rows in which nothing counts."""
    from tests.launch.conftest import build

    raw = tmp_path / "long.txt"
    raw.write_text("".join(f"{'What is it? ' * 600}{n}?\n{n}\n" for n in range(40)))
    data = build("mathematics", raw, tmp_path / "data")
    tables = {"domain": "mathematics", "batch": {"train_batch_size": 1}}
    runs = [config(**tables, budget={"tokens": 20.0 * 512}), config(4)]
    assert run_all(runs, data, tmp_path) == 2
    error = capfd.readouterr().err
    assert f"{runs[0].run_id}: FAILED" in error
    assert "Traceback" not in error
    assert f"{runs[1].run_id}: FAILED" in error, "it was tried: the data is of another domain"
