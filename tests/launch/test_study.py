"""Study files: strict, all problems at once, and what they expand to."""

import re
from pathlib import Path

import pytest

import launch
from launch.schedule import LEARNING_RATE_RULES
from launch.strict import validate
from launch.study import Study, expand, load_study
from tests.launch.small import STEP, config, expanded, study, write_study

STUDIES = sorted((Path(launch.__file__).parent / "studies").glob("*.toml"))


def refused(path: Path, tables: dict) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole text is looked at)
        expand(load_study(write_study(path, tables)), path)
    return str(error.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.toml"


@pytest.mark.parametrize(
    ("domain", "window", "axes"),
    [("image-8x8", 24, (8, 8, 3)), ("image-32x32", 96, (32, 32, 3))],
)
def test_the_window_is_one_row_of_the_grid(domain, window, axes):
    (run,) = expanded(2000, domain=domain, model={"attention": "sparse", "positions": "factorised"})
    assert (run.shape.attention_window, run.shape.position_axes) == (window, axes)
    (plain,) = expanded(2000, domain=domain)
    assert (plain.shape.attention_window, plain.shape.position_axes) == (0, ())
    assert plain.digest != run.digest
    assert run.flops_exact < plain.flops_exact


@pytest.mark.parametrize("choice", [{"attention": "sparse"}, {"positions": "factorised"}])
def test_a_domain_without_a_grid_has_no_rows(choice, path):
    said = refused(path, study(2000, domain="mathematics", model=choice))
    assert "domain mathematics has no rows" in said
    assert "wanted a domain of pictures, codes or video" in said


def test_older_runs_keep_their_names():
    """The digest of a plain run does not change when new choices are added to the study."""
    assert config().run_id == "image-8x8-L2-H32-9.22e3tok-s0-b18262"


def test_there_are_shipped_studies():
    assert "quickstart" in {path.stem for path in STUDIES}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_loads_and_expands(path):
    the_study = load_study(path)
    runs = expand(the_study, path)
    assert the_study.name == path.stem
    assert len({run.run_id for run in runs}) == len(runs) >= len(the_study.ladder)
    assert [run.flops for run in runs] == sorted(run.flops for run in runs)


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        (
            {"budget": {"tokens": -5}},
            "budget.tokens = -5: Input should be greater than 0, or a valid list",
        ),
        (
            {"optimizer": {"learning_rate": "henigan"}},
            "optimizer.learning_rate = 'henigan': Input should be a valid number, or 'henighan', 'kaplan' or "
            "'porian'; did you mean 'henighan'?",
        ),
        (
            {"precision": "fp16"},
            "precision = 'fp16': Input should be 'fp32' or 'bf16'; did you mean",
        ),
    ],
)
def test_a_value_of_several_kinds_is_one_problem(path, tables, line):
    said = refused(path, study(**tables))
    assert said.splitlines()[0] == f"{path}: 1 problem in this file:"
    assert line in said


def test_a_file_gives_what_its_tables_say(path):
    run = expand(load_study(write_study(path, study())), path)[0]
    assert run == config()
    assert (run.train_steps, run.tokens_per_step, run.tokens) == (12, STEP, 12 * STEP)
    assert (run.shape.seq_length, run.shape.vocab_size) == (192, 256)


