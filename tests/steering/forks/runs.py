"""Runs that can be forked: equal each time they are made, with a module whose skill shows what it was trained on."""

from __future__ import annotations

import copy

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from lightning_failures.interventions import Upweight
from lightning_failures.steering.forks.run import Run
from tests.helpers.toy import Images, OracleClassifier, callback, loader, trainer


class Numbered(Images):
    def __getitem__(self, index):
        return *super().__getitem__(index), index


DATA = Numbered(96, seed=5)


class Learns(OracleClassifier):
    """The more dark images it is shown, the more of them it gets right; steps have noise. Remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.skill = nn.Parameter(torch.tensor(-1.5))
        self.drawn: dict[int, list[int]] = {}

    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * self.skill)

    def _guess(self, pixels):
        labels = (pixels[:, 0, 0, 0] * 10).round().long()
        dark = pixels.mean((1, 2, 3)) < 0.45
        wrong = dark & (pixels[:, 1, 3, 3] * 1000 % 1 > self.skill.sigmoid())
        return 4.0 * nn.functional.one_hot((labels + wrong.long()) % 4, 4).float()

    def training_step(self, batch, batch_idx):
        x, _, index = batch
        self.drawn.setdefault(self.current_epoch, []).extend(index.tolist())
        dark = (x.mean((1, 2, 3)) * 0.25 + 0.5 < 0.45).float().mean()
        return -self.skill * (dark - 0.5 + 0.1 * torch.randn(()))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD([self.skill], lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)]


class Maker:
    """Makes equal runs, and keeps them."""

    def __init__(self, tmp_path, *interventions, module=Learns, callbacks=(), every_n_epochs=1, **options):
        self.tmp_path, self.interventions = tmp_path, interventions or (Upweight(8.0, triage=False),)
        self.module, self.callbacks, self.options = module, callbacks, {"max_epochs": 3} | options
        self.every_n_epochs = every_n_epochs
        self.runs = []

    def __call__(self) -> Run:
        modes = callback(
            interventions=() if self.interventions == (None,) else copy.deepcopy(self.interventions),
            pictures=False,
            cache_folder=self.tmp_path / "cache",
            every_n_epochs=self.every_n_epochs,
        )
        order = torch.Generator().manual_seed(3)
        data = {
            "train_dataloaders": DataLoader(DATA, batch_size=16, shuffle=True, generator=order),
            "val_dataloaders": loader(400),
        }
        run = trainer(self.tmp_path, modes, *(make() for make in self.callbacks), **self.options)
        self.runs.append(Run(run, self.module(), data))
        return self.runs[-1]

    def checkpoint(self, epochs=1, name="start.ckpt", weights_only=False):
        """Train, and save at the end of an epoch."""
        path = self.tmp_path / "run" / "checkpoints" / name

        class Saves(Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                if trainer.current_epoch == epochs - 1:
                    trainer.save_checkpoint(path, weights_only=weights_only)
                    trainer.should_stop = True

        L.seed_everything(1, verbose=False)
        run = self()
        run.trainer.callbacks.append(Saves())
        run.trainer.fit_loop.max_epochs = epochs + 1  # the last epoch makes no decision
        run.trainer.fit(run.module, **run.data)
        self.runs.clear()
        return path


def modes_of(run):
    return next(one for one in run.trainer.callbacks if hasattr(one, "interventions"))
