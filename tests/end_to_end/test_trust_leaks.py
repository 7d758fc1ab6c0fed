"""Images of the validation set never reach the training set, and pools are matched by the names of their classes."""

from __future__ import annotations

import logging
import math

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_failures import FailureModes
from lightning_failures.callback import AdvancedOptions
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions import AddFiltered, AddSynthetic
from tests.helpers.toy import ColourEncoder, OverOneFile, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
CLASSES = 4


class Marked(Dataset):
    """Noise images, of which the dark ones are mostly misread; the top left pixel holds what the model answers."""

    def __init__(self, size=240, *, seed=0, classes=tuple(f"kind {k}" for k in range(CLASSES))):
        rng = np.random.default_rng(seed)
        self.labels = np.arange(size) % CLASSES
        dark = rng.random(size) < 0.5
        wrong = rng.random(size) < np.where(dark, 0.7, 0.05)
        answers = np.where(wrong, (self.labels + 1) % CLASSES, self.labels)
        x = rng.random((size, 3, 12, 12)) * 0.3 + np.where(dark, 0.1, 0.6)[:, None, None, None]
        x[:, 0, 0, 0] = answers / 255
        self.x = torch.from_numpy(x.astype("float32"))
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.x[index], int(self.labels[index])


class Oracle(L.LightningModule):
    """Answers what the image holds, and keeps what it is trained on."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.trained_on = []

    def forward(self, x):
        answers = (x[:, 0, 0, 0] * 255).round().long().clamp(0, CLASSES - 1)
        return 4.0 * F.one_hot(answers, CLASSES).float() + self.w * 0

    def training_step(self, batch, batch_idx):
        self.trained_on.append((batch[0].clone(), batch[1].clone()))
        return F.cross_entropy(self(batch[0]), batch[1]) + self.w.sum() * 0

    def validation_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(tmp_path, intervention, *, validation, training=None, epochs=3, encoder=None):
    """Return the images (n, 3, 12, 12) and labels (n,) that were drawn, and the last report."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    failures = FailureModes(
        encoder=encoder or ColourEncoder(),
        pictures=False,
        on_error="raise",
        interventions=[intervention],
        advanced=AdvancedOptions(permutations=99, cache_folder=tmp_path / "cache"),
    )
    module = Oracle()
    if not isinstance(training, DataLoader):
        training = DataLoader(training or Marked(160, seed=5), batch_size=16, shuffle=True)
    run = trainer(tmp_path, failures, max_epochs=epochs)
    run.fit(module, training, DataLoader(validation, batch_size=16))
    images, labels = (torch.cat(parts) for parts in zip(*module.trained_on, strict=True))
    return images, labels, failures.last_report


def filtered(pool, **options):
    """Return an AddFiltered for which only exact copies are duplicates: the encoder maps all images close together."""
    return AddFiltered(pool, 15, **({"triage": False, "similarity": 1.0} | options))


def held(images, others):
    """Return which images (n, ...) are among others (m, ...), (n,) bool."""
    known = {image.numpy().tobytes() for image in others}
    return torch.tensor([image.numpy().tobytes() in known for image in images])


@pytest.mark.parametrize("relabelled", [False, True])
def test_filtered__images_of_the_validation_set_are_never_added(tmp_path, relabelled):
    validation, pool = Marked(400, seed=1), Marked(400, seed=9)
    pool.x[:200] = validation.x[:200]
    pool.labels[:200] = (validation.labels[:200] + relabelled) % CLASSES  # a copy with another label is a copy
    images, _, report = fit(tmp_path, filtered(pool), validation=validation)
    assert not held(images, validation.x).any()
    assert held(images, pool.x[200:]).sum() > 20
    (entry,) = report["interventions"]
    assert entry["added"] == 60
    left_out = sum(row["in_validation"] for row in entry["classes"])
    assert left_out > 10
    assert f"AddFiltered left out {left_out} images of the pool that are" in " ".join(report["notes"])


def test_filtered__near_duplicates_of_validation_images_are_left_out_by_the_given_similarity(tmp_path):
    validation, pool = Marked(400, seed=1), Marked(400, seed=9)
    pool.x[:200] = (validation.x[:200] + 1e-4).clamp(0, 1)
    _, _, exact = fit(tmp_path / "exact", filtered(pool, every_n_epochs=9), validation=validation)
    taken = {row for entry in exact["interventions"][0]["classes"] for row in entry["pool_ids"]}
    assert any(row < 200 for row in taken)  # not exactly equal
    _, _, near = fit(tmp_path / "near", filtered(pool, similarity=0.999999, every_n_epochs=9), validation=validation)
    taken = {row for entry in near["interventions"][0]["classes"] for row in entry["pool_ids"]}
    assert taken
    assert all(row >= 200 for row in taken)


