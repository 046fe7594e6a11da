"""`Study`: one TOML file is one question. It expands to the runs that answer it.

every variant  x  every shape of the ladder  x  every budget  x  every seed  =  one `RunConfig` each
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from data_prep.domain import Domain, domain
from launch.budget import BatchOfSize, Budget
from launch.config import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    Guards,
    Loss,
    Model,
    Name,
    Optimizer,
    Parallel,
    RunConfig,
    Seed,
    Source,
    Start,
    Trunk,
)
from launch.ladder import Rung
from launch.refusals import refuse_classes, refuse_tables
from launch.schedule import Schedule, cooldown_start, peak_learning_rate
from launch.strict import Strict, read_toml, validate
from megatron_ext.shape import ModelShape, shape_of

MOST_TOKENS = 1e18  # a thousand times what the largest runs have seen, and more


Table = dict[str, Any]
REPLACED_KEY_BY_KEY = ("batch", "optimizer", "schedule", "model", "data", "loss")
REPLACED_WHOLE = ("budget", "start")


class Variant(Strict):
    """One way to train the whole ladder: what these tables hold replaces the study's, key by key, and `budget`
    and `start` as a whole. A variant of a name alone is the study as it stands."""

    name: Name
    batch: Table = {}
    optimizer: Table = {}
    schedule: Table = {}
    model: Table = {}
    data: Table = {}
    loss: Table = {}
    budget: Budget | None = None
    start: Start | None = None


class Study(Strict):
    name: Name
    question: Annotated[str, Field(min_length=1)]
    domain: str
    blend: list[Source] = []  # several datasets as one; empty: --data is the dataset
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    ladder: Annotated[list[Rung], Field(min_length=1)]
    budget: Budget
    batch: BatchOfSize = BatchOfSize()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    model: Model = Model()
    precision: Literal["fp32", "bf16"] = "bf16"
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Parallel = Parallel()
    guards: Guards = Guards()
    data: Data = Data()
    loss: Loss = Loss()
    start: Start | None = None
    variants: list[Variant] = []

    @field_validator("domain")
    @classmethod
    def _known_domain(cls, name: str) -> str:
        domain(name)
        return name

    @field_validator("variants")
    @classmethod
    def _names_once(cls, variants: list[Variant]) -> list[Variant]:
        names = [each.name for each in variants]
        if len(set(names)) < len(names):
            raise ValueError(f"{names}: wanted each name once; give every variant its own")
        return variants

    @field_validator("blend")
    @classmethod
    def _each_once(cls, blend: list[Source]) -> list[Source]:
        names = [each.name for each in blend]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{names}: wanted each dataset once; add up the weights of equal names"
            )
        return blend


def load_study(path: Path) -> Study:
    """Read a study file. Raises one `ValueError` that lists everything wrong with it."""
    return validate(Study, read_toml(path, "study file"), path)


def expand(study: Study, where: Path | str) -> tuple[RunConfig, ...]:
    """The study's runs, smallest first. `where` names the file in errors.

    Raises `ValueError` for a rung that cannot be built, a run too short for its warm-up, or two
    rungs that are the same run.
    """
    the_domain = domain(study.domain)
    runs = []
    for varied, variant in _variants(study, where):
        refuse_tables(
            where,
            the_domain,
            name=varied.name,
            blend=varied.blend,
            data=varied.data,
            loss=varied.loss,
            start=varied.start,
        )
        refuse_classes(where, the_domain, varied.model, varied.parallel)
        for index, rung in enumerate(study.ladder):
            try:
                shape = _shape(rung, varied, the_domain)
            except ValueError as error:
                raise ValueError(f"{where}: ladder[{index}]: {error}") from None
            for position, value in enumerate(varied.budget.values):
                _refuse_absurd(shape, varied, position, value, where)
                for seed in rung.seeds or study.seeds:
                    run = _run(varied, shape, value, seed, variant)
                    _refuse_too_short(run, varied, position, value, where)
                    runs.append(run)
    _refuse_duplicates(runs, where)
    ordered = sorted(runs, key=lambda run: (run.flops, run.run_id))
    return tuple(_with_trunks(ordered))


def _variants(study: Study, where: Path | str) -> Iterator[tuple[Study, str]]:
    """The study as each of its variants has it, and the variant's name; itself where it has none."""
    if not study.variants:
        yield study, ""
    for index, variant in enumerate(study.variants):
        whole = {name: getattr(variant, name) for name in REPLACED_WHOLE}
        changed = {name: table for name, table in whole.items() if table is not None}
        for name in REPLACED_KEY_BY_KEY:
            if override := getattr(variant, name):
                table = getattr(study, name)
                stated = table.model_dump(exclude_unset=True)
                place = f"{where}: variants[{index}].{name}"
                changed[name] = validate(type(table), stated | override, place)
        yield study.model_copy(update=changed), variant.name


def _shape(rung: Rung, study: Study, the_domain: Domain) -> ModelShape:
    # A classifier reads the rows that its class stands behind.
    read = domain(the_domain.labelled) if the_domain.labelled else the_domain
    sizes: dict[str, Any] = rung.sizes(study.model.family)
    return shape_of(
        study.model.family,
        **sizes,
        seq_length=read.seq_length,
        vocab_size=read.vocab_size,
        attention_window=_window(read) if study.model.attention == "sparse" else 0,
        position_axes=_axes(read) if study.model.positions == "factorised" else (),
        classes=study.model.classes or 0,
    )


