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
        ("xyzzy,loss\n1,2\n", "Add it, or choose a law that does not need it"),
        ("params;loss\n1;2\n", "separated by another character: write it with commas"),
        ("params,loss,loss\n1,2,3\n", "column 'loss' appears 2 times; wanted it once"),
        ("params,loss\n1,2\n1,2,3\n", "row 3 has 3 cells; wanted 2, as in the header"),
        ("params,loss\n1,2\nmany,3\n", "row 3, column 'params' = 'many'; wanted a number"),
        ("params,loss\n1,2\n5,3 nats\n", "row 3, column 'loss' = '3 nats'; wanted a number"),
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
    kept = table(tmp_path, HEADER + "1e4,3,a\n1e4,3,b\n")
    assert len(kept.points) == 2


def test_text_in_a_column_that_nobody_needs_does_no_harm(tmp_path):
    found = table(tmp_path, "params,loss,tokens\n1e4,3,many\n2e4,2,few\n")
    assert len(found.points) == 2


def test_a_large_table_is_read_in_seconds(tmp_path):
    rows = 200_000
    params = np.geomspace(1e4, 1e9, rows)
    lines = "\n".join(f"{n:.8g},{2 + 100 * n**-0.3:.8g}" for n in params)
    found = table(tmp_path, "params,loss\n" + lines)
    assert len(found.points) + len(found.left_out) == rows
