"""Where each parameter's numbers lie in what DeepSpeed's optimizers hold and save.

Every ZeRO stage flattens and cuts parameters its own way. Here all of them become `Fragment`s: runs of
consecutive numbers of one parameter, as views. A checkpoint's fragments are read to put whole
parameters together (`launch.reshard`); a live optimizer's are written to take its share of them.

Read from DeepSpeed 0.19.8: `zero/stage_1_and_2.py`, `zero/stage3.py`, `bf16_optimizer.py`,
`fp16/unfused_optimizer.py`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

STATES = ("fp32", "exp_avg", "exp_avg_sq")  # the weights to full precision, Adam's two moments

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Fragment:
    """Numbers of one parameter of this tensor-parallel rank, from place `start` of its flat form on.

    `values` holds a flat view, all of one length, for each of `STATES`.
    """

    name: str
    start: int
    values: dict[str, Tensor]

    @property
    def numel(self) -> int:
        return len(self.values["fp32"])


def fragments(
    optimizer: Mapping[str, Any],
    groups: Sequence[Shapes],
    weights: Mapping[str, Tensor],
    rank: int,
    starts: Mapping[str, int],
) -> Iterator[Fragment]:
    """The fragments in the `state_dict` of one rank's optimizer.

    `groups`: for each of its parameter groups, the names and shapes of the parameters in their order;
    `weights`: the parameters, for the optimizer that keeps no copy of its own (fp32 without ZeRO);
    `rank`: the data-parallel rank; `starts`: where in a parameter this rank's fragment begins, if
    not at 0, which ZeRO 1 and 2 do not write down.
    """
    if "param_slice_mappings" in optimizer:
        yield from _of_zero_1_and_2(optimizer, starts)
    elif "fp32_flat_groups" in optimizer:
        yield from _of_zero_3(optimizer, groups, rank)
    else:
        yield from _of_no_zero(optimizer, groups, weights)


def adam_steps(optimizer: Mapping[str, Any]) -> list[Tensor]:
    """Adam's counts of steps, which are equal, as they are held."""
    return [state["step"] for state in _adam(optimizer).values()]


def groups_of(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """The parameter groups of our optimizer: those that decay (matrices, tables), those that do not."""
    decayed = {name: shape for name, shape in shapes.items() if len(shape) >= 2}
    return [decayed, {name: shape for name, shape in shapes.items() if name not in decayed}]


def _adam(optimizer: Mapping[str, Any]) -> Mapping[int, Any]:
    """PyTorch's own state of each of its parameters, by number."""
    for wrapper in ("base_optimizer_state", "optimizer_state_dict"):
        optimizer = optimizer.get(wrapper, optimizer)
    return optimizer["state"]


def _of_zero_1_and_2(optimizer: Mapping[str, Any], starts: Mapping[str, int]) -> Iterator[Fragment]:
    """A group is one flat tensor, cut into equal parts; each says where its parameters lie in it."""
    flats, adam = optimizer["single_partition_of_fp32_groups"], _adam(optimizer)
    for number, places in enumerate(optimizer["param_slice_mappings"]):
        held = {"fp32": flats[number], **adam[number]}
        for name, place in places.items():
            values = {state: held[state].narrow(0, place.start, place.numel) for state in STATES}
            yield Fragment(name, starts.get(name, 0), values)


def _of_zero_3(
    optimizer: Mapping[str, Any], groups: Sequence[Shapes], rank: int
) -> Iterator[Fragment]:
    """Each parameter by itself is cut into equal parts; a rank's parts of a group lie in a row."""
    flats, adam = optimizer["fp32_flat_groups"], _adam(optimizer)
    for number, shapes in enumerate(groups):
        held = {"fp32": flats[number], **adam[number]}
        offset = 0
        for name, shape in shapes.items():
            numel = math.prod(shape)
            part = -(-numel // optimizer["partition_count"])
            start = min(rank * part, numel)
            count = min(part, numel - start)
            yield Fragment(
                name, start, {state: held[state].narrow(0, offset, count) for state in STATES}
            )
            offset += part


def _of_no_zero(
    optimizer: Mapping[str, Any], groups: Sequence[Shapes], weights: Mapping[str, Tensor]
) -> Iterator[Fragment]:
    """Every parameter is whole; in bf16 the optimizer has the precise ones, group by group."""
    adam, number = _adam(optimizer), 0
    precise = optimizer.get("fp32_groups")
    for group, shapes in enumerate(groups):
        for place, name in enumerate(shapes):
            weight = precise[group][place] if precise else weights[name]
            held = {"fp32": weight.detach(), **adam[number]}
            yield Fragment(name, 0, {state: held[state].view(-1) for state in STATES})
            number += 1
