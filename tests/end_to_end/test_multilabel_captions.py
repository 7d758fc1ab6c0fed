"""Captions of a multilabel task: of false positives without a class, of false negatives with the condition."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_failures.bundled.digits import ColouredDigits
from lightning_failures.report.markdown import report_markdown
from tests.helpers.toy import callback, trainer


class EvenAndLarge(Dataset):
    """Coloured digits with two conditions each."""

    classes = ("even digit", "large digit")

    def __init__(self, size=400):
        self.digits = ColouredDigits("validation", size=size)
        self.transform = self.digits.transform
        y = self.digits.labels
        self.labels = torch.stack([y % 2 == 0, y >= 5], 1).long()
        chance = torch.rand(size, 2, generator=torch.Generator().manual_seed(0))
        on_black = torch.tensor([background == "black" for background in self.digits.background])
        self.wrong = torch.where(on_black[:, None], chance < 0.7, chance < 0.05)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.digits[index][0], "labels": self.labels[index], "wrong": self.wrong[index]}


class Mistaken(L.LightningModule):
    """Errs on digits on black."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def validation_step(self, batch, batch_idx):
        return {"logits": (batch["labels"].bool() ^ batch["wrong"]).float() * 6 - 3}


@pytest.mark.slow
def test_multilabel__captions_of_false_positives_and_false_negatives(tmp_path):
    failures = callback(encoder="embedded:digits", captions="digits")
    trainer(tmp_path, failures).validate(Mistaken(), DataLoader(EvenAndLarge(), batch_size=100), verbose=False)
    classes = {entry.name: entry for entry in failures.last_report.report.classes}
    assert list(classes) == ["no even digit", "even digit", "no large digit", "large digit"]
    for name, entry in classes.items():
        noun = name if not name.startswith("no ") else "digit"
        assert entry.pattern
        assert entry.reference_caption.removeprefix("a photo of a").removeprefix("n") == f" {noun}"
        assert "black" in entry.hardest_captions[0]
        captions = (*entry.hardest_captions, *entry.easiest_captions)
        assert all(f" {noun}" in caption and " no " not in caption for caption in captions)
    text = report_markdown(failures.last_report.report)
    assert "The failures are images without even digit that the model takes for even digit." in text
    assert "The failures are images of large digit that the model misses." in text
