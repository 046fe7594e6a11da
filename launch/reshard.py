"""`launch reshard`: a checkpoint in another form, for another topology or another tool, and back.

    universal      DIR/step-<n>/: whole parameters, which a run of any TP, DP and ZeRO continues from
    safetensors    DIR/model-*.safetensors with an index, in fp32, under megatron-core's names: weights
    megatron       DIR/iter_<n>/mp_rank_<r>/model_optim_rng.pt, cut for TP = K: weights, as Megatron-LM
                   lays them out for its --ckpt-format torch

A folder of one of the last two forms is read back into a universal checkpoint without an optimizer:
enough to evaluate, not to continue training. Memory is that of one parameter, one file of at most
`SHARD_BYTES`, or one rank's part of the model.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from torch import Tensor

from launch.checkpoint_files import (
    DESCRIPTION,
    Checkpoint,
    FileRecord,
    hashed,
    newest_path,
    publish,
    step_name,
    verify,
)
from launch.config import CONFIG_FILE, RunConfig, load_config
from launch.results import METRICS_FILE
from launch.safe_load import load_file
from launch.universal import UNIVERSAL, Universal, save_weights, write_tensors, write_universal
from megatron_ext.model import (
    VOCABULARY_TABLES,
    refuse_indivisible,
    split_dimension,
)

FORMS = ("universal", "safetensors", "megatron")
INDEX = "model.safetensors.index.json"
TRACKER = "latest_checkpointed_iteration.txt"  # Megatron-LM's
SHARD_BYTES = 2 * 10**9
PREFIX = "gpt."  # what our names have before megatron-core's


def reshard(source: Path, out: Path, *, tensor_parallel: int, to: str) -> Path:
    """Write `source` (a run folder, a checkpoint, or a folder that this wrote) to `out` in form `to`.

    Returns what was made. Raises `ValueError` for a source that is none of these, is damaged or does
    not fit K, and for an `out` that holds the result already.
    """
    with tempfile.TemporaryDirectory(dir=_made(out), prefix=".reshard-") as scratch:
        checkpoint, config, whole = _read(source, Path(scratch))
        refuse_indivisible(config.shape, tensor_parallel, sequence_parallel=False)
        if to == "megatron" and (own := _beside_plain_gpt(config)):
            raise ValueError(
                f"{source}: has {', '.join(own)}; wanted a plain GPT, for Megatron-LM's files say nothing of that and "
                "it would run another model. Use --to safetensors, whose index and config.json say it."
            )
        if to == "universal":
            return _publish(checkpoint, whole, out, Path(scratch))
        if to == "safetensors":
            return _export_safetensors(whole, config, out)
        return _export_megatron(whole, config, checkpoint.step, tensor_parallel, out)


def _beside_plain_gpt(config: RunConfig) -> list[str]:
    """What this model does that a GPT of the same weights would not."""
    shape = config.shape
    found = (
        (shape.attention_window, f"sparse attention (window {shape.attention_window})"),
        (shape.position_axes, f"positions by axes {shape.position_axes}"),
        (shape.classes, f"a head of {shape.classes} classes"),
    )
    return [words for there, words in found if there]


def _made(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise ValueError(
            f"--out {out}: this is a file; wanted a folder to write to. Name another path."
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


# --- reading any form


def _read(source: Path, scratch: Path) -> tuple[Checkpoint, RunConfig, Path]:
    """The checkpoint, its run, and the folder of its whole parameters."""
    if (source / INDEX).is_file():
        return _imported(source, source, _safetensors_weights(source), 0, scratch)
    if (source / TRACKER).is_file():
        step = _tracked_step(source / TRACKER)
        folder = source / f"iter_{step:07d}"
        return _imported(source, folder, _megatron_weights(folder), step, scratch)
    path = source if (source / DESCRIPTION).is_file() else newest_path(source)
    if path is None:
        raise ValueError(
            f"{source}: no checkpoint; wanted a run folder, one of its checkpoints/step-<n>, or a folder "
            f"with {INDEX} or {TRACKER} that reshard wrote. Check the path."
        )
    checkpoint = verify(path)
    config = load_config(path if (path / CONFIG_FILE).exists() else path.parent.parent)
    if (path / UNIVERSAL).is_dir():
        return checkpoint, config, path / UNIVERSAL
    with _progress() as advance:
        write_universal(path, scratch / UNIVERSAL, config.shape, report=advance)
    return checkpoint, config, scratch / UNIVERSAL


def _tracked_step(tracker: Path) -> int:
    text = tracker.read_text().strip()
    if not text.isdecimal():
        raise ValueError(
            f"{tracker}: {text[:40]!r}; wanted the number of a step, iter_<number>/ beside it. Write the "
            "number of the folder that you want into it."
        )
    return int(text)


def _imported(
    source: Path, folder: Path, weights: Iterator[tuple[str, Tensor]], step: int, scratch: Path
) -> tuple[Checkpoint, RunConfig, Path]:
    config = load_config(source)
    wanted, found = config.shape.parameter_shapes, {}
    for name, weight in weights:
        save_weights(scratch / UNIVERSAL, PREFIX + name, weight)
        found[name] = tuple(weight.shape)
    wrong = sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder}: {name} is {found.get(name, 'missing')}; wanted "
            f"{wanted.get(name, 'no such parameter')}, as {source / CONFIG_FILE} says (and {len(wrong) - 1} "
            "more). A file is missing or of another model: export it again."
        )
    none = Checkpoint(
        path=folder,
        step=step,
        config_digest=config.digest,
        data_identity="",
        zero_stage=0,
        world_size=1,
        optimizer=False,
    )
    return none, config, scratch / UNIVERSAL


def _safetensors_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{folder / INDEX}: not the index of safetensors files; wanted JSON with a weight_map. Export "
            "the model again."
        ) from None
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(
                f"{folder / file}: not readable ({error}); wanted a whole safetensors file. Export the model "
                "again."
            ) from None


def _megatron_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Each parameter, its parts put together; the rows that pad a table stay out."""
    paths = sorted(folder.glob("mp_rank_*/model_optim_rng.pt"))
    if not paths:
        raise ValueError(
            f"{folder}: no mp_rank_*/model_optim_rng.pt in it; wanted those of all tensor-parallel ranks. "
            "Check the path."
        )
    files = [load_file(path, also=[argparse.Namespace]) for path in paths]
    rows = load_config(folder.parent).shape.embedding_rows
    for name, first in files[0]["model"].items():
        dimension = split_dimension(PREFIX + name)
        parts = [file["model"][name] for file in files]
        whole = first if dimension is None else torch.cat(parts, dim=dimension)
        yield name, whole[:rows] if PREFIX + name in VOCABULARY_TABLES else whole


