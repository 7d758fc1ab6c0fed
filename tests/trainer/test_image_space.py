import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import transforms as v1
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.image_space import ImageSpace, find_normalization, pixel_problems

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Data(Dataset):
    def __init__(self, transform=None, **attributes):
        self.transform = transform
        vars(self).update(attributes)

    def __len__(self):
        return 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.05, 3)), min_size=3, max_size=3))
def test_to_unit__undoes_torchvisions_normalize(channels):
    mean, std = zip(*channels, strict=True)
    normalized = v2.Normalize(mean, std)(IMAGES)
    torch.testing.assert_close(ImageSpace(mean, std).to_unit(normalized), IMAGES, atol=1e-5, rtol=1e-4)


def test_to_unit__one_value_for_all_channels():
    normalized = v2.Normalize([0.5] * 3, [0.25] * 3)(IMAGES)
    torch.testing.assert_close(ImageSpace((0.5,), (0.25,)).to_unit(normalized), IMAGES)


def test_to_unit__bytes_are_never_normalised():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert ImageSpace((0.5,), (0.1,)).to_unit(images).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_unit__rounding_is_tolerated_and_clipped(dtype):
    normalized = v2.Normalize(MEAN, STD)(torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])).to(dtype)
    unit = ImageSpace(MEAN, STD).to_unit(normalized)
    assert unit.dtype == torch.float32
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert unit[0].max() < 0.02
    assert unit[1].min() > 0.98


def test_to_unit__leaves_the_input_alone():
    images = IMAGES.clone().requires_grad_()
    unit = ImageSpace().to_unit(images)
    assert not unit.requires_grad
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES * 255, "to 255 instead of 0 to 1"),
        (IMAGES - 0.1, r"normalization=\(mean, std\)"),
        (IMAGES[0], r"\(3, 8, 8\)"),
        (IMAGES.flatten(1), r"\(4, 192\)"),
        (IMAGES[:, :2], r"\(4, 2, 8, 8\)"),
        (IMAGES.permute(0, 2, 3, 1), "read_batch"),
    ],
)
def test_to_unit__refused(images, message):
    with pytest.raises(DataError, match=message):
        ImageSpace().to_unit(images)


