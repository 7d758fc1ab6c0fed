"""The metric: batches, processes, copies, and the numbers of the check."""

from __future__ import annotations

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_failures.data.digests import image_digests
from lightning_failures.errors import DataError
from lightning_failures.regression import PinnedSliceErrorRate, check_pins
from tests.processes.launch import fork, ranks
from tests.regression.pins import looked_at, pin

LOOKED = looked_at(16, 9)


def update(metric, rows) -> None:
    metric.update(LOOKED.predictions[rows], LOOKED.labels[rows], digests=LOOKED.digests[rows])


def test_metric__equals_the_check():
    metric = PinnedSliceErrorRate(pin(), class_index=0)
    for rows in torch.arange(100).split(7):
        update(metric, rows)
    assert metric.compute() == pytest.approx(0.4)
    assert metric.check() == check_pins(pin(), LOOKED)[0]
    metric.reset()
    assert metric.check().status == "not checked"
    with pytest.warns(UserWarning, match="called before the ``update``"):
        assert metric.compute().isnan()


def test_metric__repeated_images_count_once():
    metric = PinnedSliceErrorRate(pin(), class_index=0)
    for rows in (torch.arange(100), torch.arange(20)):
        update(metric, rows)
    assert metric.check() == check_pins(pin(), LOOKED)[0]


def test_metric__in_a_collection_and_in_forward(tmp_path):
    pin().save(tmp_path / "a.pin")
    metrics = MetricCollection({"cat 1": PinnedSliceErrorRate(tmp_path / "a.pin", class_index=0)})
    metrics.update(LOOKED.predictions, LOOKED.labels, digests=LOOKED.digests)
    assert metrics.compute()["cat 1"] == pytest.approx(0.4)
    metric = PinnedSliceErrorRate(pin(), class_index=0)
    rows = torch.arange(32)
    assert metric(LOOKED.predictions[rows], LOOKED.labels[rows], digests=LOOKED.digests[rows]) == 0.5


def test_metric__scores_images_and_embeddings():
    images = torch.rand(12, 3, 4, 4)
    labels = torch.tensor([0] * 10 + [1] * 2)
    scores = torch.nn.functional.one_hot(torch.tensor([1] * 6 + [0] * 6), 2).float()
    embeddings = torch.ones(12, 2)
    embeddings[4:, 0] = -1
    pinned = pin(digests=image_digests(images[:4]), known=image_digests(images[8:10]), ids=torch.arange(4))
    metric = PinnedSliceErrorRate(pinned, class_index=0)
    metric.update(scores, labels, images=images, embeddings=embeddings)
    check = metric.check()
    assert (check.joined, check.new, check.failures) == (4, 4, 6)  # the images 0 to 3, and 4 to 7


@pytest.mark.slow
def test_metric__on_two_processes(tmp_path):
    """Images that a sampler shows to both processes count once; a process may have none."""
    for ended in fork("pin_metric", tmp_path, environments=ranks(2), timeout=120):
        assert ended.status == 0, ended.said
    expected = check_pins(pin(), LOOKED)[0].to_dict()
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert values == {name: (pytest.approx(0.4), expected) for name in ("padded", "one-sided")}


def test_metric__what_is_missing_is_named():
    metric = PinnedSliceErrorRate(pin(), class_index=0)
    with pytest.raises(DataError, match="needs images, as the data set gives them, or digests"):
        metric.update(LOOKED.predictions, LOOKED.labels)
    with pytest.raises(DataError, match="digests must have 100 rows"):
        metric.update(LOOKED.predictions, LOOKED.labels, digests=LOOKED.digests[:9])
    with pytest.raises(FileNotFoundError, match="No such file"):
        PinnedSliceErrorRate("nowhere.pin", class_index=0)
