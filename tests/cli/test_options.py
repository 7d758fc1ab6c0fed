"""Options of commands without model and data."""

from __future__ import annotations

from typing import get_args

import pytest

from lightning_failures.cli import options
from lightning_failures.cli.commands import COMMANDS
from lightning_failures.encoders.cached import DEFAULT_ENCODER
from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes import RECIPES
from lightning_failures.regression.pin import PIN_SUFFIX
from lightning_failures.report.example_pairs import Join
from lightning_failures.writers.export import FORMATS


def test_values__are_those_of_their_owners():
    assert options.EXPORT_FORMATS == FORMATS
    assert get_args(Join) == options.JOINS
    assert options.PIN_SUFFIX == PIN_SUFFIX
    assert tuple(RECIPES) == options.RECIPES
    assert options.ENCODER == DEFAULT_ENCODER


def test_options__of_every_command_without_model():
    assert set(options.OPTIONS) == {name for name, command in COMMANDS.items() if command.function}


def test_runs__below_a_folder_are_named(tmp_path):
    for name in ("a", "b"):
        place = tmp_path / name / "failures"
        place.mkdir(parents=True)
        (place / "report.json").write_text("{}")
    with pytest.raises(
        ConfigurationError, match=r"There are 2 runs below this folder; name one: .*a/failures, .*b/fail"
    ):
        options.report_options([str(tmp_path)])
    assert options.report_options([str(tmp_path / "a"), "--text-only"]).text_only


def test_parser__errors_name_the_usage_in_one_line():
    with pytest.raises(options.UsageError, match=r"RUN_B.* \(usage: lightning-failures diff .* RUN_A \[RUN_B\]\)"):
        options.diff_options(["a"])
