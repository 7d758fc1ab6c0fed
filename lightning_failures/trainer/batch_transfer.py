"""Give a batch that was read outside of the loop the steps that the loop gives its own batches before a model step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_failures.core.eval_mode import eval_mode


@dataclass(frozen=True)
class BatchTransfer:
    """The way of a batch from the loader to the step: precision, ``on_before_batch_transfer``, device, ``on_after``...

    The model is in eval mode and the Trainer in an evaluation while the hooks run, so that hooks which augment
    ``if self.trainer.training`` show images as a validation does. Random hooks draw from the global generators.

    Attributes:
        trainer: The Trainer, attached to the model and to the datamodule.
        dataloader_idx: Index of the loader, which the hooks receive.
        training: Whether the hooks see the stage of training instead; the model is in eval mode all the same.
    """

    trainer: Trainer
    dataloader_idx: int = 0
    training: bool = False

    def __call__(self, batch: Any) -> Any:
        """Return the batch as the step would receive it, on the device of the model."""
        trainer, module = self.trainer, self.trainer.lightning_module
        before = batch_hook(trainer, "on_before_batch_transfer")
        with in_evaluation(trainer, training=self.training), torch.no_grad():
            batch = before(trainer.precision_plugin.convert_input(batch), self.dataloader_idx)
            return trainer.strategy.batch_to_device(batch, device=module.device, dataloader_idx=self.dataloader_idx)


def batch_hook(trainer: Trainer, name: str) -> Callable[..., Any]:
    """Return a batch hook as Lightning selects it: the datamodule's if it overrides the hook, else the module's."""
    datamodule = getattr(trainer, "datamodule", None)
    owner = trainer.lightning_module if datamodule is None or not is_overridden(name, datamodule) else datamodule
    hook: Callable[..., Any] = getattr(owner, name)
    return hook


@contextmanager
def in_evaluation(trainer: Trainer, *, training: bool = False) -> Iterator[None]:
    """Put the model into eval mode and the Trainer into an evaluation for the block; restore both afterwards.

    Args:
        trainer: A running evaluation, such as a test, stays as it is; any other stage becomes a validation.
        training: Whether the Trainer is put into the stage of training instead.
    """
    stage = trainer.state.stage
    if training:
        trainer.state.stage = RunningStage.TRAINING
    elif stage is None or not (stage.evaluating or stage == RunningStage.PREDICTING):
        trainer.state.stage = RunningStage.VALIDATING
    try:
        with eval_mode(trainer.lightning_module):
            yield
    finally:
        trainer.state.stage = stage
