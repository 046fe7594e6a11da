"""Run by every rank of a group: one rank cannot write, or copy, during a save; then it can again.

RLIMIT_FSIZE stands for the full disk: a write beyond it fails as one on a full disk does.
"""

import json
import resource
import signal
import sys
from pathlib import Path

import torch.distributed

from launch import checkpoint, safe_load
from launch.engine import Engine, start_process
from launch.results import METRICS_FILE
from launch.verify import Case, run_of
from tests.launch.topologies import train

PLENTY = resource.getrlimit(resource.RLIMIT_FSIZE)


def main(folder: Path) -> None:
    device = start_process()
    rank = torch.distributed.get_rank()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    engine = Engine(run_of(Case(2, 1, False, 1, "fp32")), device)
    if rank == 0:
        (folder / "checkpoints").mkdir()
        (folder / METRICS_FILE).write_bytes(b"what was measured")
    torch.distributed.barrier()
    checkpoint.save(engine, folder, 1, "data")
    said = []
    for limited in (0, 1):
        train(engine, 0, 1)
        if rank == limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, PLENTY[1]))
        try:
            checkpoint.save(engine, folder, 2, "data")
        except OSError as error:
            elsewhere = hasattr(error, checkpoint.SAID_ELSEWHERE)
            said.append(f"{'' if elsewhere else 'said here: '}{error}")
        resource.setrlimit(resource.RLIMIT_FSIZE, PLENTY)
        newest = checkpoint.newest(folder)
        assert newest is not None
        assert newest.step == 1, "the older one is as it was"
    said.append(one_that_cannot_copy(engine, folder, rank))
    checkpoint.save(engine, folder, 2, "data")
    newest = checkpoint.newest(folder)
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    (folder / f"{rank}.json").write_text(json.dumps([said, newest and newest.step, left]))


def one_that_cannot_copy(engine: Engine, folder: Path, rank: int) -> str:
    def no_more(_: object) -> None:
        raise MemoryError("no more")

    whole, safe_load.copied = safe_load.copied, no_more if rank == 1 else safe_load.copied
    try:
        checkpoint.save(engine, folder, 2, "data")
    except (MemoryError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        safe_load.copied = whole
    return "saved"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
