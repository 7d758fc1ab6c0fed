"""All checks together: every fault is reported once, and nothing is left behind."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_failures.doctor import CHECKS, examine
from tests.doctor.contexts import Data, Silent, only, random_states, statuses
from tests.helpers.toy import Images, OracleClassifier, callback, loader, trainer


def test_examine__leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, images = OracleClassifier(), loader(shuffle=True)
    made = trainer(tmp_path, callback(), logger=CSVLogger(tmp_path / "logs"))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    before = random_states()
    sampler = images.batch_sampler
    found = list(examine(made, model, Data(images)))
    assert "problem" not in statuses(found)
    assert random_states() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert images.batch_sampler is sampler
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_examine__every_check_says_something_even_where_all_goes_wrong(tmp_path):
    class Nothing(L.LightningModule):
        pass

    made = trainer(tmp_path, callback(encoder="no/such", robust_encoder="nowhere.pt", cache_folder="/dev/null/x"))
    found = list(examine(made, Nothing()))
    assert {one.check for one in found} == set(CHECKS)
    assert {"encoder", "robust encoder", "batches"} <= {one.check for one in found if one.status == "problem"}


@pytest.mark.parametrize("fault", ["labels", "normalisation", "step", "stage"])
def test_examine__what_is_broken_is_reported_once(tmp_path, fault):
    images, model = Images(), Silent()
    if fault == "labels":
        images.labels[2] = 9
    elif fault == "normalisation":
        images.transform = lambda image: 5 * image
    elif fault == "step":
        model.validation_step = None
    data = Data(DataLoader(images, batch_size=16))
    if fault == "stage":  # a data module that only knows how to fit is none
        data.setup = lambda stage: setattr(data, "loaders", data.loaders if stage == "fit" or data.ready else [])
        data.ready = True
    found = list(examine(trainer(tmp_path, callback()), model, data))
    assert [one.check for one in found if one.status == "problem"] == {
        "labels": ["batches"],
        "normalisation": ["images"],
        "step": ["batches"],
        "stage": [],
    }[fault]


def test_examine__needs_the_callback(tmp_path):
    assert only(examine(trainer(tmp_path), OracleClassifier()), "problem").check == "callback"
