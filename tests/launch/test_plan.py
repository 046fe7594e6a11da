"""The disk that is planned for a run, against the files that are written."""

import numpy as np
import pytest

from launch.plan import disk_bytes, kept_checkpoints, measured_bytes
from launch.results import COUNT_NAMES, NOISE_COLUMNS, TRAIN_COLUMNS, ResultWriter
from launch.study import expand, load_study

STUDY = """
name = "s"
question = "?"
domain = "{domain}"
budget.tokens = {tokens}
optimizer.learning_rate = 0.001
evaluation.splits = {splits}
[[ladder]]
num_layers = 2
hidden_size = 64
"""


def run_of(tmp_path, domain, tokens="1e6", splits='["valid"]'):
    path = tmp_path / "s.toml"
    path.write_text(STUDY.format(domain=domain, tokens=tokens, splits=splits))
    (run,) = expand(load_study(path), path)
    return run


@pytest.mark.parametrize("domain", ["image-8x8", "mathematics", "text", "image-32x32"])
@pytest.mark.parametrize("splits", ['["valid"]', '["train", "valid", "test"]'])
def test_a_file_of_measurements_is_no_larger_than_planned(tmp_path, domain, splits):
    """With every table that a run may have; nor is it much smaller, so that a disk is not refused for nothing."""
    run = run_of(tmp_path, domain, splits=splits)
    writer = ResultWriter(
        tmp_path,
        config=run.model_dump(mode="json"),
        provenance={"host": "h" * 500},
        counts=dict.fromkeys(COUNT_NAMES, 1.0),
        seq_length=run.shape.seq_length,
    )
    places = np.zeros(run.shape.seq_length)
    with writer:
        for step in range(run.train_steps):
            writer.train(**dict.fromkeys(TRAIN_COLUMNS.names, step))
            writer.noise(**dict.fromkeys(NOISE_COLUMNS.names, step))
        for step in run.evaluation_steps():
            for split in run.evaluation.splits:
                writer.eval_position(split, step, places, places)
                row = dict.fromkeys(("step", "tokens", "num_tokens", "num_rows"), step)
                row |= dict.fromkeys(("flops", "flops_exact", "loss", "standard_error"), 1.0)
                writer.eval([row | {"split": split, "kind": "loss"}] * 5)
    written = (tmp_path / "metrics.h5").stat().st_size
    assert written <= measured_bytes(run) <= 2 * written


def test_the_disk_of_a_run_by_hand(tmp_path):
    """Checkpoints, one more while it is written, each with a copy of the measurements."""
    run = run_of(tmp_path, "text")
    assert kept_checkpoints(run) == run.checkpoint.keep_last == 2
    state = 14 * run.shape.params_total + 10_000 + 2 * 16_000
    assert disk_bytes(run) == 3 * (state + measured_bytes(run)) + measured_bytes(run)
    every = run.checkpoint.model_copy(update={"keep_every": 10})
    more = run.model_copy(update={"checkpoint": every})
    assert kept_checkpoints(more) == 2 + run.train_steps // 10
