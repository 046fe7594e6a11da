"""Any way to spread a model gives the same numbers, resumes to the same bits, and becomes any other."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.universal import UNIVERSAL
from launch.verify import LARGEST, Case, _collected, _compare, cases, run_of, verify
from megatron_ext.model import refuse_indivisible

ROOT = Path(__file__).parents[2]


def test_every_combination_of_two_ranks_agrees(capsys):
    assert verify(2) == 0
    table = capsys.readouterr().out
    combinations = list(cases(1)) + list(cases(2))
    assert len(combinations) == 8 + 24 + 8 + 6, (
        "8 alone; ZeRO 0-3 x precision, with TP 1, TP 2, and TP 2 by rows; recompute in stages 0 and 3 of all "
        "four; offload in stages 2 and 3 of all but TP 2 by rows"
    )
    assert (table.count("recompute"), table.count("offload")) == (8, 6)
    assert table.count(" ok\n") + table.count(" ok ") == len(combinations)
    assert f"{len(combinations)} of {len(combinations)} combinations agree" in table


def test_a_difference_is_seen():
    assert _compare([2.0, 1.0], [2.0, 1.0], 1e-5) == ("0.0e+00", "ok")
    assert _compare([2.0, 1.00002], [2.0, 1.0], 1e-5) == ("2.0e-05", "WRONG: wanted at most 1e-05")
    assert _compare([2.0, float("nan")], [2.0, 1.0], 1e-5)[1].startswith("WRONG")
    assert _compare("rank 1 ended early", [1.0], 1e-5) == ("-", "FAILED: rank 1 ended early")


def test_a_rank_that_ends_is_named(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as process:
        process.wait()
        process.exitcode = process.returncode
        first, second, *_ = cases(1)
        (tmp_path / "0.json").write_text("[1.5]")
        found = list(_collected([first, second], tmp_path, [process]))
    assert found == [(first, [1.5]), (second, "rank 0 ended early")]


def test_rows_that_do_not_divide_are_refused_where_ranks_share_them():
    odd = replace(run_of(Case(2, 2, True, 0, "fp32")).shape, seq_length=191, position_axes=())
    refuse_indivisible(odd, 2, sequence_parallel=False)
    with pytest.raises(
        ValueError, match="size = 2 does not divide seq_length = 191 of .*; wanted equal parts"
    ) as error:
        refuse_indivisible(odd, 2, sequence_parallel=True)
    assert "or parallel.sequence_parallel = false" in str(error.value)


@pytest.mark.parametrize("size", [-1, 0, 3, 17, 32])
def test_an_impossible_number_of_ranks_is_refused(size):
    with pytest.raises(ValueError, match=f"--world-size {size}: wanted a divisor of 16"):
        verify(size)


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 2), (1, 1), (6, 4), (8, 8), (40, 16)])
def test_the_ranks_by_default_are_as_many_as_the_batch_divides_by(gpus, ranks, monkeypatch):
    sizes = []
    monkeypatch.setattr("launch.verify.torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("launch.verify._trained", lambda size: sizes.append(size) or [])
    verify()
    assert max(sizes) == ranks


def spread(folder: Path, ranks: int, chosen: list[Case], sources: int) -> list[dict]:
    """The results of `topologies.main` on so many ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "-m", "tests.launch.topologies", str(folder)]
    command += [json.dumps([asdict(case) for case in chosen]), str(sources)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


def assert_all_agree(results: list[dict]) -> None:
    """Resumed: to the bit. From another topology: the same sums in another order, as in `verify`."""
    for result in results:
        assert result["resumed"] == result["undisturbed"], result["case"]
        assert result["poisoned"] == result["undisturbed"], f"{result['case']}: a NaN left a trace"
        assert result["from itself, whole"] == result["undisturbed"][-3:], result["case"]
        bound = LARGEST["bf16" if "bf16" in result["case"] else "fp32"]
        wanted = [loss for loss, _ in result["undisturbed"][-3:]]
        for source, losses in [
            *result["from"].items(),
            ("the last of these, whole", result["from the last, whole"]),
        ]:
            assert [loss for loss, _ in losses] == pytest.approx(wanted, rel=bound), (
                f"{result['case']} from {source}"
            )


def assert_same_numbers(one: Path, other: Path) -> None:
    """Of two universal checkpoints: every weight and both its moments, and Adam's count of steps."""
    files = sorted((one / UNIVERSAL).iterdir())
    assert [file.name for file in files] == sorted(os.listdir(other / UNIVERSAL))
    for file in files:
        assert file.read_bytes() == (other / UNIVERSAL / file.name).read_bytes(), file


def assert_reshard_loses_nothing(folder: Path, chosen: list[Case], sources: int) -> None:
    """From each topology to whole parameters, into another topology, and back: number by number the same."""
    for number in range(len(chosen)):
        last = folder / str((number + sources) % len(chosen))
        again = folder / str(number) / "again"
        assert main(["reshard", str(folder / str(number) / "copy"), "--out", str(again)]) == 0
        assert_same_numbers(last / "whole/checkpoints/step-2", again / "step-2")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_resume_exactly_and_reshard(precision, tmp_path):
    """TP 1 and 2 x ZeRO 0 to 3: each resumed, and continued from the checkpoints of the two that follow, with what
    can be added to a topology (`Case`) here and there."""
    chosen = [
        Case(
            2,
            split,
            split == 2,
            stage,
            precision,
            recompute=stage in (0, 3),
            offload=stage in (1, 3),
        )
        for split, stage in product((1, 2), (0, 1, 2, 3))
    ]
    assert_all_agree(spread(tmp_path, 2, chosen, sources=1))
    assert_reshard_loses_nothing(tmp_path, chosen, sources=1)


def test_four_ranks_resume_exactly_and_reshard(tmp_path):
    """Tensor and data parallelism at once: each cut of ZeRO meets the cut of the matrices."""
    chosen = [Case(4, 2, False, 1, "bf16"), Case(4, 2, True, 3, "bf16", recompute=True)]
    assert_all_agree(spread(tmp_path, 4, chosen, sources=1))
    assert_reshard_loses_nothing(tmp_path, chosen, sources=1)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_topology_becomes_every_other(precision, ranks, tmp_path):
    """With two ranks in each direction, every cut of ZeRO meets every cut of TP."""
    sizes = [size for size in (1, 2, 4) if size <= ranks]
    chosen = [
        Case(ranks, tensor_parallel, False, stage, precision)
        for tensor_parallel, stage in product(sizes, (0, 1, 2, 3))
    ]
    assert_all_agree(spread(tmp_path, ranks, chosen, sources=len(chosen) - 1))
    assert_reshard_loses_nothing(tmp_path, chosen, sources=len(chosen) - 1)


def test_a_rank_that_cannot_write_a_checkpoint_stops_all_and_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.launch.full_disk", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        said, newest, left = json.loads((tmp_path / f"{rank}.json").read_text())
        copying = said.pop()
        assert (
            copying
            == ("MemoryError: no more", "RuntimeError: rank 1: MemoryError: no more")[1 - rank]
        )
        assert len(said) == 2, "all ranks raise, whichever could not write"
        here = [each.startswith("said here: ") for each in said]
        assert here == [rank == 0, rank == 1], "by the rank that could not write"
        assert all("File too large" in each and "_states.pt" in each for each in said), said
        assert (newest, left) == (2, ["step-1", "step-2"])
