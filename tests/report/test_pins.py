"""Pins of the slices of a real run: the flagged images of a class, and a leaf of its tree."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_failures.data.grades import Grades
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.regression import check_pins
from lightning_failures.report.pins import check_json, pin_slice, pin_table
from lightning_failures.report.run_folder import Run, open_run
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, loader, trainer
from tests.pools.synthetic import unit

SIZE = 400


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """The run of one validation, and its result."""
    folder = tmp_path_factory.mktemp("run")
    failures = callback(robust_encoder=ColourEncoder("robust"), cache_folder=folder / "cache")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer(folder, failures).validate(OracleClassifier(), loader(SIZE), verbose=False)
    return open_run(folder), failures.last_report


@pytest.fixture
def run(validated) -> Run:
    return validated[0]


@pytest.fixture(scope="module")
def values() -> torch.Tensor:
    data = Images(SIZE)
    return ColourEncoder().encode_images(unit(data.transform(data.images)))


def test_pin__the_flagged_images_of_a_class(run, values):
    pin = pin_slice(run, "class 2")
    entry = run.report.classes[2]
    rows = (run.table.labels == 2) & (run.table.values < 0)
    assert pin.ids.tolist() == run.table.ids[rows].tolist()
    assert pin.slice.examples == entry.flagged
    assert pin.slice.rate == pytest.approx(entry.flagged_error_rate)
    assert pin.rest.rate == pytest.approx(entry.unflagged_error_rate)
    assert (pin.level_of, pin.encoder) == ("rest", "tests-colours")
    assert len(pin.digests) + len(pin.known) == entry.examples
    assert pin.words.startswith(f"the flagged images of class 2: {pin.slice.failures} of {pin.slice.examples} fail")
    mine = (run.table.labels == 2).numpy()
    expected = run.directions.decision_values(values[mine], run.table.labels[mine]) < 0
    assert pin.contains(values[mine]).tolist() == expected.tolist()


def test_pin__a_leaf_of_a_tree(validated, values):
    run, result = validated
    (group,) = [one for one in run.report.groups if (one.grouping, one.class_name) == ("label", "class 0")]
    mine = (run.table.labels == 0).numpy()
    leaves = result.trees["label", "class 0"].apply(values[mine])
    for number, leaf in enumerate(group.leaves):
        pin = pin_slice(run, "class 0", f"leaf {number + 1}")
        assert (pin.slice.examples, pin.slice.failures) == (leaf.size, round(leaf.error_rate * leaf.size))
        assert pin.source == "robust_encoder"
        assert pin.contains(values[mine]).tolist() == (np.asarray(leaves) == number).tolist()
    assert leaf.rule in pin.words


def test_pin__an_accepted_slice_keeps_its_error_rate(run):
    pin = pin_slice(run, "class 2", accept=True)
    assert (pin.level_of, pin.level) == ("slice", pin.slice)
    assert "more often than that again" in pin.words


def test_pin__files_are_small(run, tmp_path):
    pin_slice(run, "class 2").save(tmp_path / "a.pin")
    assert (tmp_path / "a.pin").stat().st_size < 5000


@pytest.mark.parametrize(
    ("class_name", "mode", "message"),
    [
        ("clas 2", None, r"has no class 'clas 2' \(classes: class 0, .*Did you mean class 2"),
        ("class 2", "class 2 9", r"has no failure mode 'class 2 9' \(modes of the diary: none"),
        ("class 2", "leaf 99", r"has the leaves 'leaf 1' \.\.\. 'leaf \d+', got 'leaf 99'"),
        ("class 2", "leaf x", "got 'leaf x'"),
    ],
)
def test_pin__what_does_not_exist_is_an_error(run, class_name, mode, message):
    with pytest.raises(ConfigurationError, match=message):
        pin_slice(run, class_name, mode)


def test_pin__what_a_run_lacks_is_an_error(run):
    with pytest.raises(DataError, match="no table of examples with digests"):
        pin_slice(replace(run, table=replace(run.table, digests=None)), "class 2")
    with pytest.raises(DataError, match="has no failure direction: the run has no directions"):
        pin_slice(replace(run, directions=None), "class 2")
    with pytest.raises(DataError, match="does not say which encoder"):
        pin_slice(replace(run, report=replace(run.report, encoder_fingerprint=None)), "class 2")
    with pytest.raises(DataError, match="no failure tree"):
        pin_slice(replace(run, report=replace(run.report, groups=())), "class 2", "leaf 1")
    with pytest.raises(ConfigurationError, match="is empty: none of 100 images"):
        pin_slice(replace(run, table=replace(run.table, values=run.table.values.abs())), "class 2")


def test_table__every_pin_is_a_row_and_what_fails_a_sentence(run, values):
    pins = [pin_slice(run, name) for name in ("class 1", "class 2")]
    table = run.table
    grades = Grades(table.ids, table.labels, table.predictions, None, table.class_names, digests=table.digests)
    checks = check_pins(pins, grades, embeddings=values)
    assert [check.status for check in checks] == ["open", "open"]
    text = pin_table(checks)
    assert [line.split()[:2] for line in text.splitlines()[1:3]] == [["class", "1"], ["class", "2"]]
    assert text.count("is open, as when it was pinned") == 2
    assert '"holds": false' in check_json(checks)
