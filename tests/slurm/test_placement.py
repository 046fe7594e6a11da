"""Packing as a pure function: what shares a job, in which order, on how many slots."""

import itertools
from pathlib import Path

import pytest

from launch.config import RunConfig, Trunk
from launch.study import expand, load_study
from slurm import machine as machines
from slurm.cluster import load_cluster
from slurm.machine import Machine, this_machine
from slurm.placement import local_slots, pack, place_here
from slurm.resources import estimated_seconds

LADDER = [(1, 16), (1, 32), (2, 32), (2, 64), (4, 64)]
STUDY = """
name = "s"
question = "?"
domain = "image-8x8"
budget.tokens = {tokens}
optimizer.learning_rate = 0.001
batch.train_batch_size = 4
{more}
"""


def runs(tmp_path: Path, tokens: str = "1e6", more: str = "") -> tuple[RunConfig, ...]:
    path = tmp_path / "study.toml"
    rungs = "".join(f"[[ladder]]\nnum_layers = {n}\nhidden_size = {d}\n" for n, d in LADDER)
    path.write_text(STUDY.format(tokens=tokens, more=more) + rungs)
    return expand(load_study(path), path)


def seconds(group) -> float:
    return sum(estimated_seconds(run) for run in group)


@pytest.mark.parametrize("bins", [1, 2, 3, 5, 9])
def test_every_run_is_in_one_job(tmp_path, bins):
    todo = runs(tmp_path)
    groups = pack(todo, bins)
    assert len(groups) == min(bins, len(todo))
    assert sorted(run.run_id for group in groups for run in group) == sorted(
        run.run_id for run in todo
    )


def test_jobs_end_together(tmp_path):
    """Graham's bound, against the best of all ways to divide the runs over two jobs."""
    todo = runs(tmp_path)
    best = min(
        max(
            seconds([run for run, side in zip(todo, sides, strict=True) if side == s]) for s in "ab"
        )
        for sides in itertools.product("ab", repeat=len(todo))
    )
    assert max(seconds(group) for group in pack(todo, 2)) <= best * 4 / 3


def test_a_job_does_its_small_runs_first(tmp_path):
    for group in pack(runs(tmp_path), 2):
        assert [seconds([run]) for run in group] == sorted(seconds([run]) for run in group)


def test_branches_follow_their_trunk_in_its_job(tmp_path):
    todo = runs(tmp_path, tokens="[2e5, 4e5, 1e6]", more='schedule.kind = "wsd"')
    branches = [run for run in todo if run.trunk]
    assert len(branches) == 2 * len(LADDER)
    for group in pack(todo[::-1], 3):
        ids = [run.run_id for run in group]
        for run in group:
            if run.trunk:
                assert ids.index(run.trunk.run_id) < ids.index(run.run_id)


def test_a_branch_whose_trunk_is_finished_stands_alone(tmp_path):
    run = runs(tmp_path)[0]
    branch = run.model_copy(update={"trunk": Trunk(run_id="finished", step=100)})
    assert pack([branch], 2) == [(branch,)]
    assert estimated_seconds(branch) < estimated_seconds(run)


@pytest.mark.parametrize(
    ("machine", "slots"),
    [
        (Machine(cores=2, memory_gb=20, gpus=()), ["", ""]),
        (Machine(cores=64, memory_gb=3.5, gpus=()), ["", "", ""]),
        (Machine(cores=4, memory_gb=0.2, gpus=()), [""]),
        (Machine(cores=8, memory_gb=64, gpus=("0",)), ["0"]),
        (Machine(cores=8, memory_gb=64, gpus=("2", "5")), ["2", "5"]),
    ],
)
def test_slots_of_a_machine(machine, slots):
    assert local_slots(load_cluster("local"), machine) == slots


def test_a_cluster_file_may_lower_the_slots():
    cluster = load_cluster("local").model_copy(update={"concurrent_jobs": 3, "gpus_per_node": 0})
    assert local_slots(cluster, Machine(16, 64, ("0", "1"))) == ["", "", ""]


def test_ranks_of_one_run_share_a_slot():
    cluster = load_cluster("local")
    assert local_slots(cluster, Machine(8, 64, ("0", "1", "2")), ranks=2) == ["0,1"]
    assert local_slots(cluster, Machine(8, 64, ()), ranks=2) == [""] * 4


def test_threads_do_not_depend_on_the_machine(tmp_path):
    jobs = place_here(runs(tmp_path), load_cluster("local"), ["", "", ""])
    assert {job.environment for job in jobs} == {
        (("OMP_NUM_THREADS", "1"), ("CUDA_VISIBLE_DEVICES", ""))
    }


def test_each_gpu_has_its_own_job(tmp_path):
    jobs = place_here(runs(tmp_path), load_cluster("local"), ["2", "5"])
    assert [dict(job.environment)["CUDA_VISIBLE_DEVICES"] for job in jobs] == ["2", "5"]


def test_this_machine_is_read_without_torch():
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_gb > 0


def test_a_containers_limits_count(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**29}\n")
    assert this_machine().cores == 1
    assert this_machine().memory_gb == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert this_machine().memory_gb > 0.5


def test_visible_gpus(monkeypatch):
    monkeypatch.setattr(machines, "version", lambda name: "2.13.0")
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("nvidia0"), Path("nvidia1")]))
    assert machines._gpus({}) == ("0", "1")
    assert machines._gpus({"CUDA_VISIBLE_DEVICES": "1"}) == ("1",)
    assert machines._gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()
    monkeypatch.setattr(machines, "version", lambda name: "2.13.0+cpu")
    assert machines._gpus({}) == ()
