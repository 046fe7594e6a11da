"""Run by every rank of a group: save, resume and reshard in each way to spread a model.

Writes `results.json` to the folder it is given: for each topology the losses of an undisturbed run, of one
that stopped and resumed, and of some that began from other topologies' checkpoints; these as they were saved,
and as `launch reshard` made them. The checkpoint of a case is in `NUMBER/checkpoints`, what `launch reshard`
made of it in `NUMBER/whole/checkpoints`. The last of the others, taken in that form and saved at once, is in
`NUMBER/copy/checkpoints`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed

from launch import checkpoint
from launch.__main__ import main as launch
from launch.batches import Batch
from launch.checkpoint_files import CHECKPOINTS
from launch.config import RunConfig
from launch.engine import Engine, start_process
from launch.results import METRICS_FILE
from launch.verify import ROWS, Case, run_of
from megatron_ext.parallel import data_parallel_rank

STOP_AFTER, STEPS = 2, 5


def batch(engine: Engine, step: int) -> Batch:
    shape = engine.config.shape
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, shape.vocab_size, (ROWS, shape.seq_length), generator=generator)
    share = ROWS // engine.world_size
    mine = tokens[data_parallel_rank() * share :][:share]
    return Batch(mine, torch.zeros_like(mine, dtype=torch.uint8), None)


def train(engine: Engine, first: int, last: int) -> list[tuple[float, float]]:
    results = [engine.train_step(batch(engine, step), 3e-3) for step in range(first, last)]
    return [(result.loss, result.grad_norm) for result in results]


def whole_run(config: RunConfig, folder: Path) -> dict[str, list]:
    """Undisturbed with a checkpoint on the way; then resumed from it in a new engine."""
    engine = Engine(config, torch.device("cpu"))
    before = train(engine, 0, STOP_AFTER)
    checkpoint.save(engine, folder, STOP_AFTER, "data")
    after = train(engine, STOP_AFTER, STEPS)
    engine.close()
    resumed = before + continued(config, folder, folder)
    poisoned = before + continued(config, folder, folder, poison=True)
    return {"undisturbed": before + after, "resumed": resumed, "poisoned": poisoned}


def poisoned_step(engine: Engine) -> None:
    """A step in which the last rank alone meets a NaN: no rank may change anything."""
    model = engine.model
    last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
    norm = model.gpt.decoder.layers[1].input_layernorm
    hook = norm.register_forward_hook(lambda *call: call[2] * float("nan")) if last else None
    assert engine.train_step(batch(engine, 99), 3e-3).skipped
    if hook:
        hook.remove()


def continued(
    config: RunConfig,
    source: Path,
    folder: Path,
    *,
    poison: bool = False,
    copy: Path | None = None,
) -> list[tuple[float, float]]:
    """From the checkpoint in `source`, another run's perhaps; before the first step it is saved again in `copy`."""
    engine = Engine(config, torch.device("cpu"))
    found = checkpoint.newest(source)
    assert found is not None
    assert found.step == STOP_AFTER
    checkpoint.load(engine, found, folder)
    if poison:
        poisoned_step(engine)
    if copy:
        checkpoint.save(engine, made(copy), STOP_AFTER, "data")
    losses = train(engine, STOP_AFTER, STEPS)
    engine.close()
    return losses


def made(folder: Path) -> Path:
    """A run's folder, as `launch run` would have it by then."""
    if torch.distributed.get_rank() == 0:
        (folder / CHECKPOINTS).mkdir(parents=True)
        (folder / METRICS_FILE).write_bytes(b"what was measured")
    torch.distributed.barrier()
    return folder


def main(out: Path, cases: list[Case], sources: int) -> None:
    """Each case also continues from the checkpoints of the `sources` cases that follow it."""
    start_process()
    folders = [made(out / str(number)) for number in range(len(cases))]
    results = [
        {"case": str(case), **whole_run(run_of(case), folder)}
        for case, folder in zip(cases, folders, strict=True)
    ]
    if torch.distributed.get_rank() == 0:
        for folder in folders:
            whole = folder / "whole" / CHECKPOINTS
            assert launch(["reshard", str(folder), "--out", str(whole)]) == 0
    torch.distributed.barrier()
    for number, (case, folder, result) in enumerate(zip(cases, folders, results, strict=True)):
        run = run_of(case)
        others = [(number + away) % len(cases) for away in range(1, sources + 1)]
        result["from"] = {
            str(cases[other]): continued(run, folders[other], folder) for other in others
        }
        result["from itself, whole"] = continued(run, folder / "whole", folder)
        last = folders[others[-1]] / "whole"
        result["from the last, whole"] = continued(run, last, folder, copy=folder / "copy")
    if torch.distributed.get_rank() == 0:
        (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = [Case(**fields) for fields in json.loads(sys.argv[2])]
    main(Path(sys.argv[1]), chosen, int(sys.argv[3]))
