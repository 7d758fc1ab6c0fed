"""Automatic rollback of a training whose accuracy fell after an intervention began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from lightning_failures.core.arrays import as_array
from lightning_failures.core.atomic import replacing
from lightning_failures.core.serialization import from_jsonable
from lightning_failures.core.types import IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.joining import ExampleKeys, join_examples
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.verdicts import Verdict, should_roll_back
from lightning_failures.steering.checkpoint import RollbackState
from lightning_failures.trainer.ranks import Communicator

FILE = "before_interventions.pt"


class Rollback:
    """Keeps weights and optimizers from before the first treated epoch, and restores them if accuracy falls.

    The rule is :func:`~lightning_failures.interventions.verdicts.should_roll_back`, applied to the decision part after
    every treated epoch.

    Args:
        seed: Seed of the bootstrap.

    Attributes:
        undone: Epoch and reason of the rollback, None without one.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Begin a new run."""
        self._before: dict[str, torch.Tensor] | None = None  # ids, correct and digests of the decision part, (n,) each
        self._file: str | None = None
        self.undone: dict[str, Any] | None = None
        self._pending = False

    @staticmethod
    def check(trainer: Trainer) -> None:
        """Raise an error for strategies that shard the weights over processes.

        Raises:
            ConfigurationError: No single process holds all weights.
        """
        is_whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if not is_whole or isinstance(trainer.strategy, DeepSpeedStrategy):
            raise ConfigurationError(
                f"AdvancedOptions(auto_rollback=True) cannot restore the weights of {type(trainer.strategy).__name__},"
                " which shards them over processes. Use DDP, or auto_rollback=False and checkpoints."
            )

    @property
    def begun(self) -> bool:
        """Whether a state to return to has been saved."""
        return self._before is not None

    def begin(self, trainer: Trainer, decision: Grades, folder: Path, ranks: Communicator) -> None:
        """Save weights and optimizers, and remember which examples are correct. Collective."""
        file = folder / FILE

        def save() -> None:
            state = {
                "module": trainer.lightning_module.state_dict(),
                "optimizers": [one.state_dict() for one in trainer.optimizers],
            }
            with replacing(file) as opened:
                torch.save(state, opened)

        ranks.run_all(lambda: save() if ranks.is_first else None)
        self._file = str(file)
        self._before = {"ids": decision.ids.clone(), "correct": decision.correct.clone()}
        if decision.digests is not None:
            self._before["digests"] = decision.digests.clone()

    def judge(self, decision: Grades) -> Verdict | None:
        """Return a verdict on the accuracy change since the interventions began, or None if none has begun.

        The change is measured on the examples that both validations graded.
        """
        if self._before is None or self.undone is not None:
            return None
        then, now = _shared_rows(self._before, decision)
        was, correct = as_array(self._before["correct"])[then], as_array(decision.correct)[now]
        groups = as_array(decision.ids if decision.groups is None else decision.groups)[now]
        verdict = should_roll_back(was, correct, groups=groups, seed=self._seed)
        unmatched = len(self._before["ids"]) - len(then)
        if not unmatched:
            return verdict
        rest = f" {unmatched} others of then are not in this validation: it holds other images."
        return replace(verdict, sentence=verdict.sentence + rest)

    def request(self, epoch: int, verdict: Verdict) -> None:
        """Request a rollback before the next epoch begins; checkpoints until then belong to the current weights."""
        self.undone = {"epoch": epoch, "reason": verdict.sentence}
        self._pending = True

    def undo(self, trainer: Trainer, ranks: Communicator) -> None:
        """Restore weights and optimizers, but not learning rates, if a rollback was requested. Collective."""
        if not self._pending:
            return
        self._pending = False
        ranks.run_all(lambda: self._restore(trainer))

    def _restore(self, trainer: Trainer) -> None:
        assert self._file is not None
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        trainer.lightning_module.load_state_dict(state["module"])
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"before": self._before, "file": self._file, "undone": self.undone, "pending": self._pending}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            DataError: The state is damaged.
        """
        saved = from_jsonable(RollbackState, state)
        self._before, self._file, self.undone = saved.before, saved.file, saved.undone
        self._pending = saved.pending


def _shared_rows(before: Mapping[str, torch.Tensor], now: Grades) -> tuple[IntArray, IntArray]:
    """Return the rows of two looks at the decision part that are the same examples: (s,) of then, (s,) of now."""
    digests = before.get("digests")
    then = ExampleKeys(as_array(before["ids"]), None if digests is None else as_array(digests))
    return join_examples(then, ExampleKeys.of(now))