def test_every_problem_is_listed_at_once_with_its_path_and_the_nearest_key(path):
    tables = study(
        domian="image-8x8",
        seeds=["zero"],
        ladder=[{"num_layers": 2, "hidden_size": 32}, {"num_layer": 2, "hidden_size": 0}],
        optimizer={"learning_rate": 1e-3, "beta1": 1.5, "momentum": 0.9},
        batch={"train_batch_size": 4.5},
        precision="fp8",
        checkpoint={"intervall_minutes": 1.0, "keep_last": True},
    )
    del tables["question"]
    message = refused(path, tables)
    lines = message.splitlines()
    assert lines[0] == f"{path}: 12 problems in this file:" or re.fullmatch(
        re.escape(str(path)) + r": \d+ problems in this file:", lines[0]
    )
    assert lines[-1] == "Correct the file and try again."
    problems = {line.strip() for line in lines[1:-1]}
    assert "domian: unknown key; did you mean 'domain'?" in problems
    assert "question: missing; a value is required here" in problems
    assert "ladder[1].num_layer: unknown key; did you mean 'num_layers'?" in problems
    assert "ladder[1].num_layers: missing; a value is required here" in problems
    assert "checkpoint.intervall_minutes: unknown key; did you mean 'interval_minutes'?" in problems
    starts = {line.split(" = ")[0] for line in problems if " = " in line}
    assert {
        "seeds[0]", "ladder[1].hidden_size", "optimizer.beta1", "batch.train_batch_size",
        "precision", "checkpoint.keep_last",
    } <= starts  # fmt: skip
    momentum = next(line for line in problems if line.startswith("optimizer.momentum"))
    assert "valid keys: learning_rate, beta1, beta2, epsilon" in momentum
    assert len(problems) == 12 == int(lines[0].split()[-5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": {"interval_minutes": -1.0}}, "checkpoint.interval_minutes = -1.0: "),
        ({"domain": "image-8x9"}, "Did you mean image-8x8"),
        ({"budget": {"tokens": 1e6, "flops": 1e9}}, "tokens, flops given; wanted exactly one of"),
        ({"budget": {}}, "nothing given; wanted exactly one of tokens, flops, tokens_per_param"),
        ({"budget": {"tokens": -1.0}}, "budget.tokens = -1.0: "),
        ({"budget": {"tokens": []}}, "budget.tokens = []"),
        ({"budget": {"tokens": [1e6, 0.0]}}, "budget.tokens[1] = 0.0: "),
        ({"budget": {"tokens": "many"}}, "budget.tokens = 'many': "),
        ({"ladder": []}, "ladder = []: "),
        ({"seeds": []}, "seeds = []: "),
        ({"seeds": [True]}, "seeds[0] = True: "),
        ({"name": "../escape"}, "name = '../escape': "),
        ({"name": ""}, "name = '': "),
        ({"question": ""}, "question = '': "),
        ({"optimizer": {"learning_rate": "kaplann"}}, "optimizer.learning_rate = 'kaplann': "),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate = 0.0: "),
        ({"optimizer": {"learning_rate": "1e-3"}}, "optimizer.learning_rate = '1e-3': "),
        ({"optimizer": {}}, "optimizer.learning_rate: missing"),
        ({"optimizer": 3}, "optimizer = 3: "),
        ({"schedule": {"kind": "wsdd"}}, "schedule.kind = 'wsdd': "),
        ({"schedule": {"cooldown_fraction": 0.0}}, "schedule.cooldown_fraction = 0.0: "),
        ({"schedule": {"warmup_steps": 1, "warmup_tokens": 1.0}}, "warmup_steps and warmup_tokens"),
        ({"parallel": {"zero_stage": 4}}, "parallel.zero_stage = 4: "),
        ({"parallel": {"sequence_parallel": True}}, "sequence_parallel = true with tensor_model"),
        ({"parallel": {"offload_optimizer": True}}, "offload_optimizer = true with zero_stage = 0"),
        ({"evaluation": {"splits": []}}, "evaluation.splits = []: "),
        ({"model": {"family": "gpt"}}, "model.family = 'gpt': "),
        ({"ladder": [{"num_layers": 2, "hidden_size": 33}]}, "study.toml: ladder[0]: hidden_size = 33"),
        ({"ladder": [{"num_layers": 2, "hidden_size": 36}]}, "study.toml: ladder[0]: hidden_size = 36"),
        ({"ladder": [{"num_layers": 2, "hidden_size": 32, "seeds": []}]}, "ladder[0].seeds = []: "),
    ],
)  # fmt: skip
def test_one_wrong_thing_is_named_with_its_value(change, words, path):
    message = refused(path, study() | change)
    assert str(path) in message
    assert words in message
    assert "Traceback" not in message
    assert "float" not in message.split(" = ")[0], "no word of the validator's in the path"
    assert "list[" not in message.split(" = ")[0]


