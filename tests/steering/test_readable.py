"""Items of a pool that can be read, and have the form of the others."""

import pytest
import torch
from torch.utils.data import default_collate

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.steering.readable import common_form, readable_batches


class Pool(list):
    """Images with labels; an item that is an exception is raised."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if isinstance(item, Exception):
            raise item
        return item


def images(*sizes):
    return Pool((torch.zeros(size), 0) for size in sizes)


def batches(pool, ids=None, *, collate=default_collate, batch_size=4, workers=0):
    left_out: dict[int, str] = {}
    options = {"batch_size": batch_size, "generator": torch.Generator(), "num_workers": workers}
    read = list(readable_batches(pool, range(len(pool)) if ids is None else ids, collate, left_out, **options))
    return [list(ids) for ids, _ in read], left_out


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_readable_batches__name_what_is_left_out(workers):
    pool = images((3, 4, 4), (1, 4, 4), (3, 4, 4), (3, 4, 4), (3, 8, 4), (3, 4, 4))
    pool[2] = OSError("truncated")
    assert batches(pool, workers=workers) == (
        [[0, 3], [5]],
        {
            1: "looks like ['float32 (1, 4, 4)', 'number'], unlike ['float32 (3, 4, 4)', 'number']",
            2: "OSError: truncated",
            4: "looks like ['float32 (3, 8, 4)', 'number'], unlike ['float32 (3, 4, 4)', 'number']",
        },
    )
    assert batches(pool, ids=[5, 1, 0], batch_size=1)[0] == [[5], [0]]


def test_readable_batches__images_of_any_size_stay_where_the_collate_function_takes_them():
    pool = images((3, 4, 4), (3, 5, 4), (3, 6, 4))
    assert common_form(pool) is None
    assert batches(pool, collate=list) == ([[0, 1, 2]], {})


def test_readable_batches__a_pool_that_cannot_be_read_at_all_is_an_error():
    with pytest.raises(DataError, match=r"No item of the pool can be read\. Of item 0: KeyError: 'pixels'"):
        batches(Pool([KeyError("pixels"), KeyError("pixels")]))
    with pytest.raises(ConfigurationError, match="of all items"):
        batches(Pool([ConfigurationError("of all items"), (torch.zeros(3, 4, 4), 0)]))
