"""The fitted directions: decision values and the file."""

import dataclasses

import numpy as np
import pytest
import torch

from lightning_failures.directions import FailureDirections, fit_failure_directions, standardize
from lightning_failures.directions.result import _TENSORS
from lightning_failures.errors import DataError


@pytest.fixture(scope="module")
def data():
    """Two traits make nearly all failures of class 0, class 1 never fails, and class 2 fails at random."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [600, 100, 100])
    trait = rng.choice(3, size=800, p=[0.6, 0.2, 0.2])
    x = rng.normal(size=(800, 16))
    x[:, 0] += 4 * (trait == 1)
    x[:, 1] += 4 * (trait == 2)
    correct = rng.random(800) > np.where(trait > 0, 0.85, 0.05)
    correct[labels == 1] = True
    correct[labels == 2] = rng.random(100) < 0.7
    return x, labels, correct


@pytest.fixture(scope="module")
def directions(data):
    return fit_failure_directions(*data, n_directions=2, permutations=199)


def test_save__round_trip_with_additional_directions(directions, data, tmp_path):
    assert len(directions.further) == 1
    directions.save(tmp_path / "directions.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["directions.safetensors"]
    loaded = FailureDirections.load(tmp_path / "directions.safetensors")
    assert loaded.whiten is True
    assert len(loaded.further) == 1
    for one, other in zip((directions, *directions.further), (loaded, *loaded.further), strict=True):
        assert one.skipped == other.skipped
        for name in _TENSORS:
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)
    x, labels, _ = data
    assert torch.equal(loaded.flag(x, labels), directions.flag(x, labels))


def test_save__keeps_whiten(data, tmp_path):
    plain = fit_failure_directions(*data, whiten=False, permutations=0)
    plain.save(tmp_path / "directions.safetensors")
    assert FailureDirections.load(tmp_path / "directions.safetensors").whiten is False


def test_load__refuses_another_file(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="no failure directions"):
        FailureDirections.load(tmp_path / "other.safetensors")


def test_load__refuses_tensors_whose_shapes_disagree(directions, tmp_path):
    dataclasses.replace(directions, bias=directions.bias[:0]).save(tmp_path / "directions.safetensors")
    with pytest.raises(DataError, match="bias has shape"):
        FailureDirections.load(tmp_path / "directions.safetensors")


def test_row__names_the_reason_of_a_skipped_class(directions):
    assert directions.row(2) == 1
    with pytest.raises(DataError, match="class 1 has no failure direction: 0 failures"):
        directions.row(1)


def test_decision_values__of_unknown_classes_are_nan(directions, data):
    x, _, _ = data
    assert directions.decision_values(x[:3], [7, 0, 1]).isnan().tolist() == [True, False, True]


def test_decision_values__refuse_another_width(directions, data):
    x, labels, _ = data
    with pytest.raises(DataError, match="16 dimensions"):
        directions.decision_values(x[:, :5], labels)


# -- class centres -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_centres(directions, data):
    x, _, _ = data
    rng = np.random.default_rng(1)
    centres = torch.from_numpy(rng.normal(size=(4, x.shape[1])) * 0.1).float()
    centres[3] = torch.nan  # a label without examples
    return dataclasses.replace(directions, centres=centres)


def test_nearest_class__is_that_of_the_nearest_centre(with_centres, data):
    x, _, _ = data
    phi = standardize(x, with_centres.mean.double().numpy(), with_centres.std.double().numpy())
    distances = np.linalg.norm(phi[:, None] - with_centres.centres[:3].double().numpy()[None], axis=2)
    assert with_centres.nearest_class(x).tolist() == distances.argmin(axis=1).tolist()
    spoiled = x[:2].copy()
    spoiled[1, 0] = np.nan
    assert with_centres.nearest_class(spoiled)[1] == -1


def test_nearest_class__needs_centres_of_the_same_width(directions, with_centres, data):
    with pytest.raises(DataError, match=r"no class centres.* Analyse the model"):
        directions.nearest_class(data[0])
    with pytest.raises(DataError, match="16 dimensions, got 5"):
        with_centres.nearest_class(data[0][:, :5])


def test_centres__are_saved_and_damaged_ones_refused(directions, with_centres, tmp_path):
    with_centres.save(tmp_path / "directions.safetensors")
    loaded = FailureDirections.load(tmp_path / "directions.safetensors")
    torch.testing.assert_close(loaded.centres, with_centres.centres, atol=1e-3, rtol=1e-3, equal_nan=True)
    directions.save(tmp_path / "directions.safetensors")
    assert FailureDirections.load(tmp_path / "directions.safetensors").centres is None
    dataclasses.replace(directions, centres=torch.zeros(3, 5)).save(tmp_path / "directions.safetensors")
    with pytest.raises(DataError, match="centres have shape"):
        FailureDirections.load(tmp_path / "directions.safetensors")
