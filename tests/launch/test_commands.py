"""`python -m launch` as a person uses it: what it prints, where, and with which exit status."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.dataset import TokenDataset
from launch.__main__ import main
from launch.folder import run_folder
from launch.results import DamagedFile, read_result
from tests.launch.small import (
    STEP,
    STOPPED,
    assert_same_bits,
    config,
    exit_status,
    expanded,
    start,
    study,
    wait_for,
    write_study,
)

ROOT = Path(__file__).parents[2]


def fresh(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a few lines in a new interpreter."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


WITHOUT_TORCH = """
import sys
from launch.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
heavy = {"torch", "deepspeed", "megatron"} & set(sys.modules)
assert not heavy, heavy
sys.exit(status)
"""


@pytest.fixture
def small(tmp_path):
    return write_study(tmp_path / "small.toml", study(seeds=[0, 1]))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan", "--help"]])
def test_help_answers_without_torch(arguments):
    done = fresh(WITHOUT_TORCH, *arguments)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m launch" in done.stdout


def test_a_finished_study_is_found_done_without_torch(alone, pictures, tmp_path, small):
    command = ["run", str(small), "--data", str(pictures), "--results", str(tmp_path)]
    assert main(command) == 0
    runs = expanded(seeds=[0, 1])
    results = [read_result(run_folder(tmp_path, run)) for run in runs]
    for run, result in zip(runs, results, strict=True):
        assert_same_bits(result, alone(run))

    done = fresh(WITHOUT_TORCH, *command)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == "2 of 2 runs are finished: nothing to do\n"
    for run, result in zip(runs, results, strict=True):
        assert len(read_result(run_folder(tmp_path, run)).provenance) == len(result.provenance)


def test_one_of_two_runs_by_its_id(pictures, tmp_path, small, capfd):
    first, second = expanded(seeds=[0, 1])
    command = ["run", str(small), "--data", str(pictures), "--results", str(tmp_path)]
    assert main([*command, "--run", second.run_id]) == 0
    assert not run_folder(tmp_path, first).exists()
    assert read_result(run_folder(tmp_path, second)).finished
    captured = capfd.readouterr()
    assert captured.out == ""
    assert f"{second.run_id}: step 12/12, loss " in captured.err
    assert main(command) == 0
    assert f"{second.run_id}: finished before, nothing to do" in capfd.readouterr().err


def test_plan_prints_every_run_and_the_sums_without_torch(tmp_path, pictures):
    tables = study(
        seeds=[0, 1], ladder=[{"num_layers": 2, "hidden_size": size} for size in (16, 32)]
    )
    done = fresh(
        WITHOUT_TORCH, "plan", write_study(tmp_path / "s.toml", tables), "--data", pictures
    )
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows, total = done.stdout.splitlines()
    runs = expanded(seeds=[0, 1], ladder=tables["ladder"])
    rows_tokens = TokenDataset(pictures, "train").num_tokens
    assert header.split()[:2] == ["run", "N"]
    assert "epochs" in header
    for row, run in zip(rows, runs, strict=True):
        cells = row.split()
        assert cells[0] == run.run_id
        assert float(cells[1]) == pytest.approx(
            run.shape.params_non_embedding, rel=5e-3
        )  # 3 digits
        assert int(cells[5]) == run.train_steps == 12
        assert float(cells[6]) == pytest.approx(run.flops, rel=5e-3)
        assert float(cells[7]) == pytest.approx(run.flops_exact, rel=5e-3)
        assert float(cells[-1]) == pytest.approx(run.tokens / rows_tokens, abs=5e-3)  # 2 decimals
    assert total.startswith(f"4 runs, {4 * 12 * STEP:.3g} tokens, ")

    without = fresh(WITHOUT_TORCH, "plan", tmp_path / "s.toml")
    assert "epochs" not in without.stdout
    assert without.stdout.splitlines()[-1] == total


def test_an_unknown_run_lists_the_known_ones(pictures, tmp_path, small, capsys):
    command = ["run", str(small), "--data", str(pictures), "--results", str(tmp_path)]
    assert main([*command, "--run", "nobody"]) == 2
    error = capsys.readouterr().err
    assert f"{small}: --run nobody: no such run in this study; wanted one of: " in error
    for run in expanded(seeds=[0, 1]):
        assert run.run_id in error


def test_a_missing_dataset_says_how_to_build_one(tmp_path, small, capsys):
    data = tmp_path / "nowhere"
    assert main(["run", str(small), "--data", str(data), "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"--data {data}: no such folder" in error
    assert "python -m data_prep build" in error


def test_a_dataset_of_another_domain_is_refused(mathematics, tmp_path, small, capsys):
    command = ["run", str(small), "--data", str(mathematics), "--results", str(tmp_path / "r")]
    for arguments in (command, ["plan", str(small), "--data", str(mathematics)]):
        assert main(arguments) == 2
        wanted = f"{mathematics}: holds domain 'mathematics'; wanted 'image-8x8'"
        assert wanted in capsys.readouterr().err
    assert not (tmp_path / "r").exists(), "nothing was begun"


def test_a_missing_split_is_refused(tmp_path, small, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 7, 7)).save(raw / f"{number}.png")
    data = tmp_path / "train-only"
    build = ["build", "image-8x8", "--raw", str(raw), "--out", str(data), "--split", "train"]
    assert data_prep([*build, "--workers", "1"]) == 0
    assert main(["run", str(small), "--data", str(data), "--results", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert f"{data}: split 'valid' is not there; wanted one of train" in error
    assert "python -m data_prep build" in error


def test_a_folder_that_is_no_dataset_is_refused(tmp_path, small, capsys):
    data = tmp_path / "empty"
    data.mkdir()
    assert main(["run", str(small), "--data", str(data), "--results", str(tmp_path / "r")]) == 2
    assert f"{data}: holds no manifest.json; wanted a finished dataset" in capsys.readouterr().err


def test_results_that_are_a_file_are_refused(pictures, small, capsys):
    assert main(["run", str(small), "--data", str(pictures), "--results", str(small)]) == 2
    assert f"--results {small}: this is a file; wanted a folder" in capsys.readouterr().err


def test_a_batch_that_does_not_divide_is_refused(pictures, tmp_path, capfd):
    tables = study(parallel={"train_micro_batch_size_per_gpu": 3})
    path = write_study(tmp_path / "s.toml", tables)
    assert main(["run", str(path), "--data", str(pictures), "--results", str(tmp_path)]) == 2
    error = capfd.readouterr().err
    assert "batch.train_batch_size = 4 does not divide into 1 ranks x micro-batches of 3" in error
    assert "Traceback" not in error


def test_a_run_file_of_another_schema_fails_that_run_alone(pictures, tmp_path, small, capfd):
    """Wherever it stands in the study, the other runs are trained."""
    runs = expanded(seeds=[0, 1])
    for foreign, other in (runs, runs[::-1]):
        results = tmp_path / foreign.run_id
        folder = run_folder(results, foreign)
        folder.mkdir(parents=True)
        with h5py.File(folder / "metrics.h5", "w") as file:
            file.attrs["schema"] = 99
        assert main(["run", str(small), "--data", str(pictures), "--results", str(results)]) == 2
        error = capfd.readouterr().err
        assert f"{foreign.run_id}: FAILED: {folder / 'metrics.h5'}: schema = 99; wanted" in error
        assert read_result(run_folder(results, other)).finished
        with h5py.File(folder / "metrics.h5") as file:
            assert file.attrs["schema"] == 99, "left as it was"


def test_a_second_process_is_refused_and_leaves_no_mark(pictures, tmp_path, capfd):
    tables = {"checkpoint": {"interval_minutes": 0.0}}
    path = write_study(tmp_path / "s.toml", study(4000, **tables))
    run = config(4000, **tables)
    command = ["run", str(path), "--data", str(pictures), "--results", str(tmp_path)]
    folder = run_folder(tmp_path, run)
    first = start(command, tmp_path / "log")
    try:
        wait_for(lambda: any(folder.glob("checkpoints/step-*")), "the first checkpoint")
        assert main(command) == 2
        assert first.is_alive(), "the test needs the first to be at work still"
        error = capfd.readouterr().err
        assert f"{folder}: another process trains this run (process and host: {first.pid} " in error
        assert "Wait for that process, or stop it." in error
        assert not (folder / "failed.json").exists(), "the run has not failed: it is being trained"
    finally:
        first.terminate()
        assert exit_status(first) == STOPPED, (tmp_path / "log").read_text()
    # The lock went with its holder.
    process = start(command, tmp_path / "log")
    wait_for(lambda: "resumed" in read_provenance(folder), "the second start")
    process.terminate()
    assert exit_status(process) == STOPPED


def read_provenance(folder: Path) -> str:
    """ "resumed" once a second start is recorded."""
    try:
        return "resumed" if len(read_result(folder).provenance) == 2 else ""
    except DamagedFile:  # it is being written just now
        return ""


def test_bad_arguments_end_with_2(capsys):
    for arguments in ([], ["fly"], ["run"], ["plan"], ["run", "s.toml", "--results", "r"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert main(["plan", "/nowhere/study.toml"]) == 2
    assert "plan: /nowhere/study.toml: no such file; wanted a study file" in capsys.readouterr().err
