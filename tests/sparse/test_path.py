"""The path equals exact solvers, satisfies its optimality conditions everywhere, and takes data of every form."""

from __future__ import annotations

import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.sparse import blocks as blocks_module
from lightning_failures.sparse import fit_sparse_path
from lightning_failures.sparse import softmax as softmax_module
from lightning_failures.sparse.path import PathOptions, solve_path
from tests.sparse.reference import head_of, kkt_residual, objective, planted, saga, standardized

ALPHA = 0.99
STATUS = Path("/proc/self/status")


def assert_solved(path, x, y, *, grouped=False):
    """Assert the optimality conditions and the stored objective of every layer, in double precision."""
    z = standardized(x, path)
    for index, strength in enumerate(path.lambdas.tolist()):
        weight, bias = head_of(path, index)
        assert path.residual[index] <= 0.005
        assert path.objective[index] == pytest.approx(
            objective(z, y, weight, bias, strength, ALPHA, grouped=grouped), rel=1e-6
        )
        if not grouped:
            assert kkt_residual(z, y, weight, bias, strength, ALPHA) <= 0.005


# -- exact -----------------------------------------------------------------------------------------------------------


def test_path__equals_saga():
    x, y, _ = planted(300, 12, 4)
    path = fit_sparse_path(x, y, n_lambdas=6, lambda_ratio=0.02)
    z = standardized(x, path)
    assert_solved(path, x, y)
    for index in (1, 3, 5):
        strength = float(path.lambdas[index])
        weight, bias = saga(z, y, strength, ALPHA)
        best = objective(z, y, weight, bias, strength, ALPHA)
        assert float(path.objective[index]) <= best * (1 + 1e-6)
        ours, _ = head_of(path, index)
        np.testing.assert_allclose(ours, weight, atol=0.01 * np.abs(weight).max())


def test_path__two_classes_equal_saga():
    x, y, _ = planted(200, 6, 2)
    path = fit_sparse_path(x, y, n_lambdas=4, lambda_ratio=0.05)
    z, strength = standardized(x, path), float(path.lambdas[3])
    weight, _ = head_of(path, 3)
    np.testing.assert_allclose(weight[0], -weight[1], atol=1e-3)
    # the symmetric softmax has half the ridge penalty of the binary model, which alpha = 1 avoids
    lasso = fit_sparse_path(x, y, alpha=1.0, lambdas=[strength])
    coef, bias = saga(z, y, strength / 2, 1.0)
    best = objective(z, y, coef, bias, strength, 1.0)
    assert float(lasso.objective[0]) <= best * (1 + 1e-6)


