"""Penultimate features of real models: for a linear head, features @ weight.T + bias are the logits."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_grader import BatchGrader
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.evaluation_pass import EmbeddingPass, EvaluationPass
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.index_recorder import IndexRecorderHook, dataset_of, evaluation_loaders
from lightning_failures.trainer.logits_hook import LogitsObserver
from lightning_failures.trainer.penultimate import PenultimateObserver, PenultimatePass, penultimate_features
from lightning_failures.trainer.ranks import Communicator
from tests.helpers.toy import Classifier, Images, loader, trainer
from tests.helpers.toy import callback as make_callback


class HandMade(L.LightningModule):
    """Doubles its two inputs, then adds them up for class 0 and subtracts them, plus one, for class 1."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2, bias=False)
        self.fc = nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            self.body.weight.copy_(2 * torch.eye(2))
            self.fc.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
            self.fc.bias.copy_(torch.tensor([0.0, 1.0]))

    def forward(self, x):
        return self.dropout(self.fc(self.body(x)))


class FunctionalHead(HandMade):
    def forward(self, x):
        return F.linear(self.body(x), 3 * self.fc.weight, self.fc.bias)


class Nested(HandMade):
    """The head inside of containers that return its output."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(self.body, nn.ReLU()), nn.Sequential(self.fc, nn.Identity()))
        del self.body, self.fc

    def forward(self, x):
        return self.net(x)


class SmallNet(Classifier):
    """A small network on the images of the tests, with a hidden layer."""

    def __init__(self, classes=4):
        super().__init__(classes)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.net(x))


INPUT = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])


def observe(model, head=None):
    """Features, logits and the observer after one call in eval mode."""
    observer = PenultimateObserver(head)
    observer.attach(model)
    observer.begin()
    logits = model.eval()(INPUT)
    features = observer.features(logits)
    observer.detach()
    return features, logits, observer


def hooks(model):
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in model.modules())


# -- one step --------------------------------------------------------------------------------------------------


def test_features__by_hand():
    features, logits, observer = observe(HandMade())
    assert observer.head == "fc"  # not the dropout behind it, which changes nothing in eval mode
    assert features.tolist() == [[2.0, 4.0], [-6.0, 1.0]]
    assert logits.tolist() == [[6.0, -1.0], [-5.0, -6.0]]


def test_features__of_a_nested_head():
    model = Nested()
    features, logits, observer = observe(model)
    assert observer.head == "net.1.0"
    fc = model.net[1][0]
    torch.testing.assert_close(features @ fc.weight.T + fc.bias, logits)


def test_features__of_a_parametrized_head():
    model = HandMade()
    nn.utils.parametrizations.weight_norm(model.fc)
    features, _, observer = observe(model)
    assert observer.head == "fc"
    assert features.tolist() == [[2.0, 4.0], [-6.0, 1.0]]


@pytest.mark.parametrize("change", [lambda t: t.detach().clone(), lambda t: t.double(), lambda t: t.half().float()])
def test_features__logits_that_were_copied_or_cast(change):
    model, observer = HandMade().eval(), PenultimateObserver()
    observer.attach(model)
    observer.begin()
    assert observer.features(change(model(INPUT))).tolist() == [[2.0, 4.0], [-6.0, 1.0]]
    observer.detach()


def test_features__one_logit_an_example():
    model, observer = HandMade(), PenultimateObserver()
    model.fc = nn.Linear(2, 1)
    model.eval()
    observer.attach(model)
    observer.begin()
    features = observer.features(model(INPUT).squeeze(1))
    assert features.tolist() == [[2.0, 4.0], [-6.0, 1.0]]
    observer.detach()


def test_features__a_functional_head_names_the_remedy():
    with pytest.raises(ConfigurationError, match=r"No submodule of FunctionalHead .* such as nn.Linear.*head='net.fc'"):
        observe(FunctionalHead())
    with pytest.raises(ConfigurationError, match="head 'fc' was not called with features"):
        observe(FunctionalHead(), head="fc")
    features, _, _ = observe(HandMade(), head="body")  # the one that was named, whatever it computes
    assert torch.equal(features, INPUT)


def test_attach__unknown_head():
    with pytest.raises(ConfigurationError, match=r"head='bodi': HandMade has no such submodule.*body"):
        PenultimateObserver("bodi").attach(HandMade())


def test_observer__holds_nothing_between_steps_and_removes_its_hooks():
    model, observer = HandMade().eval(), PenultimateObserver()
    observer.attach(model)
    observer.attach(model)
    model(INPUT)
    assert not observer._calls  # not between begin and end
    observer.begin()
    observer.features(model(INPUT))
    assert hooks(model) == 1  # the head alone is observed once it is known
    assert not observer._calls
    observer.detach()
    assert hooks(model) == 0


# -- a validation ----------------------------------------------------------------------------------------------


class GradesValidation(L.Callback):
    """Grades a validation as the callback does, with or without features."""

    def __init__(self, penultimate: bool):
        self.recorders = IndexRecorderHook()
        self.batches = BatchGrader(BatchReader(), self.recorders, LogitsObserver())
        if penultimate:
            self.batches.keep_penultimate_features()

    def setup(self, trainer, pl_module, stage):
        self.recorders.attach(trainer)

    def on_validation_start(self, trainer, pl_module):
        self.batches.attach(pl_module)
        loader, ranks = evaluation_loaders(trainer)[0], Communicator()
        grader = Grader(dataset=dataset_of(loader), class_names=None, task=None, ranks=ranks)
        self.evaluation = EvaluationPass(grader, EmbeddingPass(cached_encoders=(), ranks=ranks))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.batches.begin(trainer, pl_module, evaluation_loaders(trainer)[dataloader_idx])

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        read = self.batches.read(evaluation_loaders(trainer)[0], outputs, batch, batch_idx)
        ids = self.batches.name(read, self.evaluation.grader)
        graded = self.batches.grade(read, ids, self.evaluation.grader, trainer, pl_module)
        if graded.features is not None:
            self.evaluation.penultimate.add(graded.ids, graded.features)
        self.batches.end()

    def teardown(self, trainer, pl_module, stage):
        self.recorders.detach()
        self.batches.detach()


def test_validation__features_of_each_example_by_id(tmp_path):
    model, callback = SmallNet(), GradesValidation(True)
    trainer(tmp_path, callback).validate(model, loader(40), verbose=False)
    wanted = torch.tensor([3, 7, 31])
    features = callback.evaluation.penultimate.features_of(Communicator(), [wanted])
    images = torch.stack([Images(40)[i][0] for i in wanted])
    logits = model.eval()(images)
    torch.testing.assert_close(features @ model.head.weight.T + model.head.bias, logits)
    assert callback.batches.head == "head"
    assert hooks(model) == 0


def test_validation__keeps_no_features_unless_asked(tmp_path):
    callback = GradesValidation(False)
    trainer(tmp_path, callback).validate(SmallNet(), loader(40), verbose=False)
    assert callback.evaluation.penultimate.features_of(Communicator(), [torch.tensor([3])]) is None


def test_features_of__nan_if_one_is_missing():
    kept = PenultimatePass()
    kept.add(torch.tensor([4, 2]), torch.tensor([[4.0], [2.0]]))
    assert kept.features_of(Communicator(), [torch.tensor([2, 4])]).tolist() == [[2.0], [4.0]]
    assert kept.features_of(Communicator(), [torch.tensor([2, 3])]).isnan().tolist() == [[False], [True]]
    assert kept.features_of(Communicator(), [torch.tensor([3])]) is None


# -- a pass over the training set ------------------------------------------------------------------------------


def training_batches(size=20):
    images = Images(size)
    for start in range(0, size, 8):
        ids = torch.arange(start, min(start + 8, size))
        torch.rand(3)  # as a random transform would
        yield ids, torch.stack([images[i][0] for i in ids])


def test_training_pass__features_of_every_example_and_the_model_as_it_was():
    model = SmallNet().train()
    model.net[2].eval()  # a frozen batch norm
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = penultimate_features(model, training_batches())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [child.training for child in (model, model.net, model.net[2], model.head)] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks(model) == 0
    assert found.head == "head"
    assert found.ids.tolist() == list(range(20))
    assert not found.features.requires_grad
    logits = model.eval()(torch.stack([image for image, _ in Images(20)]))
    torch.testing.assert_close(found.features @ model.head.weight.T + model.head.bias, logits)


def test_training_pass__after_an_exception_the_model_is_as_it_was():
    def interrupted():
        yield from list(training_batches())[:1]
        raise RuntimeError("the disk is gone")

    model = SmallNet().train()
    random_state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        penultimate_features(model, interrupted())
    assert hooks(model) == 0
    assert all(child.training for child in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_training_pass__within_fit_changes_nothing_of_the_training(tmp_path):
    class ReadsFeatures(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.found = penultimate_features(pl_module, training_batches(), trainer=trainer)

    weights = []
    for callbacks in ([], [ReadsFeatures()]):
        L.seed_everything(3, verbose=False)
        model = SmallNet()
        trainer(tmp_path, *callbacks, max_epochs=2, log_every_n_steps=1).fit(
            model, loader(40, shuffle=True), loader(16)
        )
        weights.append(model.head.weight)
    assert torch.equal(*weights)
    assert callbacks[0].found.features.shape == (20, 6)


def test_training_pass__refused():
    with pytest.raises(ConfigurationError, match="No submodule of FunctionalHead"):
        penultimate_features(FunctionalHead(), [(torch.arange(2), INPUT)])

    class Pair(HandMade):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(ConfigurationError, match=r"Pair\.forward returns a tuple"):
        penultimate_features(Pair(), [(torch.arange(2), INPUT)])
    assert penultimate_features(HandMade(), []).features.shape == (0, 0)


# -- through the callback --------------------------------------------------------------------------------------


class ReadsBothSets(L.Callback):
    """Asks FailureModes for the features of both sets at the end of training."""

    def __init__(self, failure_modes):
        self.failure_modes = failure_modes

    def on_train_end(self, trainer, pl_module):
        self.validation = self.failure_modes.evaluation_features()
        self.training = self.failure_modes.training_features(trainer, pl_module)
        with torch.no_grad():
            self.head = [parameter.clone() for parameter in pl_module.head.parameters()]
            pl_module.eval()
            self.logits = [
                pl_module(torch.stack([image for image, _ in Images(size, seed=seed)])) for size, seed in SETS
            ]
            pl_module.train()


SETS = [(40, 0), (64, 1)]


@pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*")
def test_callback__hands_out_the_features_of_both_sets(tmp_path):
    failure_modes = failure_modes_of(tmp_path)
    failure_modes.keep_penultimate_features()
    reads = ReadsBothSets(failure_modes)
    model = SmallNet()
    trainer(tmp_path, failure_modes, reads).fit(model, loader(64, seed=1, shuffle=True), loader(40))
    weight, bias = reads.head
    for found, logits in zip((reads.validation, reads.training), reads.logits, strict=True):
        assert found.head == "head"
        assert found.ids.tolist() == list(range(len(logits)))
        torch.testing.assert_close(found.features @ weight.T + bias, logits, atol=1e-5, rtol=1e-4)
    assert hooks(model) == 0


def test_callback__keeps_nothing_unless_asked(tmp_path):
    failure_modes, model = failure_modes_of(tmp_path), SmallNet()
    trainer(tmp_path, failure_modes).validate(model, loader(40), verbose=False)
    with pytest.raises(ConfigurationError, match=r"Call keep_penultimate_features\(\) before"):
        failure_modes.evaluation_features()


def failure_modes_of(folder):
    return make_callback(encoder=None, cache_folder=folder / "cache")
