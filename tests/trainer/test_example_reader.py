from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, default_collate

from lightning_failures import BatchRecord
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.example_reader import (
    READ_AT_ONCE,
    BatchForm,
    ExampleReader,
    training_sample,
)
from lightning_failures.trainer.index_recorder import IndexRecorderHook
from tests.helpers.toy import Images, OracleClassifier, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


class Sizes(Images):
    """Images of which every third is larger."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image.repeat(1, 2, 2) if index % 3 == 0 else image), label


class TakesLists(Images):
    """A dataset that makes its own batches from lists of indices."""

    def __getitem__(self, indices):
        assert isinstance(indices, list)
        return torch.stack([Images.__getitem__(self, i)[0] for i in indices]), self.labels[indices]


class Batched(Images):
    """A dataset whose items are batches of two."""

    def __len__(self):
        return super().__len__() // 2

    def __getitem__(self, index):
        rows = [2 * index, 2 * index + 1]
        return torch.stack([super(Batched, self).__getitem__(i)[0] for i in rows]), self.labels[rows]


def as_dict(examples):
    return {"label": torch.tensor([y for _, y in examples]), "pixel_values": torch.stack([x for x, _ in examples])}


def without_every_fifth(examples):
    """A collate_fn that drops examples, as if their files were damaged."""
    kept = [example for example in examples if example[1] != 1]
    return default_collate(kept) if kept else (torch.zeros(0, 3, 8, 8), torch.zeros(0))


def reader_of(data, collate=default_collate, *, by="examples", transfer=lambda batch: batch, **options):
    return ExampleReader(data, BatchForm(collate, by), BatchReader(**options), transfer)


# -- examples ------------------------------------------------------------------------------------------------


def test_images__as_they_were_before_the_transform():
    data = Images(20)
    found = reader_of(data).images([7, 2, 7])
    torch.testing.assert_close(torch.stack(found), data.images[[7, 2, 7]])


def test_images__through_the_loaders_collate():
    data = Images(20)
    torch.testing.assert_close(torch.stack(reader_of(data, as_dict).images([3])), data.images[[3]])


def test_images__none_there():
    with pytest.raises(DataError, match="no images"):
        reader_of([{"y": 1}] * 3, read_batch=lambda outputs, batch: BatchRecord()).images([0])


def test_images__of_different_sizes_are_read_singly():
    data = Sizes(20)
    found = reader_of(data).images([0, 1, 2, 3])
    assert [image.shape[-1] for image in found] == [16, 8, 8, 16]
    torch.testing.assert_close(found[1], data.images[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_read__all_in_order(workers):
    data = Images(READ_AT_ONCE + 3)
    ids = list(range(len(data)))[::-1]
    reader = replace(reader_of(data), workers={"num_workers": workers})
    parts = list(reader.read(ids))
    assert [len(part.ids) for part in parts] == [READ_AT_ONCE, 3]
    assert [i for part in parts for i in part.ids] == ids
    torch.testing.assert_close(torch.cat([reader.unit_images(part.record) for part in parts]), data.images[ids])
    assert list(reader.read([])) == []


def test_read__through_the_transfer_of_the_loop():
    data = Images(20)
    reader = reader_of(data, transfer=lambda batch: (batch[0] + 1, batch[1]))
    (part,) = reader.read([4, 5])
    torch.testing.assert_close(part.batch[0], torch.stack([data[4][0], data[5][0]]) + 1)
    assert part.record.images is part.batch[0]


def test_read__random_transforms_by_their_seed_alone_and_the_generators_as_before():
    def noisy(examples):
        images, labels = default_collate(examples)
        return images + torch.rand_like(images), labels

    reader, before = reader_of(Images(20), noisy), torch.get_rng_state()
    first, again, other = (next(reader.read([3], seed=seed)).record.images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert reader.varies([1, 2])
    assert not reader_of(Images(20)).varies([1, 2])


def test_read__an_example_that_collate_drops_is_named():
    reader = reader_of(Images(20), without_every_fifth)
    assert [part.ids for part in reader.read([2, 3])] == [[2, 3]]
    with pytest.raises(DataError, match="Example 5 of the dataset gives 0 images"):
        list(reader.read([4, 5]))


# -- the form of batches -------------------------------------------------------------------------------------


def test_form__of_a_loader():
    data, lists = Images(8), TakesLists(8)
    batches = BatchSampler(SequentialSampler(lists), 4, drop_last=False)
    assert BatchForm.of(DataLoader(data, batch_size=4)).by == "examples"
    assert BatchForm.of(DataLoader(lists, batch_size=None, sampler=batches)).by == "lists"
    assert BatchForm.of(DataLoader(data, batch_size=None)).by == "items"


def test_form__a_recorder_in_the_loader_is_seen_through(tmp_path):
    seen, recorders = [], IndexRecorderHook()

    class Looks(Callback):
        def setup(self, trainer, pl_module, stage):
            recorders.attach(trainer)

        def on_validation_end(self, trainer, pl_module):
            seen.append(BatchForm.of(trainer.val_dataloaders).by)
            recorders.detach()

    lists = TakesLists(8)
    sampler = BatchSampler(SequentialSampler(lists), 4, drop_last=False)
    run = trainer(tmp_path, Looks())
    run.validate(OracleClassifier(), DataLoader(lists, batch_size=None, sampler=sampler), verbose=False)
    assert seen == ["lists"]


def test_read__a_dataset_that_takes_lists():
    data = TakesLists(20)
    reader = reader_of(data, lambda batch: batch, by="lists")
    found = reader.images([7, 2])
    torch.testing.assert_close(torch.stack(found), data.images[[7, 2]])


def test_read__items_that_are_batches_serve_as_a_whole_but_are_no_examples():
    data = Batched(20)
    reader = reader_of(data, default_collate, by="items")
    reader = replace(reader, form=BatchForm(lambda batch: batch, "items"))
    parts = list(reader.read([1, 3], one_each=False))
    torch.testing.assert_close(reader.unit_images(parts[1].record), data.images[[6, 7]])
    with pytest.raises(DataError, match="Give the DataLoader a batch_size"):
        list(reader.read([1]))


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
    assert taken.loader.dataset is train.dataset


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
