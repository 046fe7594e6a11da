"""The command line, as a person uses it."""

import gzip
import json
import os
import select
import shutil
import subprocess
import sys
import termios
import time

import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.manifest import load_manifest
from data_prep.progress import bar, during


@pytest.fixture
def mathematics(tmp_path, problem_file, capsys):
    out = tmp_path / "out"
    command = [
        "build",
        "mathematics",
        "--raw",
        str(problem_file),
        "--out",
        str(out),
        "--split",
        "train",
        "--workers",
        "1",
    ]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == "", "no progress bar where there is no terminal"
    assert f"{out}: built\n  train" in printed.out
    assert main(command) == 0
    assert f"{out}: already built" in capsys.readouterr().out
    return out


def test_build_check_show(mathematics, capsys):
    assert main(["check", str(mathematics)]) == 0
    assert "are right" in capsys.readouterr().out
    assert main(["show", str(mathematics), "--row", "0"]) == 0
    assert "What is 1 + 7? «8»" in capsys.readouterr().out
    target = mathematics / "row.txt"
    assert main(["show", str(mathematics), "--row", "0", "--out", str(target)]) == 0
    assert f"row 0 of split train: written to {target}" in capsys.readouterr().out
    assert "What is 1 + 7? «8»" in target.read_text()
    assert "--- row 3\n" in (mathematics / "preview.txt").read_text()


def test_show_a_picture(tmp_path, picture_folder, capsys, monkeypatch):
    out = tmp_path / "out"
    assert (
        main(
            [
                "build",
                "image-8x8",
                "--raw",
                str(picture_folder),
                "--out",
                str(out),
                "--split",
                "test",
            ]
        )
        == 0
    )
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(out), "--row", "7"]) == 0
    assert "row 7 of split test: written to test-row-7.png" in capsys.readouterr().out
    with Image.open(tmp_path / "test-row-7.png") as image:
        assert image.size == (256, 256)
    with Image.open(out / "preview.png") as image:
        assert image.size == (4 * 256 + 3 * 8, 4 * 256 + 3 * 8)


def test_refused_items_are_mentioned(tmp_path, picture_folder, capsys):
    (picture_folder / "bad.png").touch()
    arguments = [
        "build",
        "image-8x8",
        "--raw",
        str(picture_folder),
        "--out",
        str(tmp_path / "out"),
        "--split",
        "test",
    ]
    assert main([*arguments, "--max-refused", "0.1"]) == 0
    assert "1 items refused; see" in capsys.readouterr().err


@pytest.fixture
def build_mathematics(tmp_path, capsys):
    """Build from `raw` with more options: (exit status, stderr)."""

    def run(raw, *more):
        command = ["build", "mathematics", "--raw", str(raw), "--out", str(tmp_path / "out")]
        status = main([*command, "--workers", "1", *more])
        return status, capsys.readouterr().err

    return run


