"""Preprocessing of tensors, against the transforms for PIL images that it stands for."""

import numpy as np
import open_clip
import pytest
from PIL import Image

from lightning_failures.encoders import Preprocessing
from tests.encoders.tiny import as_batch, smooth_image


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("target", [(32, 32), (24, 40)])
@pytest.mark.parametrize("size", [(100, 70), (33, 64), (20, 12)])
def test_preprocessing__within_one_level_of_pil(resize_mode, interpolation, target, size):
    if resize_mode == "shortest" and interpolation == "bilinear" and target[0] != target[1]:
        interpolation = "bicubic"  # open_clip ignores the choice in this one case
    config = open_clip.transform.PreprocessCfg(
        size=target, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation, resize_mode=resize_mode, fill_color=51
    )
    image = smooth_image(*size)
    expected = open_clip.transform.image_transform_v2(config, is_train=False)(image)
    ours = Preprocessing(size=target, interpolation=interpolation, resize_mode=resize_mode, fill=0.2)
    got = ours(as_batch(image).float() / 255)[0]
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1.5 / 255


def test_preprocessing__overshoot_is_cut_off():
    """Bicubic interpolation leaves [0, 1] at sharp edges; PIL clips it."""
    image = Image.fromarray(np.kron(np.eye(2), np.ones((8, 8)))[..., None].repeat(3, 2).astype(np.uint8) * 255)
    config = open_clip.transform.PreprocessCfg(size=40, mean=(0, 0, 0), std=(1, 1, 1))
    got = Preprocessing(size=(40, 40))(as_batch(image).float() / 255)[0]
    assert (got.min(), got.max()) == (0, 1)
    assert (got - open_clip.transform.image_transform_v2(config, is_train=False)(image)).abs().max() < 1.5 / 255


def test_preprocessing__crop_as_timm():
    import timm

    image = smooth_image(150, 200)
    transform = timm.data.create_transform(
        (3, 64, 64), crop_pct=0.875, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    got = Preprocessing(size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.875)(as_batch(image).float() / 255)[0]
    assert (got - transform(image)).abs().max() < 1.5 / 255 / 0.5
