"""Real modules, called as Lightning calls them."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.logits_hook import LogitsObserver

BATCH = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.net = nn.Linear(6, 3)

    def forward(self, x):
        return self.net(self.backbone(x))


class NoForward(LightningModule):
    """Calls its children itself, as many a LightningModule does."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)


class Outputs(Model):
    """Applies a function to its logits and returns the result."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


class Childless(LightningModule):
    """The same without submodules that could have computed the logits."""

    def __init__(self, form):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))
        self.form = form

    def forward(self, x):
        return self.form(x @ self.weight)


class Redirected(Model):
    """As under DDP in fit: the step itself runs through ``__call__``, and calls the model inside."""

    def forward(self, x):
        if self.inside:
            return super().forward(x)
        self.inside = True
        self.seen = self(x)
        return self.seen.sum(1)  # the return value of the step has the shape of logits, too

    inside = False


def observe(module, step, *, classes=3, batch_size=5, logits_from=None, redirected=False):
    observer = LogitsObserver(logits_from)
    observer.attach(module)
    try:
        observer.begin(redirected=redirected)
        step()
        return observer.logits(batch_size=batch_size, classes=classes)
    finally:
        observer.detach()


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_logits__of_the_modules_own_call():
    model = Model()
    assert torch.equal(observe(model, lambda: model(BATCH)), model(BATCH))
    assert not observe(model, lambda: model(BATCH)).requires_grad


def test_logits__of_a_child_where_the_module_has_no_forward():
    model = NoForward()
    assert torch.equal(observe(model, lambda: model.net(BATCH)), model.net(BATCH))


@pytest.mark.parametrize(
    "form",
    [lambda z: (z, z.sum(), "more"), lambda z: [z, z[:, :2]], lambda z: {"logits": z, "features": z * 2}],
    ids=["tuple", "list", "dict"],
)
def test_logits__among_several_outputs(form):
    model = Outputs(form)
    assert torch.equal(observe(model, lambda: model(BATCH)), model.net(model.backbone(BATCH)))


@pytest.mark.parametrize(
    ("form", "classes"),
    [(lambda z: z[:, 0], 1), (lambda z: z[:, :1], 1), (lambda z: z[:, 0], 2), (lambda z: z[:, 0], None)],
)
def test_logits__of_a_binary_task(form, classes):
    model = Outputs(form)
    assert torch.equal(observe(model, lambda: model(BATCH), classes=classes), model(BATCH))


@pytest.mark.parametrize(
    "form",
    [
        lambda z: z.sum(),
        lambda z: z[:3],
        lambda z: z[:, :2],
        lambda z: z.argmax(1),
        lambda z: z[..., None],
        lambda z: {"scores": z},
        lambda z: None,
        lambda z: z.T,
    ],
    ids=["loss", "part", "columns", "classes", "3-d", "no logits key", "none", "transposed"],
)
def test_logits__none_where_nothing_may_be_logits(form):
    model = Childless(form)
    assert observe(model, lambda: model(BATCH)) is None


def test_logits__of_a_child_where_the_module_returns_something_else():
    model = Outputs(lambda z: z.argmax(1))
    assert torch.equal(observe(model, lambda: model(BATCH)), model.net(model.backbone(BATCH)))


def test_logits__two_calls_are_ambiguous():
    model = Model()
    with pytest.raises(ConfigurationError, match=r"2 tensors .*\(5, 3\), \(5, 3\).*logits_from='net'.*read_batch"):
        observe(model, lambda: (model(BATCH), model(-BATCH)))


def test_logits__another_batch_size_or_width_resolves_it():
    model = Model()
    assert torch.equal(observe(model, lambda: (model(BATCH[:2]), model(BATCH))), model(BATCH))


def test_logits__the_outer_redirected_call_is_not_the_models():
    model = Redirected()
    found = observe(model, lambda: model(BATCH), redirected=True, classes=None)
    assert torch.equal(found, model.seen)


def test_logits__inner_calls_of_the_own_forward_do_not_count():
    class Recursive(Model):
        def forward(self, x, depth=0):
            return super().forward(x) if depth else self(x, depth=1) + 1

    model = Recursive()
    assert torch.equal(observe(model, lambda: model(BATCH)), model(BATCH))


def test_logits_from__any_submodule():
    class Nested(NoForward):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleDict({"head": nn.Linear(4, 3)})

    model = Nested()
    found = observe(model, lambda: (model.net(BATCH), model.body["head"](BATCH)), logits_from="body.head")
    assert torch.equal(found, model.body["head"](BATCH))
    with pytest.raises(ConfigurationError, match=r"Nested has no such submodule\. Did you mean body\.head"):
        LogitsObserver("body.heda").attach(model)


def test_logits_from__of_a_submodule_that_returned_none():
    model = Model()
    with pytest.raises(ConfigurationError, match=r"logits_from='net'.* returned no tensor that may be.*torch\.compile"):
        observe(model, lambda: None, logits_from="net")
    with pytest.raises(ConfigurationError, match=r"logits_from='net'.* returned \(5, 3\)"):
        observe(model, lambda: model(BATCH), logits_from="net", batch_size=4)
    # the grader reports a wrong number of names
    assert observe(model, lambda: model(BATCH), logits_from="net", classes=7).shape == (5, 3)


def test_observer__observes_between_begin_and_logits_only():
    model, observer = Model(), LogitsObserver()
    observer.attach(model)
    model(BATCH)
    observer.begin(redirected=False)
    assert observer.logits(batch_size=5, classes=3) is None
    model(BATCH)
    assert observer.logits(batch_size=5, classes=3) is None
    observer.begin(redirected=False)
    model(-BATCH)
    observer.begin(redirected=False)  # a step that was cut short leaves nothing behind
    model(BATCH)
    assert torch.equal(observer.logits(batch_size=5, classes=3), model(BATCH))


def test_observer__a_step_that_raises_does_not_upset_the_next():
    model, observer = Model(), LogitsObserver()
    observer.attach(model)
    observer.begin(redirected=False)
    with pytest.raises(RuntimeError):
        model(torch.zeros(5, 9))
    observer.begin(redirected=False)
    model(BATCH)
    assert torch.equal(observer.logits(batch_size=5, classes=3), model(BATCH))


@pytest.mark.parametrize("logits_from", [None, "net"])
def test_detach__leaves_no_hook(logits_from):
    model, observer = Model(), LogitsObserver(logits_from)
    before = hooks(model)
    observer.attach(model)
    attached = hooks(model)
    observer.attach(model)
    assert hooks(model) == attached > before
    observer.detach()
    observer.detach()
    assert hooks(model) == before
