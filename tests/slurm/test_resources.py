"""Devices for each run: the planner's choice within a cluster file, and what is refused."""

import re
import shlex
from pathlib import Path

import pytest

from launch.study import expand, load_study
from slurm.__main__ import _parser
from slurm.cluster import Cluster, load_cluster
from slurm.placement import place_on_slurm
from slurm.resources import (
    DEAREST,
    JOB_SECONDS,
    RUN_SECONDS,
    Shape,
    assign,
    evaluation_in_steps,
    steps_done,
)
from tests.slurm.conftest import ROOT

DOCUMENT = (ROOT / "docs/slurm.md").read_text()
STUDY = """
name = "s"
question = "?"
domain = "image-32x32"
budget.tokens = {tokens}
optimizer.learning_rate = 0.001
{more}
"""
GPUS = Cluster(
    executor="slurm", cpus_per_task=4, memory_gb=32.0, max_minutes=240, concurrent_jobs=8,
    gpus_per_node=4, gpu="h100", max_nodes=4,
)  # fmt: skip
CPUS = Cluster(
    executor="slurm", cpus_per_task=1, memory_gb=2.0, max_minutes=60, concurrent_jobs=3,
    tasks_per_node=2, max_nodes=2,
)  # fmt: skip


def runs(tmp_path: Path, *sizes: tuple[int, int], tokens: str = "1e8", more: str = ""):
    path = tmp_path / "s.toml"
    rungs = "".join(f"[[ladder]]\nnum_layers = {n}\nhidden_size = {d}\n" for n, d in sizes)
    path.write_text(STUDY.format(tokens=tokens, more=more) + rungs)
    return expand(load_study(path), path)


def test_a_run_that_fits_one_gpu_gets_one(tmp_path):
    (run,) = runs(tmp_path, (2, 128))
    assigned = assign(run, GPUS)
    assert assigned.shape == Shape(1, 1, 1)
    parallel = assigned.run.parallel
    assert parallel.train_micro_batch_size_per_gpu is not None
    assert parallel.tensor_model_parallel_size == 1
    assert assigned.run.run_id == run.run_id
    assert 0 < assigned.bytes < 80e9


def test_a_run_that_would_take_too_long_gets_the_fewest_that_end_in_time(tmp_path):
    (run,) = runs(tmp_path, (24, 2048), tokens="1e10")
    seconds = {ranks: assign(run, GPUS, ranks).seconds for ranks in (1, 2, 4, 8, 16)}
    hours = (
        (min(seconds.values()) + sorted(seconds.values())[1]) / 2 / 3600
    )  # only the fastest does
    cluster = GPUS.model_copy(update={"max_minutes": round(60 * hours)})
    fastest = min(seconds, key=lambda ranks: seconds[ranks])
    assert assign(run, cluster).shape.ranks == fastest
    assert assign(run, cluster).shape == Shape(4, 4, 4)


def test_where_nothing_ends_in_time_more_gpus_may_not_cost_too_much(tmp_path):
    (run,) = runs(tmp_path, (24, 2048), tokens="1e12")
    chosen = assign(run, GPUS.model_copy(update={"max_minutes": 10}))
    assert chosen.shape.ranks > 1
    assert chosen.gpu_hours <= DEAREST * assign(run, GPUS, 1).gpu_hours


def test_a_run_too_large_for_one_gets_as_many_as_it_needs(tmp_path):
    (run,) = runs(tmp_path, (60, 6144))
    with pytest.raises(ValueError, match="of the host's memory, .* wanted at most memory_gb = 32"):
        assign(run, GPUS, 1)
    chosen = assign(run, GPUS)
    assert chosen.shape.ranks > 1
    assert not chosen.run.parallel.offload_optimizer
    (run,) = runs(tmp_path, (80, 8192))
    with pytest.raises(ValueError, match="does not fit on 1 h100"):
        assign(run, GPUS, 1)


