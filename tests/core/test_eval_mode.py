import pytest
from torch import nn

from lightning_failures.core.eval_mode import eval_mode


def test_eval_mode__each_submodule_has_its_former_mode_afterwards():
    frozen = nn.BatchNorm1d(3).eval()
    model = nn.Sequential(nn.Dropout(), frozen)
    with eval_mode(model):
        assert not any(child.training for child in model.modules())
    assert model.training
    assert model[0].training
    assert not frozen.training


def test_eval_mode__also_after_an_exception():
    model = nn.Sequential(nn.Dropout())
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        raise ZeroDivisionError
    assert model.training
    assert model[0].training
