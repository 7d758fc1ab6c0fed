"""Normalisation and preprocessing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchvision.transforms import v2 as T

from lightning_failures.doctor.images import check_images, describe_preprocessing
from lightning_failures.doctor.interventions import check_interventions
from lightning_failures.encoders.preprocessing import Preprocessing
from lightning_failures.interventions import Upweight
from lightning_failures.trainer.normalization_guard import NORMALIZATIONS, matching_normalization
from tests.doctor.contexts import only, read, statuses
from tests.helpers.toy import NORMALIZE, Images, OracleClassifier


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_matching_normalization__finds_each(name):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 3, 16, 16), generator=generator) / 255
    assert matching_normalization(T.Normalize(*map(list, NORMALIZATIONS[name]))(pixels)) == name
    assert matching_normalization(torch.rand(8, 3, 16, 16, generator=generator) * 3 - 1) is None


def test_images__an_undeclared_normalisation_is_named(tmp_path):
    mean, std = NORMALIZATIONS["ImageNet's"]
    hidden = Images()
    hidden.images = (hidden.images * 255).round() / 255
    hidden.transform = lambda image: T.Normalize(mean, std)(image)  # nothing to read off
    made = read(tmp_path, DataLoader(hidden, batch_size=16))
    found = only(check_images(made), "problem")
    assert "instead of 0 to 1" in found.message
    assert "ImageNet's: pass normalization=([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])" in found.remedy
    declared = read(tmp_path, DataLoader(hidden, batch_size=16), normalization=(mean, std))
    assert "8-bit" in only(check_images(declared), "ok").message


def test_images__a_wrong_normalisation_that_stays_within_0_and_1(tmp_path):
    images = Images()
    images.images = (images.images * 255).round() / 255
    almost = read(tmp_path, DataLoader(images, batch_size=16), normalization=([0.5], [0.2]))
    assert "the one in the transforms of the dataset fits" in only(check_images(almost), "warning").remedy
    blurred = Images()  # no steps to tell by
    resized = read(tmp_path, DataLoader(blurred, batch_size=16), normalization=([0.5], [0.2]))
    assert statuses(check_images(resized)) == ["ok"]  # it cannot be known
    narrow = read(tmp_path, DataLoader(blurred, batch_size=16), normalization=([0.5], [0.05]))
    assert "range only from" in only(check_images(narrow), "warning").message


def test_images__random_transforms_of_validation_are_warned_of(tmp_path):
    noisy = Images()
    noisy.transform = T.Compose([T.RandomHorizontalFlip(), NORMALIZE])
    found = only(check_images(read(tmp_path, DataLoader(noisy, batch_size=16))), "warning")
    assert "random transforms" in found.message


@settings(deadline=None, max_examples=15)
@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([(32, 32), (24, 40)]), st.sampled_from([0.875, 1.0]))
def test_describe_preprocessing__what_is_cut_off_is_what_the_encoder_does_not_see(height, width, size, crop):
    preprocessing = Preprocessing(size=size, crop=crop, interpolation="bilinear")
    _, lost = describe_preprocessing(preprocessing, height, width)
    ramp = torch.stack(
        [
            torch.linspace(0, 1, width).expand(height, width),
            torch.linspace(0, 1, height)[:, None].expand(height, width),
            torch.zeros(height, width),
        ]
    )
    seen = preprocessing.view(ramp[None])[0, :2].flatten(1)
    low, high = seen.aminmax(dim=1)
    assert abs(float((high - low).prod()) - (1 - lost)) < 0.12


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_describe_preprocessing__modes_that_cut_nothing(mode):
    assert describe_preprocessing(Preprocessing(size=(32, 32), resize_mode=mode), 40, 80)[1] == 0.0


# -- images that are normalised or turned into floats on the device ------------------------------------------


class OnDevice(OracleClassifier):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return NORMALIZE(batch[0]), batch[1]

    def forward(self, x):
        return super().forward(x[:, :, :8])


class Raw(Images):
    def __init__(self, size=160, **options):
        super().__init__(size, **options)
        self.transform = torch.nn.Identity()


class RawSizes(Raw):
    """Images of different sizes; the model looks at their upper part."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.repeat(1, 1 + index % 2, 1), label


@pytest.mark.parametrize(("data", "batch_size"), [(Raw, 16), (RawSizes, 1)])
def test_device__images_are_read_as_the_step_receives_them(tmp_path, data, batch_size):
    loaders = [DataLoader(data(size), batch_size=batch_size) for size in (160, 96)]
    read_context = read(
        tmp_path,
        loaders[0],
        model=OnDevice(),
        train=loaders[1],
        normalization=([0.5], [0.25]),
        interventions=[Upweight()],
    )
    assert statuses(check_images(read_context)) == ["ok"]
    assert statuses(check_interventions(read_context)) == ["ok"]


def test_device__a_normalisation_in_the_step_is_a_doubt(tmp_path):
    class InTheStep(OracleClassifier):
        def forward(self, x):
            return super().forward(NORMALIZE(x))

    raw = DataLoader(Raw(), batch_size=16)
    read_context = read(
        tmp_path, raw, model=InTheStep(), train=raw, normalization=([0.5], [0.25]), interventions=[Upweight()]
    )
    for check in (check_images, check_interventions):
        assert "on_after_batch_transfer" in only(check(read_context), "warning").message


def test_images__one_that_is_not_finite_is_a_warning(tmp_path):
    images = Images()
    images.images = (images.images * 255).round() / 255
    images.images[1, 0, 0, 0] = float("nan")
    found = list(check_images(read(tmp_path, DataLoader(images, batch_size=16), on_error="warn")))
    assert any("1 of" in one.message and "NaN" in one.message for one in found if one.status == "warning")
    assert any("images then range from" in one.message for one in found if one.status == "ok")


def test_images__an_unknown_normalize_is_a_warning(tmp_path):
    images = Images()
    images.transform = type("Normalize", (), {"__call__": lambda self, image: image * 0.9})()
    found = list(check_images(read(tmp_path, DataLoader(images, batch_size=16))))
    assert any("is not known" in one.message for one in found if one.status == "warning")
