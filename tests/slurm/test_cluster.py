"""Cluster files: those we ship are read, and every mistake in yours is named."""

import pytest

from slurm.cluster import CLUSTERS, Cluster, cluster_names, load_cluster

GOOD = (
    'executor = "slurm"\ncpus_per_task = 1\nmemory_gb = 1.0\nmax_minutes = 5\nconcurrent_jobs = 2\n'
)


@pytest.mark.parametrize("name", cluster_names())
def test_the_shipped_files_are_valid(name):
    assert load_cluster(name).executor == ("local" if name == "local" else "slurm")


def test_the_example_explains_every_key():
    text = (CLUSTERS / "example.toml").read_text()
    for field in Cluster.model_fields:
        ways = (f"\n{field} = ", f"\n#{field} = ", f"\n[{field}]", f"\n#[{field}]")
        assert any(way in text for way in ways), field


def test_a_file_of_yours(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_cluster(str(path)).concurrent_jobs == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + 'partitoin = "gpu"\n', ["partitoin: unknown key", "did you mean 'partition'?"]),
        (GOOD + "gpus_per_node = -1\n", ["gpus_per_node = -1"]),
        (GOOD.replace("memory_gb = 1.0", 'memory_gb = "1G"'), ["memory_gb = '1G'"]),
        (GOOD.replace("max_minutes = 5\n", ""), ["max_minutes: missing"]),
        (GOOD.replace("concurrent_jobs = 2\n", ""), ["concurrent_jobs is not given", "wanted"]),
        (GOOD.replace("slurm", "pbs"), ["executor = 'pbs'", "'local' or 'slurm'"]),
        (
            GOOD.replace("slurm", "local") + 'partition = "gpu"\n[sbatch]\nx = 1\n',
            ["partition, sbatch given with executor = 'local'", "wanted these only with"],
        ),
        (
            GOOD + "gpus_per_node = 4\n",
            ["gpus_per_node = 4 and gpu = None; wanted both, or neither", "h100, h200, a100"],
        ),
        (
            GOOD + 'gpus_per_node = 4\ngpu = "v100"\n',
            ["gpu = 'v100' is not known; wanted one of h100, h200, a100"],
        ),
        (
            GOOD + 'gpus_per_node = 4\ngpu = "h100"\ntasks_per_node = 2\n',
            ["tasks_per_node = 2 given with gpus_per_node = 4", "one task for each GPU"],
        ),
        (
            GOOD + "notice_seconds = 300\n",
            ["notice_seconds = 300 with max_minutes = 5; wanted less than the whole time"],
        ),
        (
            GOOD + "cpu_max_minutes = 9\n",
            ["cpu_max_minutes given without cpu_partition; wanted these only with one"],
        ),
        (
            GOOD + 'gpu_type = "h100"\n',
            ["gpu_type = 'h100' given without gpus_per_node; wanted it only with GPUs"],
        ),
        (
            GOOD + 'cpu_account = "x"\n[cpu_sbatch]\ny = 1\n',
            ["cpu_account, cpu_sbatch given without cpu_partition"],
        ),
        (
            GOOD + 'cpu_partition = "cpu"\n[cpu_sbatch]\nclusters = "b"\n',
            ["[cpu_sbatch] clusters; wanted there only what no other key says"],
        ),
        (
            GOOD + 'cpu_partition = "cpu"\ncpu_max_minutes = 1\n',
            ["notice_seconds = 90 with cpu_max_minutes = 1; wanted less than the whole time"],
        ),
        (
            GOOD + "[sbatch]\ncpus_per_task = 4\n",
            ["[sbatch] cpus_per_task; wanted there only what no other key says"],
        ),
        (
            GOOD
            + '[sbatch]\nmem-per-cpu = 1000\ngres = "gpu:2"\nparsable = true\ntest_only = true\n',
            [
                "[sbatch] mem-per-cpu, gres, parsable, test_only; wanted there only what no other key"
            ],
        ),
        (
            GOOD + "[sbatch]\nexclusive = false\nreboot = true\n",
            ["[sbatch] exclusive = false; wanted true, a number or words: sbatch has no option"],
        ),
        ("executor = ", ["not valid TOML", "wanted a cluster file"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match="mine.toml") as caught:
        load_cluster(str(path))
    for word in words:
        assert word in str(caught.value)


def test_a_resource_that_is_no_gpu(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + '[sbatch]\ngres = "nvme:1"\n')
    assert load_cluster(str(path)).sbatch == {"gres": "nvme:1"}


def test_an_unknown_name():
    with pytest.raises(ValueError, match="--cluster locl: no cluster of that name; wanted one of "):
        load_cluster("locl")
    with pytest.raises(ValueError, match="Did you mean 'local'?"):
        load_cluster("locl")
    with pytest.raises(ValueError, match=r"nowhere/x.toml: no such file; wanted a cluster file"):
        load_cluster("nowhere/x.toml")