def test_what_the_study_states_is_kept(tmp_path):
    more = "parallel.tensor_model_parallel_size = 2\nparallel.zero_stage = 1"
    (run,) = runs(tmp_path, (2, 128), more=more)
    chosen = assign(run, GPUS)
    assert chosen.shape == Shape(1, 2, 2)
    assert chosen.run.parallel.tensor_model_parallel_size == 2
    assert chosen.run.parallel.zero_stage == 1


def test_ranks_on_cpus(tmp_path):
    (run,) = runs(tmp_path, (2, 128))
    assert assign(run, CPUS).shape == Shape(1, 1, 0)
    assert assign(run, CPUS, 2).shape == Shape(1, 2, 0)
    assert assign(run, CPUS, 4).shape == Shape(2, 2, 0)
    assert assign(run, CPUS, 4).run == run


@pytest.mark.parametrize("ranks", [0, 3, 5])
def test_more_than_there_is(tmp_path, ranks):
    (run,) = runs(tmp_path, (2, 128))
    with pytest.raises(
        ValueError, match=rf"{ranks} ranks for one run; wanted 1 to 4 \(max_nodes = 2 x"
    ):
        assign(run, CPUS, ranks)


def test_ranks_that_the_batch_cannot_be_shared_among(tmp_path):
    (run,) = runs(tmp_path, (2, 128), more="batch.train_batch_size = 2")
    with pytest.raises(
        ValueError, match=r"4 ranks with tensor_model_parallel_size = 1; wanted ranks ="
    ):
        assign(run, CPUS, 4)


def test_jobs_of_one_shape_are_together_and_only_small_runs_share(tmp_path):
    ladder = runs(tmp_path, (2, 64), (2, 128), (2, 192), (2, 256), (24, 2048), tokens="1e10")
    jobs = place_on_slurm(
        ladder, GPUS.model_copy(update={"concurrent_jobs": 2, "max_minutes": 600})
    )
    shapes = [job.shape for job in jobs]
    assert shapes == sorted(shapes)
    assert sorted(len(job.runs) for job in jobs if job.shape.ranks == 1) == [2, 2]
    assert all(len(job.runs) == 1 for job in jobs if job.shape.ranks > 1)
    assert any(job.shape.ranks > 1 for job in jobs)


def test_tiny_runs_may_share_a_gpu(tmp_path):
    ladder = runs(tmp_path, (2, 64), (2, 128), (12, 768), tokens="1e8")
    cluster = GPUS.model_copy(update={"concurrent_jobs": 1, "runs_per_gpu": 4})
    one, other = place_on_slurm(ladder, cluster)
    assert [(len(job.runs), job.at_a_time) for job in (one, other)] == [(1, 1), (2, 4)]
    assert {job.at_a_time for job in place_on_slurm(ladder, GPUS)} == {1}


def test_jobs_that_would_not_end_in_time_are_more_than_may_run_at_a_time(tmp_path):
    ladder = runs(tmp_path, (2, 128), tokens="[1e11, 1.1e11, 1.2e11, 1.3e11, 1.4e11, 1.5e11]")
    seconds = sum(assign(run, GPUS).seconds for run in ladder)
    cluster = GPUS.model_copy(update={"concurrent_jobs": 1, "max_minutes": 10_000})
    assert len(place_on_slurm(ladder, cluster)) == 1
    half = cluster.model_copy(update={"max_minutes": round(seconds / 60 / 2) + 1})
    assert len(place_on_slurm(ladder, half)) == 2


def test_a_trunk_and_its_branches_share_a_job_and_its_devices(tmp_path):
    ladder = runs(tmp_path, (24, 2048), tokens="[1e8, 1e10]", more='schedule.kind = "wsd"')
    (job,) = place_on_slurm(ladder, GPUS)
    assert job.shape.ranks > 1
    assert [each.run.trunk is None for each in job.runs] == [True, False]


