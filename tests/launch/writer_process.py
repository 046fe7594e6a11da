"""Writes a run file until it is killed, and tells after each flush how many rows it has handed over.

A program of its own that imports launch.results alone, so that hundreds start quickly:
python writer_process.py FOLDER STEPS_THAT_ARE_THERE
"""

import sys
from pathlib import Path

from launch.results import COUNT_NAMES, ResultWriter
from tests.launch.rows import eval_rows, position, train_row


def write(folder: Path, held: int) -> None:
    writer = ResultWriter(
        folder,
        config={"seed": 0},
        provenance={"start": held},
        counts=dict.fromkeys(COUNT_NAMES, 1.0),
        seq_length=16,
    )
    for step in range(held + 1, 1_000_000):
        writer.train(**train_row(step))
        if step % 5 == 0:
            writer.eval_position("valid", step, *position(step))
            writer.eval(eval_rows(step))
        elif step % 3 == 0:
            writer.flush()
        else:
            continue
        print(step, flush=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
