"""When to analyse, and the state with which a resumed run continues, under which key."""

from __future__ import annotations

import math
import re
import uuid
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any, Protocol

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
        own_folder: Name of the folder of the run beside ``failures``, where another run held that one; else None.
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
    own_folder: str | None = None

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


def short_name(encoder: str | None) -> str | None:
    """Return what tells the encoders of two callbacks apart, however the path of an encoder is written.

    >>> short_name("~/models/robust.pt"), short_name("ViT-B-32/openai"), short_name(None)
    ('robust.pt', 'openai', None)
    """
    return None if encoder is None else PurePath(encoder).name


def adopt_state(states: MutableMapping[str, Any], key: str) -> None:
    """Enter the state of a callback under its key, if a checkpoint has it under another key.

    Keys have named the encoders in other ways before, and another encoder may continue a run. There is only one
    FailureModes in a Trainer, so the state of its class is its own.

    Args:
        states: The states of all callbacks in a checkpoint, changed in place.
        key: The key of the callback.

    >>> states = {"FailureModes{'encoder': '/a/b.pt', 'robust_encoder': None}": {"analyses": 3}}
    >>> adopt_state(states, "FailureModes{'encoder': 'c.pt', 'robust_encoder': None}")
    >>> states["FailureModes{'encoder': 'c.pt', 'robust_encoder': None}"]
    {'analyses': 3}
    """
    kind = key.split("{")[0]
    others = [other for other in states if isinstance(other, str) and other.split("{")[0] == kind]
    if key not in states and len(others) == 1:
        states[key] = states[others[0]]


def expect_former_keys(key: str) -> None:
    """Silence Lightning's warning that the callback is missing, for a checkpoint that has it under another key."""
    kind = re.escape(key.split("{")[0])
    of_ours = rf"""["']{kind}(\{{[^"]*\}})?["']"""
    warnings.filterwarnings("ignore", rf".*add the following callbacks: \[{of_ours}\]", UserWarning)


def is_due(trainer: Trainer, state: RunState, every_n_epochs: int, every_n_validations: int | None) -> bool:
    """Return whether the validation that begins is analysed.

    A due epoch that produced no analysis is retried in the next one. If the last validation of an epoch cannot be
    identified, every validation of a due epoch is analysed. A training that ends by steps or by time ends with an
    analysis.
    """
    if trainer.sanity_checking or trainer.state.fn != "fit":
        return True
    ends = _is_last_before_stop(trainer)
    if ends or every_n_validations is not None:
        return bool(ends) or state.validations % (every_n_validations or 1) == 0
    epoch = trainer.current_epoch
    due = (epoch + 1) // every_n_epochs > (state.last_epoch + 1) // every_n_epochs
    last = None if ends is None else _is_last_of_epoch(trainer)
    return (due or epoch == state.last_epoch) if last is None else (due and last)


def is_last_epoch(trainer: Trainer) -> bool:
    """Return whether no other epoch of training follows the current one, as far as this is known."""
    following = trainer.current_epoch + 1
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= following:
        return True
    may_stop = following >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    if trainer.should_stop and may_stop:
        return True
    if trainer.max_steps < 0:
        return False
    batches_left = trainer.num_training_batches - (trainer.fit_loop.batch_idx + 1)
    steps_left = 0 if math.isinf(batches_left) else _steps_of(trainer, int(batches_left)) or 0
    return trainer.global_step + steps_left >= trainer.max_steps


def is_last_analysis(trainer: Trainer) -> bool:
    """Return whether no other analysis follows in this run, as far as this is known: always so outside of ``fit``."""
    if trainer.state.fn != "fit":
        return True
    if trainer.sanity_checking:
        return False
    return bool(_is_last_before_stop(trainer)) or (is_last_epoch(trainer) and _is_last_of_epoch(trainer) is not False)


class Intervals(Protocol):
    """The options of the callback that say how often it analyses."""

    every_n_epochs: int
    every_n_validations: int | None


def no_analysis_reason(trainer: Trainer, validations: int, options: Intervals) -> str:
    """Return why a training that has ended, without an error, was never analysed.

    Args:
        trainer: The Trainer.
        validations: Number of validations of the training.
        options: The callback.
    """
    if validations:
        option = f"every_n_epochs={options.every_n_epochs}"
        if options.every_n_validations is not None:
            option = f"every_n_validations={options.every_n_validations}"
        return (
            f"FailureModes has analysed none of the {validations} validations of this training, because of {option}."
            " Give a smaller number, or call trainer.validate."
        )
    return (
        "FailureModes has analysed nothing, because the training ended without a validation"
        f" (max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps},"
        f" val_check_interval={trainer.val_check_interval},"
        f" check_val_every_n_epoch={trainer.check_val_every_n_epoch},"
        f" limit_val_batches={trainer.limit_val_batches}). Validate earlier, or call trainer.validate."
    )


def _is_last_before_stop(trainer: Trainer) -> bool | None:
    """Return whether the training stops, by steps or by a request, before its next validation; None if unknown."""
    if trainer.should_stop:
        return True
    if trainer.max_steps < 0:
        return False
    left, interval = trainer.max_steps - trainer.global_step, trainer.val_check_batch
    if left <= 0:
        return True
    if interval is None or math.isinf(interval):
        return False  # of an epoch of unknown length, or by time: each validation is analysed
    steps = _steps_of(trainer, int(interval))
    return None if steps is None else steps > left


def _steps_of(trainer: Trainer, batches: int) -> int | None:
    """Return how many steps the optimizer makes at least in a number of batches; None if the module decides."""
    if not trainer.lightning_module.automatic_optimization:
        return None
    return batches // trainer.accumulate_grad_batches


def _is_last_of_epoch(trainer: Trainer) -> bool | None:
    """Return whether this is the last validation of the epoch; None if the length or the interval is unknown."""
    if trainer.is_last_batch:
        return True
    total, interval = trainer.num_training_batches, trainer.val_check_batch
    if interval is None or math.isinf(total):
        return None
    return total - (trainer.fit_loop.batch_idx + 1) < interval
