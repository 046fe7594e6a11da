"""What follows from the fitted laws: best sizes, best batch, over-fitting, crossings, wanted losses.

Symbols as in `analysis.laws`; every function broadcasts, so that a column of bootstrap draws gives a
column of answers. a = dlog N_opt / dlog C, b = 1 - a.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.laws import FLOPS_PER_PARAMETER_AND_TOKEN, coupled

Constants = Mapping[str, Any]

OPTIMUM = ("a", "optimal_params", "optimal_tokens", "tokens_per_param")
"""What `optimum_of` gives."""


def inner_surface(law: str, constants: Constants) -> dict[str, Any]:
    """A, alpha, B, beta of the sum A/N^alpha + B/D^beta that a law of N and D is a rising function
    of, so that its optimum at fixed compute is this sum's."""
    if law != "surface-kaplan":
        return {name: constants[name] for name in ("A", "alpha", "B", "beta")}
    alpha = constants["aN"] / constants["aD"]
    return {"A": constants["Nc"] ** alpha, "alpha": alpha, "B": constants["Dc"], "beta": 1.0}


def as_coupled(law: str, constants: Constants) -> dict[str, Any]:
    """E, A, alpha, B, beta, gamma of a law of N and D written as L = E + (A/N^alpha + B/D^beta)^gamma:
    `surface` is gamma = 1, Kaplan's law E = 0, gamma = aD."""
    outer = constants.get("gamma", constants.get("aD", 1.0))
    return {"E": constants.get("E", 0.0), **inner_surface(law, constants), "gamma": outer}


def optimal_allocation(flops: Any, A: Any, alpha: Any, B: Any, beta: Any) -> tuple[Any, Any]:
    """(N_opt, D_opt) = (G (C/6)^a, (C/6)^b / G), G = (alpha A / (beta B))^(1/(alpha + beta)), a =
    beta/(alpha + beta) (Hoffmann et al. 2022, 2203.15556, eq 4)."""
    with np.errstate(all="ignore"):
        log_g = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
        log_c = np.log(np.asarray(flops, float) / FLOPS_PER_PARAMETER_AND_TOKEN)
        log_n = log_g + beta / (alpha + beta) * log_c
        return np.exp(log_n), np.exp(log_c - log_n)


def optimal_flops_of_params(params: Any, A: Any, alpha: Any, B: Any, beta: Any) -> Any:
    """The compute for which N is the best size: the inverse of `optimal_allocation`."""
    with np.errstate(all="ignore"):
        log_g = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
        log_c = (np.log(np.asarray(params, float)) - log_g) * (alpha + beta) / beta
        return FLOPS_PER_PARAMETER_AND_TOKEN * np.exp(log_c)


def optimal_flops_of_tokens(tokens: Any, A: Any, alpha: Any, B: Any, beta: Any) -> Any:
    """The compute for which D is the best number of tokens."""
    return optimal_flops_of_params(tokens, B, beta, A, alpha)


def optimum_of(law: str, constants: Constants, flops: float) -> dict[str, np.ndarray]:
    """The exponent a, and N_opt, D_opt, D_opt/N_opt at `flops`, of each draw."""
    inner = inner_surface(law, constants)
    params, tokens = optimal_allocation(flops, **inner)
    with np.errstate(all="ignore"):
        return {
            "a": inner["beta"] / (inner["alpha"] + inner["beta"]),
            "optimal_params": params,
            "optimal_tokens": tokens,
            "tokens_per_param": tokens / params,
        }


def excess_compute(ratio: Any, aN: Any, aS: Any) -> tuple[Any, Any]:
    """What a model `ratio` times the best size costs for the same loss: (C/C_best, S/S_best) =
    (r [1 + (aS/aN) (1 - r^-aN)]^(-1/aS), that without r) (Kaplan et al. 2020, eqs B.16, B.17).
    NaN where so small a model never reaches the loss."""
    ratio = np.asarray(ratio, float)
    left = 1 + aS / aN * (1 - ratio**-aN)
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.where(left > 0, left, np.nan) ** (-1 / aS)
    return ratio * steps, steps


