"""Pins in a training: every analysis checks them, on all graded examples."""

from __future__ import annotations

import json

import pytest

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions import Upweight
from lightning_failures.regression import assert_pins_hold
from lightning_failures.report.pins import pin_slice
from lightning_failures.report.run_folder import open_run
from tests.helpers.shaded import ShadedClassifier
from tests.helpers.toy import ColourEncoder, callback, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


@pytest.fixture
def pins(tmp_path):
    """A folder with the pins of two classes of a run, by direction and by rule."""
    failures = callback(robust_encoder=ColourEncoder("robust"))
    trainer(tmp_path / "run", failures).validate(ShadedClassifier(), loader(400), verbose=False)
    run = open_run(tmp_path / "run")
    pin_slice(run, "class 1").save(tmp_path / "pins" / "a.pin")
    pin_slice(run, "class 2", "leaf 1").save(tmp_path / "pins" / "b.pin")
    return tmp_path / "pins"


def test_pins__are_checked_at_every_analysis_and_logged(tmp_path, pins):
    failures = callback(robust_encoder=ColourEncoder("robust"), pins=[pins], interventions=[Upweight(factor=2.0)])
    run = trainer(tmp_path / "next", failures, max_epochs=2)
    run.fit(ShadedClassifier(fixed_from=1), loader(160), loader(400))
    checks = failures.last_report.pins
    assert [check.status for check in checks] == ["holds", "holds"]
    assert all(check.joined > 10 and not check.gone for check in checks)  # of all parts of the validation set
    assert run.callback_metrics["failures/pins_failing"] == 0
    assert_pins_hold(checks)
    first, last = (json.loads(path.read_text()) for path in sorted((tmp_path / "next").rglob("epoch=*/report.json")))
    assert [one["status"] for one in first["pins"]] == ["open", "open"]
    assert [one["status"] for one in last["pins"]] == ["holds", "holds"]
    assert open_run(tmp_path / "next").report.pins == checks


def test_pins__what_does_not_fit_is_an_error_at_set_up(tmp_path, pins):
    def validate(**options):
        trainer(tmp_path / "next", callback(**options)).validate(ShadedClassifier(), loader(40), verbose=False)

    with pytest.raises(ConfigurationError, match=r"'class 1' needs FailureModes\(encoder=...\) to be colours"):
        validate(encoder=ColourEncoder("other"), pins=[pins / "a.pin"])
    with pytest.raises(ConfigurationError, match=r"needs FailureModes\(robust_encoder=.*but there is none"):
        validate(pins=[pins])
    with pytest.raises(DataError, match="nowhere does not exist"):
        validate(pins=[tmp_path / "nowhere"])
    with pytest.raises(ConfigurationError, match="must be a sequence of files or folders"):
        callback(pins="pins")