@pytest.mark.parametrize("balanced", [False, True])
def test_path__of_a_rare_condition_equals_the_binary_elastic_net(balanced):
    x, y, _ = planted(300, 8, 2)
    rare = np.flatnonzero((y == 0) | (np.arange(300) % 4 == 0))
    x, y = x[rare], y[rare]
    alpha = 0.5
    path = solve_path(x, y, None, PathOptions(alpha, n_lambdas=4, lambda_ratio=0.05, balanced=balanced))
    z, (weight, bias) = standardized(x, path), head_of(path, 3)
    # weights of the log odds are the difference of two symmetric rows: their ridge penalty is half as large
    model = LogisticRegression(
        penalty="elasticnet",
        solver="saga",
        l1_ratio=2 * alpha / (1 + alpha),
        C=2 / ((1 + alpha) * float(path.lambdas[3]) * len(y)),
        class_weight="balanced" if balanced else None,
        tol=1e-8,
        max_iter=20_000,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases infer the penalty
        model.fit(z, y)
    np.testing.assert_allclose(weight[1] - weight[0], model.coef_[0], atol=2e-3)
    np.testing.assert_allclose(bias[1] - bias[0], model.intercept_[0], atol=2e-3)
    assert np.abs(model.coef_[0]).max() > 0.3


def test_path__starts_where_all_weights_are_zero():
    x, y, _ = planted(200, 10, 3)
    path = fit_sparse_path(x, y, n_lambdas=3, lambda_ratio=0.5)
    z = standardized(x, path)
    one_hot = np.eye(3)[y]
    expected = np.abs(z.T @ (one_hot - one_hot.mean(axis=0))).max() / len(y) / ALPHA
    assert float(path.lambdas[0]) == pytest.approx(expected, rel=1e-5)
    assert path.features_per_class[0] == 0
    assert path.features_per_class[1] > 0
    np.testing.assert_allclose(torch.softmax(path.bias[0], 0), one_hot.mean(axis=0), rtol=1e-5)


def test_path__finds_the_planted_support():
    x, y, truth = planted(4000, 40, 4, correlation=0.0)
    path = fit_sparse_path(x, y, n_lambdas=12, lambda_ratio=0.05)
    weight = path.weight.numpy()
    used = np.abs(truth).sum(axis=0) > 0
    for layer in weight:
        # the features that enter first are planted ones
        if np.count_nonzero(np.abs(layer).sum(axis=0)) <= used.sum():
            assert not np.abs(layer[:, ~used]).any()
    last = weight[-1]
    assert (np.sign(last[truth != 0]) == np.sign(truth[truth != 0])).all()


def test_path__grouped_features_enter_for_all_classes():
    x, y, _ = planted(500, 15, 4)
    path = fit_sparse_path(x, y, n_lambdas=6, lambda_ratio=0.05, grouped=True)
    assert_solved(path, x, y, grouped=True)
    for layer in path.weight.numpy():
        used = (layer != 0).any(axis=0)
        assert (layer[:, used] != 0).all()
    assert 0 < (path.weight[2] != 0).any(0).sum() < 15
    # moving any group of the solution raises the objective
    z, strength = standardized(x, path), float(path.lambdas[4])
    weight, bias = head_of(path, 4)
    best = objective(z, y, weight, bias, strength, ALPHA, grouped=True)
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = weight + 0.02 * rng.normal(size=weight.shape) * (rng.random(15) < 0.3)
        assert objective(z, y, moved, bias, strength, ALPHA, grouped=True) > best - 1e-6 * best


def test_path__a_dense_grid_finds_the_solutions_of_a_coarse_one():
    x, y, _ = planted(300, 15, 3)
    dense = fit_sparse_path(x, y, n_lambdas=11, lambda_ratio=0.02)
    coarse = fit_sparse_path(x, y, lambdas=dense.lambdas[::5].tolist())
    torch.testing.assert_close(coarse.objective, dense.objective[::5], rtol=1e-6, atol=0)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(6, 120),
    d=st.integers(1, 30),
    classes=st.integers(2, 6),
    ties=st.booleans(),
    heavy=st.booleans(),
)
def test_path__optimality_conditions_hold_everywhere(seed, n, d, classes, ties, heavy):
    classes = min(classes, n)
    x, y, _ = planted(n, d, classes, per_class=min(2, d), seed=seed)
    x = np.round(x) if ties else x
    x = np.sinh(x) if heavy else x
    if np.ptp(x, axis=0).max() == 0:
        return
    path = fit_sparse_path(x, y, n_lambdas=6, lambda_ratio=0.01)
    assert_solved(path, x, y)


# -- edges -----------------------------------------------------------------------------------------------------------


def test_path__constant_features_contribute_nothing():
    x, y, _ = planted(200, 5, 3)
    padded = np.concatenate([x, np.full((200, 1), 0.1), np.zeros((200, 1)), np.full((200, 1), 1e6)], axis=1)
    path = fit_sparse_path(padded.astype(np.float32), y, n_lambdas=5, lambda_ratio=0.02)
    assert not path.weight[:, :, 5:].any()
    assert path.std[5:].tolist() == [0, 0, 0]
    assert_solved(path, padded, y)


def test_path__duplicate_features_share_their_weight():
    x, y, _ = planted(200, 5, 3)
    alone = fit_sparse_path(x, y, lambdas=[0.05, 0.01], alpha=1.0)
    twice = fit_sparse_path(np.concatenate([x, x], axis=1), y, lambdas=[0.05, 0.01], alpha=1.0)
    torch.testing.assert_close(alone.objective, twice.objective, rtol=2e-6, atol=0)


def test_path__a_class_with_one_example():
    x, y, _ = planted(100, 8, 3)
    y = np.where(np.arange(100) == 7, 3, y)
    path = fit_sparse_path(x, y, n_lambdas=6, lambda_ratio=0.01)
    assert path.bias.shape == (6, 4)
    assert_solved(path, x, y)


def test_path__a_label_without_examples_is_never_predicted():
    x, y, _ = planted(100, 8, 3)
    y = np.where(y == 2, 4, y)
    path = fit_sparse_path(x, y, n_lambdas=3, lambda_ratio=0.1)
    weight, bias = path.layer(2)
    assert weight.shape == (5, 8)
    assert not weight[[2, 3]].any()
    predictions = (torch.from_numpy(x).float() @ weight.T + bias).argmax(1)
    assert set(predictions.tolist()) <= {0, 1, 4}


