"""Generated images take the form of the user's training examples, or an error says what to do."""

from __future__ import annotations

import pickle
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision import transforms as v1
from torchvision.transforms import v2

from lightning_failures.bundled.digits import ColouredDigits
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.synthesis.dataset import SyntheticImages, find_transform, item_form
from lightning_failures.interventions.synthesis.ledger import Ledger, LedgerRow

PICTURE = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PIL = Image.fromarray(PICTURE.permute(1, 2, 0).numpy())
NORMAL = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
EXPECTED = (PICTURE.float() / 255 - torch.tensor(NORMAL[0])[:, None, None]) / torch.tensor(NORMAL[1])[:, None, None]
FLOAT = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
GRAY = torch.from_numpy(np.array(PIL.convert("L")))[None].float() / 255


class Data(list):
    """Examples with a transform that has been applied to them already."""

    def __init__(self, *examples, transform=None):
        super().__init__(examples)
        self.transform = transform


def row(k: int = 3) -> LedgerRow:
    return LedgerRow("model", "mit", "prompt", 0, k, str(k), "hard caption", 0, 1)


def image_of(training, transform=None):
    return item_form(training, transform)(PIL, 4)[0]


@pytest.mark.parametrize(
    "transform",
    [
        v1.Compose([v1.ToTensor(), v1.Normalize(*NORMAL)]),
        v1.Compose([v1.ConvertImageDtype(torch.float32), v1.Normalize(*NORMAL)]),
        v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*NORMAL)]),
        v1.Normalize(*NORMAL),
        lambda x: (x.float() - torch.tensor(NORMAL[0])[:, None, None]) / torch.tensor(NORMAL[1])[:, None, None],
    ],
    ids=["of PIL", "of uint8", "v2", "of float", "of float that takes uint8"],
)
def test_item_form__the_transform_gets_what_it_takes(transform):
    made = image_of(Data((EXPECTED, 1), transform=transform))
    torch.testing.assert_close(torch.as_tensor(made), EXPECTED, atol=1e-5, rtol=0)


def test_item_form__gray_training_images():
    made = image_of(Data((GRAY, 1), transform=v1.ToTensor()))
    torch.testing.assert_close(made, GRAY)


@pytest.mark.parametrize("image", [PICTURE, PIL, np.zeros((3, 32, 32), dtype=np.uint8), FLOAT])
def test_item_form__no_transform_is_needed_for_plain_images(image):
    training = Data((image, 1))
    transform = (lambda pil: np.asarray(pil).transpose(2, 0, 1)) if isinstance(image, np.ndarray) else None
    made = image_of(training, transform)
    assert type(made) is type(image) or isinstance(made, Image.Image)
    expected = PICTURE / 255 if image is FLOAT else PIL if image is PIL else PICTURE
    np.testing.assert_allclose(np.asarray(made), np.asarray(expected), atol=1e-6)


def test_item_form__coloured_digits():
    digits = ColouredDigits("train", size=20)
    for training in (digits, Subset(digits, [3, 4]), ConcatDataset([digits, Subset(digits, [0])])):
        image, label = item_form(training)(PIL, 4)
        assert torch.equal(image, digits.transform(PICTURE))
        assert label == 4
        assert type(label) is int


