"""Published constants, for standing beside ours: never for fitting.

Henighan et al. 2020 (2010.14701), Table 1: `L = irreducible + (scale/x)^exponent` for x = N
[non-embedding parameters] and x = C [PF-days]; `N_opt = (C/c0)^beta`, C in PF-days.
Losses are nats per token. Kaplan et al. 2020 (2001.08361), Table 5 and eq 1.1 and Figure 14.
"""

import re
from dataclasses import dataclass, replace

from analysis.laws import PF_DAY


@dataclass(frozen=True)
class PublishedCurve:
    """L = irreducible + (scale/x)^exponent."""

    irreducible: float
    scale: float
    exponent: float


@dataclass(frozen=True)
class PublishedDomain:
    """One row of a paper's table; `scale` of `loss_by_flops` and `params_scale` in PF-days."""

    domain: str
    source: str
    caution: str
    loss_by_params: PublishedCurve
    loss_by_flops: PublishedCurve
    params_scale: float
    params_exponent: float

    def flops_law(self) -> PublishedCurve:
        """L(C) with its scale in FLOPs."""
        return replace(self.loss_by_flops, scale=self.loss_by_flops.scale * PF_DAY)


_TABLE_1 = "Henighan et al. 2020, Table 1"
_MATHEMATICS_CAUTION = (
    "The paper's row is its extrapolate test, up to 4e8 parameters, and its L(C) may be affected "
    "by weight decay."
)
_MULTIMODAL_CAUTION = (
    "The paper's L(N) is that of the pixels alone, 96% of a row's tokens; that of the text stands "
    "beside it by kind. Its L(C) and N_opt are of pixels and text together, in a normalisation that it does "
    "not state."
)


def _row(
    domain: str,
    params: tuple[float, float, float],
    flops: tuple[float, float, float],
    optimum: tuple[float, float],
    caution: str = "",
) -> PublishedDomain:
    return PublishedDomain(
        domain, _TABLE_1, caution, PublishedCurve(*params), PublishedCurve(*flops), *optimum
    )


HENIGHAN = {
    row.domain: row
    for row in (
        _row("image-8x8", (3.12, 8.0e1, 0.24), (3.13, 1.8e-8, 0.19), (5.3e-14, 0.64)),
        _row("image-16x16", (2.64, 2.8e2, 0.22), (2.64, 1.6e-8, 0.16), (4.8e-12, 0.75)),
        _row("image-32x32", (2.20, 6.3e1, 0.13), (2.21, 3.6e-9, 0.10), (1.6e-13, 0.65)),
        _row("image-codes-16x16", (3.99, 2.7e4, 0.13), (4.09, 6.1e-7, 0.11), (6.2e-14, 0.64)),
        _row("image-codes-32x32", (3.07, 1.9e4, 0.14), (3.17, 2.6e-6, 0.12), (9.4e-13, 0.70)),
        _row("video-codes-16x16x16", (1.01, 3.7e4, 0.24), (0.95, 2.2e-5, 0.14), (1.13e-12, 0.71)),
        _row(
            "mathematics",
            (0.28, 1.1e4, 0.16),
            (0.14, 1.4e-5, 0.17),
            (2.3e-12, 0.69),
            _MATHEMATICS_CAUTION,
        ),
        _row("text-to-image", (2.0, 5.1e3, 0.16), (1.93, 1.5e-6, 0.15), (9.4e-13, 0.70),
             _MULTIMODAL_CAUTION),
        _row("image-to-text", (2.0, 5.5e3, 0.15), (1.97, 1.5e-6, 0.16), (3.3e-12, 0.72),
             _MULTIMODAL_CAUTION),
    )
}  # fmt: skip

PAIRS = ("text-to-image", "image-to-text")
LOSS_OF_KIND = {
    ("text-to-image", "text"): PublishedCurve(0.0, 5.6e8, 0.037),
    ("text-to-image", "pixel"): PublishedCurve(2.0, 5.1e3, 0.16),
    ("image-to-text", "text"): PublishedCurve(0.0, 7.0e8, 0.039),
    ("image-to-text", "pixel"): PublishedCurve(2.0, 5.5e3, 0.15),
}
"""L(N) by kind of token (Henighan et al. 2020, Table 1). That of text is per text token, padding
included."""

