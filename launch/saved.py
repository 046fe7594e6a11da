"""Saved models as they are named on a command line: a run's folder, or a checkpoint. No torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.dataset import TokenDataset, meaning
from launch.checkpoint_files import (
    CHECKPOINTS,
    DESCRIPTION,
    newest_path,
    step_name,
    step_number,
    verify,
)
from launch.config import CONFIG_FILE, RunConfig, load_config
from launch.results import METRICS_FILE, read_result

EVALUATIONS = "evaluations"  # in a run's folder: what was measured on its checkpoints later


@dataclass(frozen=True)
class Saved:
    """A checkpoint: where it is, of which run's folder, how that run was configured, and on which data (`data_identity`
    of `launch.folder`; "" where nobody says)."""

    path: Path
    run: Path
    config: RunConfig
    data_identity: str = ""

    @property
    def name(self) -> str:
        return f"{self.run.name}/{self.path.name}"

    @property
    def step(self) -> int:
        return step_number(self.path)


def find_saved(sources: Sequence[Path]) -> list[Saved]:
    """The checkpoint that each source names: itself, or the newest of a run's folder. Every file is checked.

    Raises `ValueError` for one that is missing, damaged or named twice.
    """
    found = [_find(source) for source in sources]
    names = [saved.name for saved in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(
            f"{twice}: named {names.count(twice)} times; wanted each checkpoint once, by the names of its run's folder "
            "and its own. Name it once, or rename one of the folders."
        )
    return found


def _find(source: Path) -> Saved:
    path = source if (source / DESCRIPTION).is_file() else newest_path(source)
    if path is None:
        found = "no checkpoint in it" if source.is_dir() else "no such folder"
        raise ValueError(
            f"{source}: {found}; wanted a run's folder, or one of its {CHECKPOINTS}/{step_name(0)[:-1]}<n>. Check "
            "the path; of an exported model make a checkpoint with `launch reshard` first."
        )
    whole = verify(path)
    run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    config = load_config(path if (path / CONFIG_FILE).exists() else run)
    return Saved(path, run.resolve(), config, whole.data_identity)


def vocabulary_of(*folders: Path) -> str:
    """What the run file in the first of `folders` that holds one says of its tokens (`data_prep.dataset.meaning`); ""
    where there is none, as with an exported model, or it is from before this was recorded."""
    for folder in folders:
        if (folder / METRICS_FILE).exists():
            return str(read_result(folder).provenance[-1].get("vocabulary", ""))
    return ""


def refuse_other_tokens(saved: Saved, dataset: TokenDataset, data: Path) -> None:
    """Raise `ValueError` unless a dataset, in the folder `data`, is tokenised as the model's own."""
    shape, here = saved.config.shape, dataset.domain
    if (here.vocab_size, here.seq_length) != (shape.vocab_size, shape.row_length):
        raise ValueError(
            f"{data}: domain {here.name} has a vocabulary of {here.vocab_size} and rows of {here.seq_length} tokens; "
            f"wanted {shape.vocab_size} and {shape.row_length}, as in {saved.config.domain}, which {saved.path} was "
            "trained on. Give --data a dataset that is tokenised the same way."
        )
    pairs = {"text", "pixel"} <= {each.kind for each in here.kinds}
    if pairs and here.name != saved.config.domain:
        raise ValueError(
            f"{data}: holds {here.name}; wanted {saved.config.domain}, which {saved.path} was trained on: what comes "
            "first in a row is another. Give --data pairs of that domain."
        )
    there, found = vocabulary_of(saved.path, saved.run), meaning(dataset.codec, dataset.classes)
    if there and found and there != found:
        raise ValueError(
            f"{data}: its tokens were made by the tokenizer, codebook or classes {found[:12]}; wanted {there[:12]}, by "
            f"which {saved.path} was trained: the same ids mean something else. Build the data with that file "
            "(--tokenizer, --codebook), which lies in the folder of the run's own data."
        )


def refuse_several_ranks(command: str) -> None:
    """Raise `ValueError` where several processes were started to work together."""
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"launch {command}: {ranks} ranks; wanted one process. Start it without torchrun or srun, and give each "
            "process checkpoints of its own."
        )
