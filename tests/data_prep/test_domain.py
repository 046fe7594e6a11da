import dataclasses
import subprocess
import sys

import pytest

from data_prep.domain import domain, domain_names, family


def test_names_and_rows():
    assert {"image-8x8", "image-16x16", "image-32x32", "mathematics"} <= set(domain_names())
    assert domain("image-8x8").seq_length == 192
    assert domain("mathematics").seq_length == 512


@pytest.mark.parametrize("name", domain_names())
def test_every_domain_is_consistent(name):
    here = domain(name)
    assert all(0 <= kind.start < kind.stop <= here.vocab_size for kind in here.kinds)
    assert len(here.kinds) <= 127, "modes are signed bytes"
    folded = 1
    for _, size in here.grid:
        folded *= size
    assert here.grid == () or folded == here.seq_length
    for needed in ("RAW", "PATIENCE", "CHUNKS_PER_SHARD", "plan", "read", "render", "notes"):
        assert hasattr(family(name), needed)


def test_mathematics_counts_answers_only():
    assert [(kind.kind, kind.in_loss) for kind in domain("mathematics").kinds] == [
        ("question", False),
        ("answer", True),
    ]


def test_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r"'image-8x9' is not known.*Did you mean image-8x8"):
        domain("image-8x9")


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")]
)
def test_smallest_dtype_that_holds_the_vocabulary(size, dtype):
    assert dataclasses.replace(domain("image-8x8"), vocab_size=size).dtype == dtype


def test_nothing_heavy_is_imported():
    modules = "data_prep.domain, data_prep.dataset, data_prep.sampler, data_prep.build, data_prep.__main__"
    program = f"import sys, {modules}; print(sorted({{'torch', 'sympy', 'mathematics_dataset'}} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
