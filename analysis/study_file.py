"""Runs that were thought up -> a study file that `launch` and `slurm` take.

Shapes come from the family of the papers: of all depths and widths near the wanted proportion, the one
whose N is nearest. What else a study says comes from the runs that are already there, or, for a CSV, from
the defaults of a study.
"""

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.domain import Domain, domain
from launch.results import RunResult
from launch.schedule import LEARNING_RATE_RULES
from launch.strict import validate
from launch.study import Study, expand
from megatron_ext.shape import Family, ModelShape, shape_of

WIDTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 16_385, 64))
MOST_LAYERS = 128
LEAST_LAYERS = 2
"""Kaplan et al. 2020 leave one-layer models out of their fits (section 3.2)."""

PROPORTION: dict[Family, float] = {"henighan": 8.0, "henighan-multimodal": 64.0, "kaplan": 40.0}
"""Width over depth. Henighan et al. 2020, Table 5: exactly 8; Table 4: 32 to 160; Kaplan et al. 2020,
section 3.1: flat over a factor of 40 in it, (48, 1600) among their shapes."""

KEPT = ("blend", "batch", "schedule", "model", "loss", "data", "start", "precision", "evaluation")
"""Parts of a run's configuration that the new study takes over: all that changes a loss."""


@dataclass(frozen=True)
class Template:
    """What the new study has in common with the runs at hand."""

    name: str
    domain: Domain
    family: Family
    proportion: float
    seed: int
    parts: Mapping[str, Any]

    def shape(self, num_layers: int, hidden_size: int) -> ModelShape:
        """The family's shape. Raises `ValueError` where the heads do not divide the width."""
        return shape_of(
            self.family,
            num_layers=num_layers,
            hidden_size=hidden_size,
            seq_length=self.domain.seq_length,
            vocab_size=self.domain.vocab_size,
        )


def template_of_runs(runs: Sequence[RunResult], name: str, rate: str | None) -> Template:
    """From a study's runs: their most common parts, a seed that none has used."""
    config = runs[-1].config
    parts = {key: _commonest(runs, key) for key in KEPT}
    parts = {key: value for key, value in parts.items() if value is not None}
    optimizer = dict(_commonest(runs, "optimizer") or {})
    optimizer["learning_rate"] = _rate(rate) if rate is not None else _common_rate(runs)
    shapes = [run.config["shape"] for run in runs]
    proportion = np.exp(np.mean([np.log(s["hidden_size"] / s["num_layers"]) for s in shapes]))
    return Template(
        name=f"{name}-next",
        domain=domain(str(config["domain"])),
        family=parts.get("model", {}).get("family", "henighan"),
        proportion=float(proportion),
        seed=1 + max(int(run.config.get("seed", 0)) for run in runs),
        parts=parts | {"optimizer": optimizer},
    )


def template_of_domain(domain_name: str, name: str, rate: str | None) -> Template:
    """For measurements that came without a configuration: the defaults of a study of this domain."""
    the_domain = domain(domain_name)
    family: Family = "kaplan" if domain_name.startswith("text") else "henighan"
    if "-to-" in domain_name:
        family = "henighan-multimodal"
    learning_rate = _rate(rate) if rate is not None else family.split("-")[0]
    parts = {"model": {"family": family}, "optimizer": {"learning_rate": learning_rate}}
    return Template(f"{name}-next", the_domain, family, PROPORTION[family], 0, parts)


def shapes_near(template: Template, sizes: np.ndarray, count: str) -> list[ModelShape]:
    """For each wanted size (by the attribute `count` of a shape) the family's nearest, once each,
    small to large."""
    known = []
    for layers in range(LEAST_LAYERS, MOST_LAYERS + 1):
        for width in WIDTHS:
            if 0.5 <= width / layers / template.proportion <= 2:
                try:
                    known.append(template.shape(layers, width))
                except ValueError:
                    continue  # its heads do not divide this width: no shape of the family
    logs = np.log([getattr(each, count) for each in known])
    off = [np.log(each.hidden_size / each.num_layers / template.proportion) for each in known]
    penalty = 0.1 * np.abs(off)
    chosen = {int(np.argmin(np.abs(logs - np.log(size)) + penalty)) for size in sizes}
    return sorted((known[index] for index in chosen), key=lambda each: getattr(each, count))


def study_text(
    template: Template, question: str, shapes: Sequence[ModelShape], tokens: Sequence[float],
    notes: Sequence[str], where: Path,
) -> str:  # fmt: skip
    """The study as TOML, proven to be one: it is read back and expanded. Raises `ValueError` that
    names `where` if it cannot be trained."""
    table: dict[str, Any] = {
        "name": template.name,
        "question": question,
        "domain": template.domain.name,
        "seeds": [template.seed],
        **{key: value for key, value in template.parts.items() if not isinstance(value, dict)},
        "ladder": [
            {"num_layers": each.num_layers, "hidden_size": each.hidden_size} for each in shapes
        ],
        "budget": {"tokens": [float(each) for each in tokens]},
        **{key: value for key, value in template.parts.items() if isinstance(value, dict)},
    }
    text = "".join(f"# {note}\n" for note in notes) + "\n" + _toml(table)
    expand(validate(Study, tomllib.loads(text), where), where)
    return text


def _toml(table: Mapping[str, Any]) -> str:
    """TOML of plain values, lists, tables of them and lists of such tables. None is left out."""
    lines = [f"{key} = {_value(each)}" for key, each in table.items() if _is_plain(each)]
    for key, each in table.items():
        if each is None or _is_plain(each):
            continue
        for part in each if isinstance(each, list) else [each]:
            lines.append(f"\n[[{key}]]" if isinstance(each, list) else f"\n[{key}]")
            lines += [f"{name} = {_value(one)}" for name, one in part.items() if one is not None]
    return "\n".join(lines) + "\n"


def _is_plain(value: Any) -> bool:
    of_tables = isinstance(value, list) and value and isinstance(value[0], dict)
    return value is not None and not isinstance(value, dict) and not of_tables


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        inside = (f"{key} = {_value(each)}" for key, each in value.items() if each is not None)
        return f"{{ {', '.join(inside)} }}"
    return repr(value)


def _commonest(runs: Sequence[RunResult], key: str) -> Any:
    """The value that most runs have; of equally many the last."""
    shown = [repr(run.config.get(key)) for run in runs]
    most = Counter(reversed(shown)).most_common(1)[0][0]
    return runs[shown.index(most)].config.get(key)


def _common_rate(runs: Sequence[RunResult]) -> float | str:
    """The number or the named rule that every run's peak learning rate follows."""
    rates = [float(run.config["optimizer"]["learning_rate"]) for run in runs]
    if max(rates) <= min(rates) * (1 + 1e-6):
        return rates[0]
    sizes = [run.counts["params_non_embedding"] for run in runs]
    for name, rule in LEARNING_RATE_RULES.items():
        if all(abs(rule(n) / rate - 1) < 1e-6 for n, rate in zip(sizes, rates, strict=True)):
            return name
    raise ValueError(
        f"learning rates of the {len(runs)} runs: {min(rates):.3g} to {max(rates):.3g}, neither one "
        f"number nor a rule ({', '.join(LEARNING_RATE_RULES)}) of their sizes; wanted one that new "
        "sizes can follow. Give --learning-rate."
    )


def _rate(text: str) -> float | str:
    """A number or the name of a rule, as `--learning-rate` takes it."""
    if text in LEARNING_RATE_RULES:
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ValueError(
            f"--learning-rate = {text}: wanted a positive number, or one of "
            f"{', '.join(LEARNING_RATE_RULES)}."
        )
    return value
