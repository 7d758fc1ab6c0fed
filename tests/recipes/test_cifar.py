"""CIFAR: the published splits, sub-classes and cuts, on generated files in the authors' form."""

from __future__ import annotations

import numpy as np
import pytest
from torchvision import datasets

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes import RECIPES
from lightning_failures.recipes.cifar import CUT, SUPERCLASSES, cifar10_setting, cifar100_setting
from tests.recipes.generated import cifar


def test_superclasses__hundred_sub_classes_and_one_cut_in_each():
    names = sorted(name for subs in SUPERCLASSES.values() for name in subs.split())
    assert len(names) == len(set(names)) == 100
    of_name = {name: k for k, subs in enumerate(SUPERCLASSES.values()) for name in subs.split()}
    assert sorted(of_name[names[k]] for k in CUT) == list(range(20))
    assert {names[k] for k in (4, 73, 3)} == {"beaver", "shark", "bear"}


def test_cifar100__three_quarters_of_one_sub_class_are_cut_in_training_only(tmp_path, monkeypatch):
    data = cifar(tmp_path, monkeypatch, fine=100, images=40)
    setting = cifar100_setting(data, 0, False)
    fine = np.array(datasets.CIFAR100(str(data)).targets)
    in_training = np.bincount(fine[setting.train.indices], minlength=100)
    assert in_training[list(CUT)].tolist() == [4] * 20
    assert set(np.delete(in_training, CUT)) == {16}
    assert np.bincount(fine[setting.validation.indices]).tolist() == [8] * 100
    assert not set(setting.train.indices) & set(setting.validation.indices)
    assert setting.hard_in_test.mean() == pytest.approx(0.2)
    image, label = setting.train[0]
    assert image.shape == (3, 32, 32)
    assert 0 <= label < 20
    assert setting.hard_words[label][0].replace(" ", "_") in list(SUPERCLASSES.values())[label]
    assert not setting.complete
    assert len(cifar100_setting(data, 0, True).train) == pytest.approx(len(setting.train) / 10, abs=1)
    other = cifar100_setting(data, 1, False)
    assert set(other.train.indices) != set(setting.train.indices)


def test_cifar100__degrees_pool_and_the_variant_without_one(tmp_path, monkeypatch):
    data = cifar(tmp_path, monkeypatch, fine=100, images=40)
    setting = cifar100_setting(data, 0, False)
    fine = np.array(datasets.CIFAR100(str(data)).targets)
    pool = setting.pool
    assert np.bincount(fine[pool.plain.indices]).tolist() == [16] * 100
    assert pool.plain.indices == pool.augmented.indices
    assert not set(pool.plain.indices) & {*setting.train.indices, *setting.validation.indices}
    assert (pool.hard == np.isin(fine[pool.plain.indices], CUT)).all()
    assert pool.picks == 100
    assert setting.sweep.levels[0] == 0.1
    assert setting.sweep.levels[-1] == 0.9
    kept = [np.bincount(fine[setting.sweep.at(degree).train.indices])[CUT[0]] for degree in (0.25, 0.5)]
    assert kept == [12, 8]
    without = cifar100_setting(data, 0, False, variant="80-20")
    assert without.pool is None
    assert np.bincount(fine[without.train.indices])[CUT[0]] == 8  # a quarter of 32
    assert without.validation.indices == setting.validation.indices


def test_cifar10__a_fifth_trains(tmp_path, monkeypatch):
    data = cifar(tmp_path, monkeypatch, fine=10, images=10)
    setting = cifar10_setting(data, 0, False)
    assert len(setting.pool.plain) == 300
    assert setting.pool.hard is None
    assert (len(setting.train), len(setting.validation), len(setting.test)) == (100, 100, 100)
    assert setting.hard_in_test is None


def test_cifar__missing_files_name_what_to_unpack(tmp_path):
    with pytest.raises(ConfigurationError, match="Unpack cifar-10-python"):
        RECIPES["cifar100"].setting(tmp_path, 0, False)
