"""Configurations to examine, and what their findings are asked for."""

from __future__ import annotations

import random
from pathlib import Path

import lightning as L
import numpy as np
import torch

from lightning_failures.doctor import Finding
from lightning_failures.doctor.data import check_batches
from lightning_failures.doctor.dry_run import CheckContext
from lightning_failures.doctor.encoders import check_encoder
from lightning_failures.doctor.findings import run_check
from tests.helpers.toy import OracleClassifier, callback, loader, trainer

ROOT = Path(__file__).parents[2]


DIGITS = ROOT / "configs" / "digits.yaml"


class Data(L.LightningDataModule):
    def __init__(self, *loaders, train=None) -> None:
        super().__init__()
        self.loaders, self.train = list(loaders) or [loader()], train

    def val_dataloader(self):
        return self.loaders if len(self.loaders) > 1 else self.loaders[0]

    def train_dataloader(self):
        return loader(shuffle=True) if self.train is None else self.train


class Silent(OracleClassifier):
    """Has no loss that would stumble over a label."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch[0])


def context(tmp_path, *loaders, model=None, train=None, callbacks=(), around=None, **options) -> CheckContext:
    """``options`` are those of FailureModes, ``around`` those of the Trainer."""
    modes = callback(**options)
    folder = tmp_path / "thrown away"
    folder.mkdir(exist_ok=True)
    made = trainer(tmp_path, modes, *callbacks, **(around or {}))
    return CheckContext(made, model or OracleClassifier(), Data(*loaders, train=train), modes, folder)


def read(*arguments, **options) -> CheckContext:
    """A case whose encoder is loaded and whose batches are read, whatever was found."""
    made = context(*arguments, **options)
    list(check_encoder(made))
    list(run_check("batches", check_batches, made))
    return made


def only(findings, status: str) -> Finding:
    """The one finding of a status."""
    (found,) = [one for one in findings if one.status == status]
    return found


def statuses(findings) -> list[str]:
    return [one.status for one in findings]


def random_states():
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numpys, random.getstate()
