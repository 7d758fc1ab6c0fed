"""The findings of a run as flat records."""

from __future__ import annotations

import shutil

import pytest
import torch

from lightning_failures.data.digests import file_name_hash
from lightning_failures.errors import DataError
from lightning_failures.regression.pin import Pin, PinnedDirection
from lightning_failures.report.export_records import find
from lightning_failures.report.run_folder import open_run
from lightning_failures.stats.rates import Rate
from tests.helpers.exported import image_folder, saved_run


def pin(digests: list[int], class_name: str = "owl") -> Pin:
    direction = PinnedDirection(torch.ones(2), torch.zeros(2), torch.ones(2), 0.0)
    members = torch.tensor(digests)
    rate = Rate(len(digests), 1, len(digests))
    return Pin("owl 1", class_name, "f", "e", members, members, members[:0], rate, None, "slice", direction)


def test_examples__are_those_that_failed_are_flagged_or_doubted(tmp_path):
    found = find(open_run(saved_run(tmp_path, None)))
    by_id = {one.id: one for one in found.examples}
    assert sorted(by_id) == list(range(8, 15))
    assert by_id[8].tags == ["failed"]
    assert by_id[12].tags == ["failed", "flagged", "suspect"]
    assert by_id[14].tags == ["flagged"]
    assert (by_id[12].label, by_id[12].prediction, by_id[12].digest) == ("owl", "=cat", f"{112:016x}")
    assert by_id[12].caption == "a photo of a gray owl"
    assert by_id[12].leaf == "feature 3 > 1"
    assert (by_id[8].caption, by_id[8].pattern, by_id[8].path) == (None, False, None)
    assert len(find(open_run(tmp_path), every_example=True).examples) == 20


def test_suspects__of_the_analysis_and_of_training(tmp_path):
    first, second = find(open_run(saved_run(tmp_path, None))).suspects
    assert (first.id, first.part, first.label, first.suggested, first.score) == (12, "evaluated", "owl", "=cat", None)
    assert (second.id, second.part, second.label, second.suggested, second.score) == (33, "train", "=cat", "owl", 0.02)
    assert "1 of 10" in second.reason


def test_slices__of_every_kind(tmp_path):
    found = find(open_run(saved_run(tmp_path, None))).slices
    assert [(one.kind, one.class_name, one.name) for one in found] == [
        ("attribute", "owl", "time = night"),
        ("direction", "owl", "a photo of a gray owl"),
        ("direction", "=cat", "flagged"),
        ("leaf", "owl", "feature 3 > 1"),
    ]
    assert [one.significant for one in found] == [True, True, False, True]
    assert (found[0].low, found[0].high) == (0.4, 0.96)


def test_pins__hold_examples_by_digest_and_class(tmp_path):
    run = open_run(saved_run(tmp_path, None))
    found = find(run, pins=[pin([110, 111, 108])])
    assert {one.id for one in found.examples if one.pins == ("owl 1",)} == {10, 11}
    assert [(one["name"], one["status"]) for one in found.pins] == [("owl 1", "not checked in this run")]


def test_paths__are_found_by_the_hash_of_the_name(tmp_path):
    dataset = image_folder(tmp_path / "data")
    run = open_run(saved_run(tmp_path / "run", dataset))
    paths = {file_name_hash("owl/12.png"): "/elsewhere/owl/12.png"}
    found = {one.id: one.path for one in find(run, paths=paths).examples}
    assert found[12] == "/elsewhere/owl/12.png"
    assert found[11] is None


def test_find__without_a_table_names_the_remedy(tmp_path):
    saved_run(tmp_path / "run", None)
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tmp_path / "run" / "failures" / "report.json", copy)
    with pytest.raises(DataError, match=r"no readable table of examples.*lightning-failures analyse"):
        find(open_run(copy))
