"""Forks of a live Trainer at the end of ``fit``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from lightning_failures.interventions.verdicts import Verdict, not_measured
from lightning_failures.steering.forks.callbacks import base_names
from lightning_failures.steering.forks.run import FORK_EXCLUDED_CALLBACKS, PAIRS, Run, fork_verdict
from lightning_failures.steering.former_files import START_OF_FORKS
from lightning_failures.steering.protocol import SteeredCallback

COMMAND = "lightning-failures verdict --config ... --ckpt_path ..."

_SAME_OPTIONS = (
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
"""Arguments of a Trainer that it keeps as attributes of the same name."""


def fork_finished_training(
    trainer: Trainer, module: LightningModule, callback: SteeredCallback, *, folder: Path, began: bool
) -> Verdict:
    """Fork a finished training from the checkpoint before the interventions, and return the verdict.

    Args:
        trainer: The Trainer at the end of ``fit``.
        module: Its module.
        callback: The callback with the interventions, detached from loaders and module.
        folder: Folder of the run.
        began: Whether any intervention has begun.
    """
    if not began:
        return not_measured("nothing was flagged, so no intervention began")
    return fork_trainer(trainer, module, callback, folder / START_OF_FORKS, folder=folder)


def fork_trainer(
    trainer: Trainer,
    module: LightningModule,
    callback: SteeredCallback,
    ckpt_path: str | Path,
    *,
    pairs: int = PAIRS,
    folder: Path | None = None,
) -> Verdict:
    """Fork a Trainer at the end of its training, with copies of its module and callbacks and a new Trainer.

    The new Trainer has the devices, precision, limits and gradient settings of the old one. With DDP it runs in the
    same processes, with the default options of DDP. The datamodule is copied shallowly and shares the data; without a
    datamodule, the loaders of the training are reused. Forks train as many epochs as the training did.

    Attributes of a module outside its ``state_dict`` are copied in their final state. If no copy can be made, or if
    several processes run another strategy or were spawned, the verdict is "not measured" and names the command to run
    instead.

    Args:
        trainer: The Trainer at the end of ``fit``.
        module: Its module.
        callback: The callback with the interventions, detached from loaders and module.
        ckpt_path: A checkpoint from before the interventions began.
        pairs: Number of pairs of forks.
        folder: The folder ``failures`` of the training; with several processes, all of them see it.
    """
    if trainer.world_size > 1 and not _keeps_its_processes(trainer):
        return not_measured(f"with the processes of {type(trainer.strategy).__name__}, run `{COMMAND}`")
    try:
        _copy_run(trainer, module, callback)
    except Exception as error:
        return not_measured(f"no copy can be made ({type(error).__name__}: {error}), run `{COMMAND}`")
    return fork_verdict(
        lambda: _copy_run(trainer, module, callback),
        ckpt_path,
        until=trainer.current_epoch,
        pairs=pairs,
        seed=callback.seed,
        files=folder,
        folder=folder if trainer.world_size > 1 else None,
    )


def _keeps_its_processes(trainer: Any) -> bool:
    """Return whether a new Trainer can run in the processes of this one, which were not spawned for its ``fit``."""
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)
    return type(trainer.strategy) is DDPStrategy and bool(environment.creates_processes_externally)


def _copy_run(trainer: Any, module: LightningModule, callback: SteeredCallback) -> Run:
    """Copy module and callbacks, and make a Trainer with the same options."""
    module.trainer = None  # deepcopy would copy the Trainer too
    try:
        twin = copy.deepcopy(module)
    finally:
        module.trainer = trainer

    # objects in the memo are shared, not copied; the last report is dropped
    shared = (trainer, callback.encoder, callback.robust_encoder, *callback.interventions)
    memo: dict[int, Any] = {id(one): one for one in shared}
    memo |= {id(module): twin, id(callback.last_report): None}
    excluded = {"ProgressBar", "ModelSummary", *FORK_EXCLUDED_CALLBACKS}
    callbacks = [copy.deepcopy(one, memo) for one in trainer.callbacks if not excluded & base_names(one)]

    device = trainer.strategy.root_device
    processes: dict[str, Any] = {"devices": 1 if device.index is None else [device.index]}
    if trainer.world_size > 1:
        devices = trainer.num_devices if device.index is None else trainer.device_ids
        environment = trainer.strategy.cluster_environment
        processes = {"devices": devices, "num_nodes": trainer.num_nodes, "strategy": "ddp", "plugins": [environment]}
    run = type(trainer)(
        accelerator=device.type,
        **processes,
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{name: getattr(trainer, name) for name in _SAME_OPTIONS},
    )
    data: dict[str, Any] = {"datamodule": copy.copy(trainer.datamodule)}
    if trainer.datamodule is None:
        data = {"train_dataloaders": trainer.train_dataloader, "val_dataloaders": trainer.val_dataloaders}
    return Run(run, twin, data)
