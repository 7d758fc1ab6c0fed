"""Decisions after an analysis: all or none, retained weights, the decision part."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from tests.end_to_end.test_interventions import DATA, Drawn, fit, steered
from tests.helpers.toy import callback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def test_decision_part__is_there_when_it_is_monitored(tmp_path):
    saves = ModelCheckpoint(tmp_path, monitor="failures/decision/accuracy", mode="max")
    failures = steered(every_n_epochs=2)
    fit(tmp_path, failures, epochs=3, callbacks=[saves], enable_checkpointing=True)
    report = failures.last_report
    parts = [set(part.grades.ids.tolist()) for part in (report.parts.report, report.parts.decision)]
    assert not parts[0] & parts[1]
    assert sum(map(len, parts)) + report.examples == 400
    assert report.summary["decision/accuracy"] == pytest.approx(
        report.parts.decision.grades.correct.float().mean().item()
    )
    assert "decision/flagged_error_rate" in report.summary
    assert saves.best_model_score is not None


def test_decision_part__needs_interventions(tmp_path):
    saves = ModelCheckpoint(tmp_path, monitor="failures/decision/accuracy")
    with pytest.raises(ConfigurationError, match="Monitor 'failures/accuracy'"):
        fit(tmp_path, callback(), callbacks=[saves], enable_checkpointing=True)


def test_retained__a_class_that_is_cured_keeps_its_weights(tmp_path):
    class Cured(Drawn):
        """Errs on dark images in epoch 0 only."""

        def _guess(self, pixels):
            if self.current_epoch == 0:
                return super()._guess(pixels)
            return 4.0 * nn.functional.one_hot((pixels[:, 0, 0, 0] * 10).round().long() % 4, 4).float()

    failures, module = steered(), Cured()
    fit(tmp_path, failures, module=module, epochs=4)
    assert failures.last_report.accuracy == 1.0
    told = failures.last_report["interventions"][0]
    assert told["flagged"] > 10
    assert all(entry["reason"].startswith("as before: skipped") for entry in told["classes"] if entry["flagged"])
    for epoch in (1, 2, 3):
        assert DATA.dark[module.epochs[epoch]].float().mean() > DATA.dark.float().mean() + 0.1


class Failing(Upweight):
    """Cannot decide."""

    def decide(self, examples, round=None):
        raise RuntimeError("no idea")


def test_decisions__all_or_none(tmp_path):
    failures = steered(Upweight(factor=4.0), Failing(), on_error="warn", auto_rollback=True)
    with pytest.warns(UserWarning, match="no idea"):
        module, _ = fit(tmp_path, failures)
    assert sorted(module.epochs[1]) == list(range(len(DATA)))
    assert not failures.last_report["interventions"]
