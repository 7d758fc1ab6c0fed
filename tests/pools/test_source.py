"""Which loaders can be cut into blocks, and the loaders of blocks."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Subset,
    WeightedRandomSampler,
)

from lightning_failures.errors import ConfigurationError
from lightning_failures.pools.source import batch_size_of, blocks_loader, whole_loader
from tests.helpers.toy import Images
from tests.processes.embed_pool import BATCH, SIZE


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Images(4))


def loader_of(kind: str) -> object:
    data = Images(SIZE, seed=7)
    return {
        "iterable": lambda: DataLoader(Stream(), batch_size=4),
        "two": lambda: [DataLoader(data), DataLoader(data)],
        "list": lambda: [[1, 2]],
        "weighted": lambda: DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * SIZE, 10)),
        "batches": lambda: DataLoader(data, batch_sampler=BatchSampler(range(9), BATCH, drop_last=True)),
        "no batch": lambda: DataLoader(data, batch_size=None),
        "empty": lambda: DataLoader(Subset(data, [])),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("iterable", "__getitem__ and __len__"),
        ("two", "ConcatDataset"),
        ("list", "ConcatDataset"),
        ("weighted", "Subset"),
        ("batches", "Subset"),
        ("no batch", "batch_size"),
        ("empty", "no examples"),
    ],
)
def test_whole_loader__that_cannot_be_cut(kind, remedy):
    with pytest.raises(ConfigurationError, match=re.escape(remedy)):
        whole_loader(loader_of(kind), "predict_dataloader")


def test_whole_loader__one_in_a_list():
    loader = DataLoader(Images(8), batch_size=4, shuffle=True)
    assert whole_loader([loader], "predict_dataloader") is loader
    assert batch_size_of(loader) == 4


def test_blocks_loader__batches_do_not_cross_blocks():
    loader = DataLoader(Images(20), batch_size=4, shuffle=True)
    blocks = blocks_loader(loader, [range(2, 8), range(12, 13)])
    parts = [one for (one,) in blocks]
    assert [ids for ids, _ in parts] == [[2, 3, 4, 5], [6, 7], [12]]
    assert [len(labels) for _, (_, labels) in parts] == [4, 2, 1]
    assert len(blocks) == 3
    first = parts[0][1][0]
    assert torch.equal(first, torch.stack([Images(20)[i][0] for i in range(2, 6)]))


def test_blocks_loader__images_of_different_sizes_are_read_singly():
    data = [(torch.zeros(3, 4 + k // 2, 4), k) for k in range(4)]
    (pair, singles) = blocks_loader(DataLoader(data, batch_size=2), [range(2), range(2, 4)])
    assert [ids for ids, _ in pair] == [[0, 1]]
    assert [ids for ids, _ in singles] == [[2, 3]]
    (mixed,) = blocks_loader(DataLoader(data, batch_size=3), [range(1, 4)])
    assert [(ids, tuple(images.shape)) for ids, (images, _) in mixed] == [
        ([1], (1, 3, 4, 4)),
        ([2], (1, 3, 5, 4)),
        ([3], (1, 3, 5, 4)),
    ]
