"""CelebA: age as label, gender as shortcut, on a generated folder with the annotation files of the data set."""

from __future__ import annotations

import numpy as np
import pytest
from torchvision import datasets

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes import celeba as recipe
from tests.recipes.generated import celeba


def test_celeba__groups_at_the_ratio_of_the_paper_and_balanced_validation(tmp_path, monkeypatch):
    data = celeba(tmp_path, monkeypatch, images=400)
    setting = recipe.celeba_setting(data, 0, False)

    def groups(part, split):
        whole = datasets.CelebA(str(data), split=split)
        attributes = whole.attr[part.indices]
        young, male = (attributes[:, whole.attr_names.index(name)].numpy() for name in ("Young", "Male"))
        return np.bincount(2 * young + male, minlength=4).tolist()  # old women, old men, young women, young men

    old_women, old_men, young_women, young_men = groups(setting.train, "train")
    assert old_women == young_men > 5
    assert old_men == young_women == pytest.approx(4 * old_women, abs=1)
    assert len(set(groups(setting.validation, "valid"))) == 1
    young = np.array([label for _, label in setting.test])
    assert setting.class_names == ("old", "young")
    assert set(young) == {0, 1}
    assert setting.test[0][0].shape == (3, 75, 75)
    assert 0.3 < setting.hard_in_test.mean() < 0.7
    assert not setting.complete


def test_celeba__variants_and_strengths(tmp_path, monkeypatch):
    data = celeba(tmp_path, monkeypatch, images=300)
    balanced = recipe.celeba_setting(data, 0, False)
    training = recipe.celeba_setting(data, 0, False, variant="as-training")
    assert 0 < len(training.validation) != len(balanced.validation)
    assert training.train.indices == balanced.train.indices
    full = recipe.celeba_setting(data, 0, False, variant="full")
    assert (len(full.train), len(full.validation)) == (180, 60)
    assert full.sweep is None
    assert balanced.sweep.levels == (1.0, 2.0, 4.0, 8.0)
    assert recipe._numbers(4.0) == (recipe.OFTEN, recipe.SELDOM)
    sizes = [len(balanced.sweep.at(level).train) for level in (1.0, 8.0)]
    assert sizes[0] > sizes[1]  # few images: a rare group of an eighth leaves little
    assert {len(balanced.sweep.at(level).validation) for level in (1.0, 8.0)} == {len(balanced.validation)}


def test_celeba__missing_files_say_what_is_needed(tmp_path):
    with pytest.raises(ConfigurationError, match="img_align_celeba"):
        recipe.celeba_setting(tmp_path, 0, False)
