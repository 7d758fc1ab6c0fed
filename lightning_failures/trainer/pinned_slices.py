"""Checks of pinned slices in an evaluation: on all graded examples, with the embeddings of the pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.data.grades import Grades
from lightning_failures.data.pin_check import PinCheck
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.validation_split import take_grades
from lightning_failures.regression.check import judge, measure
from lightning_failures.regression.pin import Pin, load_pins
from lightning_failures.trainer.evaluation_pass import EvaluationPass
from lightning_failures.trainer.ranks import Communicator


def open_pins(paths: Sequence[str | Path], encoders: Mapping[str, CachedEncoder]) -> tuple[Pin, ...]:
    """Read pins, and refuse those whose encoder is not the one at hand.

    Args:
        paths: Files or folders of pins.
        encoders: The encoders by the option of the callback.

    Raises:
        ConfigurationError: A pin needs another encoder, with the remedy.
        DataError: A pin cannot be read.
    """
    pins = load_pins(paths)
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
    return pins


def with_pin_checks(
    result: AnalysisResult,
    pins: Sequence[Pin],
    grades: Grades,
    evaluation: EvaluationPass,
    encoders: Mapping[str, CachedEncoder],
    ranks: Communicator,
) -> AnalysisResult:
    """Return the result with the checks of pinned slices on all graded examples, the same on every rank. Collective.

    Args:
        result: The result of the analysis.
        pins: The pins, of the encoders at hand.
        grades: N rows.
        evaluation: The pass that embedded the examples.
        encoders: The encoders by the option of the callback.
        ranks: The processes.
    """
    if not pins:
        return result
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

    checks = ranks.broadcast(ranks.run_all(lambda: check() if ranks.is_first else ()))
    failing = float(sum(not one.holds for one in checks))
    return result.with_report(pins=checks, summary=result.report.summary | {"pins_failing": failing})


def _rows_of(values: Tensor, ids: Tensor, wanted: Tensor) -> Any:
    """Return the value of each row; an example may have several."""
    return values[torch.searchsorted(ids, wanted)].numpy()
