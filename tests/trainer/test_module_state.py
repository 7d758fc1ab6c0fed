"""What a step leaves behind in a module is taken back, whatever holds it."""

from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from lightning_failures.trainer.module_state import state_kept


class Meter:
    """A counter of the kind that people write themselves."""

    def __init__(self):
        self.total, self.history = 0, []

    def add(self, value):
        self.total += value
        self.history.append(value)


class Keeper(nn.Module):
    """A module with state of every kind."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.accuracy, self.auroc = MulticlassAccuracy(3), MulticlassAUROC(3)
        self.outputs, self.by_epoch, self.last = [torch.zeros(2)], {"a": [1]}, deque([1, 2], maxlen=3)
        self.seen, self.meter, self.table = {1}, Meter(), np.zeros(3)
        self.register_buffer("count", torch.zeros(1))
        self.lazy = nn.LazyLinear(2)

    def step(self):
        x, y = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
        self.accuracy.update(self.net(x), y)
        self.auroc.update(self.net(x).softmax(1), y)
        self.outputs[0].add_(1)
        self.outputs.append(x)
        self.by_epoch["a"].append(2)
        self.by_epoch["b"] = []
        self.last.append(9)
        self.seen.add(2)
        self.meter.add(5)
        self.table += 1
        self.count += 1
        self.best = 0.9
        self.register_buffer("late", torch.ones(2))

    def state(self):
        return {
            "buffers": {name: value.tolist() for name, value in self.named_buffers()},
            "accuracy": (self.accuracy.tp.tolist(), self.accuracy.update_count),
            "auroc": (len(self.auroc.preds), self.auroc.update_count),
            "outputs": [one.tolist() for one in self.outputs],
            "plain": (self.by_epoch, list(self.last), self.seen, self.meter.total, self.meter.history),
            "table": self.table.tolist(),
            "names": sorted(vars(self)),
        }


@pytest.mark.parametrize("fails", [False, True])
def test_state_kept__of_every_kind_also_after_an_error(fails):
    module = Keeper()
    module.step()
    del module.best, module.late
    before, holders = str(module.state()), (module.outputs, module.meter, module.last, module.count)
    try:
        with state_kept(module):
            module.step()
            assert str(module.state()) != before
            if fails:
                raise RuntimeError("the step fails")
    except RuntimeError:
        assert fails
    assert str(module.state()) == before
    assert all(a is b for a, b in zip(holders, (module.outputs, module.meter, module.last, module.count), strict=True))


def test_state_kept__parameters_and_the_graph_of_objects_are_left_alone():
    module = Keeper()
    module.me, module.parts = module, [module.net]  # circles
    with state_kept(module):
        with torch.no_grad():
            module.net[0].weight.zero_()
        module.net[1].eval()
    assert not module.net[0].weight.any()
    assert module.net[1].training
    assert module.me is module
