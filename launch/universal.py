"""Whole parameters, whatever TP, DP and ZeRO they came from and go to: the universal form of a checkpoint.

    universal/<parameter>.safetensors     fp32, exp_avg, exp_avg_sq, each with the whole parameter's shape
    universal/optimizer.json              Adam's count of steps

The idea is DeepSpeed's universal checkpoint. Its own converter unpickles with full trust and does not
know the optimizers without ZeRO; this one reads tensors alone, every stage, one parameter at a time
(memory: the largest one), and several processes can share the parameters. A test compares the two.

Tensor parallelism cuts a matrix by rows (`linear_qkv`, `linear_fc1`, the token tables) or by columns
(`linear_proj`, `linear_fc2`); everything else is whole on every rank. Rows that pad the token tables
are left out here, and made anew.
"""

import errno
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from launch.fragments import STATES, Fragment, adam_steps, fragments, groups_of
from launch.safe_load import load_file
from megatron_ext.model import VOCABULARY_TABLES, split_dimension
from megatron_ext.shape import ModelShape

UNIVERSAL = "universal"
OPTIMIZER = "optimizer.json"


@dataclass
class _Part:
    """What one tensor-parallel rank holds: shapes, and the fragments of each parameter in order."""

    shapes: dict[str, tuple[int, ...]]
    found: dict[str, list[Fragment]] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)


def write_universal(
    source: Path,
    out: Path,
    shape: ModelShape,
    *,
    part: int = 0,
    parts: int = 1,
    report: Callable[[str, int], None] | None = None,
) -> None:
    """Put every `parts`-th parameter of DeepSpeed's files in `source` together, into the folder `out`.

    `report` is told each name when it is done, and how many there are in all. Raises `ValueError`
    naming the parameter for files that do not hold it whole, or differently on ranks that should agree.
    """
    out.mkdir(parents=True, exist_ok=True)
    ranks = _read_parts(source)
    names = list(ranks[0].shapes)
    for name in names[part::parts]:
        whole = {state: _whole(name, state, ranks, shape, source) for state in STATES}
        write_tensors(whole, out / f"{name}.safetensors")
        if report:
            report(name, len(names))
    steps = {step for rank in ranks for step in rank.steps}
    if len(steps) != 1:
        raise ValueError(
            f"{source}: its optimizers are at steps {sorted(steps)}; wanted one step. These files are of "
            "different checkpoints: take another checkpoint."
        )
    if part == 0:
        (out / OPTIMIZER).write_text(json.dumps({"step": steps.pop()}) + "\n")


def whole_weights(source: Path, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of a checkpoint, whole and in fp32, whichever form and topology it was saved in.

    Raises `ValueError` naming the parameter for files that do not hold it whole.
    """
    if (source / UNIVERSAL).is_dir():
        universal = Universal(source / UNIVERSAL, 0, 1)
        for name in universal.names():
            yield name, universal.whole(name)
        return
    ranks = _read_parts(source)
    for name in ranks[0].shapes:
        yield name, _whole(name, "fp32", ranks, shape, source)


def save_weights(out: Path, name: str, weight: Tensor) -> None:
    """A parameter without the optimizer's moments, as another tool keeps it."""
    out.mkdir(parents=True, exist_ok=True)
    write_tensors({"fp32": weight.float().contiguous()}, out / f"{name}.safetensors")


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file. Raises `OSError` that names it where it cannot be written."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        full = "No space left" in str(error) or "os error 28" in str(error)
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, str(error).splitlines()[0], str(path)) from None


def _read_parts(source: Path) -> list[_Part]:
    """One part for each tensor-parallel rank, from DeepSpeed's files (memory-mapped)."""
    parts: list[_Part] = []
    while models := sorted(source.glob(f"*mp_rank_{len(parts):02d}_model_states.pt")):
        number = len(parts)
        optimizers = list(source.glob(f"*zero_pp_rank_*_mp_rank_{number:02d}_optim_states.pt"))
        optimizers.sort(key=lambda path: int(path.name.split("_pp_rank_")[1].split("_")[0]))
        parts.append(_read_part(load_file(models[0]), optimizers))
    if not parts:
        raise ValueError(
            f"{source}: holds no *_model_states.pt; wanted the folder of a checkpoint that DeepSpeed "
            "wrote (checkpoints/step-<n>). Check the path."
        )
    return parts


