"""Synthetic results folders whose laws are known exactly, written as a real run writes them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.laws import critical_batch
from analysis.points import LossPoints, PointSet
from launch.results import ResultWriter

VOCABULARY = 256
LENGTH = 64


@dataclass(frozen=True)
class Surface:
    """L(N, D) = irreducible + (a/N)^alpha + (b/D)^beta, in nats per token."""

    irreducible: float = 0.5
    a: float = 2e3
    alpha: float = 0.3
    b: float = 3e4
    beta: float = 0.35

    def loss(self, params: Any, tokens: Any) -> np.ndarray:
        """The true loss."""
        return (
            self.irreducible
            + (self.a / np.asarray(params, float)) ** self.alpha
            + (self.b / np.asarray(tokens, float)) ** self.beta
        )

    def best_tokens(self, params: Any) -> np.ndarray:
        """D where C = 6 N D buys the lowest loss with this N: alpha a-term = beta b-term."""
        ratio = self.alpha * (self.a / np.asarray(params, float)) ** self.alpha / self.beta
        return self.b * ratio ** (-1 / self.beta)

    @property
    def params_exponent(self) -> float:
        """beta of N_opt = (C/c0)^beta."""
        return self.beta / (self.alpha + self.beta)

    @property
    def flops_exponent(self) -> float:
        """exponent of L(C) along the frontier."""
        return self.alpha * self.beta / (self.alpha + self.beta)


@dataclass(frozen=True)
class PlantedRun:
    """One synthetic run."""

    run_id: str
    hidden_size: int
    num_layers: int
    tokens: float
    seed: int = 0
    domain: str = "mathematics"
    schedule: str = "constant"
    seed_noise: float = 0.0  # standard deviation of log loss between seeds
    evaluations: int = 24
    finished: bool = True
    diverge_at: float = 1.0  # share of the run after which the loss climbs
    kinds: tuple[str, ...] = ()
    warmup_share: float = 1 / 400
    length: int = LENGTH
    loss_at_end: float | None = None  # written over the last held-out loss
    rise_at_end: float = 0.0  # added to the last held-out loss
    spike_at: float | None = None  # share of the run at which the training loss jumps
    skip_at: float | None = None  # share of the run at which one step changes no weight
    batch: int = 4
    vocabulary: int = VOCABULARY
    rows: int = 512  # that it was judged on
    critical: tuple[float, float] | None = (
        None  # (B_star [rows], aB): tokens count as E/(1 + B/B_crit)
    )
    data: str = "planted"

    @property
    def params(self) -> float:
        """N = 3 L d^2, the Henighan shapes."""
        return 3.0 * self.num_layers * self.hidden_size**2


def ladder(tokens: float = 2e6, sizes: int = 5, **changes: Any) -> list[PlantedRun]:
    """Sizes from 1.2e4 parameters, each 8 times the one before."""
    runs = []
    for index in range(sizes):
        run = PlantedRun(
            f"mathematics-L{2 ** (index + 2)}-H{2 ** (index + 5)}-s0-{index:06x}",
            hidden_size=2 ** (index + 5),
            num_layers=2 ** (index + 2),
            tokens=tokens,
        )
        runs.append(replace(run, **changes))
    return runs


def write_study(folder: Path, runs: list[PlantedRun], surface: Surface) -> Path:
    """Write one run folder for each run."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        write_run(folder / run.run_id, run, surface)
    return folder


