"""`metrics.h5`: what is written is read back, whatever happens in between."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from launch.results import (
    COUNT_NAMES,
    EVAL_COLUMNS,
    SCHEMA,
    TRAIN_COLUMNS,
    DamagedFile,
    ResultWriter,
    is_finished,
    read_progress,
    read_result,
)
from tests.launch import writer_process
from tests.launch.rows import WIDTH, eval_rows, position, train_row

ROOT = Path(__file__).parents[2]
COUNTS = {name: 1.5 + place for place, name in enumerate(COUNT_NAMES)}


def open_writer(folder: Path, start: int = 0) -> ResultWriter:
    return ResultWriter(
        folder,
        config={"seed": 3, "name": "é"},
        provenance={"start": start},
        counts=COUNTS,
        seq_length=WIDTH,
    )


def write(writer: ResultWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        writer.train(**train_row(step))
        if step % 5 == 0:
            writer.eval_position("valid", step, *position(step))
            writer.eval(eval_rows(step))


def train_table(last: int) -> np.ndarray:
    """/train after `last` steps."""
    rows = (train_row(step) for step in range(1, last + 1))
    return np.array(
        [tuple(row[name] for name in TRAIN_COLUMNS.names) for row in rows], TRAIN_COLUMNS
    )


def assert_steps(folder: Path, last: int, evaluations: list[int]) -> None:
    result = read_result(folder)
    np.testing.assert_array_equal(result.train, train_table(last))
    rows = result.eval_rows("valid")
    assert rows["step"].tolist() == evaluations
    assert rows["loss"].tolist() == evaluations
    assert result.eval_rows("valid", "answer")["loss"].tolist() == [
        step + 1 for step in evaluations
    ]
    assert len(result.eval_rows("test")) == len(result.eval_rows("valid", "question")) == 0
    if evaluations:
        arrays = result.eval_position["valid"]
        assert arrays["step"].tolist() == evaluations
        np.testing.assert_array_equal(arrays["loss"], [position(step)[0] for step in evaluations])
        np.testing.assert_array_equal(arrays["count"], [position(step)[1] for step in evaluations])


def test_what_is_written_is_read_back(tmp_path):
    folder = tmp_path / "mathematics-run"
    assert not is_finished(folder)
    assert [len(each) for each in read_progress(folder)[1:]] == [0]
    with open_writer(folder) as writer:
        assert (read_progress(folder)[0], len(read_progress(folder)[1])) == (False, 0)
        write(writer, 1, 12)
        assert not is_finished(folder)
        writer.finish()
    assert_steps(folder, 12, [5, 10])
    result = read_result(folder)
    assert (result.run_id, result.path) == ("mathematics-run", folder / "metrics.h5")
    assert result.config == {"seed": 3, "name": "é"}
    assert (result.counts, result.finished, is_finished(folder)) == (COUNTS, True, True)
    assert result.provenance == [{"start": 0}]
    assert result.speed == {}, "nobody told it, as in files of older runs"
    assert read_progress(folder)[1]["step"].tolist() == list(range(1, 13))
    assert list(folder.iterdir()) == [folder / "metrics.h5"], "nothing else is left"


def test_buffered_rows_reach_the_file_with_a_flush(tmp_path):
    with open_writer(tmp_path) as writer:
        write(writer, 1, 3)
        assert len(read_result(tmp_path).train) == 0
        writer.flush()
        assert len(read_result(tmp_path).train) == 3
        write(writer, 4, 4)
    assert_steps(tmp_path, 4, [])


def test_a_second_start_goes_on_behind_the_rows_that_are_there(tmp_path):
    with open_writer(tmp_path) as writer:
        write(writer, 1, 7)
        writer.finish()
    with open_writer(tmp_path, 1) as writer:
        assert not is_finished(tmp_path), "it is being continued"
        assert_steps(tmp_path, 7, [5])
        write(writer, 8, 15)
    assert_steps(tmp_path, 15, [5, 10, 15])
    assert read_result(tmp_path).provenance == [{"start": 0}, {"start": 1}]


# --- files of other people


def refused(folder: Path) -> None:
    """`read_result` refuses the file by name; the other ways in read it, or refuse it by name."""
    path = str(folder / "metrics.h5")
    assert path in str(problem(read_result, folder)), "read_result takes it for a good one"
    for read in (is_finished, read_progress, open_writer):
        found = problem(read, folder)
        assert found is None or path in str(found)


def problem(read: Callable[[Path], object], folder: Path) -> ValueError | None:
    try:
        opened = read(folder)
    except ValueError as error:
        return error
    if isinstance(opened, ResultWriter):
        opened.__exit__()
    return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with open_writer(folder) as writer:
        write(writer, 1, 40)
        writer.finish()
    return folder / "metrics.h5"


def test_a_full_disk_is_told_before_it_can_hurt_the_file(tmp_path, monkeypatch):
    """HDF5 ends the process where a write fails, so there is none: no file is begun, and what is there stays whole."""
    with monkeypatch.context() as patch:
        patch.setattr("launch.disk.ROOM", 1 << 62)
        with pytest.raises(OSError, match=r"No space left.*metrics\.h5"):
            open_writer(tmp_path)
    assert list(tmp_path.iterdir()) == []
    writer = open_writer(tmp_path)
    write(writer, 1, 4)
    writer.flush()
    with monkeypatch.context() as patch:
        patch.setattr("launch.disk.ROOM", 1 << 62)
        writer.train(**train_row(5))
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    assert len(read_result(tmp_path).train) == 4
    with writer:
        write(writer, 6, 6)
    assert_steps(tmp_path, 6, [])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file; wanted the metrics.h5 of a run") as error:
        read_result(tmp_path)
    assert str(tmp_path / "metrics.h5") in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"step,loss\n1,2\n", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + b"\x00" * 4096, b"\x80\x04K\x01.",
     os.urandom(10_000)],
    ids=["empty", "text", "magic", "magic-and-zeros", "pickle", "random"],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "metrics.h5").write_bytes(content)
    refused(tmp_path)
    with pytest.raises(ValueError, match=rf"not readable as HDF5 \({len(content)} bytes"):
        read_result(tmp_path)


def test_a_folder_in_its_place_is_refused(tmp_path):
    (tmp_path / "metrics.h5").mkdir()
    refused(tmp_path)


def test_a_file_truncated_anywhere_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    offsets = random.Random(0).sample(range(len(content)), 60) + [len(content) - 1]
    for offset in offsets:
        (tmp_path / "metrics.h5").write_bytes(content[:offset])
        refused(tmp_path)


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)


def test_another_hdf5_file_and_a_newer_schema_are_refused(whole, tmp_path):
    foreign(tmp_path / "metrics.h5")
    refused(tmp_path)
    with pytest.raises(ValueError, match=f"schema = None; wanted {SCHEMA}"):
        read_result(tmp_path)
    shutil.copy(whole, tmp_path / "metrics.h5")
    with h5py.File(tmp_path / "metrics.h5", "r+") as file:
        file.attrs["schema"] = SCHEMA + 1
    refused(tmp_path)
    with pytest.raises(ValueError, match=f"schema = {SCHEMA + 1}; wanted {SCHEMA}"):
        read_result(tmp_path)


def delete(name):
    return lambda file: file.__delitem__(name)


def attribute(name, value):
    def change(file):
        file.attrs[name] = value

    return change


def replace(name, value):
    def change(file):
        if name in file:
            del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        delete("train"), delete("eval"),
        lambda file: file.attrs.__delitem__("config"),
        lambda file: file.attrs.__delitem__("finished"),
        lambda file: file.attrs.__delitem__("params_total"),
        attribute("config", "{"), attribute("config", 3), attribute("config", np.arange(3)),
        attribute("provenance", ""), attribute("finished", np.arange(3)),
        attribute("finished", "no"), attribute("params_total", "many"),
        attribute("params_total", np.arange(3)), attribute("schema", np.arange(3)),
        attribute("schema", "1"),
        replace("train", np.zeros(3)), replace("train", "text"), replace("train", np.zeros(3, EVAL_COLUMNS)),
        replace("eval", np.zeros((2, 2))), replace("eval_position", np.zeros(3)),
        replace("eval_position/valid", np.zeros(3)), delete("eval_position/valid/loss"),
        delete("eval_position/valid/step"),
    ],
)  # fmt: skip
def test_a_run_file_with_something_wrong_inside_is_refused(change, whole, tmp_path):
    shutil.copy(whole, tmp_path / "metrics.h5")
    with h5py.File(tmp_path / "metrics.h5", "r+") as file:
        change(file)
    refused(tmp_path)


FLIPS = """
import random, sys
from pathlib import Path
from launch.results import read_result
content, folder = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
draw = random.Random(int(sys.argv[3]))
for _ in range(100):
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 8))):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    (folder / "metrics.h5").write_bytes(damaged)
    try:
        read_result(folder)
    except ValueError as error:
        assert "metrics.h5" in str(error), error
