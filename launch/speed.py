"""How fast a run was, in words: tokens/s, model FLOP/s, MFU, the spread of its steps. No torch."""

from dataclasses import dataclass

import numpy as np

from launch.config import RunConfig
from launch.devices import Device

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Speed:
    """Of the optimizer steps alone: evaluations and checkpoints are not in it.

    `flops_6nd` and `flops_exact` are model FLOP/s over all devices: what is computed again under
    activation checkpointing is not counted. `mfu` is `flops_exact` over the devices' peak in the run's
    precision (Chowdhery et al. 2022, appendix B, with the attention as sparse as it is and the output
    head counted); None where the peak is not known. `percentiles` are seconds of a step.
    """

    tokens: float
    flops_6nd: float
    flops_exact: float
    mfu: float | None
    percentiles: tuple[float, ...]


def speed(seconds: np.ndarray, config: RunConfig, devices: int, device: Device | None) -> Speed:
    """`seconds` [steps]: the wall time of each; `device`: what each of the `devices` is, if known."""
    tokens = len(seconds) * config.tokens_per_step / float(seconds.sum())
    exact = tokens * config.shape.flops_per_token_exact
    peak = device and (device.bf16 if config.precision == "bf16" else device.fp32)
    return Speed(
        tokens=tokens,
        flops_6nd=tokens * config.shape.flops_per_token_6nd,
        flops_exact=exact,
        mfu=exact / (devices * peak) if peak else None,
        percentiles=tuple(float(each) for each in np.percentile(seconds, PERCENTILES)),
    )


def described(of: Speed, config: RunConfig, device: Device | None) -> str:
    """One sentence."""
    if of.mfu is None:
        utilisation = "no MFU, for the peak of this device is not known"
    else:
        assert device is not None
        utilisation = (
            f"MFU {of.mfu:.1%} (exact FLOPs over the {config.precision} peak of {device.name})"
        )
    middle, most, nearly_all = of.percentiles
    return (
        f"{of.tokens:,.0f} tokens/s, {of.flops_6nd:.3g} model FLOP/s by 6ND and {of.flops_exact:.3g} exact, "
        f"{utilisation}; a step takes {_time(middle)}, 95% at most {_time(most)}, 99% {_time(nearly_all)}"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
