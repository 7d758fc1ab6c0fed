"""The callback that forks steer, and what its state says about decisions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from lightning_failures.steering.forks.callbacks import base_names, has_acted, is_decided, steered_callback
from tests.helpers.toy import callback


def steering(one, *, began=1, changes=True, flagged=True):
    entry = {"options": one.options, "began": began, "changes_training": changes}
    plans = {"0 Upweight": []} if one.changes_training else {}
    ids = torch.arange(3) if flagged else None
    return {"entries": {"0 Upweight": entry}, "draws": {"plans": plans}, "slice": ids}


def test_steered_callback__is_the_only_one():
    found = callback(interventions=[Upweight()])
    assert steered_callback(SimpleNamespace(callbacks=[Callback(), found])) is found
    with pytest.raises(ConfigurationError, match="got 0"):
        steered_callback(SimpleNamespace(callbacks=[Callback()]))
    with pytest.raises(ConfigurationError, match="all have dry_run=True"):
        steered_callback(SimpleNamespace(callbacks=[callback(interventions=[Upweight(dry_run=True)])]))


def test_is_decided__needs_a_slice_and_a_change_with_these_options():
    one = Upweight(factor=3.0)
    failures = callback(interventions=[one])
    assert is_decided(failures, steering(one))
    assert not is_decided(failures, steering(Upweight(factor=2.0)))
    assert not is_decided(failures, steering(one, changes=False))
    assert not is_decided(failures, steering(one, flagged=False))
    never = Upweight(factor=1.0)
    assert is_decided(callback(interventions=[never]), steering(never, changes=False))


def test_has_acted__before_an_epoch():
    assert has_acted(steering(Upweight(), began=1), 2)
    assert not has_acted(steering(Upweight(), began=1), 1)
    assert not has_acted(steering(Upweight(dry_run=True), began=1), 2)


def test_base_names__of_callbacks_of_either_package():
    assert {"EarlyStopping", "Callback"} <= base_names(EarlyStopping("loss"))


def test_prepare_fork__of_the_callback_stops_decisions():
    failures = callback(interventions=[Upweight()])
    failures.prepare_fork(stop_epoch=4)
    assert failures.interventions[0].stop_epoch == 4
    assert failures.verdict is None