def _read_part(model: Mapping[str, Any], optimizers: Sequence[Path]) -> _Part:
    if optimizers:
        groups = [{n: tuple(s) for n, s in group.items()} for group in model["param_shapes"]]
    else:
        groups = groups_of({name: tuple(w.shape) for name, w in model["module"].items()})
    part = _Part({name: shape for group in groups for name, shape in group.items()})
    saved = [load_file(path)["optimizer_state_dict"] for path in optimizers] or [model["optimizer"]]
    starts: dict[str, int] = {}
    for rank, optimizer in enumerate(saved):
        for fragment in fragments(optimizer, groups, model["module"], rank, starts):
            part.found.setdefault(fragment.name, []).append(fragment)
            starts[fragment.name] = fragment.start + fragment.numel
        part.steps += [float(step) for step in adam_steps(optimizer)]
    return part


def _whole(
    name: str, state: str, ranks: Sequence[_Part], shape: ModelShape, source: Path
) -> Tensor:
    pieces = [_assembled(name, state, rank, source) for rank in ranks]
    dimension = split_dimension(name)
    if dimension is None:
        if any(not torch.equal(piece, pieces[0]) for piece in pieces[1:]):
            raise ValueError(
                f"{source}: {state} of {name} differs between tensor-parallel ranks; wanted the same on "
                "all. The ranks had drifted apart: take an older checkpoint."
            )
        return pieces[0]
    whole = torch.cat(pieces, dim=dimension)
    return whole[: shape.embedding_rows].contiguous() if name in VOCABULARY_TABLES else whole


def _assembled(name: str, state: str, rank: _Part, source: Path) -> Tensor:
    """A rank's part of a parameter, from its fragments."""
    numel, at = math.prod(rank.shapes[name]), 0
    flat = torch.empty(numel)
    for fragment in sorted(rank.found.get(name, ()), key=lambda each: each.start):
        if fragment.start != at:
            break
        flat[at : at + fragment.numel] = fragment.values[state]
        at += fragment.numel
    if at != numel:
        raise ValueError(
            f"{source}: holds {at} of the {numel} numbers of {name}; wanted all. A file of a rank is "
            "missing or of another checkpoint: take another checkpoint."
        )
    return flat.view(rank.shapes[name])


# --- reading


class Universal:
    """Reads from the folder what one rank needs: its part of each parameter, or some numbers of it."""

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        """`rank` of `ranks` that share the model by tensor parallelism."""
        self.folder, self.rank, self.ranks = folder, rank, ranks

    @property
    def step(self) -> float:
        """Adam's count of steps."""
        return float(json.loads((self.folder / OPTIMIZER).read_text())["step"])

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def whole_shape(self, name: str) -> torch.Size:
        with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
            return torch.Size(file.get_slice("fp32").get_shape())

    def whole(self, name: str) -> Tensor:
        """The weights of the whole parameter, as they are saved."""
        with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
            return file.get_tensor("fp32")

    def local(self, name: str, shape: ModelShape) -> Tensor:
        """This rank's part of the weights, token tables padded as for so many ranks."""
        found, dimension = list(self.whole_shape(name)), split_dimension(name)
        if name in VOCABULARY_TABLES:
            found[0] = shape.padded_rows(self.ranks)
        if dimension is not None:
            found[dimension] //= self.ranks
        return self.part(name, "fp32", found).view(found)

    def part(
        self, name: str, state: str, shape: Sequence[int], start: int = 0, count: int | None = None
    ) -> Tensor:
        """`count` numbers (by default all) of this rank's part, flat, from place `start` on.

        `shape` is the part's. Raises `ValueError` where the file is missing or holds another shape.
        """
        count = math.prod(shape) - start if count is None else count
        width = math.prod(shape[1:])
        first, last = start // width, -(-(start + count) // width)  # rows to read
        found = self._rows(name, state, shape, first, last).reshape(-1)
        return found[start - first * width :][:count]

    def _rows(self, name: str, state: str, shape: Sequence[int], first: int, last: int) -> Tensor:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise ValueError(
                f"{path}: no such file; wanted the whole parameter in it. This is a checkpoint of another "
                "model, or an incomplete one: give the run its own."
            )
        dimension = split_dimension(name) if self.ranks > 1 else None
        with safe_open(path, framework="pt") as file:
            whole = file.get_slice(state)
            self._refuse_shape(path, name, whole.get_shape(), shape, dimension)
            offset = self.rank * shape[0] if dimension == 0 else 0
            rows = slice(offset + first, offset + last)
            if dimension == 1:
                columns = slice(self.rank * shape[1], (self.rank + 1) * shape[1])
                return whole[rows, columns]
            # Rows that pad a table lie behind all that is saved.
            saved = slice(
                min(rows.start, whole.get_shape()[0]), min(rows.stop, whole.get_shape()[0])
            )
            found = whole[saved] if saved.start < saved.stop else torch.empty(0, *shape[1:])
        padding = (last - first) - len(found)
        return torch.cat((found, found.new_zeros(padding, *shape[1:]))) if padding else found

    def _refuse_shape(
        self, path: Path, name: str, found: list[int], shape: Sequence[int], dimension: int | None
    ) -> None:
        wanted = list(shape)
        if dimension is not None:
            wanted[dimension] *= self.ranks
        padded = name in VOCABULARY_TABLES and 0 <= wanted[0] - found[0] < wanted[0]
        if found != wanted and not (padded and found[1:] == wanted[1:]):
            raise ValueError(
                f"{path}: holds a parameter of shape {found}; wanted {wanted}. This is a checkpoint of "
                "another model: give the run its own."
            )


