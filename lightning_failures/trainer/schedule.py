"""When to analyse, and the state with which a resumed run continues."""

from __future__ import annotations

import math
import uuid
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
    """The state of a run; plain values only, so that checkpoints load with ``weights_only=True``.

    Attributes:
        run_id: Name of the folder of the run.
        id: Id of the run in its reports, which a resumed run keeps and another run in the same folder does not share.
            None in a run resumed from a checkpoint of a version that had none, so that it goes on in its own files.
        validations: Number of validations that ``fit`` has begun.
        analyses: Number of finished analyses of the first loader.
        analysis_age: Validations since the last analysis that may steer.
        last_epoch: The epoch of the last analysis, -1 before the first.
        last_values: The monitored aggregates of the last analysis that may steer, with the suffix of their loader.

    >>> RunState.from_dict(RunState(run_id="a", analyses=3).to_dict() | {"of a later version": 1}).analyses
    3
    """

    run_id: str | None = None
    id: str | None = field(default_factory=lambda: uuid.uuid4().hex[:12], compare=False)
    validations: int = 0
    analyses: int = 0
    analysis_age: int = 0
    last_epoch: int = -1
    last_values: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> RunState:
        """Read what :meth:`to_dict` wrote; keys of other versions are ignored.

        A damaged state, or one of a later version, is one warning, and counting starts from zero.
        """
        try:
            version = state.get("version", VERSION)
            if not isinstance(version, int) or version > VERSION:
                raise DataError(f"it has version {version}, and this package reads {VERSION}")
            return from_jsonable(cls, {"id": None, **state})
        except DataError as error:
            rank_zero_warn(
                f"The state of FailureModes in this checkpoint cannot be read: {error}. Epochs and analyses are counted"
                " from zero, and files go to a new folder."
            )
            return cls()


def is_due(trainer: Trainer, state: RunState, every_n_epochs: int, every_n_validations: int | None) -> bool:
    """Return whether the validation that begins is analysed.

    A due epoch that produced no analysis is retried in the next one. If the last validation of an epoch cannot be
    identified, every validation of a due epoch is analysed.
    """
    if trainer.sanity_checking or trainer.state.fn != "fit":
        return True
    if every_n_validations is not None:
        return state.validations % every_n_validations == 0
    epoch = trainer.current_epoch
    due = (epoch + 1) // every_n_epochs > (state.last_epoch + 1) // every_n_epochs
    last = _is_last_validation(trainer)
    return (due or epoch == state.last_epoch) if last is None else (due and last)


def _is_last_validation(trainer: Trainer) -> bool | None:
    """Return whether this is the last validation of the epoch; None if the length or the interval is unknown."""
    if trainer.is_last_batch:
        return True
    total, interval = trainer.num_training_batches, trainer.val_check_batch
    if interval is None or math.isinf(total):
        return None
    return total - (trainer.fit_loop.batch_idx + 1) < interval
