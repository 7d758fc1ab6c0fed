"""Forks at the end of a training that is at hand, instead of one that is made anew from its configuration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_failures.interventions.verdicts import Verdict, not_measured
from lightning_failures.steering.forking import bases
from lightning_failures.steering.forks import FORK_EXCLUDED_CALLBACKS, PAIRS, Run, fork_verdict

COMMAND = "lightning-failures verdict --config ... --ckpt_path ..."

_SAME = (
    "precision",
    "max_epochs",
    "max_steps",
    "min_epochs",
    "min_steps",
    "limit_train_batches",
    "limit_val_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "reload_dataloaders_every_n_epochs",
)
"""Options that a Trainer keeps under the names of its arguments."""


def fork_live(
    trainer: Trainer,
    module: LightningModule,
    modes: Any,
    ckpt_path: str | Path,
    *,
    pairs: int = PAIRS,
    folder: Path | None = None,
) -> Verdict:
    """Fork a training that is at its end, with copies of its module and callbacks and a new Trainer.

    The new Trainer has the device, precision, limits and gradient settings of the old one, and one process. The
    datamodule is a shallow copy, which shares the data; without one, the loaders are those of the training. ``modes``
    must have left loaders and module. Forks train as long as the training did.

    What a module keeps besides its ``state_dict`` is copied as it is at the end. Where no copy can be made, and with
    several processes, the verdict is "not measured", with the command that can.

    Args:
        trainer: That has trained.
        module: That was trained.
        modes: The callback with the interventions.
        ckpt_path: Written before they began.
        pairs: Of forks.
        folder: The folder ``failures`` of the training.
    """
    if trainer.world_size > 1:
        return not_measured(f"with several processes, run `{COMMAND}`")
    try:
        _copied(trainer, module, modes)
    except Exception as error:
        return not_measured(f"no copy can be made ({type(error).__name__}: {error}), run `{COMMAND}`")
    return fork_verdict(
        lambda: _copied(trainer, module, modes),
        ckpt_path,
        until=trainer.current_epoch,
        pairs=pairs,
        seed=modes.seed,
        files=folder,
    )


def _copied(trainer: Any, module: LightningModule, modes: Any) -> Run:
    module.trainer = None  # it would be copied too
    try:
        twin = copy.deepcopy(module)
    finally:
        module.trainer = trainer
    memo: dict[int, Any] = {
        id(one): one for one in (trainer, modes.encoder, modes.robust_encoder, *modes.interventions)
    }
    memo |= {id(module): twin, id(modes.last_report): None}
    left_out = {"ProgressBar", "ModelSummary", *FORK_EXCLUDED_CALLBACKS}
    callbacks = [copy.deepcopy(one, memo) for one in trainer.callbacks if not left_out & bases(one)]
    device = trainer.strategy.root_device
    run = type(trainer)(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{name: getattr(trainer, name) for name in _SAME},
    )
    data: dict[str, Any] = {"datamodule": copy.copy(trainer.datamodule)}
    if trainer.datamodule is None:
        data = {"train_dataloaders": trainer.train_dataloader, "val_dataloaders": trainer.val_dataloaders}
    return Run(run, twin, data)