Pair = namedtuple("Pair", ["image", "label"])


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ((FLOAT, 1), (FLOAT, 4)),
        ([FLOAT, 1], [FLOAT, 4]),
        (Pair(FLOAT, 1), Pair(FLOAT, 4)),
        ({"pixel_values": FLOAT, "labels": 1}, {"pixel_values": FLOAT, "labels": 4}),
        ({"y": 1, "x": FLOAT}, {"y": 4, "x": FLOAT}),
    ],
)
def test_item_form__tuples_and_mappings(example, expected):
    made = item_form(Data(example), v1.ToTensor())(PIL, 4)
    assert type(made) is type(example)
    same = made.items() if isinstance(made, dict) else enumerate(made)
    for key, value in same:
        assert type(value) is type(expected[key])
        assert not isinstance(value, int) or value == 4


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (1, 4),
        (1.0, 4.0),
        (np.int64(1), np.int64(4)),
        (np.float32(1), np.float32(4)),
        (torch.tensor(1), torch.tensor(4)),
        (torch.tensor([1.0]), torch.tensor([4.0])),
        (torch.tensor([0, 1, 0, 0, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 0])),
        (np.array([0.0, 1, 0, 0, 0]), np.array([0.0, 0, 0, 0, 1])),
    ],
)
def test_item_form__labels_collate_with_the_user_s(label, expected):
    training = Data((FLOAT, label), transform=v1.ToTensor())
    made = item_form(training)(PIL, 4)[1]
    assert type(made) is type(expected)
    assert np.asarray(made).dtype == np.asarray(expected).dtype
    assert (np.asarray(made) == np.asarray(expected)).all()
    DataLoader([training[0], (FLOAT, made)], batch_size=2).__iter__().__next__()


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (Data(), "is empty"),
        (Data(FLOAT), "a Tensor, neither .*make_item="),
        (Data((FLOAT,)), "a tuple, neither .*make_item="),
        (Data((FLOAT, 1, "path")), "more than an image and a label .3 elements.*make_item="),
        (Data({"image": FLOAT, "label": 1, "mask": 2}), "more than an image and a label .mask.*make_item="),
        (Data({"picture": FLOAT, "label": 1}), "a dict, neither .*make_item="),
        (Data((FLOAT, "cat")), "label of a training example is a str.*make_item="),
        (Data((FLOAT, torch.zeros(3, 3))), "label of a training example is a Tensor.*make_item="),
        (Data((FLOAT, torch.tensor([1, 1, 0]))), "neither a class nor one-hot"),
    ],
)
def test_item_form__forms_that_need_make_item(training, told):
    with pytest.raises(ConfigurationError, match=told):
        item_form(training)


@pytest.mark.parametrize(
    ("training", "told"),
    [
        (Data((torch.rand(3, 64, 64), 1), transform=v1.ToTensor()), r"\(3, 64, 64\).*of 32 x 32 pixels.*a Resize"),
        (Data((FLOAT.double(), 1), transform=v1.ToTensor()), r"float64 .*float32 \(3, 32, 32\)"),
        (Data((FLOAT * 2 - 1, 1)), r"No transform was found.*PIL image: Image RGB.*transform="),
        (Data((FLOAT, 1), transform=lambda x: x.missing), r"The transform .*AttributeError.*transform="),
    ],
)
def test_item_form__transforms_that_do_not_fit(training, told):
    form = item_form(training)
    with pytest.raises(ConfigurationError, match=told):
        form(PIL, 1)


def test_find_transform__through_wrappers():
    transform = v1.ToTensor()
    data = Data((FLOAT, 1), transform=transform)
    assert find_transform(Subset(ConcatDataset([data, data]), [0])) is transform
    assert find_transform([1, 2]) is None
    with pytest.raises(ConfigurationError, match="different transforms"):
        find_transform(ConcatDataset([data, Data((FLOAT, 1), transform=v1.Normalize(*NORMAL))]))


def test_synthetic_images__persistent_workers_find_later_images(tmp_path):
    ledger = Ledger(tmp_path)
    images = SyntheticImages(tmp_path, item_form(Data((FLOAT, 1), transform=v1.ToTensor())))
    ledger.append(LedgerRow(**{**vars(row()), "dropped": "black"}))
    ledger.append(row(), PICTURE)
    assert len(images) == 1
    drawn: list[int] = [0]
    loader = DataLoader(images, sampler=drawn, num_workers=1, persistent_workers=True)
    (batch,) = loader
    assert batch[1].tolist() == [3]
    ledger.append(row(5), PICTURE.flip(1))  # the worker lives on
    drawn[0] = 1
    (batch,) = loader
    assert batch[1].tolist() == [5]
    torch.testing.assert_close(batch[0][0], PICTURE.flip(1).float() / 255)
    with pytest.raises(IndexError, match="no image 2"):
        images[2]


def test_synthetic_images__travel_and_take_a_user_s_function(tmp_path):
    Ledger(tmp_path).append(row(), PICTURE)
    images = pickle.loads(pickle.dumps(SyntheticImages(tmp_path, make_item)))
    picture, label, extra = images[0]
    assert (np.asarray(picture) == np.asarray(PIL)).all()
    assert (label, extra) == (3, "extra")


def make_item(image, label):
    return image, label, "extra"
