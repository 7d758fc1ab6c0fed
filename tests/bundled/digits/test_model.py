from __future__ import annotations

import lightning as L
import pytest
import torch

from lightning_failures.bundled.digits import ColouredDigitsDataModule, DigitClassifier
from tests.bundled.digits.test_data import planted_and_usual


@pytest.fixture
def trainer(tmp_path):
    return L.Trainer(
        default_root_dir=tmp_path, fast_dev_run=2, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
def test_classifier__runs_under_a_trainer(trainer):
    data = ColouredDigitsDataModule(train_size=40, val_size=30, test_size=20, batch_size=10)
    model = DigitClassifier()
    trainer.fit(model, data)
    assert {"train_loss", "val_loss", "val_acc"} <= set(trainer.callback_metrics)
    (figures,) = trainer.test(model, data, verbose=False)
    assert 0 <= figures["test_acc"] <= 1


@pytest.mark.slow
def test_classifier__learns_the_shortcut(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitClassifier()
        data = ColouredDigitsDataModule(seed=1, train_size=3000, val_size=2000)
        trainer = L.Trainer(
            max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, data)
    digits = data.sets["validation"]
    planted, usual = planted_and_usual(digits)
    images = torch.stack([digits[i][0] for i in range(len(digits))])
    with torch.no_grad():
        right = model.eval()(images).argmax(dim=1) == digits.labels
    assert right[usual].float().mean() > 0.95
    assert 0.35 < right[planted & ~usual].float().mean() < 0.8
