"""The table of examples: round trip and rejection of damaged files."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.errors import DataError

COLUMN = torch.arange(2)
TABLE = ExampleTable(COLUMN, COLUMN, COLUMN, torch.tensor([0.0, 1.0]), torch.tensor([math.nan, -0.5]), COLUMN, COLUMN, ("a", "b"))  # fmt: skip  # noqa: E501


def test_load__reads_what_save_wrote(tmp_path):
    TABLE.save(tmp_path / "t")
    read = ExampleTable.load(tmp_path / "t")
    assert read.class_names == ("a", "b")
    assert torch.equal(read.confidence, TABLE.confidence)
    assert torch.equal(read.values.isnan(), TABLE.values.isnan())


@pytest.mark.parametrize(
    ("column", "number"),
    [
        ("confidence", math.nan),
        ("confidence", math.inf),
        ("confidence", -0.1),
        ("confidence", 1.1),
        ("values", math.inf),
        ("values", -math.inf),
    ],
)
def test_load__rejects_numbers_out_of_range(tmp_path, column, number):
    dataclasses.replace(TABLE, **{column: torch.tensor([0.5, number])}).save(tmp_path / "t")
    with pytest.raises(DataError, match="is not a valid table of examples"):
        ExampleTable.load(tmp_path / "t")


def test_load__optional_columns_and_files_without_them(tmp_path):
    TABLE.save(tmp_path / "former")
    read = ExampleTable.load(tmp_path / "former")
    assert (read.digests, read.names, read.indexed, read.groups) == (None, None, None, None)
    known = dataclasses.replace(TABLE, digests=COLUMN + 7, names=COLUMN + 9, indexed=False, groups=COLUMN + 5)
    known.save(tmp_path / "t")
    read = ExampleTable.load(tmp_path / "t")
    assert (read.digests.tolist(), read.names.tolist(), read.indexed) == ([7, 8], [9, 10], False)
    assert read.groups.tolist() == [5, 6]
    for wrong in (COLUMN.float(), torch.arange(3)):
        dataclasses.replace(known, digests=wrong).save(tmp_path / "t")
        with pytest.raises(DataError, match="digests has"):
            ExampleTable.load(tmp_path / "t")
    dataclasses.replace(TABLE, indexed="?").save(tmp_path / "t")
    with pytest.raises(DataError, match="indices"):
        ExampleTable.load(tmp_path / "t")


def test_of__probabilities_of_half_precision_can_be_read_back(tmp_path):
    grades = Grades(COLUMN, COLUMN, COLUMN, torch.tensor([1.01, 0.5]), ("a", "b"))
    ExampleTable.of(grades, None, {}).save(tmp_path / "t")
    assert ExampleTable.load(tmp_path / "t").confidence.tolist() == [1.0, 0.5]
