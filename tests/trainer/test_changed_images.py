"""The model's answers about examples with other images: in the user's form, without a trace."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_failures import BatchRecord
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.changed_images import AT_ONCE, ChangedImages
from lightning_failures.trainer.example_reader import ExampleReader
from lightning_failures.trainer.readings import Reading
from tests.helpers.toy import Images, OracleClassifier, callback, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")

LOGITS = Reading("multiclass", "logits")


class Keyed(Images):
    """Examples as mappings, with uint8 images and a third value."""

    def __getitem__(self, index):
        return {
            "image": (self.images[index] * 255).round().to(torch.uint8),
            "label": int(self.labels[index]),
            "at": 7.5,
        }


class OfBytes(OracleClassifier):
    """A model whose step is shown mappings of uint8 images, and counts its steps."""

    steps = 0

    def validation_step(self, batch, batch_idx):
        assert set(batch) == {"image", "label", "at"}
        assert batch["image"].dtype == torch.uint8
        self.steps += 1
        logits = self((batch["image"].float() / 255 - 0.5) / 0.25)
        self.log("val_loss", logits.mean())
        return {"logits": logits}


def asking(tmp_path, model, data, **reader):
    """Return what asks a model, after a validation, and the answers of the validation by id."""
    modes = callback(read_batch=reader.get("read_batch"))
    run, loader = trainer(tmp_path, modes), DataLoader(data, batch_size=16)
    run.validate(model, loader, verbose=False)
    examples = ExampleReader.of_loader(run, loader, 0, BatchReader(**reader))
    return ChangedImages(run, examples, LOGITS, 4), ~modes.last_report.table.failed


@pytest.mark.parametrize(("kind", "model"), [(Images, OracleClassifier), (Keyed, OfBytes)])
def test_answers__the_same_images_get_the_same_answers(tmp_path, kind, model):
    model, data = model(), kind()
    asked, graded = asking(tmp_path, model, data)
    ids = list(range(AT_ONCE + 5))
    before = getattr(model, "steps", 0)
    with asked.open() as answers:
        found = answers(ids, asked.examples.images(ids))
    assert 0 < int(found.sum()) < len(ids)
    assert torch.equal(found, graded[ids])
    assert getattr(model, "steps", 0) == before


def test_answers__brighter_images_are_right_and_of_any_size(tmp_path):
    data = Images()
    asked, graded = asking(tmp_path, OracleClassifier(), data)
    ids = torch.nonzero(~graded).flatten().tolist()[:6]
    bright = [data.images[i].clone() for i in ids]
    for image in bright:
        image[:, 1:, :] = 0.8
    with asked.open() as answers:
        assert answers(ids, bright).all()
        assert answers(ids[:1] * 3, [torch.full((3, 32, 16), 0.1 * float(data.labels[ids[0]]))] * 3).shape == (3,)
        assert answers([], []).shape == (0,)
    assert torch.equal(data.images, Images().images)


def test_answers__images_that_the_batch_does_not_hold_cannot_be_exchanged(tmp_path):
    def read(outputs, batch):
        return BatchRecord(images=batch[0].clone(), labels=batch[1])

    asked, _ = asking(tmp_path, OracleClassifier(), Images(), read_batch=read)
    with asked.open() as answers, pytest.raises(ConfigurationError, match="other images than the batch holds"):
        answers([0], [torch.rand(3, 8, 8)])