def test_an_out_whose_name_is_not_utf8(tmp_path, problem_file, capsys):
    """A folder may be called so, and is then told of as \\xNN."""
    out = tmp_path / os.fsdecode(b"out\xff")
    command = [
        "build",
        "mathematics",
        "--raw",
        str(problem_file),
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    for said in (": built", ": already built"):
        assert main([*command, "--split", "train"]) == 0
        assert f"{tmp_path}/out\\xff{said}" in capsys.readouterr().out


def test_what_a_kill_left_behind_a_finished_build_is_removed(mathematics, problem_file, tmp_path):
    left = mathematics / ".build" / "train"
    left.mkdir()
    command = ["build", "mathematics", "--raw", str(problem_file), "--out", str(mathematics)]
    assert main([*command, "--split", "train"]) == 0
    assert not left.exists()


def test_what_cannot_be_counted_says_that_it_goes_on(capsys):
    with during("listing x", line_seconds=0.01):
        while not capsys.readouterr().err.startswith("listing x: 0 min so far\n"):
            time.sleep(0.01)
    time.sleep(0.05)
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == "", "it has ended"


def test_a_text_out_of_step_fails_unless_accepted(build_mathematics, tmp_path):
    """One stray line in the middle of 3,000 problems, far below --max-refused."""
    raw = tmp_path / "x.txt"
    pairs = [f"What is {n} + 1?\n{n + 1}\n" for n in range(3000)]
    raw.write_text("".join(pairs[:2000]) + "\n" + "".join(pairs[2000:]))
    status, said = build_mathematics(raw, "--split", "train", "--max-refused", "1")
    assert status == 2
    assert "x.txt: out of step from line 4001 on: line 4001 is empty" in said
    assert "add --accept-damaged" in said
    status, said = build_mathematics(raw, "--split", "train", "--accept-damaged")
    assert status == 0
    assert "x.txt: damaged; what it has lost is missing here" in said
    record = load_manifest(tmp_path / "out").builds[0]
    assert (record.written, record.refused, len(record.damaged)) == (2000, 1, 1)
    (line,) = map(json.loads, (tmp_path / "out" / "refused.jsonl").read_text().splitlines())
    assert line["damaged"] is True
    assert "out of step from line 4001" in line["reason"]
    raw.write_text("".join(pairs))
    shutil.rmtree(tmp_path / "out")
    assert build_mathematics(raw, "--split", "train") == (0, "")


def test_a_damaged_file_can_be_replaced_before_anything_is_made(build_mathematics, tmp_path):
    raw = tmp_path / "x.txt"
    good = "".join(f"What is {n} + 1?\n{n + 1}\n" for n in range(100))
    raw.write_text("\n" + good)
    assert build_mathematics(raw, "--split", "train")[0] == 2
    raw.write_text(good)
    assert build_mathematics(raw, "--split", "train") == (0, "")


def test_half_a_compressed_file_fails_unless_accepted(build_mathematics, tmp_path):
    """It counts as no single item: half of all problems are missing."""
    raw = tmp_path / "x.txt.gz"
    data = gzip.compress("".join(f"What is {n} + 1?\n{n + 1}\n" for n in range(6000)).encode())
    raw.write_bytes(data[: len(data) // 2])
    status, said = build_mathematics(raw, "--split", "train", "--max-refused", "1")
    assert status == 2
    assert "x.txt.gz: the compressed file is damaged or cut off" in said
    assert "1 damaged file:" in said
    status, said = build_mathematics(raw, "--split", "train", "--accept-damaged")
    assert status == 0, "what was made is kept, so the same command and the flag finish at once"
    assert "x.txt.gz: damaged; what it has lost is missing here" in said


def test_a_split_without_rows_is_mentioned(build_mathematics, tmp_path):
    raw = tmp_path / "x.txt"
    raw.write_text("".join(f"What is {n} + 1?\n{n + 1}\n" for n in range(200)))
    status, said = build_mathematics(raw, "--fractions", "0.02,0.98,0")
    assert status == 0
    assert "split train has no row: " in said
    assert "split valid" not in said
    assert "split test" not in said, "none was asked for"


def test_parts(tmp_path, picture_folder, capsys):
    arguments = ["build", "image-8x8", "--raw", str(picture_folder), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--part", "2/2"]) == 0
    assert (
        "part 2/2 done; the dataset is finished when the other parts are" in capsys.readouterr().out
    )
    assert main([*arguments, "--part", "1/2"]) == 0
    assert "built" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["show", "OUT", "--row", "9999"],
            r"--row 9999: split 'train' of .* has \d+ rows; wanted 0 to",
        ),
        (["show", "OUT", "--row", "0,9999"], r"--row 9999: split 'train' of .* rows; wanted 0 to"),
        (["show", "OUT", "--row", "0", "--split", "test"], "split 'test' is not there"),
        (
            ["check", "OUT/nothing"],
            "nothing: does not exist; wanted the folder of a finished dataset",
        ),
        (["check", "OUT/manifest.json"], "manifest.json: is not a folder; wanted the folder"),
        (["check", "OUT/.build"], "holds no manifest.json"),
        (
            ["show", "OUT", "--row", "0", "--out", "OUT/no/x"],
            "--out .*/no/x: the folder .*/no does not exist; wanted a file to write",
        ),
        (["show", "OUT", "--row", "0", "--out", "OUT"], "--out .*: is a folder; wanted a file"),
        (
            ["build", "math", "--raw", "x", "--out", "x"],
            "'math' is not known.*Did you mean mathematics",
        ),
        (
            ["build", "image-8x8", "--raw", "x", "--out", "OUT/x", "--part", "3"],
            "--part 3: wanted K/M",
        ),
        (
            ["build", "image-8x8", "--raw", "x", "--out", "OUT/x", "--fractions", "1,2"],
            "--fractions 1,2: wanted three",
        ),
        (
            ["build", "image-8x8", "--raw", "x", "--out", "OUT/x", "--fractions", "nan,0,1"],
            "--fractions nan,0.0,1.0: wanted three shares",
        ),
        (
            ["build", "image-8x8", "--raw", "x", "--out", "OUT/x", "--workers", "0"],
            "--workers 0, --part 1/1: wanted at least one worker",
        ),
        (
            ["build", "image-8x8", "--raw", "x", "--out", "OUT/preview.txt"],
            "preview.txt: is a file; wanted a folder",
        ),
        (
            ["build", "image-8x8", "--raw", "OUT/no", "--out", "OUT/x"],
            "does not exist; wanted a folder of pictures",
        ),
        (
            ["build", "image-8x8", "--raw", "x", "--out", "OUT/manifest.json/x"],
            "Not a directory. Check the path",
        ),
    ],
)
def test_errors_are_a_message_and_status_2(mathematics, capsys, arguments, message):
    assert main([each.replace("OUT", str(mathematics)) for each in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"python -m data_prep {arguments[0]}: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(printed.err)


def test_list(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "image-8x8" in printed
    assert "row: 512 tokens, packed; vocabulary: 256; kinds: question, answer" in printed
    assert "--raw: generator" in printed


def test_help_is_light():
    imports = "import sys; from data_prep import __main__, arguments; arguments.parser()"
    program = f"{imports}; print({{'numpy', 'PIL'}} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_a_bar_on_a_terminal(monkeypatch):
    """A pseudo-terminal in place of stderr: the bar shows counts and the rate of items."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with bar("chunks") as tell:
            tell(3, 9, type("P", (), {"items": 50}))
            tell(4, 9, type("P", (), {"items": 50}))
        terminal.flush()
        shown = ""
        while "4/9" not in shown and select.select([master], [], [], 5)[0]:
            shown += os.read(master, 10_000).decode()
    os.close(master)
    assert "4/9" in shown
    assert "items/s" in shown


def test_a_line_now_and_then_where_there_is_no_terminal(capsys):
    with bar("chunks", line_seconds=0.0) as tell:
        tell(3, 9, type("P", (), {"items": 50}))
        tell(5, 9)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("3 of 9 chunks, ")
    assert "items/s" in first
    assert second.startswith("5 of 9 chunks, ")
    assert second.endswith(" min left")
    with bar("chunks", line_seconds=60.0) as tell:
        tell(3, 9)
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_is_no_traceback():
    """`python -m data_prep list | head -0`"""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", "list"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_bare_prefix_is_checked_and_shown(mathematics, tmp_path, capsys):
    prefix = str(mathematics / "train-00000")
    assert main(["check", prefix, "--domain", "mathematics"]) == 0
    assert "mathematics, 400 documents" in capsys.readouterr().out
    assert main(["show", prefix, "--domain", "mathematics", "--row", "0"]) == 0
    assert "What is 1 + 7? «8»" in capsys.readouterr().out
    for command in (["check", prefix], ["show", prefix, "--row", "0"]):
        assert main(command) == 2
        assert "domain not given; wanted the name of its domain" in capsys.readouterr().err
    assert main(["show", prefix, "--domain", "text", "--row", "0"]) == 2


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("text", "--codebook", "domain text takes a tokenizer; wanted no --codebook. Give --token"),
        ("image-codes-16x16", "--tokenizer", "takes a codebook; wanted no --tokenizer. Give --codebook FILE"),
        ("image-8x8", "--tokenizer", "domain image-8x8 takes none; wanted no --tokenizer. Leave it out"),
    ],
)  # fmt: skip
def test_the_wrong_kind_of_codec_is_told_by_its_name(tmp_path, capsys, name, given, said):
    command = ["build", name, "--raw", "x", "--out", str(tmp_path / "out"), given, "x.file"]
    assert main(command) == 2
    assert said in capsys.readouterr().err


def test_files_that_are_of_no_use_are_mentioned(tmp_path, picture_folder, capsys):
    for name in ("a.cls", "b.cls", "README"):
        (picture_folder / name).write_text("x")
    out = tmp_path / "out"
    assert main(["build", "image-8x8", "--raw", str(picture_folder), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "3 files passed over, not of domain image-8x8: 2 .cls, 1 no ending" in said
    assert load_manifest(out).builds[0].passed_over == {".cls": 2, "no ending": 1}
