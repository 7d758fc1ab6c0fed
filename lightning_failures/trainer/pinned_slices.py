"""Checks of pinned slices in an evaluation: on all graded examples, with the embeddings of the pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_failures.data.grades import Grades
from lightning_failures.data.pin_check import PinCheck
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.validation_split import take_grades
from lightning_failures.regression.check import judge, measure
from lightning_failures.regression.pin import Pin
from lightning_failures.trainer.evaluation_pass import EvaluationPass
from lightning_failures.trainer.ranks import Communicator


def check_encoders(pins: Sequence[Pin], encoders: Mapping[str, CachedEncoder]) -> None:
    """Refuse pins whose encoder is not the one at hand.

    Args:
        pins: The pins.
        encoders: The encoders by the option of the callback.

    Raises:
        ConfigurationError: With the remedy.
    """
    for pin in pins:
        cached = encoders.get(pin.source)
        if cached is not None and cached.encoder.fingerprint == pin.encoder:
            continue
        now = "there is none" if cached is None else f"it is {cached.encoder.name} ({cached.encoder.fingerprint})"
        raise ConfigurationError(
            f"The pin {pin.name!r} needs FailureModes({pin.source}=...) to be {pin.encoder_name} ({pin.encoder}), but"
            f" {now}: another encoder cannot tell which new images are in the slice. Give that encoder, or pin the"
            " slice again in a run with the present one."
        )


def check_pinned_slices(
    pins: Sequence[Pin],
    grades: Grades,
    evaluation: EvaluationPass,
    encoders: Mapping[str, CachedEncoder],
    ranks: Communicator,
) -> tuple[PinCheck, ...]:
    """Check pinned slices on all graded examples; every rank gets the same records. Collective.

    Args:
        pins: The pins, of the encoders at hand.
        grades: N rows.
        evaluation: The pass that embedded the examples.
        encoders: The encoders by the option of the callback.
        ranks: The processes.
    """
    names = {pin.class_name for pin in pins}
    labels = [k for k, name in enumerate(grades.class_names) if name in names]
    mine = take_grades(grades, torch.isin(grades.labels, torch.tensor(labels, dtype=torch.int64)))
    ids = torch.unique(mine.ids)
    values: dict[str, Any] = {}
    for source in sorted({pin.source for pin in pins}):
        whole = evaluation.embeddings.embeddings_on_first(encoders[source], ids) if len(ids) else None
        values[source] = None if whole is None else _rows_of(whole, ids, mine.ids)

    def check() -> tuple[PinCheck, ...]:
        return judge([measure(pin, mine, values[pin.source]) for pin in pins])

    return ranks.broadcast(ranks.run_all(lambda: check() if ranks.is_first else ()))


def _rows_of(values: Tensor, ids: Tensor, wanted: Tensor) -> Any:
    """Return the value of each row; an example may have several."""
    return values[torch.searchsorted(ids, wanted)].numpy()
