"""Generated images in a real Trainer: from the first analysis to the batches of the next epoch."""

from __future__ import annotations

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_failures import FailureModes
from lightning_failures.bundled.digits import ColouredDigitsDataModule, DigitClassifier
from lightning_failures.errors import GeneratorError
from lightning_failures.interventions import AddSynthetic
from lightning_failures.interventions.synthesis.ledger import purge
from tests.end_to_end.test_interventions import steered
from tests.helpers.generated import Counts, draw, from_pil
from tests.helpers.toy import ColourEncoder, Images, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Speaks(ColourEncoder):
    """An encoder that maps texts to random embeddings."""

    def encode_images(self, images):
        return F.normalize(super().encode_images(images), dim=1)

    def encode_texts(self, texts):
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
        return F.normalize(torch.stack(rows), dim=1)


def fit(tmp_path, failures, *, epochs=2, workers=0, ckpt_path=None, callbacks=()):
    L.seed_everything(1, verbose=False)
    module = Counts()
    data = DataLoader(
        Images(96, seed=5), batch_size=16, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    run = trainer(tmp_path, failures, *callbacks, max_epochs=epochs, enable_checkpointing=bool(callbacks))
    run.fit(module, data, loader(400), ckpt_path=ckpt_path)
    return module


def adding(**options):
    # to an encoder of colours all images look alike, so only exact copies of validation images are left out
    defaults = {"per_class": 6, "max_share": 0.25, "transform": from_pil, "similarity": 1.0}
    return AddSynthetic(draw, **(defaults | options))


@pytest.mark.parametrize("workers", [0, 2])
def test_synthetic__images_join_the_next_epoch_and_are_in_the_ledger(tmp_path, workers):
    failures = steered(adding(every_n_epochs=9), encoder=Speaks())
    module = fit(tmp_path, failures, epochs=3, workers=workers)
    intervention = failures.last_report["interventions"][0]
    assert intervention["added"] == 24
    assert all(entry["added"] == 6 and entry["prompt"] for entry in intervention["classes"])
    assert not module.generated[0]
    for epoch in (1, 2):
        assert module.sizes[epoch] == 96
        assert 10 <= len(module.generated[epoch]) <= 24  # each with probability 96 / (96 + 24)
        assert set(module.generated[epoch]) == {0, 1, 2, 3}
    (ledger,) = tmp_path.glob("failures/**/interventions/0_AddSynthetic/ledger.jsonl")
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert all(row["synthetic"] and row["epoch"] == 1 for row in rows)


def test_synthetic__a_resumed_run_goes_on_with_the_same_images(tmp_path):
    def run(folder, epochs, ckpt_path=None):
        saves = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", every_n_epochs=1)
        failures = steered(adding(every_n_epochs=9), encoder=Speaks())
        return fit(tmp_path, failures, epochs=epochs, ckpt_path=ckpt_path, callbacks=[saves]).generated

    run(tmp_path / "cut", 2)
    before = sorted(tmp_path.glob("failures/**/*.png"))
    resumed = run(tmp_path / "resumed", 4, ckpt_path=tmp_path / "cut" / "epoch=1.ckpt")
    assert sorted(tmp_path.glob("failures/**/*.png")) == before
    assert all(len(resumed[epoch]) >= 10 for epoch in (2, 3))


def test_synthetic__a_generator_that_raises_leaves_the_training_alone(tmp_path):
    def broken(prompts, seeds):
        raise RuntimeError("out of paint")

    failures = steered(AddSynthetic(broken, per_class=6, transform=from_pil), encoder=Speaks(), on_error="warn")
    with pytest.warns(UserWarning, match=r"skips their decision.*out of paint"):
        module = fit(tmp_path, failures)
    assert module.sizes == {0: 96, 1: 96}
    assert not module.generated[1]


def test_synthetic__a_generator_that_cannot_be_had_is_an_error_before_the_first_batch(tmp_path):
    failures = steered(AddSynthetic("embeded:digits", per_class=6), encoder=Speaks(), on_error="warn")
    with pytest.raises(GeneratorError, match="embedded:digits"):
        fit(tmp_path, failures)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["hard", "direction"])
def test_synthetic__embedded_digits(tmp_path, prompt):
    L.seed_everything(0, verbose=False)
    failures = FailureModes(
        encoder="embedded:digits",
        captions="digits",
        interventions=[AddSynthetic("embedded:digits", per_class=1, prompt=prompt, head_only=True)],
        pictures=False,
        on_error="raise",
    )
    data = ColouredDigitsDataModule(seed=0, shortcut=0.95, train_size=1200, val_size=1000)
    run = trainer(tmp_path, failures, max_epochs=2)
    run.fit(DigitClassifier(), datamodule=data)
    intervention = failures.last_report["interventions"][0]
    assert intervention["began"] is not None
    assert len(list(tmp_path.glob("failures/**/*.png"))) >= intervention["added"] > 0


def test_synthetic__a_resumed_run_under_a_versioned_logger_finds_the_images(tmp_path):
    def run(epochs, ckpt_path=None):
        L.seed_everything(1, verbose=False)
        module, failures = Counts(), steered(adding(every_n_epochs=9), encoder=Speaks())
        saves = ModelCheckpoint(save_top_k=-1, filename="{epoch}", every_n_epochs=1)
        logger = CSVLogger(tmp_path, name="run")
        data = DataLoader(Images(96, seed=5), batch_size=16, shuffle=True)
        fitted = trainer(tmp_path, failures, saves, max_epochs=epochs, logger=logger, enable_checkpointing=True)
        fitted.fit(module, data, loader(400), ckpt_path=ckpt_path)
        return module

    run(2)
    resumed = run(4, tmp_path / "run" / "version_0" / "checkpoints" / "epoch=1.ckpt")
    assert all(len(resumed.generated[epoch]) >= 10 for epoch in (2, 3))
    assert not list((tmp_path / "run" / "version_1").rglob("*.png"))


def test_synthetic__images_that_are_gone_are_told_and_left_out(tmp_path):
    saves = ModelCheckpoint(tmp_path / "cut", save_top_k=-1, filename="{epoch}", every_n_epochs=1)
    fit(tmp_path, steered(adding(every_n_epochs=9), encoder=Speaks()), callbacks=[saves])
    for ledger in list(tmp_path.glob("failures/**/ledger.jsonl")):
        purge(ledger.parent)
    failures = steered(adding(every_n_epochs=9), encoder=Speaks())
    again = ModelCheckpoint(tmp_path / "resumed", save_top_k=-1)
    with pytest.warns(UserWarning, match=r"other added examples. It is dropped"):
        module = fit(tmp_path, failures, epochs=3, ckpt_path=tmp_path / "cut" / "epoch=1.ckpt", callbacks=[again])
    assert not module.generated[2]
