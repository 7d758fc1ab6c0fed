"""Automatic rollback of a training whose accuracy fell after an intervention began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array
from lightning_failures.core.atomic import replacing
from lightning_failures.core.serialization import from_jsonable
from lightning_failures.core.types import IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.joining import ExampleKeys, join_examples
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.verdicts import Verdict, fall_verdict
from lightning_failures.interventions.wobble import HISTORY_BEFORE, HISTORY_SINCE
from lightning_failures.steering.checkpoint import RollbackState
from lightning_failures.trainer.ranks import Communicator

FILE = "before_interventions.pt"

Look = dict[str, torch.Tensor]
"""The decision part in one validation: ``ids`` (n,) and ``correct`` (n,)."""


class Rollback:
    """Keeps weights and optimizers from before the first treated epoch, and restores them if accuracy falls.

    The rule is :func:`~lightning_failures.interventions.verdicts.fall_verdict`, applied to the decision part after
    every treated epoch: a fall counts if the wobble of accuracy between validations does not explain it.

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
        # ids, correct and, if they are known, digests of the decision part in each validation, (n,) each
        self._earlier: list[Look] = []  # before the one in which the interventions began
        self._before: Look | None = None
        self._since: list[Look] = []
        self._looks = 0  # validations since, of which the last are kept
        self._file: str | None = None
        self.undone: dict[str, Any] | None = None
        self._pending = False

    @staticmethod
    def check(trainer: Trainer) -> None:
        """Raise an error for strategies that shard the weights over processes.

        Raises:
            ConfigurationError: No single process holds all weights.
        """
        if not holds_all_weights(trainer):
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
        self._before = self._earlier.pop() if self._earlier else _look(decision)

    def record(self, decision: Grades) -> None:
        """Remember which examples are correct in a validation before the interventions begin."""
        if self._before is None:
            self._earlier = [*self._earlier, _look(decision)][-HISTORY_BEFORE:]

    def judge(self, decision: Grades) -> Verdict | None:
        """Return a verdict on the accuracy change since the interventions began, or None if none has begun.

        The change is measured on the examples that this validation graded and those before did.
        """
        if self._before is None or self.undone is not None:
            return None
        self._since = [*self._since, _look(decision)][-HISTORY_SINCE:]
        self._looks += 1
        verdict = fall_verdict(
            np.stack([_correct_in(look, decision) for look in (*self._earlier, self._before)]),
            np.stack([_correct_in(look, decision) for look in self._since]),
            looks=self._looks,
            groups=decision.ids if decision.groups is None else decision.groups,
            seed=self._seed,
        )
        unmatched = len(self._before["ids"]) - len(_shared_rows(self._before, decision)[0])
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
        state: dict[str, Any] = {
            "before": self._before,
            "file": self._file,
            "undone": self.undone,
            "pending": self._pending,
        }
        if self._earlier or self._since:
            state |= {"earlier": list(self._earlier), "since": list(self._since), "looks": self._looks}
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            DataError: The state is damaged.
        """
        saved = from_jsonable(RollbackState, state)
        self._before, self._file, self.undone = saved.before, saved.file, saved.undone
        self._pending = saved.pending
        self._earlier, self._since, self._looks = list(saved.earlier), list(saved.since), saved.looks


def holds_all_weights(trainer: Trainer) -> bool:
    """Return whether each process holds all weights of the model, instead of a shard of them."""
    is_whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    return is_whole and not isinstance(trainer.strategy, DeepSpeedStrategy)


def _shared_rows(before: Look, now: Grades) -> tuple[IntArray, IntArray]:
    """Return the rows of two looks at the decision part that are the same examples: (s,) of then, (s,) of now."""
    digests = before.get("digests")
    then = ExampleKeys(as_array(before["ids"]), None if digests is None else as_array(digests))
    return join_examples(then, ExampleKeys.of(now))


def _look(decision: Grades) -> Look:
    """Return which examples are correct in one validation."""
    look = {"ids": decision.ids.clone(), "correct": decision.correct.clone()}
    return look if decision.digests is None else look | {"digests": decision.digests.clone()}


def _correct_in(look: Look, decision: Grades) -> NDArray[np.float64]:
    """Return whether each example (n,) of ``decision`` was correct in another validation: 1, 0, or NaN if unknown."""
    then, now = _shared_rows(look, decision)
    correct: NDArray[np.float64] = np.full(len(decision), np.nan)
    correct[now] = as_array(look["correct"])[then]
    return correct
