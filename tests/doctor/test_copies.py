"""Images of the training set in the validation set, and images that it holds twice."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_failures.doctor import copies
from lightning_failures.doctor.copies import check_copies
from tests.doctor.contexts import only, read
from tests.helpers.toy import Images, loader


def test_copies__none(tmp_path):
    found = only(check_copies(read(tmp_path, loader(120), train=loader(80, seed=7))), "ok")
    assert found.message == "no exact copies: 120 validation images and 80 of 80 training images were compared"


def test_copies__of_training_images_and_within_the_validation_set(tmp_path):
    validation, training = Images(120, seed=0), Images(80, seed=7)
    training.images[:13] = validation.images[20:33]
    validation.images[100:105] = validation.images[:5]
    made = read(tmp_path, DataLoader(validation, batch_size=16), train=DataLoader(training, batch_size=16))
    repeated, leaked = list(check_copies(made))
    assert (repeated.status, repeated.facts["repeated"]) == ("warning", 5)
    assert (leaked.status, leaked.facts["leaked"]) == ("warning", 13)
    assert "13 validation images are also training images" in leaked.message


def test_copies__of_large_sets_are_sought_in_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "MAX_IMAGES", 50)
    found = list(check_copies(read(tmp_path, loader(120), train=loader(80, seed=7))))
    assert "50 of 120 validation images and 50 of 80 training images" in only(found, "ok").message


def test_copies__random_transforms_hide_them(tmp_path):
    class Random(Images):
        def __getitem__(self, index):
            image, *rest = super().__getitem__(index)
            return image + 0.01 * torch.rand(()), *rest

    made = read(tmp_path, loader(120), train=DataLoader(Random(80), batch_size=16))
    assert "random transforms" in only(check_copies(made), "skipped").message


@pytest.mark.parametrize("train", [[loader(80), loader(40)]])
def test_copies__without_a_single_training_loader(tmp_path, train):
    assert "no training images" in only(check_copies(read(tmp_path, loader(120), train=train)), "skipped").message
