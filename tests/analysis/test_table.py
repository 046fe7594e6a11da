"""CSV files, as people hand them over: every message, every listed exclusion."""

import numpy as np
import pytest

from analysis.table import read_table

HEADER = "params,loss,group\n"


def table(tmp_path, text, needs=("params", "loss")):
    path = tmp_path / "points.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, needs)


def test_reads_what_is_needed_and_ignores_the_rest(tmp_path):
    found = table(tmp_path, "\ufeffname,params,loss,weight,notes\na,1e4,3.5,2,x\nb,2e4,3.1,1,-\n")
    assert list(found.points.params) == [1e4, 2e4]
    assert list(found.points.weight) == [2, 1]
    assert np.all(np.isnan(found.points.tokens))
    assert found.left_out == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 lines; wanted a CSV with a header"),
        ("params,loss\n", "1 lines; wanted a CSV with a header and at least one row"),
        (b"\x89HDF\r\n\x1a\n\x00\xff\xfe", "not readable as text"),
        (b"a\x00b,c\n1,2\n", "no column"),
        ("Params,los\n1,2\n", "no column 'params', 'loss'; found Params, los"),
        ("param,loss\n1,2\n", "The nearest is 'param': rename it if that is it"),
        (
            "Parameters (M),loss\n1,2\n",
            "'Parameters (M)': rename it if that is it. Count single parameters, not mill",
        ),
        ("N,D,C,loss\n1,2,3,4\n", "The nearest is 'N': rename it if that is it"),
        ("tokenizer,loss,weight\na,2,1\n", "Add it, or choose a law that does not need it"),
        ("xyzzy,loss\n1,2\n", "Add it, or choose a law that does not need it"),
        ("params;loss\n1;2\n", "separated by another character: write it with commas"),
        ("params,loss,loss\n1,2,3\n", "column 'loss' appears 2 times; wanted it once"),
        ("params,loss\n1,2\n1,2,3\n", "row 3 has 3 cells; wanted 2, as in the header"),
        ("params,loss\n1,2\nmany,3\n", "row 3, column 'params' = 'many'; wanted a number"),
        ("params,loss\n1,2\n5,3 nats\n", "row 3, column 'loss' = '3 nats'; wanted a number"),
        ("params,loss,group,group\n1,2,a,b\n", "column 'group' appears 2 times"),
        (
            "params,loss,tokenizer\n1,2,bpe\n2,2,bpe\n3,1,bytes\n",
            "column 'tokenizer' holds 'bpe' (row 2) and 'bytes' (row 4); wanted one value",
        ),
        ("params,loss,evaluation\n1,2,c4\n3,1,pile\n", "column 'evaluation' holds 'c4' (row 2)"),
        ("params,loss,counting\n1,2,total\n3,1,non-embedding\n", "column 'counting' holds 'total'"),
    ],
)
def test_refuses_with_file_value_wish_and_way_out(tmp_path, text, message):
    with pytest.raises(ValueError, match="points.csv: ") as error:
        table(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("nan", "loss = nan: not a positive number"),
        ("inf", "loss = inf: not a positive number"),
        ("1e300", "loss = 1e+300: above 1e+09"),
        ("1e-300", "loss = 1e-300: below 1e-09"),
        ("0", "loss = 0: not a positive number"),
        ("-2", "loss = -2: not a positive number"),
        ("", "loss = nan: not a positive number"),
        ("n/a", "loss = nan: not a positive number"),
    ],
)
def test_rows_without_a_usable_number_are_listed(tmp_path, cell, reason):
    found = table(tmp_path, f"params,loss\n1e4,3\n2e4,{cell}\n4e4,2\n")
    assert len(found.points) == 2
    assert [(each.point, each.reason) for each in found.left_out] == [("points.csv row 3", reason)]


def test_a_repeated_row_counts_once_and_is_listed(tmp_path):
    found = table(tmp_path, "params,loss\n1e4,3\n2e4,2\n1e4,3\n")
    assert len(found.points) == 2
    assert found.left_out[0].point == "points.csv row 4"
    assert found.left_out[0].reason == "same as points.csv row 2"


@pytest.mark.parametrize("column", ["group", "seed", "tokens", "weight"])
def test_rows_that_differ_in_any_column_are_no_repeats(tmp_path, column):
    """Two seeds may end at the same three decimals."""
    found = table(tmp_path, f"params,loss,{column}\n1e4,3.012,1\n1e4,3.012,2\n10000, 3.0120,2\n")
    assert len(found.points) == 2
    assert [each.reason for each in found.left_out] == ["same as points.csv row 3"]


def test_two_symbols_are_recognised(tmp_path):
    with pytest.raises(
        ValueError, match="The nearest is 'N' for 'params', 'D' for 'tokens': rename"
    ):
        table(tmp_path, "C,N,D,loss\n1,2,3,4\n", ("params", "tokens", "loss"))


def test_a_needed_column_that_is_there_is_not_the_nearest(tmp_path):
    with pytest.raises(
        ValueError, match=r"flops, loss\. Add it, or choose a law that does not need it"
    ):
        table(tmp_path, "params,tokens,loss\n1,2,3\n", ("params", "flops", "loss"))


def test_sizes_in_billions_are_remarked(tmp_path):
    found = table(tmp_path, "params,loss\n0.07,3\n0.4,2\n")
    assert found.remarks[0].startswith("units: params = 0.07, which is less than one")
    assert not table(tmp_path, "params,loss\n7,3\n40,2\n").remarks


