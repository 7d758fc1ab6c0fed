"""Real loaders, prepared by a real Trainer's strategy."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_failures.trainer.index_recorder import (
    IndexRecorder,
    IndexRecorderHook,
    RecordedPass,
    dataset_of,
    evaluation_loaders,
    record,
)
from tests.helpers.toy import OracleClassifier, loader, trainer


class Numbers(Dataset):
    """Each example is its own index."""

    classes = ("even", "odd")

    def __init__(self, size=11):
        self.groups = torch.arange(size) // 2

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        return index


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


@pytest.fixture
def attached(tmp_path):
    """A hook on a Trainer, and the function with which that Trainer prepares its loaders."""
    hook, run = IndexRecorderHook(), trainer(tmp_path)
    hook.attach(run)
    yield hook, lambda loader: run.strategy.process_dataloader(loader)
    hook.detach()


LOADERS = {
    "in order": lambda: DataLoader(Numbers(), batch_size=4),
    "shuffled": lambda: DataLoader(Numbers(), batch_size=4, shuffle=True),
    "drop last": lambda: DataLoader(Numbers(), batch_size=4, drop_last=True),
    "subset": lambda: DataLoader(Numbers(), batch_size=4, sampler=[9, 3, 5, 0, 1]),
    "batch sampler": lambda: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(range(11)), 3, drop_last=False)
    ),
    "lists as batches": lambda: DataLoader(Numbers(), batch_sampler=[[1, 2], [0], [10, 4, 7]]),
    "no batching": lambda: DataLoader(Numbers(), batch_size=None),
    "workers run ahead": lambda: DataLoader(Numbers(40), batch_size=2, shuffle=True, num_workers=2, prefetch_factor=4),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_recorder__says_what_each_batch_holds(attached, kind):
    hook, process = attached
    loader = process(LOADERS[kind]())
    length = len(loader)
    for _ in range(2):  # a new pass starts afresh
        pairs = [(hook.take(loader, i), torch.as_tensor(batch).reshape(-1).tolist()) for i, batch in enumerate(loader)]
        assert len(pairs) == length
        assert all(said == held for said, held in pairs)
        assert all(type(index) is int for said, _ in pairs for index in said)


def test_recorder__an_abandoned_pass_is_forgotten(attached):
    hook, process = attached
    loader = process(DataLoader(Numbers(), batch_size=4, sampler=RandomSampler(Numbers())))
    next(iter(loader))
    for number, batch in enumerate(loader):
        assert hook.take(loader, number) == batch.tolist()
        assert hook.take(loader, number) is None  # taken
    assert hook.take(loader, 99) is None


class Weird:
    """A batch sampler without torch's interface, and with a layout that no other class can share."""

    __slots__ = ("batches", "epoch")

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


class Strange(BatchSampler):
    """A batch sampler with arguments of its own."""

    def __init__(self, sampler, *, size, seed):
        super().__init__(sampler, size, drop_last=True)
        self.seed = seed


