"""What others do with the loaders, the module and the loop of a run that is analysed."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.tuner import Tuner
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from lightning_failures import BatchRecord
from lightning_failures.core.hashing import stable_hash
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.index_recorder import IndexRecorder
from tests.helpers.toy import Images, OracleClassifier, callback, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]

DATA = Images(160)


def shuffled(data=DATA, **options) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(data, batch_size=16, shuffle=True, generator=generator, **options)


def assert_rows_are_right(result, data=DATA) -> None:
    """Each row holds what the model answers for the example of its id."""
    batch = torch.stack([data[i][0] for i in range(len(data))])
    answers = OracleClassifier()(batch).argmax(1)
    table = result.table
    assert table.labels.tolist() == data.labels[table.ids].tolist()
    assert table.predictions.tolist() == answers[table.ids].tolist()


# -- passes of others over a validation loader -------------------------------------------------------------------------


class Peek(Callback):
    """Looks at one batch of the validation loader in some hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.peek)

    def peek(self, trainer, module, *args, **kwargs) -> None:
        if not trainer.sanity_checking and args[2:3] in ((), (1,)):
            self.batch = next(iter(trainer.val_dataloaders))


HOOKS = (
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_train_epoch_start",
)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
def test_second_pass__rows_are_those_of_the_loop(tmp_path, hook, first):
    failures, peek = callback(), Peek(hook)
    callbacks = (failures, peek) if first else (peek, failures)
    trainer(tmp_path, *callbacks).fit(OracleClassifier(), loader(32), shuffled())
    assert failures.last_report.examples == 160
    assert_rows_are_right(failures.last_report)


@pytest.mark.slow
@pytest.mark.parametrize("hook", HOOKS)
def test_second_pass__beside_workers(tmp_path, hook):
    failures = callback()
    trainer(tmp_path, Peek(hook), failures).fit(OracleClassifier(), loader(32), shuffled(num_workers=2))
    assert failures.last_report.examples == 160
    assert_rows_are_right(failures.last_report)


class TwoAtOnce(Callback):
    """Walks through the whole validation loader beside the loop, a batch at a time."""

    def on_validation_start(self, trainer, module) -> None:
        self.walk = iter(trainer.val_dataloaders)

    def on_validation_batch_start(self, trainer, module, *args) -> None:
        next(self.walk)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_second_pass__two_alive_at_once(tmp_path, workers):
    failures = callback()
    run = trainer(tmp_path, TwoAtOnce(), failures, max_epochs=2)
    run.fit(OracleClassifier(), loader(32), shuffled(num_workers=workers))
    assert failures.last_report.examples == 160
    assert_rows_are_right(failures.last_report)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", HOOKS)
def test_second_pass__over_persistent_workers_is_right_or_refused(tmp_path, hook, first):
    """Torch restarts the one iterator, so the loop itself is led astray; rows are right or there is an error."""
    failures, peek = callback(on_error="warn"), Peek(hook)
    callbacks = (failures, peek) if first else (peek, failures)
    run = trainer(tmp_path, *callbacks)
    data = shuffled(num_workers=1, persistent_workers=True)
    with pytest.warns() as caught:
        run.fit(OracleClassifier(), loader(32), data)
    told = [str(one.message) for one in caught if "draws from the evaluation loader" in str(one.message)]
    if hook in ("on_validation_epoch_end", "on_train_epoch_start"):  # outside of the loop
        assert failures.last_report.examples == 160
    assert (failures.last_report is None) == bool(told)
    if failures.last_report is not None:
        assert_rows_are_right(failures.last_report)


# -- a loader with one long-lived iterator -----------------------------------------------------------------------------


class Repeat:
    """Repeats a batch sampler forever."""

    def __init__(self, sampler) -> None:
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from iter(self.sampler)


class MultiEpochs(DataLoader):
    """A loader of which every pass is a share of a single one, as timm's."""

    eager = False

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["batch_sampler"] = Repeat(self.batch_sampler)
        self.iterator = super().__iter__() if self.eager else None

    def __len__(self) -> int:
        return len(self.batch_sampler.sampler)

    def __iter__(self):
        if self.iterator is None:
            self.iterator = super().__iter__()
        for _ in range(len(self)):
            yield next(self.iterator)


class Eager(MultiEpochs):
    eager = True


