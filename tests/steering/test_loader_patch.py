"""The sampler and dataset of the interventions inside a training loader, and torch's internals that this relies on."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.appended import AppendedDataset
from lightning_failures.interventions.sampler import SamplingSchedule, WeightedSampler
from lightning_failures.steering.loader_patch import checked_loader, install_sampler, original_dataset
from tests.end_to_end.test_added import filtered
from tests.end_to_end.test_interventions import Drawn, steered, train_loader
from tests.helpers.toy import loader as loader_of
from tests.helpers.toy import trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

DATA = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12) % 3)


def appended(base):
    return AppendedDataset(base, {}, weight_key="weight")


def own_state(part) -> dict:
    """Return the attributes of a part of a loader, without the record that Lightning keeps of them."""
    return {name: value for name, value in vars(part).items() if not name.startswith("__pl_")}


@pytest.mark.parametrize("append", [None, appended])
def test_install__puts_in_and_takes_out(append):
    loader = DataLoader(DATA, batch_size=4)
    before = own_state(loader), own_state(loader.batch_sampler)
    restore = install_sampler(loader, SamplingSchedule(0), append)
    assert isinstance(loader.sampler, WeightedSampler)
    assert loader.sampler is loader.batch_sampler.sampler
    assert original_dataset(loader) is DATA
    assert len(next(iter(loader))) == (2 if append is None else 3)
    restore()
    assert (own_state(loader), own_state(loader.batch_sampler)) == before


def test_install__once():
    loader = DataLoader(DATA, batch_size=4)
    install_sampler(loader, SamplingSchedule(0))
    sampler = loader.sampler
    install_sampler(loader, SamplingSchedule(0))()
    assert loader.sampler is sampler


def test_checked_loader__names_the_remedy():
    with pytest.raises(ConfigurationError, match="Give a torch DataLoader over a map-style dataset"):
        checked_loader([1, 2])


def test_internals__of_torch_are_as_the_patch_expects():
    """If this fails with a new version of torch, adapt loader_patch.py."""
    loader = DataLoader(DATA, batch_size=4)
    for name in ("sampler", "dataset"):
        assert name in vars(loader)
        with pytest.raises(ValueError, match=f"{name} attribute should not be set after"):
            setattr(loader, name, None)
    assert vars(loader.batch_sampler)["sampler"] is loader.sampler
    # only persistent workers are kept in _iterator
    assert loader._iterator is None
    list(loader)
    assert loader._iterator is None


def test_internals__persistent_workers_are_in_iterator():
    loader = DataLoader(DATA, batch_size=4, num_workers=1, persistent_workers=True)
    list(loader)
    assert loader._iterator is not None
    restore = install_sampler(loader, SamplingSchedule(0), appended)
    assert loader._iterator is None
    assert len(next(iter(loader))) == 3
    restore()
    assert loader._iterator is None
    assert len(next(iter(loader))) == 2


def test_loaders__that_were_replaced_are_free_to_go(tmp_path):
    made = []

    class Reloads(Drawn):
        def train_dataloader(self):
            made.append(weakref.ref(data := train_loader()))
            return data

    run = trainer(tmp_path, steered(filtered()), max_epochs=4, reload_dataloaders_every_n_epochs=1)
    run.fit(Reloads(), val_dataloaders=loader_of(400))
    gc.collect()
    assert len(made) == 4
    assert [one() for one in made[:3]] == [None] * 3