def _window(the_domain: Domain) -> int:
    """Tokens in one row of the domain's grid: the papers' window and stride."""
    axes = [axis for axis, _ in the_domain.grid]
    if "row" not in axes:
        raise ValueError(
            f"model.attention = 'sparse': domain {the_domain.name} has no rows to take the window "
            "from; wanted a domain of pictures, codes or video. Leave model.attention out: dense."
        )
    return math.prod(size for _, size in the_domain.grid[axes.index("row") + 1 :])


def _axes(the_domain: Domain) -> tuple[int, ...]:
    if not the_domain.grid:
        raise ValueError(
            f"model.positions = 'factorised': domain {the_domain.name} has no rows and columns; "
            "wanted a domain of pictures, codes or video. Leave model.positions out: plain."
        )
    return tuple(size for _, size in the_domain.grid)


def _run(study: Study, shape: ModelShape, value: float, seed: int, variant: str) -> RunConfig:
    params, with_head = shape.params_non_embedding, shape.params_non_embedding_and_head
    batch = Batch(train_batch_size=study.batch.rows(shape))
    per_step = batch.train_batch_size * shape.seq_length
    steps = max(1, round(study.budget.tokens_for(value, params) / per_step))
    asked = study.optimizer.learning_rate
    rate = peak_learning_rate(asked, with_head if asked == "porian" else params)
    return RunConfig(
        study=study.name,
        question=study.question,
        domain=study.domain,
        blend=study.blend,
        shape=shape,
        tokens=steps * per_step,
        seed=seed,
        batch=batch,
        optimizer=study.optimizer.model_copy(update={"learning_rate": rate}),
        schedule=study.schedule.of_size(with_head),
        model=study.model,
        precision=study.precision,
        evaluation=study.evaluation,
        checkpoint=study.checkpoint,
        parallel=study.parallel,
        guards=study.guards,
        data=study.data,
        loss=study.loss,
        start=study.start,
        variant=variant,
    )


def _refuse_absurd(
    shape: ModelShape, study: Study, position: int, value: float, where: Path | str
) -> None:
    """Budgets that no run can have: under half a step, or beyond what anybody counts."""
    step = study.batch.rows(shape) * shape.seq_length
    tokens = study.budget.tokens_for(value, shape.params_non_embedding)
    if tokens <= MOST_TOKENS and (tokens >= step / 2 or _warmup_steps(study, shape, step)):
        return
    raise ValueError(
        f"{where}: budget.{study.budget.unit}[{position}] = {value:.3g} trains {shape.name} for {tokens:.3g} "
        f"tokens; wanted one step ({step:,} tokens) to {MOST_TOKENS:.0e}. Change the budget."
    )


def _warmup_steps(study: Study, shape: ModelShape, step: int) -> float:
    """Of a run with a warm-up that is too short it is said what would do."""
    schedule = study.schedule.of_size(shape.params_non_embedding_and_head)
    return schedule.warmup_steps or (schedule.warmup_tokens or 0) / step


def _refuse_too_short(
    run: RunConfig, study: Study, position: int, value: float, where: Path | str
) -> None:
    """The run must at least finish its warm-up; otherwise its loss says nothing."""
    warmup_steps = math.ceil(run.warmup_tokens / run.tokens_per_step)
    if run.train_steps > warmup_steps:
        return
    unit = study.budget.unit
    per_token = study.budget.tokens_for(value, run.shape.params_non_embedding) / value
    wanted = _rounded_up((warmup_steps + 1) * run.tokens_per_step / per_token)
    source = "warmup_steps" if run.schedule.warmup_steps is not None else "warmup_tokens"
    raise ValueError(
        f"{where}: budget.{unit}[{position}] = {value:.3g} trains {run.domain}-{run.shape.name} "
        f"for {run.train_steps} steps; more than {warmup_steps} are needed for the warm-up "
        f"(schedule.{source} = {getattr(run.schedule, source):g}). Raise the budget to "
        f"{wanted:.3g}, or remove this rung from the ladder."
    )


def _rounded_up(value: float) -> float:
    """To three digits, never below."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / unit) * unit


def _refuse_duplicates(runs: list[RunConfig], where: Path | str) -> None:
    seen = set()
    for run in runs:
        if run.run_id in seen:
            raise ValueError(
                f"{where}: {run.run_id} appears twice; wanted every shape, budget, seed and variant "
                "once. Remove the repeated one."
            )
        seen.add(run.run_id)


def _with_trunks(runs: list[RunConfig]) -> Iterator[RunConfig]:
    """Tie shorter `wsd` runs to the longest run of the same shape and seed: their trunk."""
    groups: dict[tuple[ModelShape, int, str], list[RunConfig]] = defaultdict(list)
    for run in runs:
        groups[run.shape, run.seed, run.variant].append(run)
    for run in runs:
        group = groups[run.shape, run.seed, run.variant]
        *shorter, trunk = sorted(group, key=lambda member: member.tokens)
        if run is trunk:
            keep = [step for member in shorter if (step := _branch_step(member))]
            yield run.model_copy(update={"keep_steps": keep})
        elif step := _branch_step(run):
            yield run.model_copy(update={"trunk": Trunk(run_id=trunk.run_id, step=step)})
        else:
            yield run


def _branch_step(run: RunConfig) -> int | None:
    """The last step before the cool-down; None where there is no such step after the warm-up."""
    if run.schedule.kind != "wsd":
        return None
    start = max(cooldown_start(run.schedule, run.tokens), run.warmup_tokens)
    step = int(start // run.tokens_per_step)
    return step if 1 <= step < run.train_steps else None
