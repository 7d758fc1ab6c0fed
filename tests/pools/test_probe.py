"""A look at some examples of a pool before it is embedded."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.errors import DataError
from lightning_failures.pools.probe import probe_pool
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.example_reader import unchanged
from tests.helpers.toy import Images
from tests.processes.embed_pool import BATCH, SIZE, Damaged


def probed(data, *, scored=False, task=None, **options):
    return probe_pool(DataLoader(data, batch_size=BATCH, **options), BatchReader(), unchanged, task=task, scored=scored)


def hexes(data, *ids):
    keys = content_keys(torch.stack([data[i][0] for i in ids])).tolist()
    return tuple("".join(f"{part & (2**64 - 1):016x}" for part in key) for key in keys)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_probe__the_first_the_middle_and_the_last_image(workers):
    data = Images(SIZE, seed=7)
    found = probed(data, num_workers=workers)
    assert found.sample == hexes(data, 0, 125, 249)
    assert found.channels == 3
    assert probed(Images(1)).sample == hexes(Images(1), 0)


def test_probe__an_image_that_cannot_be_embedded_has_no_key():
    assert probed(Damaged(SIZE, seed=7)).sample == ("", *hexes(Images(SIZE, seed=7), 125), "")


def test_probe__a_random_transform_leaves_no_sample():
    class Noisy(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image * 0.9 + 0.01 * torch.rand(1), label

    before = torch.get_rng_state()
    assert probed(Noisy(SIZE)).sample == ()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("share", "channels"), [(0, 3), (2, None), (20, 3)])
def test_probe__channels_of_nearly_all_images(share, channels):
    class Grey(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return (image[:1] if share and index // 15 % share == 1 else image), label

    assert probed(Grey(SIZE)).channels == channels


@pytest.mark.parametrize("labels", ["none", "not classes"])
def test_probe__labels(labels):
    class Unlabelled(Images):
        def __getitem__(self, index):
            image, _ = super().__getitem__(index)
            return {"image": image} | ({"label": -1.0} if labels == "not classes" else {})

    if labels == "none":
        assert probed(Unlabelled(SIZE)).channels == 3
        with pytest.raises(DataError, match="Scoring needs the label"):
            probed(Unlabelled(SIZE), scored=True)
    else:
        with pytest.raises(DataError, match="one class for each example"):
            probed(Unlabelled(SIZE))