# --- writing each form


def _publish(checkpoint: Checkpoint, whole: Path, out: Path, scratch: Path) -> Path:
    """A step folder that a run continues from; it appears by rename."""
    final = out / step_name(checkpoint.step)
    if final.exists():
        raise ValueError(
            f"{final}: exists already; wanted a new folder. Remove it, or name another."
        )
    state = scratch / "state"
    shutil.copytree(whole, state / UNIVERSAL)
    for name in (METRICS_FILE, CONFIG_FILE):
        for folder in (checkpoint.path, *checkpoint.path.parents[:2]):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, state / name)
                break
    files: dict[str, FileRecord] = hashed(
        sorted(path for path in state.rglob("*") if path.is_file()), state
    )
    publish(state, replace(checkpoint, path=final), files)
    return final


def _export_safetensors(whole: Path, config: RunConfig, out: Path) -> Path:
    universal = Universal(whole, 0, 1)
    names = universal.names()
    groups: list[list[str]] = [[]]
    held = 0
    for name in names:
        size = 4 * universal.whole_shape(name).numel()
        if groups[-1] and held + size > SHARD_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    weight_map: dict[str, str] = {}
    with _progress() as advance:
        for number, group in enumerate(groups, 1):
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            tensors = {}
            for name in group:
                tensors[name.removeprefix(PREFIX)] = universal.local(name, config.shape)
                advance(name, len(names))
            write_tensors(tensors, out / file)
            weight_map |= dict.fromkeys(tensors, file)
    total = sum(4 * universal.whole_shape(name).numel() for name in names)
    _write(out / CONFIG_FILE, config.model_dump_json(indent=2))
    metadata = {"total_size": total, "beside_plain_gpt": _beside_plain_gpt(config)}
    _write(out / INDEX, json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return out


def _export_megatron(whole: Path, config: RunConfig, step: int, ranks: int, out: Path) -> Path:
    folder = out / f"iter_{step:07d}"
    for stale in folder.glob(
        "mp_rank_*"
    ):  # of an export for other ranks: a reader would take them along
        shutil.rmtree(stale)
    names = Universal(whole, 0, ranks).names()
    with _progress() as advance:
        for rank in range(ranks):
            universal = Universal(whole, rank, ranks)
            weights = {}
            for name in names:
                weights[name.removeprefix(PREFIX)] = universal.local(name, config.shape)
                advance(name, len(names) * ranks)
            state = {
                "model": weights,
                "iteration": step,
                "checkpoint_version": 3.0,
                "args": _megatron_arguments(config, ranks),
            }
            path = folder / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, path)
    _write(out / CONFIG_FILE, config.model_dump_json(indent=2))
    _write(out / TRACKER, str(step))
    return out


def _megatron_arguments(config: RunConfig, ranks: int) -> argparse.Namespace:
    """What Megatron-LM compares with its own command line."""
    shape = config.shape
    sizes = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels")
    return argparse.Namespace(
        **{name: getattr(shape, name) for name in sizes},
        seq_length=shape.seq_length,
        max_position_embeddings=shape.seq_length,
        padded_vocab_size=shape.padded_rows(ranks),
        tensor_model_parallel_size=ranks,
        pipeline_model_parallel_size=1,
        position_embedding_type="learned_absolute",
        add_position_embedding=True,
        untie_embeddings_and_output_weights=True,
    )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """A bar over parameters on a terminal; called with each name, and how many there are in all."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("parameters", total=None)
        yield lambda name, total: bar.update(task, advance=1, total=total, description=name)