def test_filtered__a_pool_of_validation_images_alone_adds_nothing(tmp_path):
    validation = Marked(240, seed=1)
    _, _, report = fit(tmp_path, filtered(validation), validation=validation, epochs=2)
    (entry,) = report["interventions"]
    assert entry["added"] == 0
    reasons = [row["reason"] for row in entry["classes"] if "failures" not in row["reason"]]  # others have too few
    assert len(reasons) >= 2
    assert all("validation" in reason for reason in reasons), reasons


class Damaged(Marked):
    """A pool with an item that cannot be read, a grey one and a larger one, at these numbers."""

    def __init__(self, *damaged):
        super().__init__(400, seed=9)
        self.damaged = damaged

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        if index == self.damaged[0]:
            raise OSError(f"image {index} is truncated")
        if index == self.damaged[1]:
            image = image[:1]
        if index == self.damaged[2]:
            image = torch.cat([image, image], dim=2)
        return image, label


@pytest.mark.parametrize("damaged", [(0, 1, 2), (33, 300, 399)])
def test_filtered__items_that_cannot_be_read_are_left_out_and_named(tmp_path, damaged):
    _, _, report = fit(tmp_path, filtered(Damaged(*damaged)), validation=Marked(400, seed=1))
    (entry,) = report["interventions"]
    assert entry["added"] == 60
    assert not {row for one in entry["classes"] for row in one["pool_ids"]} & set(damaged)
    (note,) = [note for note in report["notes"] if "could not read" in note]
    assert "3 items of the pool, which are left out" in note
    assert f"{damaged[0]} (OSError: image {damaged[0]} is truncated)" in note
    assert f"{damaged[1]} (looks like ['float32 (1, 12, 12)', 'number']" in note


class Edited(Marked):
    """A pool of which some images are changed when they are read."""

    def __init__(self, edits, size=400):
        super().__init__(size, seed=9)
        self.edits = edits

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return self.edits[index](image) if index in self.edits else image, label


def spoiled(image):
    return torch.where(torch.arange(12) == 5, math.nan, image)


def bright(image):
    return image * 900


class FailsForGreen(ColourEncoder):
    """An encoder that fails for green images."""

    def encode_images(self, images):
        if (images[:, 1].amin((1, 2)) > 0.95).any():
            raise RuntimeError("too green")
        return super().encode_images(images)


def green(image):
    image = image.clone()
    image[1] = 0.99
    return image


@pytest.mark.parametrize("by", ["decision_value", "confidence", "random"])
@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({33: spoiled, 0: spoiled}, "0 (NaN or infinite pixels), 33 (NaN or infinite pixels)"),
        ({256: bright}, "256 (values far outside [0, 1])"),  # alone in its batch
        (dict.fromkeys(range(256, 350), bright), "257 (values far outside [0, 1])"),  # most images of a batch
        ({40: green}, "40 (encoder colours: RuntimeError: too green)"),
    ],
)
def test_filtered__images_that_cannot_be_embedded_are_left_out_and_named(tmp_path, edits, reason, by):
    pool = Edited(edits, size=257 if 256 in edits and len(edits) == 1 else 400)
    options = {"validation": Marked(400, seed=1), "encoder": FailsForGreen()}
    _, _, report = fit(tmp_path, filtered(pool, by=by), **options)
    (entry,) = report["interventions"]
    assert entry["added"] == 60
    assert not {row for one in entry["classes"] for row in one["pool_ids"]} & set(edits)
    (note,) = [note for note in report["notes"] if "could not read or embed" in note]
    assert f"{len(edits)} item" in note
    assert reason in note


def broken(image):
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (spoiled, r"350 of 400 items of the pool cannot be read or embedded, such as 0 \(NaN or infinite pixels\)"),
        (broken, r"350 of 400 items .* such as 0 \(OSError: the disk is gone\)"),
        (bright, r"instead of 0 to 1\. Give the normalization="),
    ],
)
def test_filtered__a_pool_of_which_most_items_fail_is_an_error(tmp_path, edit, message):
    pool = Edited(dict.fromkeys(range(350), edit))
    with pytest.raises(DataError, match=message):
        fit(tmp_path, filtered(pool), validation=Marked(400, seed=1))


