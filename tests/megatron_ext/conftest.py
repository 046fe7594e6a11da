"""Third parties' warnings, and process groups of one process for every test of a model."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Megatron-core warns its own caller inside itself; pytest turns warnings into errors.
THIRD_PARTY = "ignore:MLP requires ffn_hidden_size:DeprecationWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(THIRD_PARTY))


@pytest.fixture(scope="session")
def groups() -> None:
    from megatron_ext.parallel import start_process_groups

    start_process_groups()
    start_process_groups()  # safe to call twice