@pytest.mark.parametrize(
    ("mean", "std"), [(MEAN, (1.0,)), ((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((0, 0), (1, 1)), ((), ())]
)
def test_space__refused(mean, std):
    with pytest.raises(ConfigurationError, match="normalization"):
        ImageSpace(mean, std)


@pytest.mark.parametrize(
    "transform",
    [
        v2.Normalize(MEAN, STD),
        v1.Normalize(MEAN, STD),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
        v1.Compose([v1.ToTensor(), v1.Compose([v1.Normalize(torch.tensor(MEAN), torch.tensor(STD))])]),
        v2.Compose([v2.RandomApply([v2.GaussianBlur(3)]), v2.Normalize(MEAN, STD), v2.RandomErasing()]),
    ],
)
def test_find_normalization__in_transforms(transform):
    found = find_normalization(Data(transform))
    assert found.mean == pytest.approx(MEAN)
    assert found.std == pytest.approx(STD)


def test_find_normalization__the_last_one_counts():
    twice = v2.Compose([v2.Normalize([0.0], [1.0]), v2.Normalize([0.5], [0.2])])
    assert find_normalization(Data(twice)) == ImageSpace((0.5,), (0.2,))


def test_find_normalization__through_wrappers():
    data = Data(v2.Normalize([0.5], [0.2]))
    for wrapped in (Subset(data, [1]), Subset(Subset(data, [0, 1]), [1]), ConcatDataset([Subset(data, [0]), data])):
        assert find_normalization(wrapped) == ImageSpace((0.5,), (0.2,))


def test_find_normalization__in_torchvisions_datasets():
    data = FakeData(size=2, image_size=(3, 8, 8), transform=v2.Compose([v2.ToImage(), v2.Normalize(MEAN, STD)]))
    assert find_normalization(data).mean == pytest.approx(MEAN)
    # VisionDataset keeps a StandardTransform under `transforms`, and some datasets only that
    del data.transform
    assert find_normalization(data).mean == pytest.approx(MEAN)


@pytest.mark.parametrize("dataset", [None, [1, 2], Data(), Data(v2.RandomHorizontalFlip()), Data(lambda image: image)])
def test_find_normalization__nothing_found(dataset):
    assert find_normalization(dataset) is None


def test_to_unit__empty_batch_and_gray_images_with_three_means():
    space = ImageSpace((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert space.to_unit(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    with pytest.raises(DataError, match="3 means"):
        space.to_unit(torch.zeros(1, 1, 4, 4))


# -- single images, and ringing ------------------------------------------------------------------------------------


def test_to_unit__an_image_that_is_not_finite_costs_itself():
    images = IMAGES.clone()
    images[1, 0, 3, 3], images[3, 2, 0, 0] = torch.nan, torch.inf
    unit = ImageSpace().to_unit(images)
    assert unit.isnan().flatten(1).all(1).tolist() == [False, True, False, True]
    assert torch.equal(unit[[0, 2]], IMAGES[[0, 2]])
    assert ImageSpace().to_unit(torch.full((2, 1, 4, 4), torch.nan)).isnan().all()


def test_to_unit__an_image_far_outside_costs_itself():
    images = torch.cat([IMAGES, 255 * IMAGES[:1], IMAGES[:1] - 3])
    unit = ImageSpace().to_unit(images)
    assert unit.isnan().flatten(1).all(1).tolist() == [False] * 4 + [True] * 2
    assert torch.equal(unit[:4], IMAGES)


def digits():
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images[:32].astype("float32"))[:, None] / 16


@pytest.mark.parametrize("scale", [1.5, 3, 9])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("content", ["noise", "digits"])
def test_to_unit__clips_what_ringing_explains(content, antialias, scale):
    images = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(1)) if content == "noise" else digits()
    resized = torch.nn.functional.interpolate(images, scale_factor=scale, mode="bicubic", antialias=antialias)
    assert resized.min() < -0.08
    assert torch.equal(ImageSpace().to_unit(resized), resized.clamp(0, 1))
    normalized = v2.Normalize([0.5] * images.shape[1], [0.25] * images.shape[1])(resized)
    torch.testing.assert_close(ImageSpace((0.5,), (0.25,)).to_unit(normalized), resized.clamp(0, 1))


USUAL = {
    "ImageNet": (MEAN, STD),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "mean": (MEAN, (1.0,) * 3),
    "std": ((0.0,) * 3, STD),
}


@pytest.mark.parametrize("content", ["noise", "digits", "resized digits"])
@pytest.mark.parametrize("name", USUAL)
def test_to_unit__refuses_what_a_wrong_normalisation_explains(name, content):
    images = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    if content != "noise":
        images = digits().expand(-1, 3, -1, -1)
    if content == "resized digits":
        images = torch.nn.functional.interpolate(images, scale_factor=3, mode="bicubic")
    with pytest.raises(DataError, match="instead of 0 to 1"):
        ImageSpace().to_unit(v2.Normalize(*USUAL[name])(images))


@pytest.mark.parametrize("bad", [[2], [0, 2, 3], [0, 1, 2, 3]])
def test_to_unit_each__images_do_not_depend_on_the_others(bad):
    images = IMAGES.clone()
    images[bad] = images[bad] * 900
    unit, error = ImageSpace().to_unit_each(images)
    assert unit.isnan().flatten(1).all(1).nonzero().flatten().tolist() == bad
    good = [row for row in range(4) if row not in bad]
    assert torch.equal(unit[good], IMAGES[good])
    assert (error is None) == (len(bad) < 2)
    assert set(pixel_problems(images, unit).values()) == {"values far outside [0, 1]"}