class OpensLate(OverOneFile, Damaged):
    """A damaged pool over one file, which is opened by the first look and cannot be shared with another process."""


@pytest.mark.slow
def test_filtered__a_damaged_pool_is_read_by_workers_alone(tmp_path):
    training = DataLoader(Marked(160, seed=5), batch_size=16, shuffle=True, num_workers=2)
    pool = OpensLate(33, 300, 399)
    source = {"validation": Marked(400, seed=1), "training": training, "epochs": 2}
    _, _, report = fit(tmp_path, filtered(pool, dry_run=True), **source)
    assert "3 items of the pool, which are left out: 33 (OSError" in " ".join(report["notes"])


class Copies:
    """A generator that returns images of the validation set, and every third time new ones."""

    name, licence = "copies", "MIT"

    def __init__(self, images):
        self.images = (images * 255).round().to(torch.uint8)
        self.made = 0

    def generate(self, prompts, seeds):
        rng = np.random.default_rng(list(seeds))
        images = self.images[rng.integers(0, len(self.images), len(seeds))].clone()
        for k in range(len(seeds)):
            self.made += 1
            if self.made % 3 == 0:
                images[k] = torch.from_numpy(rng.integers(0, 60, images[k].shape).astype("uint8"))
        return images

    def close(self):
        pass


@pytest.mark.parametrize("similarity", [1.0, 0.999999])
def test_synthetic__copies_of_validation_images_are_dropped(tmp_path, similarity):
    validation = Marked(400, seed=1)
    validation.x = (validation.x * 255).round() / 255
    generator = Copies(validation.x)
    intervention = AddSynthetic(
        generator, 4, prompt="reference", candidates=9, similarity=similarity, transform=as_tensor, every_n_epochs=9
    )
    images, _, report = fit(tmp_path, intervention, validation=validation)
    eight_bit = (validation.x * 255).round().to(torch.uint8)
    assert not held((images * 255).round().to(torch.uint8), eight_bit).any()
    (entry,) = report["interventions"]
    assert entry["added"] > 0
    dropped = sum(row.get("dropped", {}).get("in validation", 0) for row in entry["classes"])
    assert dropped > 0
    assert f"AddSynthetic dropped {dropped} generated images" in " ".join(report["notes"])


def as_tensor(image):
    """Convert a PIL image to a float tensor (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("order", [(1, 0, 3, 2), (3, 0, 1, 2)])
def test_filtered__a_pool_with_classes_in_another_order_is_matched_by_name(tmp_path, order):
    names = [f"kind {k}" for k in range(CLASSES)]
    pool = Marked(400, seed=9, classes=[names[k] for k in order])
    truth = pool.labels.copy()
    pool.labels = np.argsort(order)[truth]  # the numbers of the pool's own list
    assert [pool.classes[label] for label in pool.labels] == [names[label] for label in truth]
    images, labels, report = fit(tmp_path, filtered(pool, view=pool), validation=Marked(400, seed=1))
    number = {image.numpy().tobytes(): label for image, label in zip(pool.x, truth, strict=True)}
    added = held(images, pool.x)
    assert added.sum() > 20
    assert [number[image.numpy().tobytes()] for image in images[added]] == labels[added].tolist()
    picked = [(k, row) for k, entry in enumerate(report["interventions"][0]["classes"]) for row in entry["pool_ids"]]
    assert all(truth[row] == k for k, row in picked)


def test_filtered__a_pool_with_other_classes_is_an_error_before_the_first_batch(tmp_path):
    pool = Marked(80, seed=9, classes=["kind 0", "kind 1", "kind 2", "a sort"])
    with pytest.raises(ConfigurationError, match=r"a sort cannot be matched. Give a pool whose `classes`"):
        fit(tmp_path, filtered(pool), validation=Marked(240, seed=1))


def test_filtered__a_training_set_without_names_and_a_pool_in_another_order_is_an_error(tmp_path):
    pool = Marked(80, seed=9, classes=[f"kind {k}" for k in (1, 0, 2, 3)])
    training = Marked(160, seed=5, classes=None)
    with pytest.raises(ConfigurationError, match="the training set has no names to match them by"):
        fit(tmp_path, filtered(pool), validation=Marked(400, seed=1), training=training)