def test_a_weight_that_a_law_does_not_use_is_remarked(tmp_path):
    text = "params,loss,weight\n1e4,3,1\n2e4,2,0\n"
    assert len(table(tmp_path, text).points) == 1
    found = read_table(tmp_path / "points.csv", ("params", "loss"), weighs=False)
    assert list(found.points.weight) == [1, 1]
    assert found.remarks[0].startswith("weight_ignored: this law counts every row alike")


def test_a_row_of_next_to_no_weight_is_left_out_and_listed(tmp_path):
    """Noise drawn for it, sd/weight^(1/2), would be beyond the range of numbers, and the fit with it."""
    found = table(tmp_path, "params,loss,weight\n1e4,3,2\n2e4,2,1e-5\n3e4,2,1e-9\n4e4,2,0\n")
    assert list(found.points.weight) == [2, 1e-5]
    assert [each.reason for each in found.left_out] == [
        "weight = 0: not a positive number",
        "weight = 1e-09: less than 1e-06 of the largest, 2, so the row says nothing",
    ]


def test_row_numbers_are_those_of_the_file_beside_empty_rows(tmp_path):
    found = table(tmp_path, "\nparams,loss\n1,3\n\n\n2,0\n3,2\n")
    assert list(found.points.label) == ["points.csv row 3", "points.csv row 7"]
    assert found.left_out[0].point == "points.csv row 6"
    for bad, message in (("x,2\n", "row 5, column 'params' = 'x'"), ("1\n", "row 5 has 1 cells")):
        with pytest.raises(ValueError, match=message):
            table(tmp_path, "params,loss\n1,2\n\n\n" + bad)


def test_text_in_a_column_that_nobody_needs_does_no_harm(tmp_path):
    found = table(tmp_path, "params,loss,tokens\n1e4,3,many\n2e4,2,few\n")
    assert len(found.points) == 2


def test_a_large_table_is_read_in_seconds(tmp_path):
    rows = 200_000
    params = np.geomspace(1e4, 1e9, rows)
    lines = "\n".join(f"{n:.8g},{2 + 100 * n**-0.3:.8g}" for n in params)
    found = table(tmp_path, "params,loss\n" + lines)
    assert len(found.points) + len(found.left_out) == rows


def test_rows_that_say_what_keeps_runs_out_are_listed(tmp_path):
    text = "params,loss,status\n1e4,3,\n2e4,2.5,unfinished\n4e4,2,finished\n8e4,9,diverged\n"
    found = table(tmp_path, text)
    assert list(found.points.params) == [1e4, 4e4]
    reasons = [(each.point, each.reason) for each in found.left_out]
    assert reasons == [
        ("points.csv row 3", "unfinished: as its column status says"),
        ("points.csv row 5", "diverged: as its column status says"),
    ]
    kept = read_table(tmp_path / "points.csv", ("params", "loss"), ("unfinished",))
    assert list(kept.points.params) == [1e4, 2e4, 4e4]


def test_one_tokenizer_is_no_mixture(tmp_path):
    found = table(tmp_path, "params,loss,tokenizer\n1e4,3,bpe\n2e4,2,bpe\n")
    assert len(found.points) == 2


def test_rows_are_counted_across_pieces(tmp_path, monkeypatch):
    """A file is read some rows at a time; a message names the row of the file all the same."""
    monkeypatch.setattr("analysis.table.ROWS_AT_ONCE", 3)
    good = "".join(f"{n},{10 - n}\n" for n in range(1, 9))
    found = table(tmp_path, "params,loss\n" + good)
    assert list(found.points.params) == list(range(1, 9))
    assert list(found.points.label)[-1] == "points.csv row 9"
    for bad, message in (("9,x\n", "row 10, column 'loss' = 'x'"), ("9\n", "row 10 has 1 cells")):
        with pytest.raises(ValueError, match="points.csv: ") as error:
            table(tmp_path, "params,loss\n" + good + bad)
        assert message in str(error.value)
    with pytest.raises(ValueError, match="row 5"):
        table(tmp_path, "params,loss,tokenizer\n" + "1,2,a\n" * 3 + "1,2,b\n")


@pytest.mark.parametrize(
    ("cell", "shown"), [("0", "0"), ("-5", "-5"), ("nan", "nan"), ("soon", "nan")]
)
def test_a_column_that_the_law_does_not_need_is_used_whole_or_not_at_all(tmp_path, cell, shown):
    """A compute of 0 or -5 in one row must not enter distances or residuals, nor cost the row."""
    found = table(tmp_path, f"params,loss,flops,tokens\n1e4,3,1e9,1e5\n2e4,2,{cell},2e5\n")
    assert len(found.points) == 2
    assert not found.points.known("flops")
    assert np.all(np.isnan(found.points.flops))
    assert list(found.points.tokens) == [1e5, 2e5]
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("column_ignored: flops is no positive number in 1 of 2 rows")
    assert f"points.csv row 3: {shown})" in found.remarks[0]


@pytest.mark.parametrize("said", ["unfinished", "Unfinished", " DIVERGED "])
def test_a_status_keeps_a_row_out_however_it_is_written(tmp_path, said):
    found = table(tmp_path, f"params,loss,status\n1e4,3,\n2e4,2,{said}\n3e4,2,Finished\n")
    assert list(found.points.params) == [1e4, 3e4]
    assert found.left_out[0].reason == f"{said.strip().lower()}: as its column status says"
