"""The first weights of a run: those of a run of another study whose model has the same sizes (`[start]`).

The optimizer, the learning rate and the count of steps begin anew. In which topology the other run was trained does
not matter, for its parameters are put together whole; nor does its precision.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_prep.domain import domain
from launch import checkpoint
from launch.checkpoint_files import Checkpoint
from launch.config import CONFIG_FILE, RunConfig, Start, load_config
from launch.console import say
from launch.results import is_finished
from launch.saved import vocabulary_of
from launch.universal import whole_weights
from megatron_ext.model import VOCABULARY_TABLES, LanguageModel, split_dimension
from megatron_ext.parallel import tensor_parallel_rank, tensor_parallel_size

SIZES = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels",
    "attention_window", "position_axes",
)  # fmt: skip
"""What two shapes must agree in; rows and vocabularies show in the parameters."""


def start_of(run: RunConfig, start: Start, results: Path) -> tuple[RunConfig, Path]:
    """The run that `run` starts from and its folder: of the same sizes; of several that of the same seed, if there is
    one; of these the one with the most tokens.

    Raises `ValueError` where there is none, where two are as good, or where it is not finished. Reads files alone.
    """
    name = f"study '{start.study}'" + (f", variant '{start.variant}'" if start.variant else "")
    there = [
        (load_config(path.parent), path.parent)
        for path in sorted((results / start.study).glob(f"*-{run.shape.name}-*/{CONFIG_FILE}"))
    ]
    found = [each for each in there if _serves(each[0], run, start)]
    found = [each for each in found if each[0].seed == run.seed] or found
    if not found:
        raise ValueError(
            f"{run.run_id}: [start]: {results / start.study} holds no run of {name} with the sizes of "
            f"{run.shape.name} on {domain(run.domain).labelled or run.domain}; wanted one to take the weights of. "
            "Train that study with the same --results first."
        )
    most = max(config.tokens for config, _ in found)
    best = [each for each in found if each[0].tokens == most]
    if len(best) > 1:
        raise ValueError(
            f"{run.run_id}: [start]: {' and '.join(config.run_id for config, _ in best)} of {name} have the same sizes "
            "and the most tokens; wanted one. Name start.variant, or give this run the seed of one of them."
        )
    config, folder = best[0]
    if not is_finished(folder):
        raise ValueError(
            f"{run.run_id}: [start]: {config.run_id} of {name} is not finished; wanted its last weights. Train "
            "that study to its end first."
        )
    return config, folder


@dataclass(frozen=True)
class Beginning:
    """`source`: the RUN_ID/step-<n> whose weights a run begins with, and what fills a model from there; by default the
    weights are drawn."""

    source: str = ""
    fill: Callable[[LanguageModel], None] | None = None

    @staticmethod
    def of(run: RunConfig, results: Path, vocabulary: str) -> "Beginning":
        """As `run` asks for, whose data has this `vocabulary` (`data_prep.dataset.meaning`). Collective. Raises
        `ValueError` on every rank where there is nothing that serves."""
        if run.start is None:
            return Beginning()
        source, folder = start_of(run, run.start, results)
        there = vocabulary_of(folder)
        if there and vocabulary and there != vocabulary:
            raise ValueError(
                f"{run.run_id}: [start]: {folder} was trained on tokens of another tokenizer or codebook "
                f"({there[:12]}); wanted {vocabulary[:12]}, which made the data here. Build this data with that file."
            )
        found = checkpoint.newest(folder, at_step=source.train_steps)
        if found is None:
            raise ValueError(
                f"{run.run_id}: [start]: {folder} holds no whole checkpoint after its last step, {source.train_steps}; "
                "wanted it for the weights. Train that run again, or put the checkpoint back."
            )
        say(f"{run.run_id}: starts from the weights of {found.path}")
        fill = functools.partial(take_weights, found=found, source=source)
        return Beginning(f"{folder.name}/{found.path.name}", fill)


@torch.no_grad()
def take_weights(model: LanguageModel, found: Checkpoint, source: RunConfig) -> None:
    """Fill this rank's part of `model` with the parameters of a checkpoint that have the same names.

    Only `model.new_parameters` may be missing there; they stay as they are. Raises `ValueError` naming the first
    parameter that is missing or has another shape.
    """
    missing = dict(model.named_parameters())
    for name, whole in whole_weights(found.path, source.shape):
        parameter = missing.pop(name, None)
        if parameter is None or name in model.new_parameters:
            continue
        part = _of_this_rank(name, whole, model)
        if part.shape != parameter.shape:
            raise _does_not_fit(found, f"{name} of shape {list(whole.shape)}", model, name)
        parameter.copy_(part)
    if lacking := sorted(missing.keys() - model.new_parameters):
        raise _does_not_fit(found, f"no {lacking[0]}", model, lacking[0])


def _of_this_rank(name: str, whole: Tensor, model: LanguageModel) -> Tensor:
    """A tensor-parallel rank's part; rows that pad a table of tokens hold zeros."""
    ranks, dimension = tensor_parallel_size(), split_dimension(name)
    if name in VOCABULARY_TABLES and len(whole) == model.shape.embedding_rows:
        padding = model.shape.padded_rows(ranks) - len(whole)
        whole = torch.cat((whole, whole.new_zeros(padding, *whole.shape[1:])))
    return whole if dimension is None else whole.chunk(ranks, dimension)[tensor_parallel_rank()]


def _serves(config: RunConfig, run: RunConfig, start: Start) -> bool:
    same_sizes = all(getattr(config.shape, name) == getattr(run.shape, name) for name in SIZES)
    # The first weights of a classifier are those of a model of the same pictures.
    same_rows = config.domain in (run.domain, domain(run.domain).labelled)
    return same_sizes and same_rows and start.variant in (None, config.variant)


def _does_not_fit(found: Checkpoint, what: str, model: LanguageModel, name: str) -> ValueError:
    wanted = list(dict(model.named_parameters())[name].shape)
    return ValueError(
        f"[start]: {found.path}: holds {what}; wanted {wanted} on each rank, as the model here has it. The two are "
        "models of other data: name a study whose rows and vocabulary are the same."
    )
