"""Batches of a real validation, graded as the callback and doctor grade them."""

import lightning as L
import pytest
import torch
from torch import nn

from lightning_failures.data.grades import BatchRecord
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_grader import BatchGrader, LogitsSource
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.index_recorder import IndexRecorderHook, dataset_of, evaluation_loaders
from lightning_failures.trainer.logits_hook import LogitsObserver
from lightning_failures.trainer.ranks import Communicator
from tests.helpers.toy import Classifier, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")


class ReturnsLogits(Classifier):
    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch[0])}


class ComputesNothing(Classifier):
    def validation_step(self, batch, batch_idx):
        return None


class GradesEachBatch(L.Callback):
    """Calls a BatchGrader as the callback does and keeps what it returns."""

    def __init__(self, read_batch=None):
        self.recorders, self.observer = IndexRecorderHook(), LogitsObserver()
        self.batch_grader = BatchGrader(BatchReader(read_batch), self.recorders, self.observer)
        self.graded, self.space = [], None

    def setup(self, trainer, pl_module, stage):
        self.recorders.attach(trainer)

    def on_validation_start(self, trainer, pl_module):
        self.observer.attach(pl_module)
        self.loader = evaluation_loaders(trainer)[0]
        self.grader = Grader(dataset=dataset_of(self.loader), class_names=None, task=None, ranks=Communicator())

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.observer.begin(redirected=False)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        read = self.batch_grader.read(self.loader, outputs, batch, batch_idx)
        ids = self.batch_grader.name(read, self.grader)
        self.space, _ = self.batch_grader.image_space(read, first=True)
        self.graded.append(self.batch_grader.grade(read, ids, self.grader, trainer, pl_module))

    def teardown(self, trainer, pl_module, stage):
        self.recorders.detach()
        self.observer.detach()


@pytest.mark.parametrize(
    ("model", "source"),
    [
        (ReturnsLogits, LogitsSource.STEP_OUTPUT),
        (Classifier, LogitsSource.OBSERVED),
        (ComputesNothing, LogitsSource.EXTRA_FORWARD),
    ],
)
def test_grade__the_same_wherever_the_logits_come_from(tmp_path, model, source):
    module, data = model(), loader(40, shuffle=True)
    callback = GradesEachBatch()
    trainer(tmp_path, callback).validate(module, data, verbose=False)
    assert {batch.logits_source for batch in callback.graded} == {source}
    grades = callback.grader.grades()
    assert grades.ids.tolist() == list(range(40))
    assert torch.equal(grades.labels, data.dataset.labels)
    with torch.no_grad():
        logits = module.eval()(torch.stack([image for image, _ in data.dataset]))
    assert torch.equal(grades.predictions, logits.argmax(1))


def test_grade__ids_and_images_of_the_batch(tmp_path):
    data, callback = loader(40, shuffle=True), GradesEachBatch()
    trainer(tmp_path, callback).validate(Classifier(), data, verbose=False)
    assert callback.space == ImageSpace((0.5,), (0.25,))
    for batch in callback.graded:
        unit = callback.space.to_unit(batch.images)
        torch.testing.assert_close(unit, data.dataset.images[batch.ids])


def test_name__examples_without_ids(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from zip(torch.zeros(4, 3, 8, 8), torch.arange(4), strict=True)

    data = torch.utils.data.DataLoader(Stream(), batch_size=2)
    with pytest.raises(ConfigurationError, match="indices of the examples cannot be read from a DataLoader"):
        trainer(tmp_path, GradesEachBatch()).validate(Classifier(), data, verbose=False)

    def read_batch(outputs, batch):
        return BatchRecord(ids=10 + batch[1])

    callback = GradesEachBatch(read_batch)
    trainer(tmp_path, callback).validate(Classifier(), data, verbose=False)
    assert callback.grader.grades().ids.tolist() == [10, 11, 12, 13]
    assert not callback.grader.indexed


def test_read__labels_are_required(tmp_path):
    class Unlabelled(Classifier):
        def validation_step(self, batch, batch_idx):
            return None

    data = torch.utils.data.DataLoader(torch.zeros(4, 3, 8, 8), batch_size=2)
    with pytest.raises(ConfigurationError, match="No labels were found"):
        trainer(tmp_path, GradesEachBatch()).validate(Unlabelled(), data, verbose=False)


def test_grade__a_model_without_visible_logits(tmp_path):
    class Hidden(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Identity()

        forward = L.LightningModule.forward

        def validation_step(self, batch, batch_idx):
            return None

    with pytest.raises(ConfigurationError, match="Hidden has no forward"):
        trainer(tmp_path, GradesEachBatch()).validate(Hidden(), loader(8), verbose=False)
