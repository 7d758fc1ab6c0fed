import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, IterableDataset, default_collate

from lightning_failures import BatchRecord
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.batch_reader import READ_AT_ONCE, BatchReader, ExampleReader, training_sample
from lightning_failures.trainer.image_space import ImageSpace
from tests.helpers.toy import Images, OracleClassifier, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


# -- batches -------------------------------------------------------------------------------------------------


def test_read__own_fields_first_the_default_fills_the_rest():
    x, y = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    ids = torch.tensor([7, 9])
    reader = BatchReader(read_batch=lambda outputs, batch: BatchRecord(logits=outputs["scores"], ids=ids))
    scores = torch.eye(2)
    record = reader.read({"scores": scores, "logits": scores * 9}, (x, y))
    assert record.logits is scores
    assert record.ids is ids
    assert record.images is x
    assert record.labels is y


def test_read__an_own_reader_may_take_any_batch():
    reader = BatchReader(read_batch=lambda outputs, batch: BatchRecord(labels=batch.y))
    record = reader.read(None, type("Batch", (), {"y": torch.tensor([1])})())
    assert record.labels.tolist() == [1]
    assert record.images is None


def test_space__said_found_or_plain():
    data = Images(4)
    assert BatchReader(normalization=([0.1, 0.2, 0.3], [1, 1, 2])).space(data) == ImageSpace((0.1, 0.2, 0.3), (1, 1, 2))
    assert BatchReader().space(data) == ImageSpace((0.5,), (0.25,))
    assert BatchReader().space([1]) == BatchReader().space(None) == ImageSpace()
    with pytest.raises(ConfigurationError, match="normalization"):
        BatchReader(normalization=([0.1, 0.2], [1, 1])).space(data)


# -- examples ------------------------------------------------------------------------------------------------


def test_images__as_they_were_before_the_transform():
    data = Images(20)
    found = ExampleReader(data, default_collate, BatchReader()).images([7, 2, 7])
    torch.testing.assert_close(found, data.images[[7, 2, 7]])


def test_images__through_the_loaders_collate():
    def collate(examples):
        return {"label": torch.tensor([y for _, y in examples]), "pixel_values": torch.stack([x for x, _ in examples])}

    data = Images(20)
    torch.testing.assert_close(ExampleReader(data, collate, BatchReader()).images([3]), data.images[[3]])


def test_images__none_there():
    reader = ExampleReader([(1, 2)] * 3, default_collate, BatchReader(lambda outputs, batch: BatchRecord()))
    data_without = ExampleReader([{"y": 1}] * 3, default_collate, reader.reader)
    with pytest.raises(DataError, match="no images"):
        data_without.images([0])


def test_batches__all_in_order():
    data = Images(READ_AT_ONCE + 3)
    ids = list(range(len(data)))[::-1]
    parts = list(ExampleReader(data, default_collate, BatchReader()).batches(ids))
    assert [len(part) for part in parts] == [READ_AT_ONCE, 3]
    torch.testing.assert_close(torch.cat(parts), data.images[ids])
    assert list(ExampleReader(data, default_collate, BatchReader()).batches([])) == []


# -- the training sample -------------------------------------------------------------------------------------


class Sample(Callback):
    """Takes a sample in the midst of a run."""

    def __init__(self, **options):
        self.options = {"seed": 0} | options

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.taken = training_sample(trainer, **self.options)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Images(32))


class Module(LightningDataModule):
    """Has its data only after ``setup``."""

    def setup(self, stage):
        self.data = Images(50, seed=3)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return loader(16)


def fit(tmp_path, sample, train):
    trainer(tmp_path, sample, limit_train_batches=1).fit(OracleClassifier(), train, loader(16))
    return sample.taken


def test_training_sample__all_of_a_small_set(tmp_path):
    train = loader(40, shuffle=True)
    taken = fit(tmp_path, Sample(), train)
    assert taken.ids == list(range(40))
    assert taken.total == 40
    assert taken.dataset is train.dataset
    assert taken.collate is train.collate_fn


def test_training_sample__the_same_hash_sample_in_every_run(tmp_path):
    small, again = (fit(tmp_path, Sample(limit=30), loader(200, shuffle=True)).ids for _ in range(2))
    assert small == again == sorted(set(small))
    assert len(small) == 30
    assert fit(tmp_path, Sample(limit=30, seed=1), loader(200)).ids != small
    assert set(small) < set(fit(tmp_path, Sample(limit=60), loader(200)).ids)
    assert 60 < np.mean(small) < 140


def test_training_sample__outside_of_fit_from_the_datamodule(tmp_path):
    sample = Sample()
    trainer(tmp_path, sample).validate(OracleClassifier(), datamodule=Module(), verbose=False)
    assert sample.taken.total == 50


@pytest.mark.parametrize(
    "train", [lambda: [loader(16), loader(16)], lambda: DataLoader(Stream(), batch_size=8)], ids=["two", "iterable"]
)
def test_training_sample__sets_without_an_index_are_refused(tmp_path, train):
    class TakesAny(OracleClassifier):
        def training_step(self, batch, batch_idx):
            return self.net.get_parameter("1.bias").sum()

    run = trainer(tmp_path, Sample(), limit_train_batches=1)
    with pytest.raises(ConfigurationError, match="reference='train'"):
        run.fit(TakesAny(), train(), loader(16))


def test_training_sample__no_training_set(tmp_path):
    with pytest.raises(ConfigurationError, match="reference='validation'"):
        trainer(tmp_path, Sample()).validate(OracleClassifier(), loader(16), verbose=False)
