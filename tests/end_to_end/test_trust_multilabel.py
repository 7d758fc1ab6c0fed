"""Conditions of a multilabel task whose labels are unknown or impossible cost themselves, never the others."""

import math

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.end_to_end.test_trust_one_costs_one import caught, names, validated
from tests.helpers.toy import ColourEncoder, Images, callback, trainer


class Conditions(Dataset):
    """Images with three conditions each, of which some are unknown."""

    classes = ("edema", "nodule", "mass")

    def __init__(self, unknown=math.nan, share=0.2, size=240):
        rng = np.random.default_rng(0)
        images = Images(size)
        self.images = images.images
        self.truth = torch.from_numpy(rng.integers(0, 2, (size, 3)).astype("float32"))
        self.images[:, 0, 0, :3] = self.truth * 0.9
        dark = images.dark[:, None].numpy() & (rng.random((size, 3)) < 0.7)
        self.images[:, 1, 0, :3] = torch.from_numpy(dark.astype("float32"))  # where the model errs
        self.labels = self.truth.clone()
        self.known = torch.from_numpy(rng.random((size, 3)) >= share)
        self.known[3] = False  # an example of which nothing is known
        self.labels[~self.known] = unknown
        if not math.isnan(unknown):
            self.labels = self.labels.long()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Multilabel(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, x):
        says = (x[:, 0, 0, :3] > 0.5) ^ (x[:, 1, 0, :3] > 0.5)
        return says.float() * 4 - 2 + x[:, 2, 4, :3] * 0.1

    def validation_step(self, batch, batch_idx):
        self(batch[0])


@pytest.mark.parametrize("unknown", [math.nan, -1, -100, 255])
def test_multilabel__unknown_conditions_are_left_out_and_others_count(tmp_path, unknown):
    loader = DataLoader(Conditions(unknown), batch_size=16)
    known = loader.dataset.known
    report, texts = validated(tmp_path, loader, Multilabel, robust_encoder=ColourEncoder("trees"), pictures=True)
    assert texts == []
    assert report.coverage == 1.0  # the example of which nothing is known was seen
    assert report.examples == int(known.any(1).sum())
    sizes = {entry.name: entry.examples for entry in report.classes}
    for k, name in enumerate(Conditions.classes):
        truth = loader.dataset.truth[known[:, k], k]
        assert sizes[name] == int(truth.sum())
        assert sizes[f"no {name}"] == int((1 - truth).sum())
    assert len(report.table) == int(known.sum())
    assert any(entry.cv_score is not None for entry in report.classes)
    assert report.trees


@pytest.mark.parametrize("impossible", [2, -2, 7])
def test_multilabel__an_impossible_label_leaves_out_that_condition(tmp_path, impossible):
    """Label 2 of one condition costs neither the batch nor the other conditions of the example."""
    conditions = Conditions(-1)
    spoilt = conditions.known[10:13, 0].nonzero().flatten() + 10
    assert len(spoilt) >= 2
    conditions.labels[spoilt, 0] = impossible
    loader = DataLoader(conditions, batch_size=16)
    report, texts = validated(tmp_path, loader, Multilabel, encoder=None)
    assert len(report.table) == int(conditions.known.sum()) - len(spoilt)
    assert report.examples == int(conditions.known.any(1).sum())
    assert report.coverage == 1.0
    table = report.table
    assert not (torch.isin(table.ids, spoilt) & (table.labels // 2 == 0)).any()
    assert torch.equal(conditions.truth[table.ids, table.labels // 2].long(), table.labels % 2)
    (note,) = [note for note in report.notes if note.startswith(f"{len(spoilt)} labels of conditions could not be")]
    assert all(names([note], int(example)) for example in spoilt)
    assert all(names(texts, int(example)) for example in spoilt)


def test_multilabel__mostly_impossible_labels_are_an_error(tmp_path):
    conditions = Conditions(-1)
    conditions.labels[conditions.known] += 2
    failures = callback(on_error="warn", encoder=None)
    loader = DataLoader(conditions, batch_size=16)
    texts = caught(trainer(tmp_path, failures).validate, Multilabel(), loader, verbose=False)
    assert failures.last_report is None
    assert any("labels cannot be graded. Labels run from 2 to 3" in text for text in texts)


def test_multilabel__accuracy_is_that_of_the_known_conditions(tmp_path):
    data = Conditions(share=0.5)
    report, _ = validated(tmp_path, DataLoader(data, batch_size=16), Multilabel, encoder=None)
    table = report.table
    condition = table.labels // 2
    assert data.known[table.ids, condition].all()
    assert torch.equal(data.truth[table.ids, condition].long(), table.labels % 2)
    positive = torch.sigmoid(Multilabel()(data.images))[table.ids, condition]
    torch.testing.assert_close(table.confidence, torch.where(table.labels % 2 == 1, positive, 1 - positive))
    assert report.accuracy == pytest.approx(float((~table.failed).float().mean()))
