"""MaskFeatures in a real Trainer: a planted spurious feature is masked, tagged or not, and dry runs change nothing."""

from __future__ import annotations

import json

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import MaskFeatures
from lightning_failures.interventions.mask_features import MaskedRows
from lightning_failures.report.interventions import intervention_lines
from lightning_failures.trainer.model_features import model_fingerprint
from tests.helpers.shortcut import Tinted, TwoLayers, tinted_loaders
from tests.helpers.toy import callback, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

TINT, MARK = 0, 1


class Body(nn.Module):
    """Features whose meaning is known: the tint, the mark, and two that say nothing."""

    def forward(self, x):
        tint, mark = x[:, 1].mean((1, 2)), x[:, 0, :4, :4].mean((1, 2))
        features = [tint - 0.5, mark - 0.35, x[:, 2, 0, 0] - 0.35, x[:, 2, 7, 7] - 0.35]  # 0 speaks for no class
        return 10 * torch.stack(features, dim=1)


class Planted(TwoLayers):
    """A linear layer on known features."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Body(), nn.Linear(4, 2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(folder, *interventions, epochs=2, ckpt_path=None, module=None, **options):
    L.seed_everything(1, verbose=False)
    failures = callback(interventions=interventions, cache_folder=str(folder / "cache"), **options)
    module = module or Planted()
    run = trainer(folder, failures, max_epochs=epochs)
    run.fit(module, *tinted_loaders(), ckpt_path=ckpt_path)
    return failures, module, run


def accuracy(module) -> float:
    data = Tinted(1000, agreeing=0.5, seed=2)
    with torch.no_grad():
        return float((module(data.images).argmax(1) == data.labels).float().mean())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, *fit(folder, MaskFeatures())


def test_costly_feature__is_masked_and_accuracy_rises(finished):
    folder, failures, module, _ = finished
    (entry,) = failures.last_report["interventions"]
    assert [(one["feature"], one["reason"]) for one in entry["masked"]] == [(TINT, "costly")]
    assert entry["masked"][0]["fixed"] > entry["masked"][0]["broken"]
    assert module.fc.weight[:, TINT].tolist() == [0.0, 0.0]
    assert module.fc.weight[:, MARK].abs().min() > 0
    measured = entry["measured"]
    assert measured["masked"]["accuracy"] > measured["uniform"]["accuracy"] + 0.08
    assert measured["masked"]["accuracy"] > measured["random"]["accuracy"] + 0.08
    assert entry["verdict"]["outcome"] == "helped"
    assert accuracy(module) > 0.85
    (line,) = intervention_lines(failures.last_report.report)
    assert "1 of 4 features masked" in line
    assert "refitted without feature 0 (costly)" in line
    (path,) = folder.glob("failures/no_logger/*/retrained.ckpt")
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(saved["fc.weight"], module.fc.weight)
    report = json.loads((path.parent / "report.json").read_text())
    assert report["interventions"][0]["masked"] == entry["masked"]


def test_resume__from_the_new_checkpoint(finished, tmp_path):
    folder, *_ = finished
    (path,) = folder.glob("failures/no_logger/*/retrained.ckpt")
    failures, module, run = fit(tmp_path, MaskFeatures(), epochs=3, ckpt_path=path)
    assert run.current_epoch == 3
    assert failures.last_report["interventions"][0]["epoch"] == 3
    assert module.fc.weight[:, TINT].tolist() == [0.0, 0.0]


def test_dry_run__reports_and_changes_nothing(tmp_path):
    _, plain, _ = fit(tmp_path / "plain", MaskFeatures(dry_run=True, start_epoch=9, stop_epoch=10))
    failures, module, _ = fit(tmp_path, MaskFeatures(dry_run=True))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
    (entry,) = failures.last_report["interventions"]
    assert entry["masked"]
    assert not entry["changes_training"]
    assert entry["measured"]["masked"]["accuracy"] > entry["measured"]["before"]["accuracy"]
    assert not list(tmp_path.glob("failures/no_logger/*/retrained.ckpt"))


def test_tagged_feature__of_these_weights_alone(tmp_path):
    file = tmp_path / "mine.yaml"
    owner = model_fingerprint(Planted(), "fc")  # the body has no weights, so it is always the same
    entries = [
        f'- encoder: "{owner}"\n  feature: {TINT}\n  tag: spurious\n',
        f'- encoder: "of other weights"\n  feature: {MARK}\n  tag: spurious\n',
    ]
    file.write_text("".join(entries))
    failures, module, _ = fit(tmp_path, MaskFeatures(features_file=file, costly=False))
    (entry,) = failures.last_report["interventions"]
    assert [(one["feature"], one["reason"]) for one in entry["masked"]] == [(TINT, "spurious")]
    assert accuracy(module) > 0.85
    # the option of the callback names the file too; another tag is not asked for
    failures, _, _ = fit(
        tmp_path / "other", MaskFeatures(tags=["overemphasised"], costly=False), feature_names=str(file)
    )
    (note,) = [note for note in failures.last_report.notes if "MaskFeatures" in note]
    assert note == "MaskFeatures keeps the last layer: no feature of these weights is tagged."
    assert not failures.last_report["interventions"][0]["changes_training"]


def test_model_without_a_linear_head__is_said(tmp_path):
    class NoBias(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2, bias=False)

    with pytest.raises(ConfigurationError, match="MaskFeatures: The last layer 'fc' of NoBias has no bias"):
        fit(tmp_path, MaskFeatures(), module=NoBias())


def test_file_that_does_not_exist__is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="there is no file"):
        fit(tmp_path, MaskFeatures(features_file=tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": ["odd"]}, "tags=.* must be a list out of 'spurious' and 'overemphasised'"),
        ({"tags": (), "costly": False}, "costly=.* must be True without tags"),
        ({"max_masked": 0}, "max_masked=.* must be a share"),
        ({"grow_epoch": True}, "grow_epoch=.* must be False"),
    ],
)
def test_options__out_of_range(options, message):
    with pytest.raises(ConfigurationError, match=message):
        MaskFeatures(**options)


def test_masked_rows__leave_the_features_unchanged():
    features = np.arange(6.0).reshape(3, 2)
    assert MaskedRows(features, np.array([0]))[1:].tolist() == [[0.0, 3.0], [0.0, 5.0]]
    assert features[2, 0] == 4
