"""Normalising transforms of the usual libraries, which need not be installed: stand-ins of the same form."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from lightning_failures.trainer.image_space import ImageSpace, find_normalization
from lightning_failures.trainer.normalize_transforms import find_normalizing_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Data:
    def __init__(self, transform):
        self.transform = transform


def stand_in(module, name="Normalize", base=object, **attributes):
    """An object of a class of this name and module, as the library has it."""
    return type(name, (base,), {"__module__": module, "__call__": lambda self, x: x} | attributes)()


def albumentations(**attributes):
    form = {"mean": MEAN, "std": STD, "max_pixel_value": 255.0, "normalization": "standard", "p": 1.0}
    return stand_in("albumentations.augmentations.pixel.transforms", **(form | attributes))


@pytest.mark.parametrize(
    "transform",
    [
        v2.Normalize(MEAN, STD),
        ImageClassification(crop_size=8),
        torch.nn.Sequential(torch.nn.Identity(), v2.Normalize(MEAN, STD)),
        albumentations(),
        albumentations(max_pixel_value=1.0),
        albumentations(max_pixel_value=65535.0),
        albumentations(mean=[255 * m for m in MEAN], std=[255 * s for s in STD], max_pixel_value=1.0),
        stand_in("kornia.enhance.normalize", mean=torch.tensor([MEAN]), std=torch.tensor([STD])),
        stand_in("kornia.augmentation._2d.intensity.normalize", flags={"mean": torch.tensor(MEAN), "std": list(STD)}),
        stand_in("monai.transforms.x", "NormalizeIntensity", subtrahend=MEAN, divisor=STD, nonzero=False),
        stand_in(
            "monai.transforms.intensity.dictionary",
            "NormalizeIntensityd",
            normalizer=stand_in(
                "monai.transforms.x",
                "NormalizeIntensity",
                subtrahend=[255 * m for m in MEAN],
                divisor=[255 * s for s in STD],
                nonzero=False,
            ),
        ),
    ],
)
def test_known_form__is_read_exactly(transform):
    space = find_normalization(Data(transform))
    assert space.mean == pytest.approx(MEAN)
    assert space.std == pytest.approx(STD)
    assert space.doubt is None


def test_known_form__one_value_beside_three():
    space = find_normalization(Data(albumentations(mean=0.5, std=STD)))
    assert space.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("form", ["min_max", "min_max_per_channel"])
def test_known_form__that_stretches_to_0_and_1(form):
    assert find_normalization(Data(albumentations(normalization=form))) == ImageSpace()


class Subclass(v2.Normalize):
    pass


class Other(v2.Normalize):
    def forward(self, *inputs):
        return inputs


@pytest.mark.parametrize(
    "transform",
    [
        stand_in("mine"),
        stand_in("mine", mean=MEAN, std=STD),
        Other(MEAN, STD),
        albumentations(normalization="image"),
        albumentations(normalization="image_per_channel"),
        albumentations(p=0.5),
        albumentations(std=(0.0,) * 3),
        albumentations(mean=None),
        stand_in("kornia.augmentation.x", flags={"mean": MEAN, "std": STD}, p=0.5),
        stand_in("kornia.augmentation.x"),
        stand_in("monai.transforms.x", "NormalizeIntensity", subtrahend=None, divisor=None, nonzero=False),
        stand_in("monai.transforms.x", "NormalizeIntensity", subtrahend=MEAN, divisor=STD, nonzero=True),
    ],
)
def test_unknown_form__is_not_believed(transform):
    found = find_normalizing_transform(Data(transform))
    assert found.mean is None
    space = find_normalization(Data(transform))
    assert space == ImageSpace()
    assert type(transform).__name__ in space.doubt
    assert repr(space) == repr(ImageSpace())  # the key of cached embeddings
    with pytest.raises(ValueError, match=r"is not known\. Give the normalization="):
        space.to_unit(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_subclass_that_computes_the_same__is_read():
    assert find_normalization(Data(Subclass(MEAN, STD))).mean == pytest.approx(MEAN)


class Own:
    """A class of one's own that normalises as its name and attributes suggest, and counts its calls."""

    def __init__(self, mean, std, power=1):
        self.mean, self.std, self.power, self.calls = mean, std, power, 0

    def __call__(self, image):
        self.calls += 1
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return ((image - mean) / std) ** self.power


Own.__name__ = "Normalize"


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5,), (0.25,))])
def test_own_class__is_tried_once(mean, std):
    transform = Own(mean, std)
    state = torch.get_rng_state()
    assert find_normalization(Data(transform)) == find_normalization(Data(transform)) == ImageSpace(mean, std)
    assert transform.calls == 1
    assert torch.equal(state, torch.get_rng_state())


def test_own_class__that_computes_otherwise_is_not_believed():
    assert find_normalizing_transform(Data(Own(MEAN, STD, power=2))).mean is None
