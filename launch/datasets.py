"""Which rows a run reads: the dataset that `--data` names, or a blend of several below it. No torch."""

from pathlib import Path

from data_prep.blend import Blend
from data_prep.dataset import TokenDataset
from launch.config import RunConfig

Dataset = TokenDataset | Blend


def open_split(run: RunConfig, data: Path, split: str) -> Dataset:
    """One split as `run` reads it.

    Raises `ValueError` where a dataset or split is missing, or of another domain.
    """
    if not run.blend:
        return TokenDataset(data, split, run.domain)
    missing = [each.name for each in run.blend if not (data / each.name).exists()]
    if missing:
        raise ValueError(
            f"{data}: holds no dataset {', '.join(missing)}; wanted one folder for each [[blend]] of "
            f"the study ({', '.join(each.name for each in run.blend)}). Give --data the folder "
            "that holds them all."
        )
    datasets = [TokenDataset(data / each.name, split, run.domain) for each in run.blend]
    return Blend(datasets, [each.weight for each in run.blend], run.seed)