"""


def test_flipped_bits_give_an_answer_or_a_named_error(whole, tmp_path):
    """HDF5 has no checksums here, so a flipped number reads as another number; nothing may crash."""
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(whole), str(tmp_path), "0"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- a killed writer


def kill_writers(count: int, seed: int, folder: Path) -> int:
    """SIGKILL `count` writers: of a new file, or of one that held 100 steps. What stays is checked.

    HDF5 flushes in several writes. A kill between two of them can leave an index that points beyond
    the end of the file: once in about 1,000 kills of this writer, which does nothing but flush. Such
    a file must be refused by name (a run puts its checkpoint's copy back). Returns how many were.
    """
    draw = random.Random(seed)
    before = folder / "before"
    with open_writer(before) as writer:
        write(writer, 1, 100)
    wrote = damaged = 0
    for number in range(count):
        place, held = folder / str(number), 100 * (number % 2)
        if held:
            shutil.copytree(before, place)
        told = kill_one(place, held, draw, at_work=number % 4 > 0)
        wrote += bool(told)
        try:
            check_killed(place, told[-1] if told else held)
        except DamagedFile as error:
            assert str(place / "metrics.h5") in str(error)  # noqa: PT017
            damaged += 1
    assert wrote > count / 2, "most were killed while they wrote"
    return damaged


def kill_one(folder: Path, held: int, draw: random.Random, *, at_work: bool) -> list[int]:
    """Kill one writer, while it writes or anywhere from its start on; the steps it acknowledged."""
    command = [sys.executable, writer_process.__file__, str(folder), str(held)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        first = process.stdout.readline() if at_work else ""
        time.sleep(draw.expovariate(1 / 0.03) if at_work else draw.uniform(0, 0.6))
        process.kill()
        return [int(step) for step in (first + process.stdout.read()).split()]


def check_killed(folder: Path, acknowledged: int) -> None:
    """Every acknowledged row is in the file, and a writer can go on. Raises `DamagedFile`."""
    if not acknowledged and not (folder / "metrics.h5").exists():
        return
    result = read_result(folder)
    assert len(result.train) >= acknowledged
    np.testing.assert_array_equal(result.train[:acknowledged], train_table(acknowledged))
    done = list(range(5, acknowledged + 1, 5))
    assert result.eval_rows("valid")["step"].tolist()[: len(done)] == done
    if done:
        assert result.eval_position["valid"]["step"].tolist()[: len(done)] == done
    with open_writer(folder) as writer:
        writer.train(**train_row(acknowledged + 1))
    again = read_result(folder)
    np.testing.assert_array_equal(again.train[:acknowledged], train_table(acknowledged))
    assert len(again.train) == len(result.train) + 1


def test_twenty_killed_writers_lose_no_acknowledged_row(tmp_path):
    # Two damaged files in 20 kills, at 1 in 1,000: once in 5,000 runs of this test.
    assert kill_writers(20, 0, tmp_path) <= 1


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 11))
def test_hundreds_of_killed_writers_lose_no_acknowledged_row(seed, tmp_path):
    assert kill_writers(50, seed, tmp_path) <= 2


def test_a_writer_needs_no_torch():
    code = "import sys, tests.launch.writer_process; sys.exit(bool({'torch', 'deepspeed'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0


def test_config_and_provenance_are_json_for_other_tools(whole):
    with h5py.File(whole) as file:
        assert json.loads(file.attrs["config"]) == {"seed": 3, "name": "é"}
        assert file.attrs["schema"] == SCHEMA
        assert set(COUNT_NAMES) <= set(file.attrs)
