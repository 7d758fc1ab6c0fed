"""What ``device=`` promises: the same findings as on the CPU.

Tests without the mark ``gpu`` take the same lines with tensors of the CPU, which stand in for another device.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.analysis import analyse
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.scoring import permuted_distances
from lightning_failures.core import arrays
from lightning_failures.data.grades import Grades
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.svm import centred_gram
from lightning_failures.encoders import OpenCLIPEncoder
from lightning_failures.sparse import fit_sparse_path
from lightning_failures.stats import permutation_test
from lightning_failures.trainer import epoch_end
from tests.encoders.tiny import smooth_image, write_clip
from tests.helpers.toy import OracleClassifier, callback, loader, trainer
from tests.sparse.reference import planted

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])
DIM, CAPTIONS = 48, 60
PRECISIONS = ("highest", "medium")


@pytest.fixture(params=["stand-in", CUDA])
def both(request):
    """Calls a function with another device, and with the CPU."""

    def call(function):
        expected = function("cpu")
        if request.param == "cuda":
            return function("cuda"), expected
        with pytest.MonkeyPatch.context() as patch:
            for module in (arrays, permutation_test):
                patch.setattr(module, "is_cpu", lambda device: False)
            return function("cpu"), expected

    return call


@pytest.fixture(params=PRECISIONS)
def precision(request):
    """What a training has chosen for its own products."""
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def world():
    """Two classes of 200 and 160 examples: the second fails along an axis that caption 4 names."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(CAPTIONS, DIM)))[0].astype(np.float32)
    labels = np.repeat([0, 1], [200, 160])
    x = rng.normal(size=(360, DIM)).astype(np.float32) + 0.5
    along = np.where(labels == 1, (x - 0.5) @ (axes[4] / np.linalg.norm(axes[4])), 0.0)
    correct = rng.random(360) > 1 / (1 + np.exp(1 - 4 * along))
    return x, labels, correct, axes, rng.normal(size=DIM).astype(np.float32)


def test_gram(world, both, precision):
    found, expected = both(lambda device: centred_gram(world[0], device))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(60, 40), (300, 20)], ids=["by the Gram matrix", "by the features"])
def test_permutations(shape, both, precision):
    rng = np.random.default_rng(1)
    x, correct = rng.normal(size=shape).astype(np.float32), np.arange(shape[0]) % 4 > 0
    x[~correct, 0] += 0.6
    gram, sources = centred_gram(x), np.arange(len(x))

    def p_value(device):
        options = {"permutations": 499, "rng": np.random.default_rng(0), "device": device}
        return permutation_test.permutation_p_value(x, gram, correct, sources, **options)

    found, expected = both(p_value)
    assert found == pytest.approx(expected, abs=0.0021)  # one permutation may round to the other side


def test_directions(world, both, precision):
    options = {"permutations": 199, "n_directions": 2}
    found, expected = both(lambda device: fit_failure_directions(*world[:3], device=device, **options))
    assert torch.cosine_similarity(found.weight, expected.weight).min() > 0.99999
    torch.testing.assert_close(found.out_of_fold, expected.out_of_fold, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.p_value, expected.p_value, atol=0.0051, rtol=0)
    torch.testing.assert_close(found.cv_score, expected.cv_score, atol=0.01, rtol=0)


@pytest.mark.parametrize("count", [3, CAPTIONS], ids=["captions first", "permutations first"])
def test_captions(world, both, precision, count):
    x, labels, correct, axes, reference = world
    directions = fit_failure_directions(x, labels, correct, permutations=0)
    given = (directions, 1, x[labels == 1], correct[labels == 1], axes[:count], reference)
    blocks = both(lambda device: list(permuted_distances(*given, permutations=99, device=device)))
    found, expected = (np.concatenate(one) for one in blocks)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_analysis(world, both, precision):
    x, labels, correct, axes, reference = world
    texts = tuple(f"caption {i}" for i in range(CAPTIONS))
    captions = ClassCaptions(texts, torch.from_numpy(axes), torch.from_numpy(reference))
    y = torch.from_numpy(labels)
    grades = Grades(torch.arange(360), y, torch.where(torch.from_numpy(correct), y, 1 - y), None, ("cat", "dog"))
    found, expected = both(
        lambda device: analyse(grades, x, captions=lambda k: captions, permutations=199, device=device).report.classes
    )
    assert [one.pattern for one in found] == [one.pattern for one in expected] == [False, True]
    assert found[1].hardest_captions == expected[1].hardest_captions
    assert found[1].hardest_ids == expected[1].hardest_ids


@pytest.mark.parametrize("where", ["cpu", CUDA])
def test_sparse_path(where, precision):
    """On a CPU with instructions for bfloat16, too, a training could have shortened the products."""
    x, y, _ = planted(2700, 100, 3)
    x = x.astype(np.float32)
    found = fit_sparse_path(x, y, n_lambdas=4, lambda_ratio=0.05, device=where)
    torch.set_float32_matmul_precision("highest")
    expected = fit_sparse_path(x, y, n_lambdas=4, lambda_ratio=0.05)
    torch.testing.assert_close(found.objective, expected.objective, rtol=2e-6, atol=0)
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=2e-3)
    assert found.residual.max() <= 0.005


def test_callback__gives_its_device_to_the_analysis(tmp_path, monkeypatch):
    given = []

    def noted(*args, device, **options):
        given.append(device)
        return analyse(*args, device=device, **options)

    monkeypatch.setattr(epoch_end, "analyse", noted)
    for device in (None, "cpu:0"):
        trainer(tmp_path, callback(device=device)).validate(OracleClassifier(), loader(64), verbose=False)
    assert given == ["cpu", "cpu:0"]


@pytest.mark.gpu
@NO_CUDA
def test_encoder(tmp_path, precision):
    folder = write_clip(tmp_path / "clip")
    images = torch.stack([torch.from_numpy(np.array(smooth_image(40, 40, seed))) for seed in range(6)])
    images = images.permute(0, 3, 1, 2).float() / 255
    found, expected = (OpenCLIPEncoder(f"local-dir:{folder}", device=one) for one in ("cuda", "cpu"))
    assert found.fingerprint == expected.fingerprint
    torch.testing.assert_close(found.encode_images(images.cuda()), expected.encode_images(images), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.encode_texts(["red"]), expected.encode_texts(["red"]), atol=2e-3, rtol=0)


@pytest.mark.gpu
@NO_CUDA
def test_callback__reports_what_it_reports_on_the_cpu(tmp_path):
    reports = []
    for device, accelerator in (("cuda", "gpu"), (None, "cpu")):
        failures = callback(device=device)
        run = trainer(tmp_path, failures, accelerator=accelerator, devices=1)
        run.validate(OracleClassifier(), loader(), verbose=False)
        reports.append(failures.last_report.report)
    on_gpu, on_cpu = reports
    assert on_gpu.accuracy == on_cpu.accuracy
    assert [one.pattern for one in on_gpu.classes] == [one.pattern for one in on_cpu.classes]
    assert [one.hardest_ids for one in on_gpu.classes] == [one.hardest_ids for one in on_cpu.classes]