SAMPLERS = {
    "batch sampler": lambda: BatchSampler(range(7), 3, drop_last=False),
    "of a subclass": lambda: Strange(range(7), size=3, seed=5),
    "lists": lambda: [[1, 2], [0]],
    "slots": lambda: Weird([[1, 2], [0]]),
    "single indices": lambda: SequentialSampler(range(7)),
    "distributed": lambda: DistributedSampler(Numbers(), num_replicas=2, rank=0, shuffle=False),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_recorder__stands_for_the_sampler(kind):
    sampler = SAMPLERS[kind]()
    recorder = record(sampler)
    assert len(recorder) == len(sampler)
    assert list(recorder) == list(recorder) == list(sampler)
    for copied in (copy.copy(recorder), copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        assert type(copied) is type(sampler)
        assert copied is not sampler
        assert list(copied) == list(sampler)
    if kind not in ("lists", "slots"):
        assert isinstance(recorder, type(sampler))
        assert isinstance(recorder, torch.utils.data.Sampler)
    if kind != "lists":
        recorder.epoch = 3
        assert sampler.epoch == 3
    with pytest.raises(AttributeError):
        recorder.no_such_attribute  # noqa: B018


def test_recorder__another_of_its_type_is_a_plain_sampler():
    plain = type(record(SAMPLERS["batch sampler"]()))(range(5), batch_size=2, drop_last=True)
    assert type(plain) is BatchSampler
    assert list(plain) == [[0, 1], [2, 3]]
    strange = type(record(SAMPLERS["of a subclass"]()))(range(5), size=2, seed=1)
    assert type(strange) is Strange


def test_recorder__set_epoch_reaches_a_distributed_sampler():
    sampler = torch.utils.data.DistributedSampler(Numbers(), num_replicas=2, rank=0)
    recorder = record(sampler)
    recorder.set_epoch(5)
    assert sampler.epoch == 5


# -- the hook ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "attribute"), [("shuffled", "batch_sampler"), ("no batching", "sampler")])
def test_hook__leaves_loaders_as_they_were(attached, kind, attribute):
    hook, process = attached
    data = LOADERS[kind]()
    before = getattr(data, attribute)
    assert process(data) is process(data) is data  # a reload of the same loader
    assert isinstance(getattr(data, attribute), IndexRecorder)
    assert getattr(data, attribute).wrapped is before
    for _ in range(2):
        hook.detach()
        assert getattr(data, attribute) is before
        assert hook.recorder(data) is None


@pytest.mark.parametrize("first", [0, 1])
def test_hook__two_of_them_in_either_order(tmp_path, first):
    run, hooks = trainer(tmp_path), (IndexRecorderHook(), IndexRecorderHook())
    for hook in hooks:
        hook.attach(run)
        hook.attach(run)
    loader = run.strategy.process_dataloader(LOADERS["shuffled"]())
    before = loader.batch_sampler.wrapped.wrapped
    for number, batch in enumerate(loader):
        for hook in hooks:
            assert hook.take(loader, number) == batch.tolist()
    for hook in (hooks[first], hooks[1 - first]):
        hook.detach()
    assert loader.batch_sampler is before
    assert "process_dataloader" not in vars(run.strategy)


def test_hook__records_nothing_once_detached(tmp_path):
    run, hook = trainer(tmp_path), IndexRecorderHook()
    hook.attach(run)
    kept = run.strategy.process_dataloader  # as another wrapper would keep it
    hook.detach()
    loader = kept(LOADERS["shuffled"]())
    assert not isinstance(loader.batch_sampler, IndexRecorder)


@pytest.mark.parametrize("loader", [DataLoader(Stream(), batch_size=2), [1, 2, 3], iter([1])])
def test_hook__loaders_without_indices_pass_through(attached, loader):
    hook, process = attached
    assert process(loader) is loader
    assert hook.recorder(loader) is None


def test_hook__batches_out_of_order_are_not_recorded(attached):
    hook, process = attached
    loader = DataLoader(Numbers(), batch_size=2, num_workers=2, in_order=False)
    assert hook.recorder(process(loader)) is None


# -- internals of other packages -----------------------------------------------------------------------------


def test_internals__a_sampler_cannot_be_assigned_but_is_read_from_the_instance():
    loader = DataLoader(Numbers(), batch_size=4)
    with pytest.raises(ValueError, match="should not be set after"):
        loader.batch_sampler = [[3, 1]]
    assert loader.__dict__["batch_sampler"] is loader.batch_sampler
    loader.__dict__["batch_sampler"] = [[3, 1], [2]]
    assert [batch.tolist() for batch in loader] == [[3, 1], [2]]
    single = DataLoader(Numbers(), batch_size=None)
    single.__dict__["sampler"] = [3, 1]
    assert [int(example) for example in single] == [3, 1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_internals__persistent_workers_keep_their_sampler_until_the_iterator_is_dropped():
    loader = DataLoader(Numbers(), batch_size=4, num_workers=1, persistent_workers=True)
    assert loader._iterator is None
    assert len(list(loader)) == 3
    loader.__dict__["batch_sampler"] = [[3, 1]]
    assert len(list(loader)) == 3  # of the old sampler
    loader._iterator = None
    assert [batch.tolist() for batch in loader] == [[3, 1]]


def test_internals__lightning_processes_every_loader_through_the_strategy(tmp_path):
    hook, run, processed = IndexRecorderHook(), trainer(tmp_path), []
    assert "process_dataloader" not in vars(run.strategy)  # a method of the class, wrapped on the instance
    hook.attach(run, lambda _, loader: processed.append(loader))
    train, evaluation = loader(32), loader(16)
    run.fit(OracleClassifier(), train, evaluation)
    assert processed == [train]
    assert hook.recorder(evaluation) is not None
    hook.detach()
    assert "process_dataloader" not in vars(run.strategy)


def test_internals__an_iterator_says_where_it_is():
    loader = DataLoader(Numbers(), batch_size=4)
    loader.__dict__["batch_sampler"] = record(loader.batch_sampler)
    iterator = iter(loader)
    assert isinstance(iterator, _BaseDataLoaderIter)
    assert isinstance(iterator._sampler_iter, RecordedPass)
    for number, _ in enumerate(iterator, 1):
        assert iterator._num_yielded == number


def test_internals__the_loop_shows_its_iterator(tmp_path):
    run, seen = trainer(tmp_path), []

    class Look(OracleClassifier):
        def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
            loop = run.validate_loop if run.state.fn == "validate" else run.fit_loop.epoch_loop.val_loop
            (iterator,) = loop._combined_loader._iterator.iterators
            seen.append((dataloader_idx, batch_idx, iterator._num_yielded))

    run.validate(Look(), [loader(32), loader(32)], verbose=False)
    assert seen == [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 2)]
    seen.clear()
    run.fit(Look(), loader(32), loader(32))
    assert seen == [(0, 0, 1), (0, 1, 2)] * 2


# -- which loaders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_evaluation_loaders__by_index(tmp_path, many):
    loaders = [loader(32), loader(16, seed=1)] if many else loader(32)
    run, seen = trainer(tmp_path), []
    module = OracleClassifier()
    module.on_validation_end = lambda: seen.append(evaluation_loaders(run))
    assert evaluation_loaders(run) == []
    run.validate(module, loaders, verbose=False)
    assert seen == [loaders if many else [loaders]]
    run.test(OracleClassifier(), loader(16), verbose=False)


# -- attributes of datasets -----------------------------------------------------------------------------------


def test_dataset_of__any_loader():
    data = Numbers()
    assert dataset_of(DataLoader(data)) is data
    assert dataset_of([1, 2]) is None