def test_path__separable_data():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.normal(size=(90, 10)) * 0.1
    x[np.arange(90), y] += 10
    path = fit_sparse_path(x, y, n_lambdas=20, lambda_ratio=1e-4)
    assert_solved(path, x, y)
    assert torch.isfinite(path.values).all()
    assert path.objective[-1] < 0.02


@pytest.mark.parametrize(("n", "d"), [(20, 100), (50, 1)])
def test_path__fewer_examples_than_features_and_a_single_feature(n, d):
    x, y, _ = planted(n, d, 3, per_class=1)
    path = fit_sparse_path(x, y, n_lambdas=10, lambda_ratio=0.01)
    assert_solved(path, x, y)


def test_path__large_offsets_and_scales_overflow_nowhere():
    x, y, _ = planted(200, 4, 3)
    moved = x * np.array([1e-20, 1e18, 1.0, 1e3]) + np.array([0, 1e18, 1e3, -1e6])
    path = fit_sparse_path(moved, y, n_lambdas=5, lambda_ratio=0.05)
    plain = fit_sparse_path(x, y, lambdas=path.lambdas.tolist())
    torch.testing.assert_close(path.objective, plain.objective, rtol=1e-4, atol=0)


# -- forms of data ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    x, y, _ = planted(150, 10, 3)
    x = x.astype(np.float16)
    return x, y, fit_sparse_path(x, y, n_lambdas=5, lambda_ratio=0.05)


class Restarting:
    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        yield from self.parts


def forms(x, folder):
    frozen = x.copy()
    frozen.setflags(write=False)
    np.save(folder / "x.npy", x)
    return {
        "tensor": torch.from_numpy(x),
        "float64": x.astype(np.float64),
        "read-only": frozen,
        "memory map": np.load(folder / "x.npy", mmap_mode="r"),
        "list of rows": x.tolist(),
        "list of blocks": [x[:40], torch.from_numpy(x[40:41]), x[41:]],
        "restarting blocks": Restarting([x[:100], x[100:]]),
        "fortran": np.asfortranarray(x),
    }


def test_path__takes_features_of_every_form(data, tmp_path):
    x, y, path = data
    for name, features in forms(x, tmp_path).items():
        other = fit_sparse_path(features, torch.from_numpy(y), n_lambdas=5, lambda_ratio=0.05)
        torch.testing.assert_close(other.objective, path.objective, rtol=1e-6, atol=0, msg=name)
        torch.testing.assert_close(other.weight, path.weight, rtol=0, atol=2e-3, msg=name)


def test_path__blocks_that_are_read_again_equal_those_in_memory(data, monkeypatch):
    x, y, path = data
    monkeypatch.setattr(blocks_module, "_CELLS_IN_MEMORY", 0)
    monkeypatch.setattr(blocks_module, "_CELLS_AT_ONCE", 300)
    streamed = fit_sparse_path(x, y, n_lambdas=5, lambda_ratio=0.05)
    torch.testing.assert_close(streamed.objective, path.objective, rtol=1e-6, atol=0)
    torch.testing.assert_close(streamed.weight, path.weight, rtol=0, atol=2e-3)


def test_path__leaves_the_input_unchanged(data):
    x, y, _ = data
    wide = x.astype(np.float32)
    before = wide.copy()
    fit_sparse_path(wide, y, n_lambdas=3, lambda_ratio=0.05)
    assert (wide == before).all()


def test_path__integer_weights_are_copies(data):
    x, y, _ = data
    copies = np.arange(150) % 3
    repeated = fit_sparse_path(np.repeat(x, copies, axis=0), np.repeat(y, copies), n_lambdas=4, lambda_ratio=0.1)
    weighted = fit_sparse_path(x, y, n_lambdas=4, lambda_ratio=0.1, sample_weight=copies)
    torch.testing.assert_close(weighted.lambdas, repeated.lambdas, rtol=1e-5, atol=0)
    torch.testing.assert_close(weighted.objective, repeated.objective, rtol=1e-5, atol=0)


def test_path__without_standardization(data):
    x, y, _ = data
    path = fit_sparse_path(x, y, n_lambdas=4, lambda_ratio=0.1, standardize=False)
    assert path.std.tolist() == [1.0] * 10
    assert_solved(path, x, y)


def test_path__seed_changes_nothing_but_the_last_digits(data):
    x, y, path = data
    other = fit_sparse_path(x, y, n_lambdas=5, lambda_ratio=0.05, seed=1)
    torch.testing.assert_close(other.objective, path.objective, rtol=1e-6, atol=0)