@torch.no_grad()
def load_universal(engine: Any, universal: Universal, rank: int) -> None:
    """Fill a DeepSpeed engine: weights, master weights, Adam's moments and its count of steps.

    `rank` is the data-parallel rank. Collective under ZeRO 3, whose ranks gather small parameters.
    """
    optimizer, zero_3 = engine.optimizer, engine.zero_optimization_stage() == 3
    named = dict(engine.module.named_parameters())
    shapes = {name: tuple(p.ds_shape if zero_3 else p.shape) for name, p in named.items()}
    if zero_3:
        optimizer.checkpoint_event_prologue()
    _begin_adam(engine, zero_3)
    held = optimizer.state_dict()  # the live tensors, not copies
    if zero_3:
        names = {parameter: name for name, parameter in named.items()}
        groups = [{names[p]: shapes[names[p]] for p in group} for group in optimizer.fp16_groups]
    else:
        groups = groups_of(shapes)
    starts = {
        name: mapping.lp_fragment_address.start
        for name, parameter in named.items()
        if (mapping := getattr(parameter, "_hp_mapping", None)) is not None
    }
    for each in fragments(held, groups, named, rank, starts):
        for state, values in each.values.items():
            values.copy_(
                universal.part(each.name, state, shapes[each.name], each.start, each.numel)
            )
    for step in adam_steps(held):
        step.fill_(universal.step)
    if zero_3:
        _round_zero_3(optimizer)
    else:
        for name, parameter in named.items():
            parameter.copy_(universal.part(name, "fp32", shapes[name]).view(shapes[name]))


def _begin_adam(engine: Any, zero_3: bool) -> None:
    """PyTorch's AdamW makes its state at its first step; here before."""
    if zero_3:  # which hands its flat weights over for the time of a step alone
        engine.optimizer._set_fp32_optimizer_param_groups()
    adam = engine.basic_optimizer
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.state[parameter].update(
                    step=torch.zeros((), device=parameter.device),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )
    if zero_3:
        engine.optimizer._clear_fp32_optimizer_param_groups()


def _round_zero_3(optimizer: Any) -> None:
    """The weights that the model computes with, from the master weights, as DeepSpeed's step does it."""
    for number, precise in enumerate(optimizer.fp32_partitioned_groups_flat):
        flat, parts = optimizer.fp16_partitioned_groups_flat, optimizer.fp16_partitioned_groups
        flat[number].copy_(precise)
        for part, values in zip(
            parts[number], optimizer.unflatten(flat[number], parts[number]), strict=True
        ):
            part.data = values.data
    optimizer.checkpoint_event_epilogue()
