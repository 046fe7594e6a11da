"""Each node of a job is tried before training: its devices, its memory, its scratch folder, its sight of the data, and
a small all-reduce.

    python -m slurm.health FOLDER RANKS_ON_A_NODE DATA

Every rank leaves FOLDER/RANK.json after each stage; a rank that hangs leaves what it had done. So the
job, which reads them after a time limit, can name the node that kept the others waiting.
"""

import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slurm.causes import Cause, Finding, find
from slurm.rank import make_scratch, start_rank
from slurm.step import Ended

STAGES = NOT_STARTED, STARTED, READY, DONE = "not started", "started", "ready", "done"
FREE = 0.9  # of the memory that should be there: less, and a process of somebody is left on it


@dataclass(frozen=True)
class Bad:
    """A node that did not do what was asked, and how that was seen."""

    node: str
    message: str


def main(argv: list[str]) -> int:
    """Try this rank's part. Exit status 1 if it failed."""
    folder, per_node, data = Path(argv[0]), int(argv[1]), Path(argv[2])
    start_rank()
    node = os.environ.get("SLURMD_NODENAME", "this machine")
    rank = int(os.environ.get("RANK", "0"))

    def leave(stage: str, message: str = "") -> None:
        path = folder / f".{rank}.tmp"
        path.write_text(json.dumps({"node": node, "stage": stage, "message": message}))
        path.replace(folder / f"{rank}.json")

    stage = STARTED
    leave(stage)
    try:
        message = _try_node(per_node, data)
        if not message:
            stage = READY
            leave(stage)
            message = _try_all_reduce()
    except Exception as error:  # whatever a broken device raises
        message = f"{type(error).__name__}: {error}".splitlines()[0]
    leave(stage if message else DONE, message)
    print(f"{node}: rank {rank}: {message or 'well'}", file=sys.stderr, flush=True)
    return 1 if message else 0


def _try_node(per_node: int, data: Path) -> str:
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
    if available < FREE * wanted:  # a system keeps some for itself
        return f"{available:.1f} GiB of memory are left; Slurm promised {wanted:.1f}"
    make_scratch()
    return _try_data(data)


def _try_data(data: Path) -> str:
    """What is wrong with this node's sight of the dataset: a node that has lost it would fail one run after another."""
    try:
        there = any(data.iterdir())
    except OSError as error:
        return f"{data} cannot be read here ({errno.errorcode.get(error.errno or 0, error)})"
    return "" if there else f"{data} is empty here; wanted the dataset: is its file system mounted?"


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


def verdict(
    folder: Path, nodes: Sequence[str], per_node: int, ended: Ended, seconds: float
) -> tuple[Finding | None, tuple[str, ...]]:
    """Why the check failed, and the nodes to do without; None where every rank is through. `seconds`: it had.

    A node is left out only for what is known of it. Where the check as a whole did not come about, it is tried
    again on the same nodes, as often as `slurm.causes` allows.
    """
    left = {rank: _read(folder / f"{rank}.json") for rank in range(len(nodes) * per_node)}
    if all(record.get("stage") == DONE for record in left.values()):
        return None, ()
    bad = _judge(left, nodes, per_node, ended.timed_out)
    if bad:
        message = "; ".join(f"{each.node or 'no node'}: {each.message}" for each in bad)
        finding = Finding(Cause.NODE, message)
    elif ended.timed_out:
        finding = Finding(Cause.STEP, f"no node of {', '.join(nodes)} got through in time")
    else:
        finding = find(ended, None, memory_event=False)
        if ended.ends and finding.cause == Cause.FAILED:  # all it says is that it lost another rank
            finding = Finding(Cause.STEP, finding.message)
    late = f" (check_seconds = {seconds:g} in the cluster file)" if ended.timed_out else ""
    message = f"the check before training: {finding.message}{late}"
    return replace(finding, message=message), tuple(each.node for each in bad if each.node)


def _judge(
    left: Mapping[int, dict[str, str]], nodes: Sequence[str], per_node: int, timed_out: bool
) -> list[Bad]:
    """The nodes that are bad, from what the ranks have left.

    A rank that says what is wrong is believed. Else, if the time ran out, those are named that kept others
    waiting; where no node got further than the rest, no one of them is: a file system that all share may be slow.
    Where all are ready and the sum did not come, the network between them is bad.
    """
    of = {rank: nodes[rank // per_node] for rank in left}  # srun fills node after node
    own = {
        of[rank]: record["message"]
        for rank, record in left.items()
        if record.get("message")
        and (record["stage"] == STARTED or not _of_others(record["message"]))
    }
    if own:
        return [Bad(node, text) for node, text in own.items()]
    if not timed_out:
        return []
    stages: dict[str, list[int]] = {node: [] for node in nodes}
    for rank, record in left.items():
        stages[of[rank]].append(STAGES.index(record.get("stage", NOT_STARTED)))
    slowest = {node: min(reached) for node, reached in stages.items()}
    furthest = min(max(map(max, stages.values())), STAGES.index(READY))
    late = [node for node, stage in slowest.items() if stage < furthest]
    if not late and len(nodes) == 1 and furthest == STAGES.index(STARTED):
        late = list(nodes)  # its own part waits for nobody
    if late or furthest < STAGES.index(READY):
        return [Bad(node, f"no answer in time: {STAGES[slowest[node]]}") for node in late]
    hung = [node for node, stage in slowest.items() if stage < STAGES.index(DONE)]
    if len(hung) == len(nodes) > 1:
        return [Bad("", f"the all-reduce between {', '.join(nodes)} did not end in time")]
    return [Bad(node, "its part of the all-reduce did not end in time") for node in hung]


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
