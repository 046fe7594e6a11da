"""Process groups of one process for every test of a model."""

import pytest


@pytest.fixture(scope="session")
def groups() -> None:
    from megatron_ext.parallel import start_process_groups

    start_process_groups()
    start_process_groups()  # safe to call twice
