"""Real loaders, prepared by a real Trainer's strategy."""

import pickle

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Subset

from lightning_failures.trainer.index_recorder import (
    IndexRecorder,
    IndexRecorderHook,
    dataset_attribute,
    dataset_of,
    evaluation_loaders,
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
def tapped(tmp_path):
    """A tap on a Trainer, and the function with which that Trainer prepares its loaders."""
    tap, run = IndexRecorderHook(), trainer(tmp_path)
    tap.attach(run)
    yield tap, lambda loader: run.strategy.process_dataloader(loader)
    tap.detach()


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
def test_recorder__says_what_each_batch_holds(tapped, kind):
    tap, process = tapped
    loader = process(LOADERS[kind]())
    length = len(loader)
    for _ in range(2):  # a new pass starts afresh
        pairs = [
            (tap.recorder(loader).take(i), torch.as_tensor(batch).reshape(-1).tolist())
            for i, batch in enumerate(loader)
        ]
        assert len(pairs) == length
        assert all(said == held for said, held in pairs)
        assert all(type(index) is int for said, _ in pairs for index in said)


def test_recorder__an_abandoned_pass_is_forgotten(tapped):
    tap, process = tapped
    loader = process(DataLoader(Numbers(), batch_size=4, sampler=RandomSampler(Numbers())))
    next(iter(loader))
    for number, batch in enumerate(loader):
        assert tap.recorder(loader).take(number) == batch.tolist()
        assert tap.recorder(loader).take(number) is None  # taken
    assert tap.recorder(loader).take(99) is None


def test_recorder__looks_like_the_sampler():
    sampler = BatchSampler(range(7), 3, drop_last=False)
    recorder = IndexRecorder(sampler)
    assert len(recorder) == len(sampler) == 3
    assert recorder.batch_size == 3
    assert recorder.sampler is sampler.sampler
    with pytest.raises(AttributeError):
        recorder.no_such_attribute  # noqa: B018
    assert list(pickle.loads(pickle.dumps(recorder))) == list(sampler)


def test_recorder__set_epoch_reaches_a_distributed_sampler():
    sampler = torch.utils.data.DistributedSampler(Numbers(), num_replicas=2, rank=0)
    recorder = IndexRecorder(sampler)
    recorder.set_epoch(5)
    assert sampler.epoch == 5


# -- the tap -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "attribute"), [("shuffled", "batch_sampler"), ("no batching", "sampler")])
def test_tap__leaves_loaders_as_they_were(tapped, kind, attribute):
    tap, process = tapped
    data = LOADERS[kind]()
    before = getattr(data, attribute)
    assert process(data) is process(data) is data  # a reload of the same loader
    assert isinstance(getattr(data, attribute), IndexRecorder)
    assert getattr(data, attribute).wrapped is before
    for _ in range(2):
        tap.detach()
        assert getattr(data, attribute) is before
        assert tap.recorder(data) is None


@pytest.mark.parametrize("first", [0, 1])
def test_tap__two_of_them_in_either_order(tmp_path, first):
    run, taps = trainer(tmp_path), (IndexRecorderHook(), IndexRecorderHook())
    for tap in taps:
        tap.attach(run)
        tap.attach(run)
    loader = run.strategy.process_dataloader(LOADERS["shuffled"]())
    before = loader.batch_sampler.wrapped.wrapped
    for number, batch in enumerate(loader):
        for tap in taps:
            assert tap.recorder(loader).take(number) == batch.tolist()
    for tap in (taps[first], taps[1 - first]):
        tap.detach()
    assert loader.batch_sampler is before
    assert "process_dataloader" not in vars(run.strategy)


def test_tap__a_detached_one_taps_nothing(tmp_path):
    run, tap = trainer(tmp_path), IndexRecorderHook()
    tap.attach(run)
    kept = run.strategy.process_dataloader  # as another wrapper would keep it
    tap.detach()
    loader = kept(LOADERS["shuffled"]())
    assert not isinstance(loader.batch_sampler, IndexRecorder)


@pytest.mark.parametrize("loader", [DataLoader(Stream(), batch_size=2), [1, 2, 3], iter([1])])
def test_tap__what_has_no_indices_passes_through(tapped, loader):
    tap, process = tapped
    assert process(loader) is loader
    assert tap.recorder(loader) is None


def test_tap__batches_out_of_order_cannot_be_told(tapped):
    tap, process = tapped
    loader = DataLoader(Numbers(), batch_size=2, num_workers=2, in_order=False)
    assert tap.recorder(process(loader)) is None


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


# -- what datasets tell --------------------------------------------------------------------------------------


def test_dataset_of__any_loader():
    data = Numbers()
    assert dataset_of(DataLoader(data)) is data
    assert dataset_of([1, 2]) is None


def test_dataset_attribute__through_subsets():
    data = Numbers(11)
    nested = Subset(Subset(data, [10, 4, 5]), [2, 0])  # examples 5 and 10
    assert dataset_attribute(nested, "classes") == ("even", "odd")
    assert torch.as_tensor(dataset_attribute(nested, "groups")).tolist() == [2, 5]
    assert dataset_attribute(nested, "no such thing") is None
    assert dataset_attribute(None, "classes") is None


def test_dataset_attribute__of_the_wrapper_itself_comes_first():
    subset = Subset(Numbers(), [3, 1])
    subset.groups = [7, 8]
    assert dataset_attribute(subset, "groups") == [7, 8]


def test_dataset_attribute__classes_are_never_one_an_example():
    class Three(torch.utils.data.Dataset):
        classes = ("a", "b", "c")

        def __len__(self):
            return 3

    assert dataset_attribute(torch.utils.data.Subset(Three(), [2, 0]), "classes") == ("a", "b", "c")
    joined = torch.utils.data.ConcatDataset([Three(), Three()])
    assert dataset_attribute(joined, "classes") == ("a", "b", "c")