KAPLAN = PublishedDomain(
    domain="text",
    source="Kaplan et al. 2020, eq 1.1, Table 5 (naive C) and Figure 14 (unadjusted)",
    caution="Compute without the critical-batch adjustment; N_opt = 1.6e9 (C/PF-day)^0.88.",
    loss_by_params=PublishedCurve(0.0, 8.8e13, 0.076),
    loss_by_flops=PublishedCurve(0.0, 1.6e7, 0.057),
    params_scale=1.6e9 ** (-1 / 0.88),
    params_exponent=0.88,
)

KAPLAN_LEAST = replace(
    KAPLAN,
    source="Kaplan et al. 2020, Tables 5 and 6, by C_min",
    caution="Compute at a batch far below the critical one.",
    loss_by_flops=PublishedCurve(0.0, 3.1e8, 0.050),
    params_scale=1.3e9 ** (-1 / 0.73),
    params_exponent=0.73,
)
"""The same with compute adjusted by the critical batch: L(C_min), N_opt = 1.3e9 (C_min/PF-day)^0.73."""


def published(domain: str) -> PublishedDomain | None:
    """The published row for a domain of ours, or None where neither paper has one. `text-v8192` is text
    in a vocabulary of its own, and its row says so, as that of pairs whose captions have one."""
    name, pieces = _family(domain)
    row = KAPLAN if name == KAPLAN.domain else HENIGHAN.get(name)
    if pieces is None or row is None:
        return row
    if row is KAPLAN:
        said = f"Of 50,257 pieces, not {pieces:,}: losses of a token do not compare, exponents do."
    elif name in PAIRS:
        said = (
            f"The captions here are in a vocabulary of their own, of {pieces:,} pieces: losses of a text token do not "
            "compare, those of the pixels do."
        )
    else:
        return None  # no family of vocabularies
    return replace(row, caution=f"{row.caution} {said}")


def published_of_kind(domain: str, kind: str) -> PublishedCurve | None:
    """The published L(N) of one kind of token, where a paper gives it apart."""
    name, pieces = _family(domain)
    return LOSS_OF_KIND.get((name if name in PAIRS else domain, kind))


def caution_of_kind(domain: str, kind: str) -> str:
    """What keeps the published L(N) of a kind from standing beside ours, as a clause for a caption; "" if nothing."""
    name, pieces = _family(domain)
    if name not in PAIRS or kind != "text":
        return ""
    other = f", of a vocabulary other than these {pieces:,} pieces" if pieces is not None else ""
    return (
        f" That text includes padding{other}, and so does not compare with ours, which leaves padding out: without it "
        "the paper's best image-to-text model is at 2.6 nats."
    )


def _family(domain: str) -> tuple[str, int | None]:
    """`text-to-image-v1024` -> `text-to-image`, 1024; None where the name has no vocabulary."""
    found = re.fullmatch(r"(.+)-v(\d+)", domain)
    return (found[1], int(found[2])) if found else (domain, None)


SURFACES = {"Hoffmann et al. 2022": (0.339, 0.285), "Besiroglu et al. 2024": (0.348, 0.366)}
"""(alpha, beta) of L = E + A/N^alpha + B/D^beta: 2203.15556 (unrounded), 2404.10102."""

TEXT_CONSTANTS: dict[str, dict[str, float]] = {
    "power": {"scale": 8.8e13, "exponent": 0.076},  # Kaplan et al. 2020, eq 1.1
    "surface": {"E": 1.6934, "A": 406.4, "alpha": 0.339, "B": 410.7, "beta": 0.285},
    "surface-kaplan": {"Nc": 6.4e13, "aN": 0.076, "Dc": 1.8e13, "aD": 0.103},  # Table 2
    "learning-curve": {"Nc": 6.5e13, "aN": 0.077, "Sc": 2.1e3, "aS": 0.76, "aB": 0.21},  # Table 3
    "critical-batch": {"aB": 0.21},  # eq 5.3; B* = 2.1e8 is in tokens, ours in rows
}
"""Published constants of text by law: Kaplan et al. 2020, and for `surface` Hoffmann et al. 2022."""
