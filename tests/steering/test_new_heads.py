"""New last layers between the decision and the epoch in which they take effect."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

from lightning_failures.errors import DataError
from lightning_failures.interventions.base import NewHead
from lightning_failures.steering.checkpoint import ControllerState
from lightning_failures.steering.new_heads import NewHeads

DRAWS = {"seed": 0, "epoch": 0, "plans": {}}


def pending():
    heads = NewHeads()
    heads.put("0 RetrainHead", NewHead("1", np.full((2, 3), 0.5), np.array([1.0, -1.0])))
    return heads


def test_apply__once_and_only_for_those_that_act():
    model = nn.Sequential(nn.ReLU(), nn.Linear(3, 2))
    before = model[1].weight.clone()
    heads = pending()
    assert not heads.apply(model, [])
    assert torch.equal(model[1].weight, before)
    heads = pending()
    assert heads.apply(model, ["0 RetrainHead"])
    assert model[1].weight.tolist() == [[0.5] * 3] * 2
    assert model[1].bias.tolist() == [1.0, -1.0]
    assert not heads.apply(model, ["0 RetrainHead"])
    heads.put("0 RetrainHead", None)
    assert not heads.to_dict()


def test_state__through_a_checkpoint_under_another_name():
    file = io.BytesIO()
    torch.save(pending().to_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    state = ControllerState(DRAWS, {}, {}, (), None, None, new_heads=saved["new_heads"])
    heads = NewHeads()
    heads.load(state.new_heads, {"0 RetrainHead": "1 RetrainHead"})
    assert heads.to_dict()["new_heads"].keys() == {"1 RetrainHead"}
    heads.load(state.new_heads, {})
    assert not heads.to_dict()


@pytest.mark.parametrize("broken", [{}, {"head": "1", "weight": torch.ones(2, 3), "bias": torch.ones(3)}])
def test_state__damaged(broken):
    with pytest.raises(DataError, match="new last layer"):
        ControllerState(DRAWS, {}, {}, (), None, None, new_heads={"0 RetrainHead": broken})
