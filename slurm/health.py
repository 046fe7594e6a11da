"""Each node of a job is tried before training: its devices, its memory, and a small all-reduce.

    python -m slurm.health FOLDER RANKS_ON_A_NODE

Every rank leaves FOLDER/RANK.json after each stage; a rank that hangs leaves what it had done. So the
job, which reads them after a time limit, can name the node that kept the others waiting.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.rank import start_rank

STARTED, READY, DONE = "started", "ready", "done"
FREE = 0.9  # of a GPU's memory: less, and a process of somebody is left on it


@dataclass(frozen=True)
class Bad:
    """A node that did not do what was asked, and how that was seen."""

    node: str
    message: str


def main(argv: list[str]) -> int:
    """Try this rank's part. Exit status 1 if it failed."""
    folder, per_node = Path(argv[0]), int(argv[1])
    start_rank()
    node = os.environ.get("SLURMD_NODENAME", "this machine")
    rank = int(os.environ.get("RANK", "0"))

    def leave(stage: str, message: str = "") -> None:
        path = folder / f".{rank}.tmp"
        path.write_text(json.dumps({"node": node, "stage": stage, "message": message}))
        path.replace(folder / f"{rank}.json")

    leave(STARTED)
    try:
        message = _try_node(per_node)
        if not message:
            leave(READY)
            message = _try_all_reduce()
    except Exception as error:  # whatever a broken device raises
        message = f"{type(error).__name__}: {error}".splitlines()[0]
    leave(READY if message else DONE, message)
    print(f"{node}: rank {rank}: {message or 'well'}", file=sys.stderr, flush=True)
    return 1 if message else 0


def _try_node(per_node: int) -> str:
    """What is wrong with this node by itself; '' if nothing is."""
    import torch

    from launch.process import own_device

    if os.environ.get("SLURM_GPUS_ON_NODE"):
        count = torch.cuda.device_count()
        if count < per_node:
            return f"{count} GPUs are visible; wanted {per_node}"
        free, total = torch.cuda.mem_get_info(own_device())
        if free < FREE * total:
            return f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB of a GPU are free; somebody is on it"
    wanted = int(os.environ.get("SLURM_MEM_PER_NODE", "0")) / 2**10
    available = available_gb()
    if available < wanted:
        return f"{available:.1f} GiB of memory are left; Slurm promised {wanted:.1f}"
    return ""


def available_gb() -> float:
    """The memory of this machine that nobody uses, in GiB."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(meminfo["MemAvailable"].split()[0]) / 2**20


def _try_all_reduce() -> str:
    """Add a number over all ranks, on the devices and by the network that training uses."""
    import torch
    import torch.distributed

    from launch.process import own_device

    device, ranks = own_device(), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    size = 1024
    given = torch.full((size,), float(os.environ.get("RANK", "0")) + 1, device=device)
    total = given @ torch.ones(size, device=device)  # the device computes, too
    if ranks > 1:
        torch.distributed.all_reduce(total)
        torch.distributed.destroy_process_group()
    wanted = size * ranks * (ranks + 1) / 2
    return "" if total.item() == wanted else f"the ranks add up to {total.item()}; wanted {wanted}"


def judge(folder: Path, nodes: Sequence[str], per_node: int) -> list[Bad]:
    """The nodes that are bad, from what the ranks have left; none if every rank is through.

    A rank that says what is wrong is believed; else the nodes that kept the others waiting are named; else,
    where all are ready and the sum did not come, all of them: the network between them is bad.
    """
    left = {rank: _read(folder / f"{rank}.json") for rank in range(len(nodes) * per_node)}
    of = {rank: nodes[rank // per_node] for rank in left}  # srun fills node after node
    stages = {rank: record.get("stage", "not started") for rank, record in left.items()}
    said = {of[rank]: record["message"] for rank, record in left.items() if record.get("message")}
    own = {node: text for node, text in said.items() if not _of_others(text)}
    if own:
        return [Bad(node, text) for node, text in own.items()]
    late = {of[rank]: stage for rank, stage in stages.items() if stage not in (READY, DONE)}
    if late:
        return [Bad(node, f"no answer in time: {stage}") for node, stage in late.items()]
    hung = {of[rank] for rank, stage in stages.items() if stage != DONE}
    if not hung:
        return []
    if len(hung) == len(nodes) > 1:
        return [Bad("", f"the all-reduce between {', '.join(nodes)} did not end in time")]
    return [Bad(node, "its part of the all-reduce did not end in time") for node in sorted(hung)]


def _of_others(message: str) -> bool:
    """Whether a rank only says that it lost another one."""
    return any(
        word in message for word in ("Connection", "connection", "peer", "timeout", "Timeout")
    )


def _read(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
