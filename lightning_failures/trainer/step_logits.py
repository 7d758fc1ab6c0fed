"""Compute logits outside of the loop as the loop does: by the module's own evaluation step, without a trace of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torchmetrics import Metric

from lightning_failures.core.rng import isolated_rng
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.batch_transfer import in_evaluation
from lightning_failures.trainer.logits_hook import REMEDY, LogitsObserver, forward_once_more, is_sharded
from lightning_failures.trainer.module_state import state_kept

STEP = "validation_step"


class StepLogits:
    """Computes the logits of batches that the loop did not read.

    The model is shown a batch as its ``validation_step`` is shown it: whatever the step does to the images before they
    reach the layers, such as a conversion from uint8, is done here too. The logits are those that the step returns, or
    computes; a module without the step, or whose step does not take the batch, is called with the images of the batch.

    Args:
        trainer: The Trainer.
        reader: Reads batches and outputs in the user's form.
        classes: Number of logits of an example, or None if it is not known.
        dataset: The dataset of the batches, whose columns may have types, or None.
        soft: Whether the scores that the step computes are wanted where it returns predicted classes.
    """

    def __init__(
        self,
        trainer: Trainer,
        reader: BatchReader,
        *,
        classes: int | None = None,
        dataset: Any = None,
        soft: bool = False,
    ) -> None:
        self._soft = soft
        self._trainer, self._reader, self._classes, self._dataset = trainer, reader, classes, dataset
        self._module = trainer.lightning_module
        self._observer = LogitsObserver(reader.logits_from)
        self._steps = 0

    @contextmanager
    def open(self) -> Iterator[Callable[[Any], Tensor]]:
        """Return the function from a batch, as the step receives it, to its logits, for the block.

        Afterwards the module, its metrics and lists, the loggers and the random generators are as before.
        """
        module, trainer = self._module, self._trainer
        with (
            isolated_rng(),
            torch.no_grad(),
            in_evaluation(trainer),
            state_kept(module),
            _nothing_logged(trainer, module),
        ):
            self._observer.attach(module)
            try:
                yield self.logits
            finally:
                self._observer.detach()

    def logits(self, batch: Any) -> Tensor:
        """Return the logits (B, K) or (B,) of a batch, or the classes (B,) int that its step predicts.

        Raises:
            ConfigurationError: Neither the step nor a forward gives logits, with the remedy.
        """
        if is_sharded(self._trainer):
            raise ConfigurationError(
                f"{type(self._trainer.strategy).__name__} shards the model over processes, so that a single process"
                " cannot call it. Use a strategy that keeps the whole model in each process, such as 'ddp'."
            )
        by_step, reason = self._by_step(batch)
        if by_step is not None:
            return by_step
        try:
            shown = self._reader.shown_images(batch, self._reader.read(None, batch, self._dataset), self._dataset)
            return forward_once_more(self._trainer, self._module, shown)
        except Exception as error:
            remedy = "" if isinstance(error, ConfigurationError) else f". {REMEDY}"
            raise ConfigurationError(
                f"{type(self._module).__name__} gives no logits for a batch that is read outside of the loop."
                f" {STEP}: {reason}. forward: {_first_line(error)}{remedy}"
            ) from error

    def _by_step(self, batch: Any) -> tuple[Tensor | None, str]:
        """Return the logits by the step, or None and why there are none."""
        module = self._module
        if not is_overridden(STEP, module):
            return None, "the module has none"
        self._observer.begin(redirected=False)
        try:
            with self._trainer.precision_plugin.val_step_context():
                outputs = module.validation_step(*_step_arguments(module, batch, self._steps))
            self._steps += 1
            record = self._reader.read(outputs, batch, self._dataset)
            size = next((len(values) for values in (record.labels, record.images) if values is not None), None)
            returned = record.logits
            are_enough = returned is not None and (returned.is_floating_point() or not self._soft)
            if are_enough or size is None:
                return returned, "it returns no logits"
            computed = self._observer.logits(batch_size=size, classes=self._classes)
            return returned if computed is None else computed, "it computes no logits"
        except ConfigurationError:
            raise  # several candidates: one of them is no better than another
        except Exception as error:
            return None, f"{type(error).__name__}: {_first_line(error)}"
        finally:
            self._observer.end()


def _first_line(error: Exception) -> str:
    """Return what an error of the user's code says, short; a ConfigurationError of ours in full."""
    return str(error) if isinstance(error, ConfigurationError) else (str(error).splitlines() or [""])[0][:200]


def _step_arguments(module: LightningModule, batch: Any, batch_idx: int) -> list[Any]:
    """Return the arguments of the step: it may take the batch alone, its number too, or also the index of a loader."""
    parameters = inspect.signature(module.validation_step).parameters.values()
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return [batch, batch_idx]
    return [batch, batch_idx, 0][: sum(one.kind is not one.VAR_KEYWORD for one in parameters)]


@contextmanager
def _nothing_logged(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Silence what a step logs; within :func:`state_kept`, which removes the silent methods again."""

    def ignore(*args: Any, **kwargs: Any) -> None:
        return None

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("the step communicates between processes, which do not all run it here")

    for child in module.modules():
        if isinstance(child, LightningModule):
            silent = {"log": ignore, "log_dict": ignore, "print": ignore}
            vars(child).update(silent | ({"all_gather": refuse} if trainer.world_size > 1 else {}))
        elif isinstance(child, Metric):
            vars(child).update(dist_sync_on_step=False, sync_on_compute=False)
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
