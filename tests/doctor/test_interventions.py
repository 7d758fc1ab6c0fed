"""Interventions that can work through the training loader, and those that cannot."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2 as T

from lightning_failures.doctor.findings import run_check
from lightning_failures.doctor.interventions import check_class_lists, check_interventions
from lightning_failures.interventions import RetrainHead, Upweight
from tests.doctor.contexts import only, read, statuses
from tests.helpers.toy import NORMALIZE, Images


def test_interventions__work_or_say_why_not(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    acting = {"interventions": [Upweight()]}
    assert statuses(check_interventions(read(tmp_path))) == ["skipped"]
    assert statuses(check_interventions(read(tmp_path, **acting))) == ["ok"]
    stream = read(tmp_path, train=DataLoader(Stream(), batch_size=4), **acting)
    assert "iterable" in only(run_check("interventions", check_interventions, stream), "problem").message
    flipped = Images()
    flipped.transform = T.Compose([T.RandomHorizontalFlip(), NORMALIZE])
    random_view = read(tmp_path, train=DataLoader(flipped, batch_size=4), **acting)
    assert "train_analysis_dataset" in only(check_interventions(random_view), "warning").remedy


def test_last_layer__that_can_be_refitted_or_not(tmp_path):
    found = list(check_interventions(read(tmp_path, interventions=[RetrainHead()])))
    assert statuses(found) == ["ok", "ok"]
    assert "last layer 'net.1' with 192 features and 4 outputs" in found[0].message
    unknown = list(check_interventions(read(tmp_path, interventions=[RetrainHead(head="net.2")])))
    assert "has no such submodule" in only(unknown, "problem").message


@pytest.mark.parametrize(
    ("classes", "interventions", "status"),
    [
        (["class 0", "class 1", "class 2", "class 3"], (), "ok"),
        ({"class 0": 0, "class 1": 1, "class 2": 2, "class 3": 3}, (), "ok"),
        (["class 1", "class 0", "class 2", "class 3"], (), "warning"),
        (["class 1", "class 0", "class 2", "class 3"], (Upweight(),), "problem"),
        (["class 0", "class 1", "class 2"], (), "warning"),
        (None, (), "skipped"),
    ],
)
def test_class_lists__of_training_and_validation(tmp_path, classes, interventions, status):
    training = Images(32)
    training.classes = classes
    made = read(tmp_path, train=DataLoader(training, batch_size=8), interventions=interventions)
    (found,) = run_check("class lists", check_class_lists, made)
    assert found.status == status
    if status in ("warning", "problem"):
        assert "other classes than the validation set" in found.message
