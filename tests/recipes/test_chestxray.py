"""ChestX-ray14: labels, views and patients from the table, splits without a patient on both sides."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.chestxray import CONDITIONS, chestxray14_setting
from tests.recipes.generated import chestxray14


def test_chestxray14__labels_views_and_patients(tmp_path):
    setting = chestxray14_setting(chestxray14(tmp_path), 0, False)
    parts = (setting.train, setting.validation, setting.test)
    assert sum(map(len, parts)) == 60
    patients = [set(part.groups) for part in parts]
    assert not patients[0] & patients[1]
    assert not (patients[0] | patients[1]) & patients[2]
    listed = (tmp_path / "test_list.txt").read_text().split()
    assert sorted(file.rsplit("/", 1)[1] for file in setting.test.files) == sorted(listed)
    with (tmp_path / "Data_Entry_2017.csv").open() as file:
        rows = {row["Image Index"]: row for row in csv.DictReader(file)}
    row = rows[setting.test.files[3].rsplit("/", 1)[1]]
    image, label = setting.test[3]
    assert image.shape == (3, 224, 224)
    found = {name for name, present in zip(CONDITIONS, label.tolist(), strict=True) if present}
    assert found == set(row["Finding Labels"].split("|")) - {"No Finding"}
    assert bool(setting.hard_in_test[3]) == (row["View Position"] == "AP")
    assert 0.1 < np.mean(setting.hard_in_test) < 0.9
    assert setting.multilabel
    assert not setting.complete


def test_chestxray14__what_is_missing(tmp_path):
    with pytest.raises(ConfigurationError, match=r"Data_Entry_2017\.csv, train_val_list"):
        chestxray14_setting(tmp_path, 0, False)
    chestxray14(tmp_path)
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    with pytest.raises(ConfigurationError, match="no image of"):
        chestxray14_setting(tmp_path, 0, False)
