"""`RunConfig`: its identity, its file, and when it evaluates."""

import json

import pytest

from launch.config import load_config, refuse_other_config, save_config
from launch.exits import DONE, FAILED, STOPPED
from tests.launch.small import STEP, config

# Changes with any change of what a configuration holds or how it is hashed: then every run of
# everybody is another run. Change it on purpose only.
GOLDEN = "image-8x8-L2-H32-9.22e3tok-s0-b18262"


def test_the_run_id_is_stable_and_readable():
    assert config().run_id == GOLDEN
    assert config().digest[:6] == "b18262"
    assert len(config().digest) == 64
    assert "-2e6tok-s0-" in config(budget={"tokens": 2e6}).run_id


@pytest.mark.parametrize(
    "change",
    [
        {"study": "other"},
        {"question": "Why?"},
        {"parallel": {"zero_stage": 1}},
        {"parallel": {"train_micro_batch_size_per_gpu": 1}},
        {"checkpoint": {"interval_minutes": 1.0, "keep_last": 9}},
        {"guards": {"non_finite": "skip", "hang_minutes": 1.0}},
        {"trunk": {"run_id": "x", "step": 3}},
        {"keep_steps": [1, 2]},
        {"variant": "other"},
    ],
)
def test_where_and_how_a_run_is_done_is_not_its_identity(change):
    assert changed(change).digest == config().digest


@pytest.mark.parametrize(
    "change",
    [
        {"domain": "image-16x16"}, {"tokens": 2 * STEP}, {"seed": 1}, {"precision": "bf16"},
        *({"shape": {name: 7}} for name in (
            "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels",
            "seq_length", "vocab_size")),
        {"batch": {"train_batch_size": 8}},
        *({"optimizer": {name: 0.5}} for name in (
            "learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "clip_grad_norm")),
        {"schedule": {"kind": "cosine"}}, {"schedule": {"warmup_steps": 1}},
        {"schedule": {"warmup_steps": None, "warmup_tokens": 5.0}}, {"schedule": {"final_fraction": 0.0}},
        {"schedule": {"cooldown_fraction": 0.5}},
        {"blend": [{"name": "one", "weight": 1.0}]}, {"data": {"unique_tokens": 1920}},
        {"data": {"blanked": {"part": "text", "share": 0.5}}}, {"loss": {"weights": {"pixel": 2.0}}},
        {"start": {"study": "before"}}, {"start": {"study": "before", "variant": "one"}},
        {"model": {"family": "kaplan"}}, {"model": {"init_std": 0.1}}, {"model": {"dropout": 0.1}},
        {"evaluation": {"rows": 4}}, {"evaluation": {"points_per_decade": 4}}, {"evaluation": {"splits": ["test"]}},
    ],
    ids=str,
)  # fmt: skip
def test_everything_else_is(change):
    assert changed(change).digest != config().digest


def test_new_choices_that_are_not_made_leave_older_names_as_they_were():
    """Golden ids, of runs made before `[start]`, `[loss]`, dropout and blanks existed."""
    subset = changed({"data": {"unique_tokens": 1920, "blanked": None}})
    assert subset.digest[:12] == "3958cf99b5e2"
    blend = changed({"blend": [{"name": "one", "weight": 1.0}]})
    assert blend.digest[:12] == "79d04ec9c9b8"


def changed(change):
    """The small configuration with some values of its tables replaced, validated anew."""
    tables = config().model_dump(mode="json")
    for name, value in change.items():
        old = tables[name]
        tables[name] = {**old, **value} if isinstance(value, dict) and old else value
    return type(config()).model_validate_json(json.dumps(tables))


def test_every_field_is_covered_by_the_two_tests_above():
    where = {
        "study",
        "question",
        "parallel",
        "checkpoint",
        "guards",
        "trunk",
        "keep_steps",
        "variant",
    }
    what = {"domain", "tokens", "seed", "precision", "shape", "batch", "optimizer", "schedule",
            "model", "evaluation", "blend", "data", "loss", "start"}  # fmt: skip
    assert set(type(config()).model_fields) == where | what


def test_a_saved_configuration_is_read_back_equal(tmp_path):
    run = config(optimizer={"learning_rate": 0.1 + 0.2}, schedule={"warmup_tokens": 1 / 3})
    save_config(run, tmp_path / "new")
    assert load_config(tmp_path / "new") == run
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\x89PNG\r\n", b'{"study": 3}', b"[" * 100_000, b"x = 1\n"],
)
def test_a_damaged_config_file_is_named(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="not the configuration of a run") as error:
        load_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "Move the run folder away and run it again." in str(error.value)


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file; wanted a run folder") as error:
        load_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_another_configuration_is_refused_with_both_values(tmp_path):
    refuse_other_config(config(), tmp_path)  # nothing there: nothing to refuse
    save_config(config(), tmp_path)
    refuse_other_config(config(), tmp_path)
    refuse_other_config(config(parallel={"zero_stage": 1}), tmp_path)
    with pytest.raises(ValueError, match="another configuration") as error:
        refuse_other_config(config(seeds=[3], precision="bf16"), tmp_path)
    assert "seed is 0 there and 3 here" in str(error.value)
    assert "precision is 'fp32' there and 'bf16' here" in str(error.value)
    assert "domain" not in str(error.value), "what is equal is not listed"


def evaluated(steps, per_decade, warmup):
    run = config(
        steps,
        evaluation={"points_per_decade": per_decade},
        schedule={"kind": "linear", "warmup_steps": warmup},
    )
    return run.evaluation_steps()


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 17, 100, 1000, 54_321])
@pytest.mark.parametrize("per_decade", [1, 3, 8, 100])
@pytest.mark.parametrize("warmup", [0, 1, 50, 3000])
def test_evaluations_are_even_in_log_tokens_and_include_the_last_step(steps, per_decade, warmup):
    if warmup >= steps:
        return
    found = evaluated(steps, per_decade, warmup)
    assert found[-1] == steps
    assert found == sorted(set(found))
    assert all(step >= max(10, warmup) for step in found[:-1])
    nearest = {round(10 ** (place / per_decade)) for place in range(per_decade * 6)}
    assert set(found[:-1]) <= nearest
    assert {step for step in nearest if max(10, warmup) <= step < steps} <= set(found), (
        "none is left out"
    )


@pytest.mark.parametrize("warmup", [0, 30])
def test_runs_that_share_a_beginning_are_evaluated_at_the_same_steps_of_it(warmup):
    long = evaluated(10_000, 8, warmup)
    for steps in (31, 100, 555, 9_999):
        assert evaluated(steps, 8, warmup)[:-1] == [step for step in long if step < steps]


def test_a_checkpoint_that_is_kept_for_good_is_evaluated():
    run = config(
        1000,
        checkpoint={"keep_every": 123},
        evaluation={"points_per_decade": 8},
        schedule={"kind": "linear", "warmup_steps": 200},
    )
    assert {246, 369, 492, 615, 738, 861, 984} < set(run.evaluation_steps())
    assert 123 not in run.evaluation_steps(), "during the warm-up no run is"
    assert set(evaluated(1000, 8, 200)) < set(run.evaluation_steps())


def test_the_exit_statuses_are_what_the_help_says():
    assert (DONE, FAILED, STOPPED) == (0, 1, 3)
