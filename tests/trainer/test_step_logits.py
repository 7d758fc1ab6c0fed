"""Logits outside of the loop: those of the module's own step, without a trace of the step."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from lightning_failures import BatchRecord
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.step_logits import StepLogits
from tests.helpers.toy import Images, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
]

DATA = Images(24, seed=3)
BYTES = torch.stack([(image * 255).to(torch.uint8) for image in DATA.images])
BATCH = (BYTES, DATA.labels)


class OfBytes(L.LightningModule):
    """A model whose step turns uint8 into normalised floats, and which keeps state of every kind."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Dropout(0.5))
        self.accuracy, self.outputs = MulticlassAccuracy(4), []

    def forward(self, x):
        return self.net(x)

    def logits_of(self, x):
        return self((x.float() / 255 - 0.5) / 0.25 if x.dtype == torch.uint8 else x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.logits_of(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.logits_of(x)
        self.accuracy(logits, y)
        self.outputs.append(logits)
        self.log("val_accuracy", self.accuracy)
        self.log_dict({"val_loss": F.cross_entropy(logits, y)})
        if self.logger is not None:
            self.logger.log_metrics({"by hand": float(batch_idx)})

    def on_validation_epoch_end(self):
        self.log("n_outputs", float(len(self.outputs)))
        self.outputs.clear()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Asks(Callback):
    """Asks for the logits of a batch at the end of a hook."""

    def __init__(self, hook="on_validation_epoch_end", batch=BATCH, **options):
        self.batch, self.options, self.found = batch, options, []
        setattr(self, hook, self.ask)

    def ask(self, trainer, module, *_):
        classes = self.options.pop("classes", None)
        modes = [child.training for child in module.modules()]
        with StepLogits(trainer, BatchReader(**self.options), classes=classes).open() as logits_of:
            self.found += [logits_of(self.batch).clone() for _ in range(2)]
        with torch.no_grad():
            self.weights = [parameter.clone() for parameter in module.parameters()]
        assert [child.training for child in module.modules()] == modes


def fit(tmp_path, *callbacks, model=None):
    L.seed_everything(1, verbose=False)
    model = model or OfBytes()
    logger = CSVLogger(tmp_path / str(len(callbacks)))
    run = trainer(tmp_path, *callbacks, logger=logger, log_every_n_steps=1, max_epochs=2)
    run.fit(model, loader(48, shuffle=True), loader(32))
    return model, run, Path(logger.experiment.metrics_file_path).read_text()


@pytest.mark.parametrize("hook", ["on_validation_epoch_end", "on_train_batch_end", "on_train_end"])
def test_logits__of_the_step_and_nothing_of_it_remains(tmp_path, hook):
    asks = Asks(hook)
    model, run, logged = fit(tmp_path, asks)
    plain, plain_run, plain_logged = fit(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert logged == plain_logged
    assert run.callback_metrics == plain_run.callback_metrics
    assert float(run.callback_metrics["n_outputs"]) == 2
    assert isinstance(run.loggers[0], CSVLogger)
    assert not set(vars(model)) - set(vars(plain))
    weight, bias = asks.weights
    images = (BYTES.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(asks.found[-1], images.flatten(1) @ weight.T + bias, atol=1e-5, rtol=1e-4)
    assert torch.equal(*asks.found[-2:])


class ReturnsLogits(OfBytes):
    def validation_step(self, batch):
        return {"logits": self.logits_of(batch[0]) * 2}


class ReturnsThem(OfBytes):
    def validation_step(self, *args):
        assert len(args) == 2
        return {"scores": self.logits_of(args[0][0]) * 2}


class Names(OfBytes):
    def validation_step(self, batch, number, dataloader_idx):
        assert dataloader_idx == 0
        self.logits_of(batch[0])


class NoStep(OfBytes):
    validation_step = L.LightningModule.validation_step

    def forward(self, x):
        return self.net(x.float())


class OtherBatches(OfBytes):
    def validation_step(self, batch, batch_idx):
        return self.logits_of(batch["image"])

    def forward(self, x):
        return self.net(x.float())


def of_scores(outputs, batch):
    return BatchRecord(logits=None if outputs is None else outputs["scores"])


@pytest.mark.parametrize(
    ("kind", "factor", "options"),
    [
        (ReturnsLogits, 2, {}),
        (ReturnsThem, 2, {"read_batch": of_scores}),
        (Names, 1, {"classes": 4}),
        (OfBytes, 1, {"logits_from": "net"}),
        (NoStep, None, {}),
        (OtherBatches, None, {}),
    ],
)
def test_logits__of_steps_of_other_forms(tmp_path, kind, factor, options):
    asks = Asks("on_train_end", **options)
    L.seed_everything(1, verbose=False)
    trainer(tmp_path, asks, limit_val_batches=0).fit(kind(), loader(32))
    weight, bias = asks.weights
    images = BYTES.float() if factor is None else (BYTES.float() / 255 - 0.5) / 0.25
    expected = (images.flatten(1) @ weight.T + bias) * (factor or 1)
    torch.testing.assert_close(asks.found[-1], expected, atol=1e-2, rtol=1e-4)


class Nothing(OfBytes):
    def validation_step(self, batch, batch_idx):
        raise ValueError("wants other batches")


def test_logits__none_are_an_error_that_names_both_tries(tmp_path):
    run = trainer(tmp_path, Asks("on_train_end"), limit_val_batches=0)
    with pytest.raises(ConfigurationError, match=r"wants other batches.*forward: .*logits_from") as raised:
        run.fit(Nothing(), loader(32))
    assert "unsigned char" in str(raised.value) or "Byte" in str(raised.value)


class Predicts(OfBytes):
    def validation_step(self, batch, batch_idx):
        return {"preds": self.logits_of(batch[0]).argmax(1)}


@pytest.mark.parametrize("soft", [True, False])
def test_logits__the_scores_behind_predicted_classes(tmp_path, soft):
    found = []

    class AsksBoth(Asks):
        def ask(self, trainer, module, *_):
            with StepLogits(trainer, BatchReader(), classes=4, soft=soft).open() as logits_of:
                found.append(logits_of(BATCH))

    trainer(tmp_path, AsksBoth("on_train_end"), limit_val_batches=0).fit(Predicts(), loader(32))
    assert found[0].is_floating_point() == soft
    assert found[0].shape == ((24, 4) if soft else (24,))
