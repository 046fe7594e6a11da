"""The laws: formulas as pure functions of the measured quantity and the constants.

Symbols: L loss [nats per token], N parameters, D tokens, C training FLOPs; x is any one of N, D, C.
Every law here is separable: for fixed exponents it is a sum of non-negative constants times known
terms. `Law` records that split, so that `analysis.solve` can eliminate the constants exactly
(variable projection) and search over the exponents alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

PF_DAY = 8.64e19
"""FLOPs in a petaflop/s-day: 1e15 x 24 x 3600 (Kaplan et al. 2020, 2001.08361)."""

EXPONENT_LIMITS = (0.005, 4.0)
"""Where exponents are searched. Published ones lie between 0.037 and 0.8; a fit or an interval
that reaches a limit is flagged, never believed."""

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
"""C = 6 N D: forward 2, backward 4 (Kaplan et al. 2020, section 2.1)."""


def power(x: np.ndarray, scale: float, exponent: float) -> np.ndarray:
    """L = (scale/x)^exponent, a loss that can fall to zero (Kaplan et al. 2020, eqs 1.1-1.3)."""
    return (scale / np.asarray(x, float)) ** exponent


def power_constant(x: np.ndarray, irreducible: float, scale: float, exponent: float) -> np.ndarray:
    """L = irreducible + (scale/x)^exponent (Henighan et al. 2020, 2010.14701, eq 1.1)."""
    return irreducible + power(x, scale, exponent)


def optimal_params(
    flops: np.ndarray, params_scale: float | np.ndarray, params_exponent: float | np.ndarray
) -> np.ndarray:
    """N_opt = (C/params_scale)^params_exponent (Henighan et al. 2020, Table 1: c0 and beta)."""
    return (np.asarray(flops, float) / params_scale) ** params_exponent


def optimal_tokens(
    flops: np.ndarray, params_scale: float | np.ndarray, params_exponent: float | np.ndarray
) -> np.ndarray:
    """D_opt = C / (6 N_opt), the tokens that spend C on a model of N_opt parameters."""
    best = optimal_params(flops, params_scale, params_exponent)
    return np.asarray(flops, float) / (FLOPS_PER_PARAMETER_AND_TOKEN * best)


def optimal_tokens_scale(params_scale: float, params_exponent: float) -> float:
    """d0 such that D_opt = (C/d0)^(1 - params_exponent); FLOPs. NaN where the exponent is 1."""
    rest = 1.0 - params_exponent
    if rest == 0:
        return float("nan")
    log_scale = np.log(FLOPS_PER_PARAMETER_AND_TOKEN) - params_exponent * np.log(params_scale)
    with np.errstate(over="ignore"):
        return float(np.exp(log_scale / rest))


@dataclass(frozen=True)
class Law:
    """A separable law L = sum_j c_j term_j(u; exponents), c_j >= 0, u = x over its geometric mean.

    `terms(u, exponents)` gives [batch, points, terms] for exponents [batch, exponents], and
    `slopes` its derivative by each exponent [batch, points, terms, exponents].
    """

    name: str
    formula: str
    source: str
    terms: Callable[[np.ndarray, np.ndarray], np.ndarray]
    slopes: Callable[[np.ndarray, np.ndarray], np.ndarray]
    constants: tuple[str, ...]
    exponents: tuple[str, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of everything that is fitted, constants first."""
        return self.constants + self.exponents


def _falling(u_P: np.ndarray, exponents_B1: np.ndarray) -> np.ndarray:
    return np.exp(-exponents_B1 * np.log(u_P))


def _power_terms(u_P: np.ndarray, exponents_B1: np.ndarray) -> np.ndarray:
    return _falling(u_P, exponents_B1)[:, :, None]


def _power_slopes(u_P: np.ndarray, exponents_B1: np.ndarray) -> np.ndarray:
    return (-np.log(u_P) * _falling(u_P, exponents_B1))[:, :, None, None]


def _power_constant_terms(u_P: np.ndarray, exponents_B1: np.ndarray) -> np.ndarray:
    falling = _falling(u_P, exponents_B1)
    return np.stack([np.ones_like(falling), falling], axis=2)


def _power_constant_slopes(u_P: np.ndarray, exponents_B1: np.ndarray) -> np.ndarray:
    slope = -np.log(u_P) * _falling(u_P, exponents_B1)
    return np.stack([np.zeros_like(slope), slope], axis=2)[:, :, :, None]


POWER = Law(
    name="power",
    formula="L = (scale/x)^exponent",
    source="Kaplan et al. 2020 (2001.08361), eqs 1.1-1.3",
    terms=_power_terms,
    slopes=_power_slopes,
    constants=("amplitude",),
    exponents=("exponent",),
)

POWER_CONSTANT = Law(
    name="power-constant",
    formula="L = irreducible + (scale/x)^exponent",
    source="Henighan et al. 2020 (2010.14701), eq 1.1",
    terms=_power_constant_terms,
    slopes=_power_constant_slopes,
    constants=("irreducible", "amplitude"),
    exponents=("exponent",),
)

CURVE_LAWS = {law.name: law for law in (POWER, POWER_CONSTANT)}
"""Laws of one variable."""

FRONTIER = "frontier"
LAW_NAMES = (*CURVE_LAWS, FRONTIER)
"""Every value of --law."""
