"""What makes a fork of a resumed training: seeds, decisions that take effect or not, and where it ends."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DistributedSampler

from lightning_failures.core.rng import seed_all
from lightning_failures.errors import ConfigurationError


class Fork(Callback):
    """Turns a training that resumes into one fork of it.

    Args:
        modes: The callback with the interventions.
        seed: Of all draws.
        start: First epoch of the fork.
        until: First epoch that it does not train any more.
        treated: Whether the decisions of the checkpoint take effect, and more are made.
    """

    def __init__(self, modes: Any, seed: int, *, start: int, until: int, treated: bool) -> None:
        self.modes, self.seed, self.until, self.treated = modes, seed, until, treated
        _detach_from_training(modes)
        # what is decided at the end would never take effect; in the other fork nothing is decided at all
        _end_decisions(modes, until if treated else start)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the training examples by the seed of the fork, where they have a generator of their own."""
        if stage != "fit":
            return
        process = trainer.strategy.process_dataloader

        def process_and_seed(loader: object) -> object:
            loader = process(loader)
            if trainer.training:
                _seed_draws(loader, self.seed)
            return loader

        trainer.strategy.process_dataloader = process_and_seed  # type: ignore[method-assign, assignment]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After ``setup``, which may split the data at random, the same way in all forks."""
        seed_all(self.seed)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nobody else needs seeded loaders."""
        vars(trainer.strategy).pop("process_dataloader", None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before the callbacks read their states."""
        states = checkpoint["callbacks"]
        state = states[self.modes.state_key]
        draws = {**state["steering"]["draws"], "seed": self.seed}
        if not self.treated:
            draws["plans"] = {}
        states[self.modes.state_key] = {**state, "steering": {**state["steering"], "draws": draws, "folder": None}}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not by ``max_epochs``, which schedulers look at."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.until


class UntilDecided(Callback):
    """Ends a training when the interventions have decided something for the next epoch, and keeps a checkpoint.

    Args:
        modes: The callback with the interventions. What it knows of decisions before, made with other options, is
            dropped.
        path: Of the checkpoint.
    """

    def __init__(self, modes: Any, path: str) -> None:
        self.modes, self.path = modes, path
        self.state: Mapping[str, Any] | None = None
        _detach_from_training(modes)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before the callbacks read their states."""
        states = checkpoint["callbacks"]
        if (state := states.get(self.modes.state_key)) is not None:
            states[self.modes.state_key] = {key: value for key, value in state.items() if key != "steering"}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the validation of the epoch."""
        state = self.modes.state_dict()["steering"]
        if is_decided(self.modes, state):
            self.state = state
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def steered(trainer: Any) -> Any:
    """The one callback that has interventions.

    Raises:
        ConfigurationError: there is none, or several, or they are not to change anything.
    """
    found = [one for one in trainer.callbacks if getattr(one, "interventions", ())]
    if len(found) != 1:
        raise ConfigurationError(
            "A verdict needs one lightning_failures.FailureModes(interventions=[...]) among the callbacks of the"
            f" Trainer, got {len(found)}."
        )
    if all(one.dry_run for one in found[0].interventions):
        raise ConfigurationError("A verdict on interventions with dry_run=True: they change nothing. Leave it out.")
    return found[0]


def is_decided(modes: Any, steering: Mapping[str, Any]) -> bool:
    """Whether there is a slice, and something that begins to act, as it is configured now.

    What never acts (``factor=1``) need not begin.
    """
    entries = steering["entries"]
    same = all(
        entries[name]["options"] == one.options
        for name, one in modes._steering.interventions.items()
        if name in entries
    )
    acts = any(one.acts for one in modes.interventions)
    changes = any(entry["changes_training"] for entry in entries.values())
    return same and steering["slice"] is not None and (changes or not acts)


def has_acted(steering: Mapping[str, Any], epoch: int) -> bool:
    """Whether any change was in effect before this epoch; only what acts has plans."""
    acting = [steering["entries"][name] for name in steering["draws"]["plans"] if name in steering["entries"]]
    return any(entry["began"] is not None and entry["began"] < epoch for entry in acting)


def bases(callback: object) -> set[str]:
    """The classes of a callback by name, because lightning and pytorch_lightning have one each."""
    return {base.__name__ for base in type(callback).__mro__}


def _detach_from_training(modes: Any) -> None:
    """A fork undoes nothing, has no forks of its own, and fails when it fails."""
    modes.on_error, modes.verdict = "raise", None
    modes._steering._rollback = None


def _end_decisions(modes: Any, epoch: int) -> None:
    """From this epoch on nothing is decided any more; the loaders are prepared as if it were."""

    def ended(one: Any) -> Any:
        one = copy.copy(one)
        one.stop_epoch = epoch if one.stop_epoch is None else min(one.stop_epoch, epoch)
        return one

    steering = modes._steering
    steering.interventions = {name: ended(one) for name, one in steering.interventions.items()}
    modes.interventions = tuple(steering.interventions.values())


def _seed_draws(loader: Any, seed: int) -> None:
    """Draws that hang on a generator, or on a seed, of their own; all others on the global one."""
    batches = getattr(loader, "batch_sampler", None)
    for holder in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        if isinstance(holder, DistributedSampler):
            holder.seed = seed
