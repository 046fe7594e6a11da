"""Every fitted law, split as the engine needs it: L = sum_k c_k T_k(inputs; shape), c_k >= 0.

For a fixed `shape` (exponents and what else enters non-linearly) the constants c follow from a
linear problem with non-negativity, solved exactly: variable projection (Golub & Pereyra 1973; for
scaling laws Czech et al. 2026, 2603.22339). Laws with an outer power fit too: (A/N^a + B/D^b)^g =
c (w N^-a + (1-w) D^-b)^g, where logit w is a shape parameter.

Inputs enter as logarithms in units of their geometric mean, so that a fit does not depend on units.
Suffixes: B batch (draws), P points, I inputs, K constants, S shape parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis import forms, laws
from analysis.forms import Columns
from analysis.laws import EXPONENT_LIMITS


@dataclass(frozen=True)
class Shape:
    """One parameter that enters non-linearly: where it is searched and the grid of starts."""

    name: str
    limits: tuple[float, float]
    grid: tuple[float, ...]
    is_exponent: bool = True


@dataclass(frozen=True)
class Law:
    """A law for the engine. `terms(log_IP, shape_BS)` gives [B, K, P]; `slopes(log_IP, shape_BS,
    constants_BK, terms_BKP)` the derivative of the sum by every shape parameter, [B, S, P].
    `named(constants_BK, shape_BS, units)` turns them into the constants of `function`, whose
    positional arguments are the `inputs`; `units` are the geometric means of `unit_of`."""

    name: str
    formula: str
    source: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    unit_of: tuple[str, ...]
    constants: tuple[str, ...]
    shapes: tuple[Shape, ...]
    terms: Callable[[np.ndarray, np.ndarray], np.ndarray]
    slopes: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    named: Callable[[np.ndarray, np.ndarray, tuple[float, ...]], Columns]
    irreducible: str | None = None  # name of the constant that the loss falls to

    @property
    def parameters(self) -> tuple[str, ...]:
        """Internal names of everything that is fitted, constants first."""
        return self.constants + tuple(each.name for each in self.shapes)

    def of(self, x: str) -> "Law":
        """A law of one variable, of the column `x`."""
        assert self.inputs == ("x",), self.name
        return replace(self, inputs=(x,), unit_of=(x,))


def _exponent(name: str, low: float, high: float, count: int) -> Shape:
    return Shape(name, EXPONENT_LIMITS, tuple(np.geomspace(low, high, count)))


def _free(name: str, low: float, high: float, grid: tuple[float, ...]) -> Shape:
    return Shape(name, (low, high), grid, is_exponent=False)


_LOGIT = _free("logit_share", -12.0, 12.0, (-4.0, -2.5, -1.2, 0.0, 1.2, 2.5, 4.0))
_OUTER = _exponent("gamma", 0.05, 2.0, 7)

POWER = Law(
    "power", "L = (scale/x)^exponent", "Kaplan et al. 2020 (2001.08361), eqs 1.1-1.3",
    laws.power, ("x",), ("x",), ("amplitude",), (_exponent("exponent", 0.005, 4, 160),),
    forms.power_terms, forms.power_slopes, forms.power_named,
)  # fmt: skip

POWER_CONSTANT = Law(
    "power-constant", "L = irreducible + (scale/x)^exponent",
    "Henighan et al. 2020 (2010.14701), eq 1.1", laws.power_constant, ("x",), ("x",),
    ("irreducible", "amplitude"), (_exponent("exponent", 0.005, 4, 160),),
    forms.power_constant_terms, forms.power_slopes, forms.power_named, "irreducible",
)  # fmt: skip

LOGARITHM = Law(
    "logarithm", "L = -slope log(x/scale)", "Kaplan et al. 2020 (2001.08361), figure 23",
    laws.logarithm, ("x",), ("x",), ("level", "slope"), (),
    forms.logarithm_terms, forms.no_slopes, forms.logarithm_named,
)  # fmt: skip

BY_POSITION = Law(
    "position", "L_T = irreducible + amplitude T^-exponent",
    "Kaplan et al. 2020 (2001.08361), appendix D.5", laws.by_position, ("position",), ("position",),
    ("irreducible", "fall"), (_exponent("exponent", 0.005, 4, 160),),
    forms.power_constant_terms, forms.power_slopes, forms.position_named, "irreducible",
)  # fmt: skip
"""`POWER_CONSTANT` of the place in the context, in the constants that Kaplan et al. print."""

BROKEN = Law(
    "broken",
    "L = irreducible + (scale/x)^exponent (1 + (x/break_at)^(1/width))^(-width (exponent_after - "
    "exponent))",
    "Caballero et al. 2022 (2210.14891), eq 1 with one break", laws.broken, ("x",), ("x",),
    ("irreducible", "amplitude"),
    (_exponent("exponent", 0.02, 2, 10), _exponent("exponent_after", 0.02, 2, 10),
     _free("log_break", -12, 12, (-3.0, -2.0, -1.0, -0.3, 0.3, 1.0, 2.0, 3.0)),
     _free("log_width", -3, 2.5, (-1.5, 0.0))),
    forms.broken_terms, forms.broken_slopes, forms.broken_named, "irreducible",
)  # fmt: skip

SURFACE = Law(
    "surface", "L = E + A/N^alpha + B/D^beta", "Hoffmann et al. 2022 (2203.15556), eq 2",
    laws.surface, ("params", "tokens"), ("params", "tokens"), ("E", "size", "data"),
    (_exponent("alpha", 0.02, 3, 22), _exponent("beta", 0.02, 3, 22)),
    forms.surface_terms, forms.pair_slopes, forms.surface_named, "E",
)  # fmt: skip

COUPLED = Law(
    "coupled", "L = E + (A/N^alpha + B/D^beta)^gamma",
    "Kaplan et al. 2020 (2001.08361), eq 1.5, with a constant and a free exponent of D",
    laws.coupled, ("params", "tokens"), ("params", "tokens"), ("E", "both"),
    (_exponent("alpha", 0.05, 3, 9), _exponent("beta", 0.05, 3, 9), _OUTER, _LOGIT),
    forms.coupled_terms, forms.coupled_slopes, forms.coupled_named, "E",
)  # fmt: skip

SURFACE_KAPLAN = Law(
    "surface-kaplan", "L = [(Nc/N)^(aN/aD) + Dc/D]^aD",
    "Kaplan et al. 2020 (2001.08361), eq 1.5", laws.surface_kaplan,
    ("params", "tokens"), ("params", "tokens"), ("both",),
    (_exponent("ratio", 0.05, 4, 16), _exponent("aD", 0.01, 2, 16), _LOGIT),
    forms.kaplan_terms, forms.kaplan_slopes, forms.kaplan_named,
)  # fmt: skip

LEARNING_CURVE = Law(
    "learning-curve", "L = (Nc/N)^aN + (Sc/S_min)^aS", "Kaplan et al. 2020 (2001.08361), eq 1.6",
    laws.learning_curve, ("params", "steps"), ("params", "steps"), ("size", "steps"),
    (_exponent("aN", 0.01, 3, 24), _exponent("aS", 0.01, 3, 24)),
    forms.curve_terms, forms.pair_slopes, forms.curve_named,
)  # fmt: skip

LEARNING_CURVE_AT_BATCH = Law(
    "learning-curve",
    "L = (Nc/N)^aN + (Sc/S_min)^aS, S_min = S/(1 + B_crit(L)/B), B_crit(L) = B_star/L^(1/aB)",
    "Kaplan et al. 2020 (2001.08361), eqs 1.6, 5.3, 5.4", laws.learning_curve_at_batch,
    ("params", "steps", "batch", "loss"), ("params", "steps", "batch", "loss"), ("size", "steps"),
    (_exponent("aN", 0.02, 2, 8), _exponent("aS", 0.05, 2, 8),
     _free("log_batch_ratio", -12, 12, (-4.0, -2.0, 0.0, 2.0, 4.0)),
     _free("inverse_aB", 0.05, 20, (0.5, 1.5, 4.0, 8.0))),
    forms.batch_curve_terms, forms.batch_curve_slopes, forms.batch_curve_named,
)  # fmt: skip
"""`LEARNING_CURVE` where several batches were trained: B_crit is fitted together with the rest."""

_DECAY = (0.0, 1.5, 3.0, 4.5)
DATA_CONSTRAINED = Law(
    "data-constrained",
    "L = E + A/N'^alpha + B/D'^beta, D' = U + U R* (1 - exp(-(D/U - 1)/R*)), N' likewise",
    "Muennighoff et al. 2023 (2305.16264)", laws.data_constrained,
    ("params", "unique_params", "tokens", "unique_tokens"),
    ("params", "params", "tokens", "tokens"), ("E", "size", "data"),
    (_exponent("alpha", 0.03, 2, 9), _exponent("beta", 0.03, 2, 9),
     _free("log_params_decay", -4, 9, _DECAY), _free("log_tokens_decay", -4, 9, _DECAY)),
    forms.repeated_terms, forms.repeated_slopes, forms.repeated_named, "E",
)  # fmt: skip

CURVE_LAWS = {law.name: law for law in (POWER, POWER_CONSTANT, LOGARITHM, BROKEN)}
"""Laws of one variable."""

SURFACE_LAWS = {law.name: law for law in (SURFACE, COUPLED, SURFACE_KAPLAN)}
"""Laws of N and D."""

SEPARABLE_LAWS = CURVE_LAWS | SURFACE_LAWS | {
    law.name: law for law in (LEARNING_CURVE, DATA_CONSTRAINED, BY_POSITION)
}  # fmt: skip

FRONTIER, ISOFLOP, CRITICAL_BATCH = "frontier", "isoflop", "critical-batch"
LAW_NAMES = (*SEPARABLE_LAWS, ISOFLOP, FRONTIER, CRITICAL_BATCH)
"""Every value of --law."""
