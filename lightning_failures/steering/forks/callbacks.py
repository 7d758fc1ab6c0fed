"""Lightning callbacks that turn a resumed training into a fork, or stop it at the first decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DistributedSampler

from lightning_failures.core.rng import seed_all
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.base import named_interventions
from lightning_failures.steering.protocol import SteeredCallback
from lightning_failures.trainer.schedule import adopt_state


class Fork(Callback):
    """Turns a resumed training into one fork of it.

    Args:
        callback: The callback with the interventions. It is reconfigured for the fork.
        seed: Seed of all draws.
        start: First epoch of the fork.
        until: First epoch that the fork does not train.
        treated: Whether the decisions in the checkpoint take effect and new ones are made.
    """

    def __init__(self, callback: SteeredCallback, seed: int, *, start: int, until: int, treated: bool) -> None:
        self.callback, self.seed, self.until, self.treated = callback, seed, until, treated
        # A decision at the end of the fork would never take effect; the control fork makes no decision at all.
        callback.prepare_fork(stop_epoch=until if treated else start)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Seed the sampler of each training loader that has a generator or a seed of its own."""
        if stage != "fit":
            return
        process = trainer.strategy.process_dataloader

        def process_and_seed(loader: object) -> object:
            loader = process(loader)
            if trainer.training:
                _seed_sampler(loader, self.seed)
            return loader

        trainer.strategy.process_dataloader = process_and_seed  # type: ignore[method-assign, assignment]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed the global generators, after ``setup``: random splits made there are the same in all forks."""
        seed_all(self.seed)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the strategy's own ``process_dataloader``."""
        vars(trainer.strategy).pop("process_dataloader", None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the seed, and drop the plans in the control fork, before the callbacks restore their states."""
        states = checkpoint["callbacks"]
        adopt_state(states, self.callback.state_key)
        state = states[self.callback.state_key]
        draws = {**state["steering"]["draws"], "seed": self.seed}
        if not self.treated:
            draws["plans"] = {}
        steering = {**state["steering"], "draws": draws, "folder": None}
        states[self.callback.state_key] = {**state, "steering": steering}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the fork at its end; not by ``max_epochs``, which learning rate schedulers may read."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.until


class UntilDecided(Callback):
    """Stops a training once the interventions have made a decision for the next epoch, and saves a checkpoint.

    Args:
        callback: The callback with the interventions. Earlier decisions in the checkpoint, made with other options, are
            dropped.
        path: Path of the checkpoint to write.

    Attributes:
        state: State of the interventions in the saved checkpoint; None as long as there is no decision.
    """

    def __init__(self, callback: SteeredCallback, path: str) -> None:
        self.callback, self.path = callback, path
        self.state: Mapping[str, Any] | None = None
        callback.prepare_fork()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drop the state of the interventions before the callbacks restore their states."""
        states = checkpoint["callbacks"]
        adopt_state(states, self.callback.state_key)
        state = states.get(self.callback.state_key)
        if state is not None:
            states[self.callback.state_key] = {key: value for key, value in state.items() if key != "steering"}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop if the validation of this epoch led to a decision."""
        state = self.callback.state_dict()["steering"]
        if is_decided(self.callback, state):
            self.state = state
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def steered_callback(trainer: Any) -> SteeredCallback:
    """Return the one callback of a Trainer that has interventions.

    Raises:
        ConfigurationError: There is no such callback, there are several, or all interventions are dry runs.
    """
    found = [one for one in trainer.callbacks if getattr(one, "interventions", ())]
    if len(found) != 1:
        raise ConfigurationError(
            "A verdict needs one lightning_failures.FailureModes(interventions=[...]) among the callbacks of the"
            f" Trainer, got {len(found)}."
        )
    callback = cast(SteeredCallback, found[0])
    if all(one.dry_run for one in callback.interventions):
        raise ConfigurationError(
            "A verdict needs an intervention that changes the training, but all have dry_run=True. Remove dry_run."
        )
    return callback


def is_decided(callback: SteeredCallback, steering: Mapping[str, Any]) -> bool:
    """Return whether a state holds a flagged slice and a decision, made with the options that are configured now.

    Interventions that never change the training (``factor=1``) need no decision.
    """
    entries = steering["entries"]
    same_options = all(
        entries[name]["options"] == one.options
        for name, one in named_interventions(callback.interventions).items()
        if name in entries
    )
    may_change = any(one.changes_training for one in callback.interventions)
    changes = any(entry["changes_training"] for entry in entries.values())
    return same_options and steering["slice"] is not None and (changes or not may_change)


def has_acted(steering: Mapping[str, Any], epoch: int) -> bool:
    """Return whether an intervention changed the training before ``epoch``."""
    # only interventions that change the training have plans
    acting = [steering["entries"][name] for name in steering["draws"]["plans"] if name in steering["entries"]]
    return any(entry["began"] is not None and entry["began"] < epoch for entry in acting)


def base_names(callback: object) -> set[str]:
    """Return the class names of a callback and its bases; ``lightning`` and ``pytorch_lightning`` have one class each.

    >>> sorted(base_names(Callback()))
    ['Callback', 'object']
    """
    return {base.__name__ for base in type(callback).__mro__}


def _seed_sampler(loader: Any, seed: int) -> None:
    """Seed the generators, or the seed attributes, of a loader and its samplers."""
    batches = getattr(loader, "batch_sampler", None)
    for holder in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        if isinstance(holder, DistributedSampler):
            holder.seed = seed
