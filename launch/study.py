"""`Study`: one TOML file is one question. It expands to the runs that answer it.

every variant  x  every shape of the ladder  x  every budget  x  every seed  =  one `RunConfig` each
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.domain import Domain, domain
from launch.config import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    Guards,
    Model,
    Optimizer,
    Parallel,
    PositiveInt,
    RunConfig,
    Seed,
    Source,
    Trunk,
)
from launch.schedule import Schedule, cooldown_start, peak_learning_rate
from launch.strict import Strict, read_toml, validate
from megatron_ext.shape import ModelShape, shape_of

MOST_TOKENS = 1e18  # a thousand times what the largest runs have seen, and more
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positives = Annotated[list[Positive], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Rung(Strict):
    """One size. What is left out follows from the family; `seeds` replaces the study's."""

    num_layers: PositiveInt
    hidden_size: PositiveInt
    ffn_hidden_size: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    kv_channels: PositiveInt | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None


class Budget(Strict):
    """How long to train; exactly one of the three, a number or a list."""

    tokens: Positive | Positives | None = None
    flops: Positive | Positives | None = None  # 6 N D
    tokens_per_param: Positive | Positives | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Budget":
        given = [name for name in Budget.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{', '.join(given) or 'nothing'} given; wanted exactly one of tokens, flops, "
                "tokens_per_param"
            )
        return self

    @property
    def unit(self) -> str:
        return next(name for name in Budget.model_fields if getattr(self, name) is not None)

    @property
    def values(self) -> list[float]:
        value = getattr(self, self.unit)
        return value if isinstance(value, list) else [value]

    def tokens_for(self, value: float, params: int) -> float:
        return {"tokens": value, "flops": value / (6 * params), "tokens_per_param": value * params}[
            self.unit
        ]


Table = dict[str, Any]
REPLACED_KEY_BY_KEY = ("batch", "optimizer", "schedule", "model", "data")


class Variant(Strict):
    """One way to train the whole ladder: what these tables hold replaces the study's, key by key, and `budget`
    as a whole. A variant of a name alone is the study as it stands."""

    name: Name
    batch: Table = {}
    optimizer: Table = {}
    schedule: Table = {}
    model: Table = {}
    data: Table = {}
    budget: Budget | None = None


class Study(Strict):
    name: Name
    question: Annotated[str, Field(min_length=1)]
    domain: str
    blend: list[Source] = []  # several datasets as one; empty: --data is the dataset
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    ladder: Annotated[list[Rung], Field(min_length=1)]
    budget: Budget
    batch: Batch = Batch()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    model: Model = Model()
    precision: Literal["fp32", "bf16"] = "bf16"
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Parallel = Parallel()
    guards: Guards = Guards()
    data: Data = Data()
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
        if varied.blend and varied.data.unique_tokens:
            raise ValueError(
                f"{where}: data.unique_tokens = {varied.data.unique_tokens:,} with [[blend]]; wanted one of "
                "them, for it does not say of which dataset. Build a smaller dataset for the blend."
            )
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
        changed: dict[str, Any] = {} if variant.budget is None else {"budget": variant.budget}
        for name in REPLACED_KEY_BY_KEY:
            if override := getattr(variant, name):
                table = getattr(study, name)
                stated = table.model_dump(exclude_unset=True)
                place = f"{where}: variants[{index}].{name}"
                changed[name] = validate(type(table), stated | override, place)
        yield study.model_copy(update=changed), variant.name


def _shape(rung: Rung, study: Study, the_domain: Domain) -> ModelShape:
    return shape_of(
        study.model.family,
        **rung.model_dump(exclude={"seeds"}),
        seq_length=the_domain.seq_length,
        vocab_size=the_domain.vocab_size,
        attention_window=_window(the_domain) if study.model.attention == "sparse" else 0,
        position_axes=_axes(the_domain) if study.model.positions == "factorised" else (),
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
    params = shape.params_non_embedding
    per_step = study.batch.train_batch_size * shape.seq_length
    steps = max(1, round(study.budget.tokens_for(value, params) / per_step))
    rate = peak_learning_rate(study.optimizer.learning_rate, params)
    return RunConfig(
        study=study.name,
        question=study.question,
        domain=study.domain,
        blend=study.blend,
        shape=shape,
        tokens=steps * per_step,
        seed=seed,
        batch=study.batch,
        optimizer=study.optimizer.model_copy(update={"learning_rate": rate}),
        schedule=study.schedule,
        model=study.model,
        precision=study.precision,
        evaluation=study.evaluation,
        checkpoint=study.checkpoint,
        parallel=study.parallel,
        guards=study.guards,
        data=study.data,
        variant=variant,
    )


def _refuse_absurd(
    shape: ModelShape, study: Study, position: int, value: float, where: Path | str
) -> None:
    """Budgets that no run can have: under half a step, or beyond what anybody counts."""
    step = study.batch.train_batch_size * shape.seq_length
    tokens = study.budget.tokens_for(value, shape.params_non_embedding)
    if tokens <= MOST_TOKENS and (tokens >= step / 2 or _warmup_steps(study.schedule, step)):
        return
    raise ValueError(
        f"{where}: budget.{study.budget.unit}[{position}] = {value:.3g} trains {shape.name} for {tokens:.3g} "
        f"tokens; wanted one step ({step:,} tokens) to {MOST_TOKENS:.0e}. Change the budget."
    )


def _warmup_steps(schedule: Schedule, step: int) -> float:
    """Of a run with a warm-up that is too short it is said what would do."""
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
