"""What is read outside of the loop equals what the loop reads: normalised in the dataset, on the device or in the step.

One set of images with known answers is given in many forms. Flagged examples, suspected labels, picks from a pool, the
reference, pictures and penultimate features must be those of the plain form: normalised in the dataset. The model fails
loudly whenever it is shown what its step would not be shown.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, default_collate
from torchvision.transforms.v2 import Normalize

from lightning_failures import BatchRecord
from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.report.run_folder import open_run
from tests.helpers.toy import callback, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZE = Normalize(MEAN, STD)
COLOURS = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200], [170, 170, 60]])
SIZE = 240
SIDE = 8


class Data(Dataset):
    """Coloured squares, half of them dark; of the dark ones 70 % are misread. A twentieth of the labels is wrong.

    The top left pixel holds what the model answers. ``make`` turns a uint8 image into that of the dataset.
    """

    def __init__(self, seed: int, size: int = SIZE, make=None, wrong_labels: bool = False) -> None:
        draw = np.random.default_rng(seed)
        true = torch.arange(size) % 4
        self.dark = torch.from_numpy(draw.random(size) < 0.5)
        fails = torch.from_numpy(draw.random(size) < np.where(self.dark, 0.7, 0.05))
        noise = torch.from_numpy(draw.integers(-30, 30, (size, 3, SIDE, SIDE)))
        colours = (COLOURS[true] * torch.where(self.dark, 0.5, 1.0)[:, None]).long()[:, :, None, None]
        self.images = (colours + noise).clamp(0, 255).to(torch.uint8)
        self.images[:, 0, 0, 0] = torch.where(fails, (true + 1) % 4, true).to(torch.uint8)
        wrong = torch.from_numpy(draw.random(size) < (0.1 if wrong_labels else 0)) & ~fails
        self.labels = torch.where(wrong, (true + 2) % 4, true)
        self.make = make or normalised
        self.classes = ["red", "green", "blue", "yellow"]
        if self.make is normalised:
            self.transform = NORMALIZE

    def __len__(self):
        return len(self.labels)

    def image(self, index):
        return self.make(self.images[index])

    def __getitem__(self, index):
        return self.image(index), int(self.labels[index])


def raw(image):
    return image.float() / 255


def normalised(image):
    return NORMALIZE(raw(image))


def unchanged(image):
    return image


def channels_last(image):
    return image.permute(1, 2, 0)


def enlarged(image, index):
    """Make every third image larger, so that images differ in size; the top left pixel stays."""
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2) if index % 3 == 0 else image


class Dicts(Data):
    def __getitem__(self, index):
        return {"picture": self.image(index), "class": int(self.labels[index])}


class Lists(Data):
    """Takes lists of indices."""

    def __getitem__(self, index):
        assert isinstance(index, list)
        return default_collate([Data.__getitem__(self, i) for i in index])


class Sizes(Data):
    def image(self, index):
        return self.make(enlarged(self.images[index], index))


class Augmented(Data):
    """The training set, whose transform is random; its view is the same without it."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.flip(-1) if torch.rand(()) < 0.5 else image, label


class Model(L.LightningModule):
    """Answers what the image holds, and refuses images that are not normalised floats, channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7, 4, bias=False)
        with torch.no_grad():
            shades = torch.linspace(-0.3, 0.3, 12).reshape(4, 3)  # no two examples have one confidence
            self.head.weight.copy_(torch.cat([4 * torch.eye(4), shades], dim=1))
        self.losses: list[float] = []

    def features(self, x):
        assert x.is_floating_point()
        assert x.shape[1] == 3
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
        pixels = (x * std + mean) * 255
        if not self.training:  # augmentation of training batches moves the answer away
            assert (pixels - pixels.round()).abs().max() < 0.01, "the model is shown images that are not normalised"
        answers = pixels[:, 0, 0, 0].round().long().clamp(0, 3)
        return torch.cat([F.one_hot(answers, 4).float(), x.mean((2, 3))], dim=1)

    def forward(self, x):
        return self.head(self.features(x))

    def step_input(self, x):
        return x

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(self.step_input(x)), y) * 0

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.losses.append(float(F.cross_entropy(self(self.step_input(x)), y)))
        self.log("val_loss", self.losses[-1])

    def on_validation_epoch_end(self):
        self.log("n_losses", float(len(self.losses)))
        self.losses.clear()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class OnDevice(Model):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return NORMALIZE(batch[0]), batch[1]


class BytesOnDevice(Model):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return NORMALIZE(batch[0].float() / 255), batch[1]


class AugmentsOnDevice(Model):
    """Augments as with kornia: on the device, while the Trainer trains."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x = NORMALIZE(batch[0])
        if self.trainer.training:
            x = x.flip(-1) + torch.rand_like(x)
        return x, batch[1]