def write_run(folder: Path, run: PlantedRun, surface: Surface) -> None:
    """Write one metrics.h5 whose held-out losses follow the surface."""
    rng = np.random.default_rng([run.seed, run.hidden_size])
    shift = float(np.exp(run.seed_noise * rng.standard_normal()))
    counts = _counts(run)
    per_step = run.batch * run.length
    steps = max(int(run.tokens / per_step), run.evaluations)
    at = np.unique(np.geomspace(max(steps // 300, 1), steps, run.evaluations).astype(int))
    with ResultWriter(
        folder,
        config=_config(run),
        provenance={"host": "planted", "data_identity": run.data},
        counts=counts,
        seq_length=run.length,
    ) as writer:
        for step in np.unique(np.linspace(1, steps, 200).astype(int)):
            writer.train(**_train_row(run, surface, int(step), per_step, steps, shift))
        for step in at:
            tokens = int(step) * per_step
            loss = _loss(run, surface, step / steps, tokens) * shift
            if step == steps and run.loss_at_end is not None:
                loss = run.loss_at_end
            loss += run.rise_at_end * (step == steps)
            writer.eval(
                [
                    _eval_row(run, int(step), tokens, kind, loss * factor)
                    for kind, factor in (
                        ("loss", 1.0),
                        *((k, 1.0 + 0.2 * i) for i, k in enumerate(run.kinds)),
                    )
                ]
            )
            position = np.arange(1, run.length + 1)
            writer.eval_position(
                "valid", int(step), loss * (0.9 + 0.8 * position**-0.7), np.full(run.length, 500)
            )
        if run.finished:
            writer.finish()


def _loss(run: PlantedRun, surface: Surface, share: float, tokens: float) -> float:
    loss = float(surface.loss(run.params, tokens))
    for _ in range(40 if run.critical else 0):  # B_crit is a function of the loss that it makes
        crit = critical_batch(loss, *run.critical)
        loss = float(surface.loss(run.params, tokens / (1 + run.batch / crit)))
    return loss * (1 + 0.5 * max(0.0, share - run.diverge_at))


def _config(run: PlantedRun) -> dict[str, Any]:
    return {
        "study": "planted",
        "question": "Does the fit find the planted law?",
        "domain": run.domain,
        "shape": {
            "num_layers": run.num_layers,
            "hidden_size": run.hidden_size,
            "ffn_hidden_size": run.hidden_size,
            "num_attention_heads": 2,
            "kv_channels": run.hidden_size // 8,
            "seq_length": run.length,
            "vocab_size": run.vocabulary,
        },
        "model": {"family": "henighan"},
        "tokens": int(run.tokens),
        "seed": run.seed,
        "batch": {"train_batch_size": run.batch},
        "optimizer": {"learning_rate": 0.02828 * run.params**-0.25},
        "schedule": {"kind": run.schedule, "warmup_tokens": run.tokens * run.warmup_share},
        "precision": "fp32",
    }


def _counts(run: PlantedRun) -> dict[str, float]:
    head = VOCABULARY * run.hidden_size
    exact = 6 * (run.params + head) * run.tokens + run.num_layers * run.length * run.tokens
    return {
        "params_non_embedding": run.params,
        "params_non_embedding_and_head": run.params + head,
        "params_total": run.params + 2 * head,
        "flops_6nd": 6 * run.params * run.tokens,
        "flops_exact": exact,
    }


def _train_row(
    run: PlantedRun, surface: Surface, step: int, per_step: int, steps: int, shift: float
) -> dict[str, float]:
    tokens = step * per_step
    rng = np.random.default_rng([run.seed, step])
    loss = _loss(run, surface, step / steps, tokens) * shift * np.exp(0.03 * rng.standard_normal())
    if run.spike_at is not None and abs(step / steps - run.spike_at) < 0.5 / 200:
        loss *= 20
    skipped = run.skip_at is not None and abs(step / steps - run.skip_at) < 0.5 / 200
    return {
        "step": step,
        "tokens": tokens,
        "samples": step * run.batch,
        "flops": 6 * run.params * tokens,
        "flops_exact": 7 * run.params * tokens,
        "loss": math.nan if skipped else loss,
        "learning_rate": 1e-3,
        "grad_norm": math.inf if skipped else 1.0,
        "seconds": 1e-4 + 1e-9 * run.params,
    }


def _eval_row(run: PlantedRun, step: int, tokens: int, kind: str, loss: float) -> dict[str, Any]:
    counts = _counts(run)
    return {
        "step": step,
        "tokens": tokens,
        "flops": 6 * run.params * tokens,
        "flops_exact": counts["flops_exact"] * tokens / run.tokens,
        "split": "valid",
        "kind": kind,
        "loss": loss,
        "standard_error": 0.004 * loss,
        "num_tokens": 50_000,
        "num_rows": run.rows,
    }


def point_set(loss: np.ndarray, **columns: np.ndarray) -> PointSet:
    """Points in memory; a column that is not given is all NaN, each row is its own group."""
    count = len(loss)
    labels = np.array([f"row {index}" for index in range(count)])
    group = columns.pop("group", labels)
    points = LossPoints.of(group, labels, loss=loss, **columns)
    return PointSet("memory", points, ())


def curves(
    surface: Surface,
    params: np.ndarray,
    span: tuple[float, float],
    evaluations: int = 40,
    noise: float = 0.0,
    seed: int = 0,
) -> PointSet:
    """Learning curves in memory, from span[0] to span[1] times each size's own best tokens."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list[np.ndarray]] = {"params": [], "tokens": [], "flops": [], "group": []}
    losses = []
    for index, size in enumerate(params):
        tokens = float(surface.best_tokens(size)) * np.geomspace(*span, evaluations)
        shift = np.exp(noise * rng.standard_normal())
        losses.append(surface.loss(size, tokens) * shift)
        columns["params"].append(np.full(evaluations, float(size)))
        columns["tokens"].append(tokens)
        columns["flops"].append(6 * size * tokens)
        columns["group"].append(np.full(evaluations, f"run {index}"))
    return point_set(np.concatenate(losses), **{k: np.concatenate(v) for k, v in columns.items()})
