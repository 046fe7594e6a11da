"""The laws: formulas as pure functions of the measured quantities and the constants.

Symbols: L loss [nats per token], N parameters, D tokens, U unique tokens, S optimizer steps, B batch,
C training FLOPs; x is any one of N, D, C. Arguments broadcast, so constants may be whole columns of
bootstrap draws. What follows from these laws is in `analysis.derived`, how they are fitted in
`analysis.separable`.
"""

from typing import Any

import numpy as np

PF_DAY = 8.64e19
"""FLOPs in a petaflop/s-day: 1e15 x 24 x 3600 (Kaplan et al. 2020, 2001.08361)."""

EXPONENT_LIMITS = (0.005, 8.0)
"""Where exponents are searched. Published ones of losses lie between 0.037 and 0.8; a fit or an
interval that reaches a limit is flagged, never believed."""

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
"""C = 6 N D: forward 2, backward 4 (Kaplan et al. 2020, section 2.1)."""

UNIQUE_PARAMS_PER_TOKEN = 0.051
"""U_N / U_D: parameters that are compute-optimal for unique tokens (Muennighoff et al. 2023,
2305.16264, C4). Used only where no single-epoch runs say it of the data at hand."""


def power(x: Any, scale: Any, exponent: Any) -> Any:
    """L = (scale/x)^exponent, a loss that can fall to zero (Kaplan et al. 2020, eqs 1.1-1.3)."""
    return (scale / np.asarray(x, float)) ** exponent


def power_constant(x: Any, irreducible: Any, scale: Any, exponent: Any) -> Any:
    """L = irreducible + (scale/x)^exponent (Henighan et al. 2020, 2010.14701, eq 1.1)."""
    return irreducible + power(x, scale, exponent)


def logarithm(x: Any, scale: Any, slope: Any) -> Any:
    """L = -slope log(x/scale), nats for each e-fold of x (Kaplan et al. 2020, figure 23, beside the
    power law that it is worse than; there slope 0.25, scale 7.1e12 for N). Below zero beyond scale."""
    return -slope * (np.log(np.asarray(x, float)) - np.log(scale))


def mutual_information(params: Any, Nc: Any, rate: Any) -> Any:
    """I(X, Y) = rate log(N/Nc), in nats per pair, and of the same form the share I/L(text) of it that
    is known, `infogain` (Henighan et al. 2020, eq 4.1, lambda there). No law below Nc."""
    return rate * (np.log(np.asarray(params, float)) - np.log(Nc))


def by_position(position: Any, irreducible: Any, amplitude: Any, exponent: Any) -> Any:
    """L_T = irreducible + amplitude T^-exponent, of the token at position T = 1, 2, ... of the context
    (Kaplan et al. 2020, appendix D.5, figure 20: for example 2.3 + 5.4 T^-0.62)."""
    return irreducible + amplitude * np.asarray(position, float) ** -np.asarray(exponent, float)


def broken(
    x: Any,
    irreducible: Any,
    scale: Any,
    exponent: Any,
    exponent_after: Any,
    break_at: Any,
    width: Any,
) -> Any:
    """One smooth break: L = irreducible + (scale/x)^exponent (1 + (x/break_at)^(1/width))^(-f
    width) with f = exponent_after - exponent, so that the slope passes from -exponent to
    -exponent_after about x = break_at (Caballero et al. 2022, 2210.14891, eq 1, n = 1). `width` is
    in units of log x."""
    log_x = np.log(np.asarray(x, float))
    turn = np.logaddexp(0.0, (log_x - np.log(break_at)) / width)
    return irreducible + np.exp(
        exponent * (np.log(scale) - log_x) - (exponent_after - exponent) * width * turn
    )


def surface(params: Any, tokens: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any) -> Any:
    """L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, 2203.15556, eq 2)."""
    return E + A / np.asarray(params, float) ** alpha + B / np.asarray(tokens, float) ** beta


def coupled(
    params: Any, tokens: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any, gamma: Any
) -> Any:
    """L = E + (A/N^alpha + B/D^beta)^gamma: `surface` for gamma = 1, and for E = 0, beta = 1 the
    joint law of Kaplan et al. 2020 (eq 1.5)."""
    return E + surface(params, tokens, 0.0, A, alpha, B, beta) ** gamma


def surface_kaplan(params: Any, tokens: Any, Nc: Any, aN: Any, Dc: Any, aD: Any) -> Any:
    """L = [(Nc/N)^(aN/aD) + Dc/D]^aD (Kaplan et al. 2020, eq 1.5; constants of its Table 2)."""
    return (power(params, Nc, aN / aD) + Dc / np.asarray(tokens, float)) ** aD