class AugmentsInMode(Model):
    """The same, asking the module itself."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x = NORMALIZE(batch[0])
        return (x.flip(-1) + torch.rand_like(x) if self.training else x), batch[1]


class BeforeTransfer(Model):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return NORMALIZE(batch["picture"]), batch["class"]


class InTheStep(Model):
    def step_input(self, x):
        return NORMALIZE(x.float() / 255)


class ChannelsLastInTheStep(Model):
    def step_input(self, x):
        return NORMALIZE(x.permute(0, 3, 1, 2).float() / 255)


class TrainingFormInTraining(Model):
    """Training batches are mappings, which the hook takes only while the Trainer trains."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (NORMALIZE(batch["picture"]), batch["class"]) if self.trainer.training else batch


class Loaders(L.LightningDataModule):
    """A loader for training and one for validation."""

    def __init__(self, train, val) -> None:
        super().__init__()
        self.train, self.val = train, val

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.val


class Hooks(Loaders):
    """Loaders, and hooks that normalise on the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x = NORMALIZE(batch[0])
        return (x + torch.rand_like(x) if self.trainer.training else x), batch[1]


class ViewOfTraining(Loaders):
    """The training set is augmented; its view is not."""

    def train_analysis_dataset(self):
        return Dicts(5, make=raw, wrong_labels=True)


def as_pairs(examples):
    """Collate mappings under names of one's own."""
    return torch.stack([one["picture"] for one in examples]), torch.tensor([one["class"] for one in examples])


def as_mapping(examples):
    images, labels = default_collate(examples)
    return {"pixel_values": NORMALIZE(images), "labels": labels, "index": list(range(len(labels)))}


def mixed(examples):
    """Mix the images of a training batch, and their labels."""
    images, labels = default_collate(examples)
    share = torch.rand(()).item()
    soft = F.one_hot(labels, 4).float()
    return images * share + images.flip(0) * (1 - share), soft * share + soft.flip(0) * (1 - share)


class Mappings(Model):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["pixel_values"], batch["labels"]), batch_idx)

    def validation_step(self, batch, batch_idx):
        super().validation_step((batch["pixel_values"], batch["labels"]), batch_idx)


def first_channels(outputs, batch):
    return BatchRecord(images=batch[0].permute(0, 3, 1, 2))


def unnormalised(outputs, batch):
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return BatchRecord(images=batch[0] * std + mean)


DECLARED = {"normalization": (MEAN, STD)}


@dataclass(frozen=True)
class Form:
    """A form in which a user has the data and the model; by default normalised in the dataset."""

    model: type[Model] = Model
    data: type[Data] = Data
    make: Any = normalised
    options: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)  # arguments of the loaders
    val: dict[str, Any] = field(default_factory=dict)
    datamodule: Any = None
    training_data: type[Data] | None = None
    training_make: Any = None


PLAIN = Form()
FORMS = {
    "on the device": Form(OnDevice, make=raw, options=DECLARED),
    "bytes on the device": Form(BytesOnDevice, make=unchanged, options=DECLARED),
    "augmented while the Trainer trains": Form(AugmentsOnDevice, make=raw, options=DECLARED),
    "augmented while the module trains": Form(AugmentsInMode, make=raw, options=DECLARED),
    "before the transfer": Form(BeforeTransfer, Dicts, raw, DECLARED),
    "by the datamodule": Form(make=raw, options=DECLARED, datamodule=Hooks),
    "in the step": Form(InTheStep, make=unchanged),
    "channels last in the step": Form(
        ChannelsLastInTheStep, make=channels_last, options={"read_batch": first_channels}
    ),
    "images of read_batch": Form(options={"read_batch": unnormalised, "normalization": ([0.0], [1.0])}),
    "collated to mappings": Form(
        Mappings, make=raw, options=DECLARED, train={"collate_fn": as_mapping}, val={"collate_fn": as_mapping}
    ),
    "mixed in collate": Form(OnDevice, make=raw, options=DECLARED, train={"collate_fn": mixed}),
    "lists of indices": Form(
        OnDevice,
        Lists,
        raw,
        DECLARED,
        train={"batch_size": None, "sampler": lambda data: BatchSampler(RandomSampler(data), 16, drop_last=False)},
        val={"batch_size": None, "sampler": lambda data: BatchSampler(SequentialSampler(data), 16, drop_last=False)},
    ),
    "a view with its own collate": Form(
        OnDevice,
        Dicts,
        raw,
        DECLARED,
        train={"collate_fn": as_pairs},
        val={"collate_fn": as_pairs},
        datamodule=ViewOfTraining,
    ),
    "normalised only in training": Form(
        TrainingFormInTraining, training_data=Dicts, training_make=raw, options=DECLARED
    ),
}