@pytest.mark.parametrize(
    ("table", "key"),
    [("optimizer", "learning_rate"), ("optimizer", "weight_decay"), ("optimizer", "epsilon"),
     ("optimizer", "clip_grad_norm"), ("model", "init_std"), ("schedule", "warmup_tokens"),
     ("checkpoint", "interval_minutes"), ("budget", "tokens")],
)  # fmt: skip
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_infinity_and_nan_are_refused(table, key, value, path):
    tables = study()
    tables[table] = {**tables.get(table, {}), key: "VALUE"}
    text = write_study(path, tables).read_text().replace('"VALUE"', value)
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{table}\.{key}(\[\d\])? = {value}: "):
        expand(load_study(path), path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "name: missing"),
        (b"name = ", "not valid TOML: Invalid value (at end of document)"),
        (b"\n\nname == 'a'\n", "not valid TOML: Invalid value (at line 3, column 7)"),
        (b'name = "a"\nname = "b"\n', "not valid TOML: Cannot overwrite a value"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not text (byte 0 is 0x89); wanted a study file in TOML, UTF-8"),
        (b"\x00" * 64, "not valid TOML"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_study_is_named(content, words, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        load_study(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="no such file; wanted a study file in TOML. Check the path"
    ):
        load_study(tmp_path / "nothing.toml")
    with pytest.raises(ValueError, match="this is a folder; wanted a study file in TOML. Name the"):
        load_study(tmp_path)


# --- what a study expands to


def test_every_shape_budget_and_seed_is_one_run_smallest_first():
    ladder = [
        {"num_layers": 2, "hidden_size": 64},
        {"num_layers": 2, "hidden_size": 32, "seeds": [5]},
    ]
    runs = expanded(ladder=ladder, seeds=[0, 1], budget={"tokens": [20.0 * STEP, 10.0 * STEP]})
    found = [(run.shape.hidden_size, run.train_steps, run.seed) for run in runs]
    assert sorted(found) == [
        (32, 10, 5),
        (32, 20, 5),
        (64, 10, 0),
        (64, 10, 1),
        (64, 20, 0),
        (64, 20, 1),
    ]
    assert [run.flops for run in runs] == sorted(run.flops for run in runs)


def test_budgets_in_flops_and_in_tokens_per_parameter():
    shape = config().shape
    params = shape.params_non_embedding
    assert params == 3 * 2 * 32**2
    flops = config(budget={"flops": 6.0 * params * 17 * STEP})
    assert flops.train_steps == 17
    assert flops.flops == 6.0 * params * 17 * STEP
    assert config(budget={"tokens_per_param": 17 * STEP / params}).train_steps == 17


def test_a_named_rate_is_resolved_per_size():
    ladder = [{"num_layers": 2, "hidden_size": size} for size in (32, 64)]
    for run in expanded(ladder=ladder, optimizer={"learning_rate": "henighan"}):
        rule = LEARNING_RATE_RULES["henighan"]
        assert run.optimizer.learning_rate == rule(run.shape.params_non_embedding)


@pytest.mark.parametrize("unit", ["tokens", "flops", "tokens_per_param"])
@pytest.mark.parametrize(("asked", "warmup"), [(2, 20), (0.1, 20), (100, 3000), (7, 7)])
def test_a_run_too_short_for_its_warmup_says_what_budget_would_do(unit, asked, warmup):
    params = config().shape.params_non_embedding
    scale = {"tokens": 1.0, "flops": 6.0 * params, "tokens_per_param": 1 / params}[unit]
    tables = {"schedule": {"kind": "linear", "warmup_steps": warmup}}
    with pytest.raises(ValueError, match="Raise the budget to") as error:
        config(**tables, budget={unit: [asked * STEP * scale]})
    message = str(error.value)
    steps = max(1, round(asked))
    assert message.startswith(f"small.toml: budget.{unit}[0] = ")
    assert (
        f"trains image-8x8-L2-H32 for {steps} steps; more than {warmup} are needed for the "
        in message
    )
    assert f"(schedule.warmup_steps = {warmup})" in message
    assert "or remove this rung from the ladder." in message
    advice = float(re.search(r"Raise the budget to (\S+),", message)[1])
    advised = config(**tables, budget={unit: advice})  # following the advice works
    assert warmup < advised.train_steps <= 1.02 * (warmup + 1) + 1, "and is not far too much"


def test_the_same_run_twice_is_refused():
    for change in (
        {"seeds": [0, 0]},
        {"ladder": [{"num_layers": 2, "hidden_size": 32}] * 2},
        {"budget": {"tokens": [9216.0, 9217.0]}},
    ):
        with pytest.raises(
            ValueError, match=r"small.toml: image-8x8-L2-H32-.* appears twice; wanted"
        ):
            expanded(**change)


def test_shorter_wsd_runs_branch_from_the_longest_of_their_shape_and_seed():
    runs = expanded(
        seeds=[0, 1],
        budget={"tokens": [10.0 * STEP, 20.0 * STEP, 40.0 * STEP]},
        schedule={"kind": "wsd", "warmup_steps": 3, "cooldown_fraction": 0.2},
    )
    for seed in (0, 1):
        short, middle, trunk = (run for run in runs if run.seed == seed)
        assert (trunk.trunk, trunk.keep_steps) == (None, [8, 16])
        assert (short.trunk.run_id, short.trunk.step) == (trunk.run_id, 8)
        assert (middle.trunk.run_id, middle.trunk.step) == (trunk.run_id, 16)
    others = expanded(budget={"tokens": [10.0 * STEP, 20.0 * STEP]}, schedule={"kind": "linear"})
    assert all(run.trunk is None and run.keep_steps == [] for run in others)


def test_a_strict_value_cannot_be_changed():
    the_study = validate(Study, study(), "here")
    with pytest.raises(ValueError, match="frozen"):
        the_study.name = "other"


VARIANTS = [
    {"name": "as-it-stands"},
    {"name": "large-batch", "batch": {"train_batch_size": 8}, "optimizer": {"beta2": 0.99}},
    {"name": "few-rows", "data": {"unique_tokens": 1920}, "budget": {"tokens": [20.0 * STEP]}},
    {"name": "sparse", "model": {"attention": "sparse"}, "schedule": {"kind": "cosine"}},
]


def test_every_variant_trains_the_whole_ladder_with_its_values():
    ladder = [{"num_layers": 1, "hidden_size": 32}, {"num_layers": 2, "hidden_size": 32}]
    runs = expanded(ladder=ladder, seeds=[0, 1], variants=VARIANTS)
    assert len(runs) == len({run.run_id for run in runs}) == 2 * 2 * 4
    plain = {run.digest: run for run in expanded(ladder=ladder, seeds=[0, 1])}
    by_name = {
        each["name"]: [run for run in runs if run.variant == each["name"]] for each in VARIANTS
    }
    assert {run.digest for run in by_name["as-it-stands"]} == set(plain), "a name changes no run"
    for run in by_name["as-it-stands"]:
        assert run.run_id == plain[run.digest].run_id.replace("tok-s", "tok-as-it-stands-s")
    for run in by_name["large-batch"]:
        assert (run.batch.train_batch_size, run.optimizer.beta2) == (8, 0.99)
        assert (run.optimizer.learning_rate, run.train_steps) == (3e-3, 6)
    for run in by_name["few-rows"]:
        assert (run.data.unique_tokens, run.train_steps) == (1920, 20)
    for run in by_name["sparse"]:
        assert run.shape.attention_window == 24
        assert (run.schedule.kind, run.schedule.warmup_steps) == ("cosine", 3)
    assert len({run.digest for run in runs}) == len(runs)


def test_variants_keep_their_trunks_apart():
    runs = expanded(
        budget={"tokens": [10.0 * STEP, 20.0 * STEP]},
        schedule={"kind": "wsd", "warmup_steps": 3},
        variants=[{"name": "a"}, {"name": "b", "batch": {"train_batch_size": 2}}],
    )
    for name in ("a", "b"):
        short, trunk = (run for run in runs if run.variant == name)
        assert short.trunk.run_id == trunk.run_id


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ([{"name": "a"}, {"name": "a"}], "wanted each name once"),
        ([{"name": "a", "batch": {"size": 3}}], r"variants\[0\]\.batch: 1 problem.*\n.*valid keys: train_batch_size"),
        ([{"name": "a", "batch": {"train_batch_size": "3"}}], r"variants\[0\]\.batch"),
        ([{"name": "a", "optimiser": {}}], "did you mean 'optimizer'"),
        ([{"name": "a b"}], r"variants\[0\]\.name"),
        ([{"name": "a", "data": {"unique_tokens": 0}}], r"variants\[0\]\.data"),
        ([{"name": "a", "budget": {"tokens": 1e6, "flops": 1e9}}], "wanted exactly one of tokens"),
    ],
)  # fmt: skip
def test_wrong_variants_are_refused(variants, words):
    with pytest.raises(ValueError, match=words):
        expanded(variants=variants)


def test_a_subset_of_a_blend_is_refused():
    blend = [{"name": "one", "weight": 0.5}, {"name": "two", "weight": 0.5}]
    with pytest.raises(ValueError, match=r"data.unique_tokens = 1,920 with \[\[blend\]\]; wanted"):
        expanded(blend=blend, data={"unique_tokens": 1920})


@pytest.mark.parametrize(
    "budget", [{"tokens": 1e300}, {"tokens_per_param": 1e306}, {"flops": 1e308}, {"tokens": 1.0}]
)
def test_a_budget_that_no_run_can_have_is_refused(budget):
    with pytest.raises(
        ValueError, match=r"budget\.\w+\[0\] = .* wanted one step \(768 tokens\) to"
    ):
        config(budget=budget, schedule={"kind": "constant"})
