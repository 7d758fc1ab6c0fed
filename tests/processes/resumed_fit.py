"""Run by tests/end_to_end/test_trust_runs.py: a training with generated images, and a second one of its checkpoint.

``first`` trains four epochs. After the second it waits until the other training has ended, or, as ``killed``, kills
itself. ``second`` resumes from the checkpoint of the second epoch once there is one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_failures.interventions import AddSynthetic
from tests.end_to_end.test_interventions import steered
from tests.helpers.generated import Counts, draw, from_pil
from tests.helpers.toy import ColourEncoder, Images, loader, trainer

CHECKPOINT, ENDED = "saved/epoch=1.ckpt", "ended"


class Speaks(ColourEncoder):
    """An encoder that maps texts to random embeddings."""

    def encode_images(self, images):
        return F.normalize(super().encode_images(images), dim=1)

    def encode_texts(self, texts):
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
        return F.normalize(torch.stack(rows), dim=1)


class Halts(Callback):
    """Stands still at the beginning of the third epoch, or kills its process there."""

    def __init__(self, folder: Path, killed: bool) -> None:
        self.folder, self.killed = folder, killed

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2 and self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        while trainer.current_epoch == 2 and not (self.folder / ENDED).exists():
            time.sleep(0.02)


def fit(folder: Path, *callbacks: Callback, logger=None, seed: int = 1, ckpt_path: Path | None = None) -> Counts:
    """Train to the end of the fourth epoch, with new images in every epoch; ``seed`` is that of the interventions."""
    L.seed_everything(1, verbose=False)
    module = Counts()
    synthetic = AddSynthetic(draw, per_class=6, max_share=0.25, transform=from_pil, similarity=1.0)
    logger = CSVLogger(folder, name="", version="x") if logger is None else logger
    failures = steered(synthetic, encoder=Speaks(), seed=seed)
    run = trainer(folder, failures, *callbacks, max_epochs=4, logger=logger, enable_checkpointing=True)
    data = DataLoader(Images(96, seed=5), batch_size=16, shuffle=True)
    run.fit(module, data, loader(400), ckpt_path=ckpt_path)
    return module


def saves(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", every_n_epochs=1)


def main(folder: Path, role: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("always")
    if role != "second":
        fit(folder, saves(folder / "saved"), Halts(folder, role == "killed"))
        return
    while not (folder / CHECKPOINT).exists():
        time.sleep(0.02)
    time.sleep(0.2)  # until it is written
    fit(folder, saves(folder / "saved_2"), seed=2, ckpt_path=folder / CHECKPOINT)
    (folder / ENDED).touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.environ["ROLE"])