def test_path__layers_are_slices_of_the_dense_weights(data):
    *_, path = data
    for index in (0, 2, -1):
        weight, bias = path.layer(index)
        assert torch.equal(weight, path.weight[index])
        assert torch.equal(bias, path.bias[index])
    assert path.features_per_class.tolist() == (path.weight != 0).sum(2).double().mean(1).tolist()


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [{"alpha": 0.0}, {"alpha": 1.1}, {"n_lambdas": 0}, {"lambda_ratio": 1.0}, {"lambdas": []}, {"lambdas": [0.1, 0.2]}],
)
def test_path__refuses_options_out_of_range(option, data):
    x, y, _ = data
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        fit_sparse_path(x, y, **option)


def test_path__refuses_data_that_cannot_be_fitted(data):
    x, y, _ = data
    broken = x.copy()
    broken[60, 3] = np.nan
    with pytest.raises(DataError, match="row 60"):
        fit_sparse_path(broken, y)
    with pytest.raises(DataError, match="generator"):
        fit_sparse_path((part for part in [x]), y)
    with pytest.raises(DataError, match="100 rows for 150 labels"):
        fit_sparse_path(x[:100], y)
    with pytest.raises(DataError, match="more than 100 rows"):
        fit_sparse_path(x, y[:100])
    with pytest.raises(DataError, match="equal width"):
        fit_sparse_path([x[:100], x[100:, :4]], y)
    with pytest.raises(DataError, match="at least two classes"):
        fit_sparse_path(x, np.zeros(150, dtype=int))
    with pytest.raises(DataError, match="no feature"):
        fit_sparse_path(np.ones((150, 2)), y)
    with pytest.raises(DataError, match="sample_weight"):
        fit_sparse_path(x, y, sample_weight=np.full(150, -1.0))
    with pytest.raises(DataError, match="every class"):
        fit_sparse_path(x, y, sample_weight=(y > 0).astype(float))


@pytest.mark.parametrize("grouped", [False, True])
def test_path__gram_matrices_in_a_file_and_class_by_class_change_nothing(data, monkeypatch, grouped):
    x, y, _ = data
    expected = fit_sparse_path(x, y, n_lambdas=5, lambda_ratio=0.05, grouped=grouped)
    monkeypatch.setattr(softmax_module, "_GRAM_CELLS_IN_MEMORY", 0)
    monkeypatch.setattr(softmax_module, "_GRAM_CELLS_AT_ONCE", 1)
    found = fit_sparse_path(x, y, n_lambdas=5, lambda_ratio=0.05, grouped=grouped)
    assert torch.equal(found.weight, expected.weight)


def peak_memory() -> float:
    """Return the peak memory of this program in MiB; that of getrusage includes the program that started it."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def peak_of_fit(path: str, rows: int, limited: bool) -> float:
    """Return by how many MiB a fit raises the peak memory of this process."""
    torch.set_num_threads(1)
    small = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    fit_sparse_path(small, np.arange(200) % 4, n_lambdas=3, lambda_ratio=0.1)  # loads libraries and compiled code
    if limited:
        blocks_module._CELLS_IN_MEMORY, blocks_module._CELLS_AT_ONCE = 0, 1 << 18
    features = np.memmap(path, dtype=np.float16, mode="r", shape=(rows, 256))
    before = peak_memory()
    fit_sparse_path(features, np.arange(rows) % 4, n_lambdas=2, lambda_ratio=0.5)
    return peak_memory() - before


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.is_file(), reason="no peak memory of a program on this system")
def test_memory_map__of_features_is_read_in_blocks(tmp_path):
    rows, path = 80_000, tmp_path / "features"
    written = np.memmap(path, dtype=np.float16, mode="w+", shape=(rows, 256))
    rng = np.random.default_rng(0)
    for start in range(0, rows, 10_000):
        block = rng.normal(size=(10_000, 256))
        block[np.arange(10_000), np.arange(start, start + 10_000) % 4] += 1
        written[start : start + 10_000] = block
    written.flush()
    del written
    mib = path.stat().st_size / 2**20  # pages of the map count too
    peaks = []
    for limited in (True, False):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks.append(pool.submit(peak_of_fit, str(path), rows, limited).result())
    limited, unlimited = peaks
    assert limited < 1.5 * mib
    assert unlimited > limited + 0.9 * mib  # all features as float32 take twice the file: the test can fail
