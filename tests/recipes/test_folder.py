"""Any folder of images: one folder for each class, or train and val of that form."""

from __future__ import annotations

import pytest

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes import folder
from lightning_failures.recipes.folder import folder_setting
from tests.recipes.generated import image_folder


def test_folder__split_by_class_without_overlap(tmp_path):
    setting = folder_setting(image_folder(tmp_path / "pets"), 0, False)
    parts = [set(part.indices) for part in (setting.train, setting.validation, setting.test)]
    assert [len(part) for part in parts] == [24, 24, 12]
    assert len(set.union(*parts)) == 60
    assert setting.class_names == ("cat", "dog")
    assert setting.train[0][0].shape == (3, 64, 64)
    assert (setting.schedule.batch_size, setting.schedule.epochs) == (8, 60)


def test_folder__train_and_val_as_they_are(tmp_path):
    image_folder(tmp_path / "train", images=8)
    image_folder(tmp_path / "val", images=4)
    setting = folder_setting(tmp_path, 0, False)
    assert (len(setting.train), len(setting.validation), len(setting.test)) == (16, 8, 8)
    image_folder(tmp_path / "test", classes=("cat", "cow"), images=2)
    with pytest.raises(ConfigurationError, match="must have the same names"):
        folder_setting(tmp_path, 0, False)


def test_folder__of_many_images_trains_on_more_of_them_in_larger_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "FEW", 25)
    monkeypatch.setattr(folder, "STEPS", 50)
    setting = folder_setting(image_folder(tmp_path / "pets", images=300, size=8), 0, False)
    assert [len(part) for part in (setting.train, setting.validation, setting.test)] == [360, 120, 120]
    assert (setting.schedule.batch_size, setting.schedule.epochs) == (22, 10)


def test_folder__of_no_images_or_one_class(tmp_path):
    with pytest.raises(ConfigurationError, match="one folder for each class"):
        folder_setting(tmp_path, 0, False)
    with pytest.raises(ConfigurationError, match="needs two folders"):
        folder_setting(image_folder(tmp_path / "one", classes=("cat",)), 0, False)
