"""ImageNet: both layouts, names and words by WordNet id, and noise on the planned shares."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.imagenet import imagenet_c_setting, imagenet_setting, read_imagenet
from tests.recipes.generated import imagenet


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet__splits_and_names_in_either_layout(tmp_path, flat):
    setting = imagenet_setting(imagenet(tmp_path, images=20, flat=flat), 0, False)
    assert setting.class_names == ("tench", "goldfish", "tabby cat")
    assert (len(setting.train), len(setting.validation), len(setting.test)) == (24, 12, 18)
    assert not set(setting.train.files) & set(setting.validation.files)
    assert np.bincount(setting.test.labels).tolist() == [6, 6, 6]
    x, label = setting.train[0]
    assert (x.shape, label) == ((3, 224, 224), 0)
    assert setting.test[0][0].shape == (3, 224, 224)
    assert not setting.complete
    assert len(imagenet_setting(tmp_path, 0, True).train) == 3


def test_imagenet__labels_of_flat_images_are_those_of_the_table(tmp_path):
    _, validation = read_imagenet(imagenet(tmp_path, flat=True))
    expected = [int(file.rsplit("val_", 1)[1][0]) for file in validation.files]
    assert validation.labels == expected
    assert len(set(expected)) == 3


def test_imagenet_c__noise_on_a_tenth_of_training_and_half_of_the_rest(tmp_path):
    setting = imagenet_c_setting(imagenet(tmp_path, images=50), 0, False)
    assert np.mean(setting.train.noisy) == pytest.approx(0.1)
    assert np.mean(setting.validation.noisy) == pytest.approx(0.5, abs=0.02)
    assert setting.hard_in_test.tolist() == setting.test.noisy
    plain = imagenet_setting(tmp_path, 0, False)
    noisy = np.flatnonzero(setting.test.noisy)[0]
    clean = np.flatnonzero(~np.array(setting.test.noisy))[0]
    change = {k: float((setting.test[k][0] - plain.test[k][0]).std()) for k in (noisy, clean)}
    assert change[clean] < 0.05  # one rounding to bytes
    assert change[noisy] > 0.4  # 0.18 in units of the image, clipped, over a standard deviation of 0.22
    assert (setting.test[noisy][0] == setting.test[noisy][0]).all()
    assert setting.reference == "train"


def test_imagenet__what_is_missing(tmp_path):
    with pytest.raises(ConfigurationError, match="needs train/ with a folder for each class"):
        imagenet_setting(tmp_path, 0, False)
    imagenet(tmp_path, flat=True)
    (tmp_path / "LOC_val_solution.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"LOC_val_solution\.csv"):
        imagenet_setting(tmp_path, 0, False)