def long_lived(kind, workers):
    generator = torch.Generator().manual_seed(3)
    return kind(DATA, batch_size=16, shuffle=True, generator=generator, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_long_lived_iterator__every_analysis_is_right(tmp_path, workers):
    failures, data, seen = callback(), long_lived(MultiEpochs, workers), []

    class Check(Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                assert_rows_are_right(failures.last_report)
                seen.append(failures.last_report.epoch)

    run = trainer(tmp_path, failures, Check(), max_epochs=3)
    run.fit(OracleClassifier(), loader(32), data)
    assert seen == [0, 1, 2]
    # the iterator outlives the run, and a later run goes on with it
    trainer(tmp_path, failures, Check()).validate(OracleClassifier(), data, verbose=False)
    assert len(seen) == 4


def test_long_lived_iterator__of_timm(tmp_path):
    timm = pytest.importorskip("timm.data.loader")
    failures, data = callback(), timm.MultiEpochsDataLoader(DATA, batch_size=16, shuffle=True)
    trainer(tmp_path, failures, max_epochs=2).fit(OracleClassifier(), loader(32), data)
    assert failures.last_report.epoch == 1
    assert failures.last_report.examples > 100  # the sanity check has taken two batches of the first pass
    assert_rows_are_right(failures.last_report)


@pytest.mark.parametrize("workers", [0, 2])
def test_long_lived_iterator__that_began_earlier_is_an_early_error(tmp_path, workers):
    with pytest.raises(ConfigurationError, match=r"from a Eager, .* persistent_workers=True"):
        trainer(tmp_path, callback()).fit(OracleClassifier(), loader(32), long_lived(Eager, workers))


# -- what libraries do with samplers -----------------------------------------------------------------------------------


class Predicts(OracleClassifier):
    def predict_step(self, batch, batch_idx):
        return self(batch[0])


class PredictsInside(Callback):
    """Predicts on the validation loader with a Trainer of its own, as logging of predictions does."""

    def __init__(self, folder) -> None:
        self.folder, self.outputs = folder, []

    def on_validation_end(self, run, module) -> None:
        if not run.sanity_checking:
            again = trainer(self.folder)
            self.outputs.append(len(again.predict(Predicts(), run.val_dataloaders)))


class Lists:
    """A batch sampler that is none of torch's classes."""

    def __iter__(self):
        return iter([list(range(16 * k, 16 * k + 16)) for k in range(10)])

    def __len__(self) -> int:
        return 10


@pytest.mark.parametrize("kind", ["batch_size", "batch_sampler", "lists", "batch_size=None"])
@pytest.mark.slow
def test_sampler__survives_a_prediction_inside_fit(tmp_path, kind):
    data = {
        "batch_size": lambda: DataLoader(DATA, batch_size=16),
        "batch_sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 16, True)),
        "lists": lambda: DataLoader(DATA, batch_sampler=Lists()),
        "batch_size=None": lambda: DataLoader(Batches(), batch_size=None),
    }[kind]()
    attribute = "sampler" if kind == "batch_size=None" else "batch_sampler"
    before = getattr(data, attribute)
    inside, failures = PredictsInside(tmp_path), callback()
    run = trainer(tmp_path, failures, inside, max_epochs=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using a custom batch sampler")
        run.fit(OracleClassifier(), loader(32), data)
    assert inside.outputs == [10, 10]
    assert failures.last_report.epoch == 1
    assert getattr(data, attribute) is before


class Batches(torch.utils.data.Dataset):
    """A data set whose examples come one by one, as batches of one."""

    classes = DATA.classes
    transform = DATA.transform

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index):
        image, label = DATA[index]
        return image[None], torch.tensor([label])


def test_sampler__copies_of_a_loader_are_plain(tmp_path):
    data, seen = loader(), []

    class Copies(Callback):
        def on_validation_start(self, run, module):
            if isinstance(run.val_dataloaders.batch_sampler, IndexRecorder):
                seen.append(copy.deepcopy(run.val_dataloaders).batch_sampler)

    trainer(tmp_path, callback(), Copies()).fit(OracleClassifier(), loader(32), data)
    assert {type(one) for one in seen} == {BatchSampler}


# -- a tuner that fails ------------------------------------------------------------------------------------------------


class Breaks(OracleClassifier):
    def __init__(self, *, at: int) -> None:
        super().__init__()
        self.at, self.lr = at, 0.01

    def training_step(self, batch, batch_idx):
        if batch_idx == self.at:
            raise RuntimeError("out of memory")
        return super().training_step(batch, batch_idx)


def test_tuner__an_error_leaves_nothing_attached(tmp_path):
    failures, module, data = callback(), Breaks(at=1), loader()
    run, sampler = trainer(tmp_path, failures), data.batch_sampler
    with pytest.raises(RuntimeError, match="out of memory"):
        Tuner(run).lr_find(module, loader(64), data, num_training=4)
    assert not {"process_dataloader", "teardown"} & set(vars(run.strategy))
    assert data.batch_sampler is sampler
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())


# -- ids of read_batch -------------------------------------------------------------------------------------------------


class WithIds(Images):
    """Images that come with an id."""

    def __init__(self, id_of, size: int = 160) -> None:
        super().__init__(size)
        self.id_of = id_of

    def __getitem__(self, index):
        return *super().__getitem__(index), self.id_of(index)


class Streamed(IterableDataset):
    """The same as a stream, whose examples have no index."""

    def __init__(self, data) -> None:
        self.data, self.classes, self.transform = data, data.classes, data.transform

    def __iter__(self):
        return (self.data[i] for i in range(len(self.data)))


class ThreeColumns(OracleClassifier):
    def validation_step(self, batch, batch_idx):
        self(batch[0])


class Conditions(ThreeColumns):
    """A model of four conditions, of which each image has one."""

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        return {"logits": self(x) * 4 - 8, "labels": torch.nn.functional.one_hot(y, 4)}


def ids_of(outputs, batch):
    return BatchRecord(ids=batch[2])


def conditions_of(outputs, batch):
    return BatchRecord(ids=batch[2], logits=outputs["logits"], labels=outputs["labels"])


def hashed(index: int) -> int:
    return int(stable_hash(np.array([index]), 0)[0].view(np.int64))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("module", "read"), [(ThreeColumns, ids_of), (Conditions, conditions_of)])
