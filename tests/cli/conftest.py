"""What all tests of commands have in common: no command line of pytest's own, and no warnings of small trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

SMALL_TRAININGS = (
    "ignore:.*does not have many workers.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*treespec, LeafSpec.*:FutureWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore the warnings of small trainings in the tests of this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for message in SMALL_TRAININGS:
                item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI reads the command line where it is given no arguments."""
    monkeypatch.setattr("sys.argv", ["lightning-failures"])
