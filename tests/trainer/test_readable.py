"""Examples that can be read, and have the form of the others."""

import io

import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.example_reader import BatchForm, ExampleReader, unchanged
from lightning_failures.trainer.readable import Unreadable, common_form, form_of, read_example


class Pool(list):
    """Images with labels; an item that is an exception is raised."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if isinstance(item, Exception):
            raise item
        return item


def images(*sizes):
    return Pool((torch.zeros(size), 0) for size in sizes)


def first_of_each(examples):
    """A collate_fn that takes images of any size."""
    return [image[:1, :1, :1] for image, _ in examples], torch.tensor([label for _, label in examples])


def batches(pool, ids=None, *, collate=default_collate, at_once=4, workers=0):
    left_out: dict[int, str] = {}
    options = {"workers": {"num_workers": workers}, "left_out": left_out}
    reader = ExampleReader(pool, BatchForm(collate), BatchReader(), unchanged, **options)
    return [part.ids for part in reader.read(range(len(pool)) if ids is None else ids, at_once=at_once)], left_out


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_read__names_what_is_left_out(workers):
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
    assert batches(pool, ids=[5, 1, 0], at_once=1)[0] == [[5], [0]]


def test_common_form__images_of_any_size_have_none():
    pool = images((3, 4, 4), (3, 5, 4), (3, 6, 4))
    assert common_form(pool) is None
    assert batches(pool, collate=first_of_each) == ([[0, 1, 2]], {})
    assert batches(pool) == ([[0], [1], [2]], {})


def test_common_form__the_first_examples_may_be_the_odd_ones():
    assert common_form(images(*[(1, 4, 4)] * 16, *[(3, 4, 4)] * 48))[0] == "float32 (3, 4, 4)"


def test_form_of__pictures_from_files_of_any_format():
    def stored(mode, format):
        file = io.BytesIO()
        Image.new(mode, (4, 4)).save(file, format)
        return Image.open(file)

    assert form_of(stored("RGB", "PNG")) == form_of(stored("RGB", "JPEG")) != form_of(stored("L", "PNG"))


def test_read__what_collate_or_a_hook_cannot_take_is_left_out():
    def collate(examples):
        if any(label == 7 for _, label in examples):
            raise ValueError("seven")
        return default_collate(examples)

    def transfer(batch):
        if len(batch[1]) == 1 and batch[1][0] == 8:
            raise ValueError("eight")
        return batch

    pool = Pool((torch.zeros(3, 4, 4), label) for label in (0, 7, 8, 3))
    left_out: dict[int, str] = {}
    reader = ExampleReader(pool, BatchForm(collate), BatchReader(), transfer, left_out=left_out)
    assert [part.ids for part in reader.read(range(4))] == [[0], [3]]
    assert left_out == {1: "ValueError: seven", 2: "ValueError: eight"}


def test_read__items_that_are_none_or_that_collate_drops():
    def kept(examples):
        found = [example for example in examples if example[1] != 7]
        return default_collate(found) if found else (torch.zeros(0, 3, 4, 4), torch.zeros(0))

    pool = Pool((torch.zeros(3, 4, 4), label) for label in (0, 1, 7, 3))
    pool[1] = None
    found, left_out = batches(pool, collate=kept)
    assert found == [[0], [3]]
    assert left_out[1] == "the dataset returns None"
    assert "instead of one" in left_out[2]


def test_read_example__an_error_of_the_form_of_all_examples_is_raised():
    assert read_example(Pool([KeyError("pixels")]), 0) == Unreadable("KeyError: 'pixels'")
    with pytest.raises(ConfigurationError, match="of all items"):
        read_example(Pool([ConfigurationError("of all items")]), 0)
