"""What all tests share: threads, markers that skip themselves, and no silent skips in CI."""

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

# submitit configures logging when imported, which closes every handler there is; the one of absl (a
# part of mathematics_dataset) then closes its stream, pytest's own. So submitit comes before absl.
import submitit  # noqa: F401

# Small models gain nothing from threads, and test machines have few cores. Before torch comes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

IN_CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real sample files that the environment variable SAMPLE_DATA names; without it, a skip."""
    folder = os.environ.get("SAMPLE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SAMPLE_DATA does not name the folder of real sample files")
    return Path(folder)


@pytest.fixture(scope="session")
def fits_data() -> Path:
    """The folder of published measurements that the environment variable FITS_DATA names; or a skip."""
    folder = os.environ.get("FITS_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FITS_DATA does not name the folder of published measurements")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if shutil.which("sbatch") is None:
        for item in items:
            if item.get_closest_marker("slurm"):
                item.add_marker(pytest.mark.skip(reason="Slurm's programs are not installed"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one; only a GPU and the real sample files may be missing."""
    report = yield
    samples = {"sample_data", "fits_data"} & set(getattr(item, "fixturenames", ()))
    gpu = item.get_closest_marker("gpu") is not None
    excused = hasattr(report, "wasxfail") or gpu or bool(samples)
    if IN_CI and report.skipped and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI=true allows no skip: {report.longrepr}"
    return report


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