def excess_compute_of_surface(
    ratio: Any, flops: Any, A: Any, alpha: Any, B: Any, beta: Any
) -> tuple[Any, Any]:
    """(C/C_best, D/D_best) of a model `ratio` times the best size for `flops`, trained until it has
    the loss of the best one, where L = E + A/N^alpha + B/D^beta: D = (B/(L - E - A/N^alpha))^(1/beta).
    The analogue of Kaplan et al. 2020, eqs B.16, B.17. NaN where so small a model never gets there."""
    params, tokens = optimal_allocation(flops, A, alpha, B, beta)
    size, data = A / params**alpha, B / tokens**beta
    left = 1 + size / data * (1 - np.asarray(ratio, float) ** -alpha)
    with np.errstate(invalid="ignore", divide="ignore"):
        more = np.where(left > 0, left, np.nan) ** (-1 / beta)
    return ratio * more, more


def overfitting(params: Any, tokens: Any, Nc: Any, aN: Any, Dc: Any, aD: Any) -> Any:
    """delta L = L(N, D)/L(N, inf) - 1 = (1 + (N/Nc)^(aN/aD) Dc/D)^aD - 1 (Kaplan et al. 2020, eq
    4.3): relative excess loss for want of data."""
    return (1 + (np.asarray(params, float) / Nc) ** (aN / aD) * Dc / np.asarray(tokens)) ** aD - 1


def tokens_against_overfitting(
    params: Any, most: Any, Nc: Any, aN: Any, Dc: Any, aD: Any
) -> Any:  # fmt: skip
    """The fewest tokens that keep `overfitting` below `most`: D = Dc (N/Nc)^(aN/aD) / ((1 +
    most)^(1/aD) - 1) (Kaplan et al. 2020, eq 4.4: about 5e3 N^0.74 for 0.02)."""
    return Dc * (np.asarray(params, float) / Nc) ** (aN / aD) / ((1 + most) ** (1 / aD) - 1)


def overfitting_of_surface(
    params: Any, tokens: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any, gamma: Any
) -> Any:
    """L(N, D)/L(N, inf) - 1 where L = E + (A/N^alpha + B/D^beta)^gamma: `overfitting` for every law of N
    and D, equal to it for Kaplan's (`as_coupled`)."""
    constants = {"E": E, "A": A, "alpha": alpha, "B": B, "beta": beta, "gamma": gamma}
    return coupled(params, tokens, **constants) / coupled(params, np.inf, **constants) - 1


def tokens_against_overfitting_of_surface(
    params: Any, most: Any, E: Any, A: Any, alpha: Any, B: Any, beta: Any, gamma: Any
) -> Any:
    """The fewest tokens that keep `overfitting_of_surface` below `most`, with L = L(N, inf): D = (B/([(1 +
    most) L - E]^(1/gamma) - A/N^alpha))^(1/beta)."""
    size = A / np.asarray(params, float) ** alpha
    left = ((1 + most) * (E + size**gamma) - E) ** (1 / gamma) - size
    return (B / left) ** (1 / beta)


