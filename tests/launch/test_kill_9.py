"""`kill -9` at a random moment of a run, for each way to spread a model: the run never notices, nor who reads it.

The runs of all stages follow each other in one group of ranks, so that a group is started once for each kill.
"""

import random
import shutil
import time
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from launch.__main__ import main
from launch.config import RunConfig
from launch.folder import run_folder
from launch.results import RunResult, is_finished, read_result
from launch.verify import LARGEST, Case
from launch.verify import STEPS as COMPARABLE
from tests.launch.small import (
    DIED,
    assert_same_bits,
    config,
    exit_status,
    start_ranks,
    study,
    wait_for,
    write_study,
)

STEPS = 12
STAGES = (0, 1, 2, 3)


def tables(case: Case) -> dict[str, Any]:
    return {
        "precision": case.precision,
        "parallel": {
            "tensor_model_parallel_size": case.tensor_parallel,
            "zero_stage": case.zero_stage,
        },
        "checkpoint": {"interval_minutes": 0.0},  # one after each step: kills meet them too
    }


def run_of(case: Case) -> RunConfig:
    return config(STEPS, **tables(case))


def folder_of(case: Case, results: Path) -> Path:
    return run_folder(results / str(case), run_of(case))


def command(case: Case, data: Path, results: Path) -> list[Any]:
    """`launch run`, with a study and results of its own below `results`."""
    own = results / str(case)
    own.mkdir(parents=True, exist_ok=True)
    path = write_study(own / "study.toml", study(STEPS, **tables(case)))
    return ["run", path, "--data", data, "--results", own]


class Group:
    """Ranks that train the run of each case, one after another."""

    def __init__(self, cases: list[Case], data: Path, results: Path) -> None:
        self.cases, self.results = cases, results
        self.log = results.with_suffix(".log")
        self.commands = [command(case, data, results) for case in cases]

    def start(self) -> list[BaseProcess]:
        first, *then = self.commands
        return start_ranks(first, self.log, self.cases[0].world_size, *then)

    def finish(self) -> None:
        assert {exit_status(rank) for rank in self.start()} == {0}, self.said()

    def kill_during(self, case: Case, draw: random.Random) -> None:
        """Some steps after the first checkpoint of its run, wherever in a step that is."""
        folder, step = folder_of(case, self.results), draw.randint(1, STEPS // 3)
        ranks = self.start()
        wait_for(lambda: reached(folder, step) or not ranks[0].is_alive(), f"step {step}")
        time.sleep(draw.uniform(0, 0.05))
        for rank in ranks:
            rank.kill()
        assert {exit_status(rank) for rank in ranks} == {DIED}, self.said()

    def said(self) -> str:
        return "\n".join(log.read_text() for log in sorted(self.log.parent.glob("*.log.*")))


def reached(folder: Path, step: int) -> bool:
    return any(int(path.name[5:]) >= step for path in folder.glob("checkpoints/step-*"))


def killed_once(cases: list[Case], seed: int, pictures: Path, results: Path) -> list[RunResult]:
    group, draw = Group(cases, pictures, results), random.Random(seed)
    for case in cases:
        folder = folder_of(case, results)
        group.kill_during(case, draw)
        while is_finished(folder):  # too late: the machine was busy elsewhere
            shutil.rmtree(folder)
            group.kill_during(case, draw)
    group.finish()
    return [read_result(folder_of(case, results)) for case in cases]


def undisturbed(cases: list[Case], alone, pictures: Path, results: Path) -> list[RunResult]:
    if cases[0].world_size == 1:
        return [alone(run_of(case)) for case in cases]
    Group(cases, pictures, results).finish()
    return [read_result(folder_of(case, results)) for case in cases]


def assert_never_noticed(cases: list[Case], seed: int, alone, pictures, tmp_path) -> None:
    """To the bit as without a kill, and as one rank without ZeRO has it, as far as `verify` says."""
    wholes = undisturbed(cases, alone, pictures, tmp_path / "whole")
    after = killed_once(cases, seed, pictures, tmp_path / "killed")
    for case, whole, killed in zip(cases, wholes, after, strict=True):
        assert_same_bits(killed, whole)
        assert killed.provenance[-1]["resumed_at_step"] > 0, case
        one = alone(run_of(Case(1, 1, False, 0, case.precision)))
        np.testing.assert_allclose(
            killed.train["loss"][:COMPARABLE],
            one.train["loss"][:COMPARABLE],
            rtol=LARGEST[case.precision],
            err_msg=str(case),
        )


def assert_other_tools_read_it(source: Path, folder: Path) -> None:
    """The weights of a run's last checkpoint, cut as it may be: other tools' forms hold them, and they come back."""
    assert main(["reshard", str(source), "--out", str(folder / "whole")]) == 0
    wanted = weights_of(folder / "whole")
    for form, ranks in (("safetensors", "1"), ("megatron", "2")):
        there, back = folder / form, folder / f"{form}-back"
        command = ["reshard", str(source), "--to", form, "--tensor-parallel", ranks]
        assert main([*command, "--out", str(there)]) == 0
        assert main(["reshard", str(there), "--out", str(back)]) == 0
        found = weights_of(back)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(weight, found[name]) for name, weight in wanted.items()), form


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = folder.glob("step-*/universal/*.safetensors")
    return {path.stem: load_file(path)["fp32"] for path in files}


def every_stage(ranks: int, tensor_parallels: tuple[int, ...], odd: str, even: str) -> list[Case]:
    return [
        Case(ranks, split, False, stage, odd if (split + stage) % 2 else even)
        for split, stage in product(tensor_parallels, STAGES)
    ]


GROUPS = [
    pytest.param(1, (1,), id="one-rank"),
    pytest.param(2, (1, 2), id="two-ranks"),
]


@pytest.mark.parametrize(("ranks", "tensor_parallels"), GROUPS)
def test_kill_9_in_every_stage_changes_no_bit(ranks, tensor_parallels, alone, pictures, tmp_path):
    """TP 1 and 2 x ZeRO 0 to 3, each in one of the precisions; the long test has the others."""
    cases = every_stage(ranks, tensor_parallels, "bf16", "fp32")
    assert_never_noticed(cases, 0, alone, pictures, tmp_path)
    for case in cases:
        assert_other_tools_read_it(folder_of(case, tmp_path / "killed"), tmp_path / f"of {case}")


def test_kill_9_of_tensor_and_data_parallel_ranks_changes_no_bit(alone, pictures, tmp_path):
    case = Case(4, 2, False, 3, "bf16")
    assert_never_noticed([case], 0, alone, pictures, tmp_path)
    assert_other_tools_read_it(folder_of(case, tmp_path / "killed"), tmp_path / "forms")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("odd", "even"), [("bf16", "fp32"), ("fp32", "bf16")])
@pytest.mark.parametrize(
    ("ranks", "tensor_parallels"), [*GROUPS, pytest.param(4, (1, 2), id="four-ranks")]
)
def test_kill_9_in_every_stage_and_precision(
    ranks, tensor_parallels, odd, even, seed, alone, pictures, tmp_path
):
    cases = every_stage(ranks, tensor_parallels, odd, even)
    assert_never_noticed(cases, 1 + seed, alone, pictures, tmp_path)
