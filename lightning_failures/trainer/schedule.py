"""When to analyse, and what a resumed run goes on with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_failures.core.serialization import from_jsonable
from lightning_failures.errors import DataError

VERSION = 1


@dataclass
class RunState:
    """What the callback knows of its run; plain values only, so that checkpoints load with ``weights_only=True``.

    Attributes:
        run_id: Names the folder of the run.
        validations: How many ``fit`` has begun.
        analyses: How many of the first loader were finished.
        analysis_age: Validations since the last analysis that may steer.
        last_epoch: The epoch of the last analysis, -1 before the first.
        last_values: The monitored aggregates of the last analysis that may steer, with the suffix of their loader.

    >>> RunState.from_dict(RunState(run_id="a", analyses=3).to_dict() | {"of a later version": 1}).analyses
    3
    """

    run_id: str | None = None
    validations: int = 0
    analyses: int = 0
    analysis_age: int = 0
    last_epoch: int = -1
    last_values: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The state in a checkpoint."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> RunState:
        """Read what :meth:`to_dict` wrote; keys of other versions are ignored.

        A state that is damaged, or of a later version, is one warning, and the run counts anew.
        """
        try:
            version = state.get("version", VERSION)
            if not isinstance(version, int) or version > VERSION:
                raise DataError(f"it is of version {version}, and this package knows {VERSION}")
            return from_jsonable(cls, state)
        except DataError as error:
            rank_zero_warn(
                f"The state of FailureModes in this checkpoint cannot be read: {error}. It counts epochs and analyses"
                " anew, and writes to a new folder."
            )
            return cls()


def is_due(trainer: Trainer, state: RunState, every_n_epochs: int, every_n_validations: int | None) -> bool:
    """Whether the validation that begins is analysed.

    An epoch without an analysis, for want of a validation or because of an error, hands its turn on to the next. Where
    nobody knows which validation is the last of an epoch, all of an epoch whose turn it is are analysed.
    """
    if trainer.sanity_checking or trainer.state.fn != "fit":
        return True
    if every_n_validations is not None:
        return state.validations % every_n_validations == 0
    epoch = trainer.current_epoch
    turn = (epoch + 1) // every_n_epochs > (state.last_epoch + 1) // every_n_epochs
    last = _is_last_validation(trainer)
    return (turn or epoch == state.last_epoch) if last is None else (turn and last)


def _is_last_validation(trainer: Trainer) -> bool | None:
    """Whether no further validation comes in this epoch; None if its length or the interval is not known."""
    if trainer.is_last_batch:
        return True
    total, interval = trainer.num_training_batches, trainer.val_check_batch
    if interval is None or math.isinf(total):
        return None
    return total - (trainer.fit_loop.batch_idx + 1) < interval
