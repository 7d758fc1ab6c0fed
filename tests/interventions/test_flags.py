"""Which training examples are flagged: caps, retained ones, suspected and doubtful labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.directions.probe import LabelProbe, fit_label_probe
from lightning_failures.directions.standardize import mean_and_std
from lightning_failures.interventions import JudgedExamples, Round, Upweight
from lightning_failures.interventions.base import LEFT_OUT
from lightning_failures.interventions.flags import flag_examples
from lightning_failures.report.interventions import interventions_markdown
from tests.helpers.toy import Classifier, Images, callback, trainer


def judged(values, labels, reasons=(None, None), retained=None) -> JudgedExamples:
    names = tuple(f"class {k}" for k in range(len(reasons)))
    return JudgedExamples(np.asarray(labels), np.asarray(values, dtype=np.float32), names, reasons, retained)


@dataclass
class Probed(Round):
    """A round without a Trainer: labels are judged by a probe of other examples, and no label is suspected."""

    embeddings: np.ndarray
    labels: np.ndarray
    probe: LabelProbe

    def label_margins(self, rows):
        return self.probe.margins(self.embeddings[rows], self.labels[rows])

    def suspects(self, rows):
        return ()

    @property
    def encoder(self) -> Any:
        raise NotImplementedError

    def on_first(self, work):
        return work()

    def decision_values(self, images, labels):
        raise NotImplementedError

    def last_layer(self, head, *, spend_validation, discovery=False):
        raise NotImplementedError

    def pick(self, pool, view, **options):
        raise NotImplementedError

    def tagged_features(self, head, path):
        raise NotImplementedError


def clusters(n, seed):
    """Return embeddings of two classes, and their true labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return rng.normal(size=(n, 6)) + 5.0 * labels[:, None], labels


def probed(labels, *, doubtful):
    """Return a round with 200 training examples that have the given labels."""
    x, true = clusters(300, 1)
    probe = fit_label_probe(x, true, np.arange(300), *mean_and_std(x))
    report = FailureReport(300, 0.8, (ClassReport("class 0", 150), ClassReport("class 1", 150)), doubtful=doubtful)
    return Probed(1, 0, Path(), report, None, False, clusters(200, 2)[0], labels, probe)


@pytest.mark.parametrize("doubtful", [True, False])
def test_flag_examples__doubtful_labels_only_where_failures_look_doubtful(doubtful):
    labels = clusters(200, 2)[1]
    wrong = np.random.default_rng(3).permutation(200)[:20]
    labels[wrong] = 1 - labels[wrong]
    values = np.where(np.arange(200) < 80, -1.0, 1.0)
    flags = flag_examples(judged(values, labels), probed(labels, doubtful=doubtful), max_flagged=1.0, triage=True)
    left_out = set(wrong[wrong < 80].tolist()) if doubtful else set()
    assert set(np.flatnonzero(values < 0)) - set(np.flatnonzero(flags.flagged)) == left_out
    assert {entry["id"] for entry in flags.review} == left_out
    assert flags.doubted.sum() == len(left_out)
    assert all(entry["supported"] != entry["class"] and entry["label_margin"] < 0 for entry in flags.review)
    margins = [entry["label_margin"] for entry in flags.review]
    assert margins == sorted(margins)


def test_flag_examples__doubted_ones_make_room_below_the_cap():
    labels = clusters(200, 2)[1]
    labels[:10] = 1 - labels[:10]
    values = np.arange(-200.0, 0.0)  # the wrong labels are the hardest
    flags = flag_examples(judged(values, labels), probed(labels, doubtful=True), max_flagged=0.1, triage=True)
    assert not flags.flagged[:10].any()
    assert flags.flagged.sum() == 20
    assert flags.reasons == ("capped at max_flagged",) * 2


def test_flag_examples__hardest_first_in_each_class_and_none_of_a_class_without_a_pattern():
    values = [-1, -4, -2, 3, -9, -8, np.nan, -7]
    labels = [0, 0, 0, 0, 1, 1, LEFT_OUT, 1]
    flags = flag_examples(judged(values, labels, (None, "no pattern")), None, max_flagged=0.5, triage=True)
    assert flags.flagged.tolist() == [False, True, True, False, False, False, False, False]
    assert flags.reasons == ("capped at max_flagged", "no pattern")


def test_flag_examples__ties_go_by_position():
    flags = flag_examples(judged([-1] * 4, [0] * 4, (None,)), None, max_flagged=0.5, triage=False)
    assert flags.flagged.tolist() == [True, True, False, False]


def test_flag_examples__retained_ones_stay():
    retained = np.array([True, False, False])
    flags = flag_examples(
        judged([np.nan, np.nan, -1], [0, 0, 1], ("skipped: few", None), retained), None, max_flagged=1.0, triage=False
    )
    assert flags.flagged.tolist() == [True, False, True]
    assert flags.reasons == ("as before: skipped: few", None)


class Noisy(Images):
    """Images of which a fifth has the label of the next class, and a twentieth is nearly black."""

    def __init__(self, size, classes=4, seed=0):
        super().__init__(size, classes, seed)
        draws = torch.rand(2, size, generator=torch.Generator().manual_seed(seed))
        self.flipped, black = draws[0] < 0.2, draws[1] < 0.05
        self.images[black, :, 1:, 1:] *= 0.1
        self.labels = torch.where(self.flipped, (self.labels + 1) % classes, self.labels)


class Right(Classifier):
    """Predicts what the image shows, but errs on nearly black images."""

    def forward(self, x):
        pixels = x * 0.25 + 0.5
        true, darkest = (pixels[:, 0, 0, 0] * 10).round().long(), pixels.mean((1, 2, 3)) < 0.2
        return 4.0 * F.one_hot((true + 2 * darkest) % 4, 4) + self.net(x) * 0

    def training_step(self, batch, batch_idx):
        return self(batch[0]).sum() * 0

    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch[0])}


class Telling:
    """Embeddings that encode the true class and brightness."""

    name, fingerprint, dim = "telling", "tests-flags", 5

    def encode_images(self, images):
        true = (images[:, 0, 0, 0] * 10).round().long() % 4
        return torch.cat([F.one_hot(true, 4).float(), images.mean((1, 2, 3))[:, None]], dim=1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*")
def test_upweight__in_a_run_leaves_doubtful_labels_to_a_person(tmp_path):
    data, found = Noisy(400, seed=3), {}
    for triage in (True, False):
        failures = callback(encoder=Telling(), interventions=[Upweight(max_flagged=1.0, triage=triage)])
        run = trainer(tmp_path / str(triage), failures, max_epochs=2, num_sanity_val_steps=0)
        run.fit(Right(), DataLoader(data, batch_size=40), DataLoader(Noisy(1600, seed=4), batch_size=80))
        assert failures.last_report["doubtful"]
        (found[triage],) = failures.last_report["interventions"]
    assert found[False]["flagged"] == found[True]["flagged"] + found[True]["doubted"] + found[True]["suspected"]
    doubts = [one["id"] for one in found[True]["review"] if "label_margin" in one]
    assert doubts
    assert data.flipped[doubts].all()
    report = FailureReport(1600, 0.8, (), interventions=(found[True],))
    assert "Doubtful labels, left out of the intervention" in interventions_markdown(report)