def test_ids__that_are_hashes_of_64_bits(tmp_path, module, read, stream):
    plain, hashes, out = WithIds(int), WithIds(hashed), []
    for data in (plain, hashes):
        failures = callback(read_batch=read, task="multilabel" if module is Conditions else None)
        source = DataLoader(Streamed(data) if stream else data, batch_size=16)
        trainer(tmp_path / str(len(out)), failures).validate(module(), source, verbose=False)
        out.append(failures.last_report)
    first, second = out
    assert second.examples == first.examples
    assert any(one.cv_score is not None for one in second.classes)
    assert set(second.table.ids.tolist()) == {hashed(i) for i in range(160)}
    for one, two in zip(first.classes, second.classes, strict=True):
        assert (one.name, one.accuracy) == (two.name, two.accuracy)
        assert (one.cv_score is None) == (two.cv_score is None)


SHARED = {
    "in each batch anew": lambda index: index % 16,
    "a hundred for all": lambda index: index % 100,
    "those of the classes": lambda index: index % 4,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", SHARED)
def test_ids__of_several_examples_are_an_error(tmp_path, kind, stream):
    data = WithIds(SHARED[kind])
    for how in ("validate", "fit"):
        source = DataLoader(Streamed(data) if stream else data, batch_size=16)
        failures = callback(read_batch=ids_of, on_error="warn")
        run = trainer(tmp_path, failures)
        if how == "validate":
            with pytest.raises(ConfigurationError, match="an id that another example has"):
                run.validate(ThreeColumns(), source, verbose=False)
        elif kind != "a hundred for all":  # not in two batches
            with pytest.raises(ConfigurationError, match="an id that another example has"):
                run.fit(ThreeColumns(), loader(32), source)
        else:
            with pytest.warns(UserWarning, match="an id that another example has"):
                run.fit(ThreeColumns(), loader(32), source)
            assert failures.last_report is None


def test_ids__of_a_stream_that_repeats_itself_are_counted(tmp_path):
    class Twice(Streamed):
        def __iter__(self):
            yield from super().__iter__()
            yield self.data[3]
            yield self.data[5]

    failures = callback(read_batch=ids_of)
    with pytest.warns(UserWarning, match="2 examples have an id that had occurred before"):
        trainer(tmp_path, failures).validate(
            ThreeColumns(), DataLoader(Twice(WithIds(int)), batch_size=16), verbose=False
        )
    assert failures.last_report.examples == 160
    assert any("2 examples have an id" in note for note in failures.last_report.notes)


def test_ids__an_example_drawn_twice_is_no_repetition_of_ids(tmp_path):
    failures, data = callback(read_batch=ids_of), WithIds(hashed)
    twice = DataLoader(data, batch_size=16, sampler=[*range(160), 3, 5])
    trainer(tmp_path, failures).validate(ThreeColumns(), twice, verbose=False)
    assert failures.last_report.examples == 160
    assert not any("occurred before" in note for note in failures.last_report.notes)