def learning_curve(params: Any, steps: Any, Nc: Any, aN: Any, Sc: Any, aS: Any) -> Any:
    """L = (Nc/N)^aN + (Sc/S_min)^aS after the warm-up (Kaplan et al. 2020, eq 1.6, Table 3)."""
    return power(params, Nc, aN) + power(steps, Sc, aS)


def learning_curve_at_batch(
    params: Any, steps: Any, batch: Any, loss: Any, Nc: Any, aN: Any, Sc: Any, aS: Any, B_star: Any,
    aB: Any,
) -> Any:  # fmt: skip
    """`learning_curve` of S_min = S/(1 + B_crit(L)/B), with B_crit at the measured loss (Kaplan et al.
    2020, eqs 1.6, 5.3, 5.4): what S steps at batch B are worth. B and B* in one unit."""
    least = minimum_steps(steps, batch, critical_batch(loss, B_star, aB))
    return learning_curve(params, least, Nc, aN, Sc, aS)


def effective(amount: Any, unique: Any, decay: Any) -> Any:
    """U + U R* (1 - exp(-R/R*)), R = amount/U - 1 repetitions, R* = `decay`: what repeated data or
    excess parameters are worth (Muennighoff et al. 2023, eqs 5-6). `amount` where U >= amount."""
    unique = np.minimum(unique, amount)
    return unique * (1 - decay * np.expm1(-(amount / unique - 1) / decay))


def data_constrained(
    params: Any,
    unique_params: Any,
    tokens: Any,
    unique_tokens: Any,
    E: Any,
    A: Any,
    alpha: Any,
    B: Any,
    beta: Any,
    params_decay: Any,
    tokens_decay: Any,
) -> Any:
    """`surface` of the effective N' and D' (Muennighoff et al. 2023, 2305.16264). `unique_params`
    is U_N, the compute-optimal N for D = U; `params_decay` and `tokens_decay` are R_N*, R_D*."""
    return surface(
        effective(params, unique_params, params_decay),
        effective(tokens, unique_tokens, tokens_decay),
        E, A, alpha, B, beta,
    )  # fmt: skip


def critical_batch(loss: Any, B_star: Any, aB: Any) -> Any:
    """B_crit(L) = B*/L^(1/aB), in the unit of B* (Kaplan et al. 2020, eq 5.3)."""
    return B_star / np.asarray(loss, float) ** (1 / np.asarray(aB, float))


def steps_at_batch(batch: Any, min_steps: Any, batch_crit: Any) -> Any:
    """S = S_min (1 + B_crit/B): steps to one loss at batch B, the hyperbola (S/S_min - 1)(E/E_min -
    1) = 1 with E = B S and B_crit = E_min/S_min (McCandlish et al. 2018, 1812.06162, eq 2.11)."""
    return min_steps * (1 + batch_crit / np.asarray(batch, float))


def minimum_steps(steps: Any, batch: Any, batch_crit: Any) -> Any:
    """S_min = S/(1 + B_crit(L)/B) (Kaplan et al. 2020, eq 5.4)."""
    return np.asarray(steps, float) / (1 + batch_crit / np.asarray(batch, float))


def minimum_flops(flops: Any, batch: Any, batch_crit: Any) -> Any:
    """C_min = C/(1 + B/B_crit(L)) (Kaplan et al. 2020, eq 5.5)."""
    return np.asarray(flops, float) / (1 + np.asarray(batch, float) / batch_crit)


def optimal_params(flops: Any, params_scale: Any, params_exponent: Any) -> Any:
    """N_opt = (C/params_scale)^params_exponent (Henighan et al. 2020, Table 1: c0 and beta)."""
    return (np.asarray(flops, float) / params_scale) ** params_exponent


def optimal_tokens(flops: Any, params_scale: Any, params_exponent: Any) -> Any:
    """D_opt = C / (6 N_opt), the tokens that spend C on a model of N_opt parameters."""
    best = optimal_params(flops, params_scale, params_exponent)
    return np.asarray(flops, float) / (FLOPS_PER_PARAMETER_AND_TOKEN * best)


def optimal_tokens_scale(params_scale: float, params_exponent: float) -> float:
    """d0 such that D_opt = (C/d0)^(1 - params_exponent); FLOPs. NaN where the exponent is 1."""
    rest = 1.0 - params_exponent
    if rest == 0:
        return float("nan")
    with np.errstate(over="ignore", divide="ignore"):  # a scale of 0, or beyond all floats
        log_scale = np.log(FLOPS_PER_PARAMETER_AND_TOKEN) - params_exponent * np.log(params_scale)
        return float(np.exp(log_scale / rest))