def loader_of(data, options, **others):
    made = {"batch_size": 16} | others | options
    if made["batch_size"] is None:
        made = {name: value for name, value in made.items() if name != "shuffle"}
    if "sampler" in made:
        made["sampler"] = made["sampler"](data)
    return DataLoader(data, **made)


def fit(tmp_path, form: Form, *callbacks, epochs=2, **options):
    """Fit with the callback; return it, the Trainer and what was warned of."""
    train_set = (form.training_data or form.data)(5, make=form.training_make or form.make, wrong_labels=True)
    train = loader_of(train_set, form.train, shuffle=True)
    val = loader_of(form.data(0, make=form.make), form.val)
    failures = callback(**({"cache_folder": tmp_path / "cache"} | form.options | options))
    run = trainer(tmp_path / "run", failures, *callbacks, max_epochs=epochs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if form.datamodule is None:
            run.fit(form.model(), train, val)
        else:
            run.fit(form.model(), datamodule=form.datamodule(train, val))
    texts = [str(one.message) for one in caught if "Failure" in str(one.message) or "label" in str(one.message)]
    assert float(run.callback_metrics["n_losses"]) == -(-SIZE // (val.batch_size or 16))
    return failures, run, texts


def flagged(failures, name):
    """The training examples whose weight is not 1 by the last decision."""
    return failures.state_dict()["steering"]["draws"]["plans"][name][-1]["ids"].tolist()


# -- interventions -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What comes out where images are normalised in the dataset."""
    return upweighted(tmp_path_factory.mktemp("plain"), PLAIN)


def upweighted(tmp_path, form):
    failures, _, texts = fit(tmp_path, form, interventions=[Upweight(factor=2.0)])
    assert texts == []
    entry = failures.last_report["interventions"][0]
    return {
        "flagged": flagged(failures, "0 Upweight"),
        "suspected": {row["id"]: row["predicted"] for row in entry["review"]},
    }


def test_plain__the_planted_failures_are_flagged_and_wrong_labels_suspected(plain):
    data = Data(5, wrong_labels=True)
    assert 50 < len(plain["flagged"]) < 130
    assert data.dark[plain["flagged"]].float().mean() > 0.8
    wrong = (data.labels != torch.arange(SIZE) % 4).nonzero().flatten().tolist()
    assert len(wrong) > 5
    assert len(set(plain["suspected"]) & set(wrong)) >= 3


@pytest.mark.parametrize("name", FORMS)
def test_upweight__the_same_examples_are_flagged_and_suspected(tmp_path, plain, name):
    assert upweighted(tmp_path, FORMS[name]) == plain


@pytest.mark.slow
def test_upweight__images_of_different_sizes_are_read_singly(tmp_path):
    singly = {"train": {"batch_size": 1}, "val": {"batch_size": 1}}
    found = [
        upweighted(tmp_path / form.model.__name__, form)
        for form in (Form(data=Sizes, **singly), Form(OnDevice, Sizes, raw, DECLARED, **singly))
    ]
    assert found[0] == found[1]
    assert len(found[0]["flagged"]) > 50


def test_upweight__with_workers(tmp_path, plain):
    form = Form(OnDevice, make=raw, options=DECLARED, train={"num_workers": 2})
    assert upweighted(tmp_path, form) == plain


POOLED = ["augmented while the Trainer trains", "by the datamodule", "channels last in the step", "mixed in collate"]
POOLED += ["before the transfer", "collated to mappings"]


def picked(tmp_path, form, by):
    pool = form.data(9, make=form.make, wrong_labels=True)
    failures, _, texts = fit(tmp_path, form, interventions=[AddFiltered(pool, 10, by=by, similarity=1.0)])
    assert texts == []
    entries = failures.last_report["interventions"][0]["classes"]
    return [(entry["pool_ids"], entry["suspected"], entry["in_training"]) for entry in entries]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["decision_value", "confidence"])
def test_filtered__the_same_picks_from_a_pool(tmp_path, by):
    expected = picked(tmp_path / "plain", PLAIN, by)
    assert sum(len(ids) for ids, _, _ in expected) == 40
    assert sum(suspected for _, suspected, _ in expected) > 0
    assert {name: picked(tmp_path / name, FORMS[name], by) for name in POOLED} == dict.fromkeys(POOLED, expected)


# -- the reference, features, pictures -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["plain", "on the device", "augmented while the Trainer trains", "by the datamodule", "mixed in collate"]
)
def test_reference__the_training_images_as_they_are(tmp_path, name):
    form = FORMS.get(name, PLAIN)
    failures, _, texts = fit(tmp_path, form, epochs=1, reference="train")
    expected, _, _ = fit(tmp_path / "plain", PLAIN, epochs=1, reference="train")
    assert texts == []
    torch.testing.assert_close(failures.last_report.directions.mean, expected.last_report.directions.mean)
    torch.testing.assert_close(failures.last_report.directions.std, expected.last_report.directions.std)


