"""What the tables of a study may not say of its domain, or together. No torch."""

from pathlib import Path

import numpy as np

from data_prep.domain import Domain, family
from launch.config import Blanked, Data, Loss, Model, Parallel, Source, Start


def refuse_tables(
    where: Path | str,
    the_domain: Domain,
    *,
    name: str,
    blend: list[Source],
    data: Data,
    loss: Loss,
    start: Start | None,
) -> None:
    """Raise `ValueError` for tables that do not go together. `where` names the file, `name` the study."""
    if blend and data.unique_tokens:
        raise ValueError(
            f"{where}: data.unique_tokens = {data.unique_tokens:,} with [[blend]]; wanted one of "
            "them, for it does not say of which dataset. Build a smaller dataset for the blend."
        )
    if data.blanked:
        _refuse_blanks(where, the_domain, data.blanked)
    if loss.weights:
        _refuse_weights(where, the_domain, set(loss.weights))
    if start and start.study == name:
        raise ValueError(
            f"{where}: start.study = '{name}' is this study itself; wanted another one, which is trained before. Name "
            "that, or leave [start] out."
        )


def _refuse_blanks(where: Path | str, the_domain: Domain, blanked: Blanked) -> None:
    blank = getattr(family(the_domain.name), "blank", None)
    if blank is None:
        raise ValueError(
            f"{where}: data.blanked: rows of domain {the_domain.name} are no pairs, so there is no part to blank; "
            "wanted text-to-image, image-to-text or known-entropy-pairs. Leave data.blanked out, or change the domain."
        )
    tokens = np.empty((0, the_domain.seq_length), the_domain.dtype)
    try:
        blank(the_domain, tokens, tokens.astype(np.uint8), blanked.part)
    except ValueError as error:
        raise ValueError(f"{where}: data.blanked: {error}") from None


def _refuse_weights(where: Path | str, the_domain: Domain, weighed: set[str]) -> None:
    kinds = {each.kind for each in the_domain.kinds if each.in_loss}
    if weighed != kinds:
        raise ValueError(
            f"{where}: loss.weights of {', '.join(sorted(weighed))}; wanted one for each kind of token in the loss of "
            f"domain {the_domain.name}: {', '.join(sorted(kinds))}. Give each a weight, or leave loss.weights out."
        )


def refuse_classes(where: Path | str, the_domain: Domain, model: Model, parallel: Parallel) -> None:
    """Raise `ValueError` unless `model` is a classifier where rows have a class, and only there, and is not split."""
    if model.classes is None and the_domain.labelled:
        raise ValueError(
            f"{where}: no model.classes: rows of domain {the_domain.name} are to be classified; wanted the number of "
            f"classes that the dataset's manifest.json names. Add model.classes, or take domain {the_domain.labelled}."
        )
    if model.classes is not None and not the_domain.labelled:
        raise ValueError(
            f"{where}: model.classes = {model.classes}: rows of domain {the_domain.name} have no class; wanted a "
            "domain such as image-8x8-classes. Leave model.classes out, or change the domain."
        )
    if model.classes is not None and parallel.tensor_model_parallel_size > 1:
        raise ValueError(
            f"{where}: parallel.tensor_model_parallel_size = {parallel.tensor_model_parallel_size} with model.classes; "
            "wanted 1: classifiers are not split. Use parallel.zero_stage = 3 for models too large for one device."
        )
