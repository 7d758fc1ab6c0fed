"""Verdicts that a training computes by itself: by forks at its end, or by a lottery over classes."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightning_failures import FailureModes
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from tests.end_to_end.test_interventions import Drawn, fit, steered
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Learns(OracleClassifier):
    """A model that errs less on dark images the more of them it has been trained on."""

    def __init__(self, classes: int = 4, rate: float = 0.002) -> None:
        super().__init__(classes)
        self.classes, self.rate = classes, rate
        self.register_buffer("cured", torch.zeros(classes))

    def forward(self, x):
        pixels = x * 0.25 + 0.5
        dark = pixels.mean((1, 2, 3)) < 0.45
        labels = (pixels[:, 0, 0, 0] * 10).round().long() % self.classes
        wrong = dark & (pixels[:, 1, 3, 3] * 1000 % 1 < 0.9 - self.cured[labels])
        if self.training:
            seen = torch.bincount(labels[dark], minlength=self.classes)
            self.cured += self.rate * (seen + 0.2 * torch.rand(self.classes))
        guess = 4.0 * torch.nn.functional.one_hot((labels + wrong.long()) % self.classes, self.classes).float()
        return guess + 0.5 * self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        return torch.nn.functional.cross_entropy(self(x), y)


@pytest.mark.slow
def test_fork__the_verdict_is_in_the_last_report(tmp_path):
    failures = steered(Upweight(factor=8.0), verdict="fork")
    logger = TensorBoardLogger(tmp_path, name="run")
    module, run = fit(tmp_path, failures, module=Learns(), epochs=3, logger=logger)
    verdict = failures.last_report["interventions"][0]["verdict"]
    assert verdict["outcome"] == "helped", verdict["sentence"]
    assert verdict["pairs"] == 3
    folder = Path(logger.log_dir) / "failures"
    (last,) = folder.glob("epoch=0002-*/report.json")
    for record in (folder / "report.json", last):
        assert json.loads(record.read_text())["interventions"][0]["verdict"] == json.loads(json.dumps(verdict))
    assert verdict["sentence"].split(":")[0] in (last.parent / "report.md").read_text()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    texts = [one.tensor_proto.string_val[0] for one in events.Tensors("failures/interventions/text_summary")]
    assert [b"Helped" in text for text in texts] == [False, False, False, True]
    assert run.current_epoch == 3
    assert module.trainer is run


def test_fork__nothing_flagged_is_not_measured(tmp_path):
    class Right(Drawn):
        def _guess(self, pixels):
            return 4.0 * torch.nn.functional.one_hot((pixels[:, 0, 0, 0] * 10).round().long() % 4, 4).float()

    failures = steered(verdict="fork")
    fit(tmp_path, failures, module=Right())
    verdict = failures.last_report["interventions"][0]["verdict"]
    assert verdict["sentence"] == "Not measured: nothing was flagged, so no intervention began."


def test_fork__factor_1_is_no_evidence(tmp_path):
    failures = steered(Upweight(factor=1.0), verdict="fork")
    fit(tmp_path, failures, module=Learns())
    assert failures.last_report["interventions"][0]["verdict"]["outcome"] == "no evidence"


def test_fork__a_fork_that_fails_leaves_the_training_as_it_is(tmp_path):
    class Brittle(Learns):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    failures = steered(verdict="fork", on_error="warn")
    fit(tmp_path, failures, module=Brittle())
    verdict = failures.last_report["interventions"][0]["verdict"]
    assert verdict["outcome"] == "not measured"
    assert "no copies" in verdict["sentence"]
    assert "lightning-failures verdict" in verdict["sentence"]


@pytest.mark.parametrize("classes", [4, 24])
def test_lottery__classes_left_alone_tell_the_effect(tmp_path, classes):
    class Many(Images):
        """Images whose label is encoded in two pixels."""

        def __init__(self, size, seed):
            super().__init__(size, classes, seed)
            self.images[:, :, 0, 0] = (0.1 * (self.labels % 8))[:, None]
            self.images[:, :, 0, 1] = (0.1 * (self.labels // 8))[:, None]

    class Reads(Learns):
        def forward(self, x):
            pixels = x * 0.25 + 0.5
            labels = ((pixels[:, 0, 0, 0] * 10).round() + 8 * (pixels[:, 0, 0, 1] * 10).round()).long() % classes
            dark = pixels.mean((1, 2, 3)) < 0.45
            wrong = dark & (pixels[:, 1, 3, 3] * 1000 % 1 < 0.9 - self.cured[labels])
            if self.training:
                self.cured += self.rate * torch.bincount(labels[dark], minlength=classes)
            guess = 4.0 * torch.nn.functional.one_hot((labels + wrong.long()) % classes, classes).float()
            return guess + self.net(x) * 1e-6

    L.seed_everything(1, verbose=False)
    failures = callback(
        interventions=[Upweight(factor=10.0, max_flagged=1.0, every_n_epochs=9, triage=False)],
        verdict="lottery",
        pictures=False,
    )
    run = trainer(tmp_path, failures, max_epochs=4)
    data = DataLoader(Many(30 * classes, 5), batch_size=16, shuffle=True)
    run.fit(Reads(classes, rate=0.004), data, DataLoader(Many(100 * classes, 0), batch_size=64))
    entry = failures.last_report["interventions"][0]
    by_lot = [one for one in entry["classes"] if "at random" in (one["reason"] or "")]
    if classes < 20:
        assert not by_lot
        assert (
            entry["verdict"]["sentence"]
            == "Not measured: 4 classes had a pattern when the intervention began, and a lottery takes 20."
        )
    else:
        assert len(by_lot) == 12
        assert all(not one["flagged"] for one in by_lot)
        assert entry["verdict"]["outcome"] == "helped"
        assert entry["verdict"]["examples"] == 24


@pytest.mark.parametrize("options", [{"verdict": "fork"}, {"verdict": "guess", "interventions": [Upweight()]}])
def test_verdict__wrong_options(options):
    with pytest.raises(ConfigurationError, match="verdict"):
        FailureModes(encoder=ColourEncoder(), **options)