def early_stopping_step(loss: Any, loss_of_endless_data: Any, Sc: Any, aS: Any) -> Any:
    """S_stop >= Sc/[L(N, D) - L(N, inf)]^(1/aS): training on D tokens need not stop sooner (Kaplan
    et al. 2020, eq 5.7, a lower bound)."""
    gap = np.asarray(loss, float) - np.asarray(loss_of_endless_data, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Sc / np.where(gap > 0, gap, 0.0) ** (1 / np.asarray(aS, float))


def frontier_exponents(aN: Any, aS: Any, aB: Any) -> dict[str, Any]:
    """Exponents of the compute-efficient frontier: L ~ C^-alpha with alpha = 1/(1/aS + 1/aB +
    1/aN), N_opt ~ C^(alpha/aN), B_opt ~ C^(alpha/aB), S_opt ~ C^(alpha/aS) (Kaplan et al. 2020, eqs
    1.7-1.8, 6.2-6.3)."""
    alpha = 1 / (1 / aS + 1 / aB + 1 / aN)
    return {"loss": alpha, "params": alpha / aN, "batch": alpha / aB, "steps": alpha / aS}


def efficient_frontier(
    flops: Any, Nc: Any, aN: Any, Sc: Any, aS: Any, B_star: Any, aB: Any
) -> dict[str, Any]:
    """The cheapest N, B, S_min and loss for C_min = 6 N B_crit S_min (Kaplan et al. 2020, section
    6.1 and appendix B.1), in the units of the constants (B_star in tokens gives FLOPs).

    L(N, S_min) is least where (Nc/N)^aN aN/aS = (Sc/S_min)^aS [B.1-B.3], so L = (1 + aN/aS)
    (Nc/N)^aN; C_min then rises with N alone, which is solved for in closed form."""
    stretch = 1 + aN / aS  # L/L(N): efficient training stops aN/aS above the converged loss
    total = 1 + aN / aS + aN / aB
    # C = 6 N B*/L^(1/aB) Sc ((aN/aS) x)^(-1/aS), L = stretch x, x = (Nc/N)^aN, N = Nc x^(-1/aN)
    constant = 6 * Nc * B_star * Sc * stretch ** (-1 / aB) * (aN / aS) ** (-1 / aS)
    log_x = -(np.log(np.asarray(flops, float)) - np.log(constant)) * aN / total
    loss = stretch * np.exp(log_x)
    return {
        "params": Nc * np.exp(-log_x / aN),
        "batch": B_star / loss ** (1 / aB),
        "steps": Sc * (aN / aS * np.exp(log_x)) ** (-1 / aS),
        "loss": loss,
    }


def crossing(
    flops_law: Constants, tokens_law: Constants, params_scale: Any, params_exponent: Any
) -> tuple[Any, Any]:
    """(C, loss above the constants) where the reducible L(C) meets the reducible L(D) at the tokens
    D = C/(6 N_opt(C)) of the frontier: beyond it one of the two trends must break (Henighan et al.
    2020, section 6; Kaplan et al. 2020, eq 6.8). Both laws are `scale`, `exponent`. NaN where they
    are parallel."""
    # e_C (log c - log C) = e_D (log d - b log C - log d0), D = d0 C^b
    b = 1 - params_exponent
    log_d0 = params_exponent * np.log(params_scale) - np.log(FLOPS_PER_PARAMETER_AND_TOKEN)
    slope = flops_law["exponent"] - tokens_law["exponent"] * b
    level = flops_law["exponent"] * np.log(flops_law["scale"]) - tokens_law["exponent"] * (
        np.log(tokens_law["scale"]) - log_d0
    )
    with np.errstate(all="ignore"):
        flops = np.exp(np.where(slope == 0, np.nan, level / slope))
        return flops, (flops_law["scale"] / flops) ** flops_law["exponent"]


def harmonic(count: int, exponent: Any) -> Any:
    """H_n^(p) = sum of t^-p for t = 1..n, the generalised harmonic number."""
    terms = np.arange(1, count + 1, dtype=float)
    powers = terms ** -np.asarray(exponent, float)[..., None]
    return powers.sum(axis=-1)


def information_of_halves(length: int, irreducible: Any, amplitude: Any, exponent: Any) -> Any:
    """What the first T tokens of a text say about the next T, in nats, from the loss by position L_t =
    irreducible + amplitude t^-p: (2 H_T - H_2T) amplitude (Henighan et al. 2020, appendix E, where
    irreducible is L(N) and amplitude is the unigram loss L_U less L(N)); T = `length`."""
    first, both = harmonic(length, exponent), harmonic(2 * length, exponent)
    return (2 * first - both) * amplitude


def infogain_of_halves(length: int, irreducible: Any, amplitude: Any, exponent: Any) -> Any:
    """The same as a share of the loss of the next T tokens, T L(N) + (H_2T - H_T) (L_U - L(N))
    (Henighan et al. 2020, appendix E)."""
    first, both = harmonic(length, exponent), harmonic(2 * length, exponent)
    whole = length * irreducible + (both - first) * amplitude
    return (2 * first - both) * amplitude / whole


def reducible_per_sample(x: Any, scale: Any, exponent: Any, tokens_per_sample: int) -> Any:
    """Reducible loss in nats per image or clip: `tokens_per_sample` (scale/x)^exponent (Henighan et
    al. 2020, Table 3)."""
    return tokens_per_sample * (scale / np.asarray(x, float)) ** exponent


def x_for_reducible(wanted: Any, scale: Any, exponent: Any, tokens_per_sample: int = 1) -> Any:
    """The N, D or C at which the reducible loss is `wanted` nats per sample: the inverse of
    `reducible_per_sample`; for C and 1 nat it is Table 3's C1 (Henighan et al. 2020)."""
    with np.errstate(over="ignore"):
        return scale * (tokens_per_sample / np.asarray(wanted, float)) ** (1 / exponent)
