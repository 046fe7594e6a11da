"""The terms of every separable law, their derivatives, and the names of their constants.

Three functions a law, in the shapes that `analysis.separable.Law` states: B batch (draws), P points,
I inputs, K constants, S shape parameters. Inputs are logarithms in units of their geometric mean.
"""

import numpy as np

Columns = dict[str, np.ndarray]


def _fall(log_P: np.ndarray, exponent_B: np.ndarray) -> np.ndarray:
    return np.exp(-exponent_B[:, None] * log_P)


def _with_one(*terms_BP: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(terms_BP[0]), *terms_BP], axis=1)


def _root(value: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """value^(1/exponent), infinite or zero where that is out of range."""
    with np.errstate(all="ignore"):
        return value ** (1 / exponent)


# --- laws of one variable ---


def power_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return _fall(log_IP[0], shape[:, 0])[:, None]


def power_constant_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return _with_one(_fall(log_IP[0], shape[:, 0]))


def power_slopes(
    log_IP: np.ndarray, shape: np.ndarray, constants: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    return (-log_IP[0] * constants[:, -1:] * terms[:, -1])[:, None]


def power_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    exponent = shape[:, 0]
    found = {"irreducible": constants[:, 0]} if constants.shape[1] == 2 else {}
    scale = units[0] * _root(constants[:, -1], exponent)
    return found | {"scale": scale, "exponent": exponent}


def logarithm_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return _with_one(np.broadcast_to(-log_IP[0], (len(shape), log_IP.shape[1])))


def no_slopes(
    log_IP: np.ndarray, shape: np.ndarray, constants: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    return np.empty((len(constants), 0, log_IP.shape[1]))


def logarithm_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    level, slope = constants.T
    with np.errstate(all="ignore"):
        return {"scale": units[0] * np.exp(level / slope), "slope": slope}


def position_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    exponent = shape[:, 0]
    return {
        "irreducible": constants[:, 0],
        "amplitude": constants[:, 1] * units[0] ** exponent,
        "exponent": exponent,
    }


def broken_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    first, second, at, width = shape.T[:, :, None]
    width = np.exp(width)
    turn = np.logaddexp(0.0, (log_IP[0] - at) / width)
    return _with_one(np.exp(-first * log_IP[0] - (second - first) * width * turn))


def broken_slopes(
    log_IP: np.ndarray, shape: np.ndarray, constants: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    first, second, at, width = shape.T[:, :, None]
    width = np.exp(width)
    z = (log_IP[0] - at) / width
    turn, beyond = np.logaddexp(0.0, z), 1 / (1 + np.exp(-np.clip(z, -500, 500)))
    by_log = [
        -log_IP[0] + width * turn,
        -width * turn,
        (second - first) * beyond,
        -(second - first) * width * (turn - z * beyond),
    ]
    return np.stack(by_log, axis=1) * (constants[:, 1, None] * terms[:, 1])[:, None]


def broken_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    return {
        "irreducible": constants[:, 0],
        "scale": units[0] * _root(constants[:, 1], shape[:, 0]),
        "exponent": shape[:, 0],
        "exponent_after": shape[:, 1],
        "break_at": units[0] * np.exp(shape[:, 2]),
        "width": np.exp(shape[:, 3]),
    }


# --- laws of two ---


def _pair(log_IP: np.ndarray, shape: np.ndarray) -> list[np.ndarray]:
    return [_fall(log_IP[0], shape[:, 0]), _fall(log_IP[1], shape[:, 1])]


def surface_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return _with_one(*_pair(log_IP, shape))


def curve_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.stack(_pair(log_IP, shape), axis=1)


def pair_slopes(
    log_IP: np.ndarray, shape: np.ndarray, constants: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    return -log_IP * constants[:, -2:, None] * terms[:, -2:]


def surface_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    alpha, beta = shape[:, 0], shape[:, 1]
    with np.errstate(over="ignore"):
        return {
            "E": constants[:, 0],
            "A": constants[:, 1] * units[0] ** alpha,
            "alpha": alpha,
            "B": constants[:, 2] * units[1] ** beta,
            "beta": beta,
        }


def curve_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    return {
        "Nc": units[0] * _root(constants[:, 0], shape[:, 0]),
        "aN": shape[:, 0],
        "Sc": units[1] * _root(constants[:, 1], shape[:, 1]),
        "aS": shape[:, 1],
    }


def _steps_lost(log_IP: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(S/S_min) = log(1 + B_crit(L)/B), and B_crit/(B + B_crit), each [B, P]."""
    log_ratio = shape[:, 2:3] - shape[:, 3:4] * log_IP[3] - log_IP[2]
    return np.logaddexp(0.0, log_ratio), np.exp(-np.logaddexp(0.0, -log_ratio))


def batch_curve_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    lost, _ = _steps_lost(log_IP, shape)
    steps = np.exp(-shape[:, 1:2] * (log_IP[1] - lost))
    return np.stack([_fall(log_IP[0], shape[:, 0]), steps], axis=1)


def batch_curve_slopes(
    log_IP: np.ndarray, shape: np.ndarray, constants: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    lost, share = _steps_lost(log_IP, shape)
    size, steps = constants[:, 0:1] * terms[:, 0], constants[:, 1:2] * terms[:, 1]
    by_ratio = steps * shape[:, 1:2] * share
    return np.stack(
        [-log_IP[0] * size, -(log_IP[1] - lost) * steps, by_ratio, -log_IP[3] * by_ratio], axis=1
    )


def batch_curve_named(
    constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]
) -> Columns:
    with np.errstate(over="ignore"):
        return curve_named(constants, shape, units) | {
            "B_star": units[2] * np.exp(shape[:, 2]) * units[3] ** shape[:, 3],
            "aB": 1 / shape[:, 3],
        }


def _share(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def coupled_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    first, second = _pair(log_IP, shape)
    share = _share(shape[:, 3:4])
    return _with_one((share * first + (1 - share) * second) ** shape[:, 2:3])


def coupled_slopes(
    log_IP: np.ndarray, shape: np.ndarray, constants: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    first, second = _pair(log_IP, shape)
    power, share = shape[:, 2:3], _share(shape[:, 3:4])
    inner = share * first + (1 - share) * second
    whole = constants[:, -1:] * terms[:, -1]
    by_inner = whole * power / inner
    return np.stack(
        [
            -by_inner * share * log_IP[0] * first,
            -by_inner * (1 - share) * log_IP[1] * second,
            whole * np.log(inner),
            by_inner * share * (1 - share) * (first - second),
        ],
        axis=1,
    )


def coupled_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    alpha, beta, gamma, share = *shape[:, :3].T, _share(shape[:, 3])
    size = _root(constants[:, 1], gamma)
    with np.errstate(over="ignore"):
        return {
            "E": constants[:, 0],
            "A": size * share * units[0] ** alpha,
            "alpha": alpha,
            "B": size * (1 - share) * units[1] ** beta,
            "beta": beta,
            "gamma": gamma,
        }


def _with_beta_one(shape: np.ndarray) -> np.ndarray:
    """Kaplan's (ratio, outer, logit) as the shape of `coupled`."""
    return np.column_stack([shape[:, 0], np.ones(len(shape)), shape[:, 1], shape[:, 2]])


def kaplan_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return coupled_terms(log_IP, _with_beta_one(shape))[:, 1:]


def kaplan_slopes(
    log_IP: np.ndarray, shape: np.ndarray, constants: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    return coupled_slopes(log_IP, _with_beta_one(shape), constants, terms)[:, [0, 2, 3]]


def kaplan_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    ratio, outer, share = shape[:, 0], shape[:, 1], _share(shape[:, 2])
    size = _root(constants[:, 0], outer)
    return {
        "Nc": units[0] * _root(size * share, ratio),
        "aN": ratio * outer,
        "Dc": units[1] * size * (1 - share),
        "aD": outer,
    }


# --- repeated data ---


def _log_effective(
    log_amount: np.ndarray, log_unique: np.ndarray, log_decay_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log of `laws.effective` [B, P] and its derivative by the logarithm of the decay."""
    decay = np.exp(log_decay_B)[:, None]
    repeats = np.maximum(np.expm1(log_amount - log_unique), 0.0) / decay
    kept = np.exp(-repeats)
    size = 1 + decay * (1 - kept)
    return np.minimum(log_unique, log_amount) + np.log(size), decay * (
        1 - kept * (1 + repeats)
    ) / size


def _effective_logs(log_IP: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, ...]:
    params = _log_effective(log_IP[0], log_IP[1], shape[:, 2])
    return *params, *_log_effective(log_IP[2], log_IP[3], shape[:, 3])


def repeated_terms(log_IP: np.ndarray, shape: np.ndarray) -> np.ndarray:
    log_params, _, log_tokens, _ = _effective_logs(log_IP, shape)
    return _with_one(np.exp(-shape[:, :1] * log_params), np.exp(-shape[:, 1:2] * log_tokens))


def repeated_slopes(
    log_IP: np.ndarray, shape: np.ndarray, constants: np.ndarray, terms: np.ndarray
) -> np.ndarray:
    log_params, by_params, log_tokens, by_tokens = _effective_logs(log_IP, shape)
    size, data = -constants[:, 1:2] * terms[:, 1], -constants[:, 2:3] * terms[:, 2]
    alpha, beta = shape[:, :1], shape[:, 1:2]
    slopes = [size * log_params, data * log_tokens, size * alpha * by_params]
    return np.stack([*slopes, data * beta * by_tokens], axis=1)


def repeated_named(constants: np.ndarray, shape: np.ndarray, units: tuple[float, ...]) -> Columns:
    decays = {"params_decay": np.exp(shape[:, 2]), "tokens_decay": np.exp(shape[:, 3])}
    return surface_named(constants, shape, (units[0], units[2])) | decays