def test_reference__items_that_are_batches(tmp_path):
    class Pairs(Data):
        def __len__(self):
            return super().__len__() // 2

        def __getitem__(self, index):
            return default_collate([Data.__getitem__(self, i) for i in (2 * index, 2 * index + 1)])

    form = Form(
        OnDevice, make=raw, options=DECLARED, training_data=Pairs, training_make=raw, train={"batch_size": None}
    )
    found, expected = (fit(tmp_path, one, epochs=1, reference="train")[0] for one in (form, PLAIN))
    torch.testing.assert_close(found.last_report.directions.mean, expected.last_report.directions.mean)


class KeepsFeatures(L.Callback):
    """Asks FailureModes for the features of the training set while the Trainer trains."""

    def __init__(self):
        self.failures = None

    def on_train_end(self, trainer, pl_module):
        failures = next(one for one in trainer.callbacks if hasattr(one, "training_features"))
        state = trainer.state.stage, pl_module.training, torch.get_rng_state()
        self.found = failures.training_features(trainer, pl_module)
        assert (trainer.state.stage, pl_module.training) == state[:2]
        assert torch.equal(torch.get_rng_state(), state[2])


@pytest.mark.parametrize("name", FORMS)
def test_training_features__of_what_the_step_is_shown(tmp_path, name):
    keeps = KeepsFeatures()
    fit(tmp_path, FORMS[name], keeps, epochs=1, encoder=None)
    data = Data(5)
    model = Model().eval()
    expected = model.features(torch.stack([data.image(i) for i in range(SIZE)]))
    assert keeps.found.head == "head"
    assert keeps.found.ids.tolist() == list(range(SIZE))
    torch.testing.assert_close(keeps.found.features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["plain", "on the device", "augmented while the Trainer trains", "lists of indices", "channels last in the step"],
)
def test_pictures__show_the_images_of_the_dataset(tmp_path, name):
    failures, _, texts = fit(tmp_path, FORMS.get(name, PLAIN), epochs=1, pictures=True)
    assert texts == []
    gallery = open_run(next((tmp_path / "run").rglob("gallery.json")).parent).gallery
    data = Data(0)
    tiles = [tile for picture in gallery.pictures for row in picture.rows for tile in row.tiles]
    assert len(tiles) > 8
    assert failures.last_report.accuracy == pytest.approx(0.625, abs=0.1)
    for tile in tiles:
        scale = tile.image.shape[-1] // SIDE
        pixels = tile.image[:, ::scale, ::scale].int()
        assert (pixels - data.images[tile.id].int()).abs().max() <= 1


def test_pictures__of_different_sizes(tmp_path):
    form = Form(OnDevice, Sizes, raw, DECLARED, train={"batch_size": 1}, val={"batch_size": 1})
    fit(tmp_path, form, epochs=1, pictures=True)
    gallery = open_run(next((tmp_path / "run").rglob("gallery.json")).parent).gallery
    assert len(gallery.thumbnails.ids) > 100


# -- doubts --------------------------------------------------------------------------------------------------


class FloatsInTheStep(Model):
    def step_input(self, x):
        return NORMALIZE(x)


@pytest.mark.parametrize("options", [{"interventions": [Upweight()]}, {"reference": "train"}, {}])
def test_doubt__a_declared_normalisation_that_the_batch_does_not_have_is_said_once(tmp_path, options):
    form = Form(FloatsInTheStep, make=raw, options=DECLARED)
    _, _, texts = fit(tmp_path, form, **options)
    assert len(texts) == 1
    assert "on_after_batch_transfer" in texts[0]
    assert "normalization=" in texts[0]


def test_model__whose_step_takes_no_training_batch_costs_the_triage_alone(tmp_path):
    class OfValidation(InTheStep):
        def validation_step(self, batch, batch_idx):
            super().validation_step((batch["picture"], batch["class"]), batch_idx)

    form = Form(OfValidation, Dicts, unchanged, training_data=Data, training_make=unchanged)
    read_batch = {"read_batch": lambda outputs, batch: of_either(batch)}
    failures, _, texts = fit(tmp_path, replace(form, options=read_batch), interventions=[Upweight()])
    assert failures.last_report["interventions"][0]["flagged"] > 50
    (text,) = texts
    assert "Suspected label errors are not detected" in text
    assert "validation_step" in text


def of_either(batch):
    if isinstance(batch, dict):
        return BatchRecord(images=batch["picture"], labels=batch["class"])
    return BatchRecord(images=batch[0], labels=batch[1])