def test_what_is_paid_beside_the_steps(tmp_path):
    """Each run and each job has its start; small runs consist of little else."""
    ladder = runs(tmp_path, *((1, 64 + 8 * n) for n in range(16)), tokens="4e5")
    assigned = [assign(run, GPUS) for run in ladder]
    assert all(each.seconds > RUN_SECONDS for each in assigned)
    jobs = place_on_slurm(ladder, GPUS)
    assert len(jobs) == GPUS.concurrent_jobs
    seconds = JOB_SECONDS * len(jobs) + sum(each.seconds for each in assigned)
    assert sum(job.seconds for job in jobs) == pytest.approx(seconds)
    assert sum(job.gpu_hours for job in jobs) == pytest.approx(seconds / 3600)


def test_evaluations_along_a_run_are_counted(tmp_path):
    """A forward pass is a third of a step. A branch has only those after its trunk."""
    whole, *_ = runs(tmp_path, (2, 128), more="evaluation.rows = 300")
    times = len(whole.evaluation_steps())
    batches = 300 / whole.batch.train_batch_size
    assert evaluation_in_steps(whole, 0) == pytest.approx(times * batches / 3)
    assert times > 1
    trunk, branch = runs(tmp_path, (2, 128), tokens="[1e7, 1e8]", more='schedule.kind = "wsd"')
    trunk, branch = sorted((trunk, branch), key=lambda run: run.trunk is not None)
    done = steps_done(branch, 0)
    assert done == branch.trunk.step
    assert 0 < evaluation_in_steps(branch, done) < evaluation_in_steps(trunk, 0)


@pytest.mark.parametrize("cluster", [GPUS, CPUS])
def test_what_is_saved_is_not_paid_again(tmp_path, cluster):
    """On the devices that it began on."""
    (run,) = runs(tmp_path, (24, 2048), tokens="1e10", more="evaluation.rows = 1")
    whole = assign(run, cluster)
    rest = assign(run, cluster, saved=9 * run.train_steps // 10)
    assert rest.shape == whole.shape
    assert rest.run == whole.run
    assert (rest.seconds - RUN_SECONDS) / (whole.seconds - RUN_SECONDS) == pytest.approx(
        0.1, rel=0.01
    )
    (job,) = place_on_slurm([run], cluster, saved=lambda _: run.train_steps)
    assert job.seconds < JOB_SECONDS + RUN_SECONDS + 0.02 * whole.seconds


def test_runs_side_by_side_share_their_time(tmp_path):
    """By the number of them, but no less than the longest takes alone."""
    ladder = runs(tmp_path, (2, 64), more="seeds = [0, 1, 2, 3]")
    one_by_one = GPUS.model_copy(update={"concurrent_jobs": 1})
    packed = {
        number: place_on_slurm(ladder, one_by_one.model_copy(update={"runs_per_gpu": number}))
        for number in (1, 2, 8)
    }
    seconds = {number: job.seconds - JOB_SECONDS for number, (job,) in packed.items()}
    assert seconds[2] == pytest.approx(seconds[1] / 2)
    assert seconds[8] == pytest.approx(seconds[1] / 4)
    (job,) = packed[2]
    assert job.gpu_hours == pytest.approx(job.seconds / 3600)


def test_the_smallest_cluster_file_of_the_document(tmp_path):
    (text,) = re.findall(r"my-cluster.toml <<'END'\n(.*?)END\n", DOCUMENT, re.DOTALL)
    (tmp_path / "my-cluster.toml").write_text(text)
    cluster = load_cluster(str(tmp_path / "my-cluster.toml"))
    (run,) = runs(tmp_path, (2, 128))
    assert assign(run, cluster).shape == Shape(1, 1, 1)


def test_the_commands_of_the_document_are_ours():
    """Every line that one can type; of the ten minutes also the study file."""
    lines = DOCUMENT.replace("\\\n", " ").splitlines()
    typed = [line for line in lines if line.startswith("python -m slurm ")]
    assert len(typed) >= 6
    for line in typed:
        words = shlex.split(line)[3:]
        if words != ["--help"]:
            arguments = _parser().parse_args(words)
            if arguments.command in ("submit", "status"):
                assert (ROOT / arguments.study).exists()
