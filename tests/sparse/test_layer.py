"""The layer is the sparsest within the drop, its held-out examples never enter the fit, and its file is checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.sparse import SparseLayer, fit_sparse_layer, fit_sparse_path
from tests.sparse.reference import planted

PATH = {"n_lambdas": 10, "lambda_ratio": 0.02}


@pytest.fixture(scope="module")
def data():
    x, y, truth = planted(900, 30, 4, correlation=0.0)
    return x, y, truth


def test_layer__is_the_sparsest_within_the_drop(data):
    x, y, _ = data
    path = fit_sparse_path(x[:600], y[:600], **PATH)
    layers = [path.layer(index) for index in range(10)]
    right = [(torch.from_numpy(x[600:]).float() @ w.T + b).argmax(1).numpy() == y[600:] for w, b in layers]
    accuracy = np.array([one.mean() for one in right])
    for max_drop in (0.0, 0.02, 0.2):
        layer = fit_sparse_layer(x[:600], y[:600], validation=(x[600:], y[600:]), max_drop=max_drop, **PATH)
        np.testing.assert_allclose(layer.curve.accuracy, accuracy)
        expected = np.flatnonzero(accuracy >= accuracy.max() - max_drop - 1e-12)[0]
        assert layer.index == expected
        assert layer.accuracy == pytest.approx(accuracy[expected])
        assert layer.dense_accuracy == pytest.approx(accuracy[-1])
        assert layer.accuracy_interval[0] < layer.accuracy < layer.accuracy_interval[1]
        assert torch.equal(layer.weight, layers[expected][0])
        assert layer.features_per_class == pytest.approx(float(layer.curve.features_per_class[expected]))


def test_layer__decision_is_linear_in_raw_features(data):
    x, y, _ = data
    layer = fit_sparse_layer(x, y, **PATH)
    expected = x @ layer.weight.double().numpy().T + layer.bias.double().numpy()
    np.testing.assert_allclose(layer.decision(x), expected, rtol=1e-5, atol=1e-5)


def test_layer__refit_gains_where_few_features_are_left(data):
    x, y, _ = data
    options = {"validation": (x[600:], y[600:]), **PATH}
    plain = fit_sparse_layer(x[:600], y[:600], **options)
    refitted = fit_sparse_layer(x[:600], y[:600], refit=True, **options)
    assert torch.equal(plain.curve.features_per_class, refitted.curve.features_per_class)
    assert refitted.curve.accuracy[1:4].mean() > plain.curve.accuracy[1:4].mean()
    assert refitted.features_per_class <= plain.features_per_class


def test_layer__holds_out_whole_groups_of_all_classes(data):
    x, y, _ = data
    groups = np.arange(900) // 3
    y = np.repeat(y[::3], 3)
    layer = fit_sparse_layer(x, y, groups=groups, **PATH)
    assert layer.held_out % 3 == 0
    assert abs(layer.held_out - 180) <= 12


def test_layer__blocks_equal_the_matrix(data):
    x, y, _ = data
    whole = fit_sparse_layer(x, y, **PATH)
    parts = fit_sparse_layer([x[:500], x[500:]], y, **PATH)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=0, atol=5e-3)
    torch.testing.assert_close(parts.curve.accuracy, whole.curve.accuracy, rtol=0, atol=0.02)


def test_layer__is_saved_and_loaded(data, tmp_path):
    x, y, _ = data
    layer = fit_sparse_layer(x, y, refit=True, **PATH)
    layer.save(tmp_path / "layer.safetensors")
    loaded = SparseLayer.load(tmp_path / "layer.safetensors")
    assert torch.equal(loaded.decision(x), layer.decision(x))
    for name in ("accuracy", "dense_accuracy", "features_per_class", "index", "held_out", "refit"):
        assert getattr(loaded, name) == getattr(layer, name)
    assert torch.equal(loaded.std, layer.std)

    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "layer.safetensors").read_bytes()[:-9])
    for name in ("cut", "other"):
        if name == "other":
            from safetensors.torch import save_file

            save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(DataError, match="no sparse layer"):
            SparseLayer.load(tmp_path / f"{name}.safetensors")


def test_layer__refuses_what_cannot_be(data):
    x, y, _ = data
    with pytest.raises(ConfigurationError, match="max_drop"):
        fit_sparse_layer(x, y, max_drop=-0.1)
    with pytest.raises(ConfigurationError, match="ridge"):
        fit_sparse_layer(x, y, refit=True, ridge=0.0)
    with pytest.raises(DataError, match="one row per label"):
        fit_sparse_layer(x[:100], y, **PATH)
    with pytest.raises(DataError, match="validation"):
        fit_sparse_layer(x, y, validation=(x[:10], y[:9]), **PATH)


def test_balanced__classes_count_equally_in_fit_and_accuracy(data, tmp_path):
    x, labels, _ = data
    y = ((labels == 3) & (np.arange(len(labels)) % 3 == 0)).astype(int)
    kept = (labels != 3) | (y == 1)
    x, y = x[kept], y[kept]
    fitting, test = slice(0, 400), slice(400, None)
    plain, layer = (
        fit_sparse_layer(x[fitting], y[fitting], validation=(x[test], y[test]), balanced=balanced, **PATH)
        for balanced in (False, True)
    )
    predictions = layer.decision(x[test]).argmax(1).numpy()
    recalls = [(predictions == y[test])[y[test] == k].mean() for k in (0, 1)]
    assert layer.accuracy == pytest.approx(np.mean(recalls))
    assert layer.curve.accuracy[0] == 0.5  # without features
    assert plain.curve.accuracy[0] > 0.8
    mass = np.where(y[fitting] == 1, (y[fitting] == 0).sum() / (y[fitting] == 1).sum(), 1.0)
    weighted = fit_sparse_path(x[fitting], y[fitting], sample_weight=mass, **PATH)
    torch.testing.assert_close(layer.weight, weighted.layer(layer.index)[0], atol=2e-3, rtol=0)
    rare = int(y[test].sum())
    low, high = layer.accuracy_interval
    assert layer.effective == pytest.approx(4 / (1 / rare + 1 / (len(y) - 400 - rare)))
    assert low < layer.accuracy < high
    layer.save(tmp_path / "layer.safetensors")
    assert SparseLayer.load(tmp_path / "layer.safetensors").accuracy_interval == (low, high)


def test_validation__labels_are_not_negative(data):
    x, y, _ = data
    with pytest.raises(DataError, match=r"0 \.\.\. K - 1"):
        fit_sparse_layer(x, y, validation=(x[:5], [-1, 0, 0, 1, 2]), **PATH)
