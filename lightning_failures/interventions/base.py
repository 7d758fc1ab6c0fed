"""What an intervention is: a plain value that says when it acts, and turns judged training examples into weights."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.data.report import FailureReport
from lightning_failures.encoders import Encoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.selection.picker import By
from lightning_failures.interventions.selection.picks import Picks

T = TypeVar("T")


@dataclass(frozen=True)
class JudgedExamples:
    """The N training examples as the failure directions of this epoch see them.

    Attributes:
        labels: (N,) int64, index into ``class_names``.
        values: (N,) float32, decision value of the example's own class, negative = predicted failure. NaN where the
            class has no direction.
        class_names: K names.
        reasons: K strings or None: why a class has no pattern ("no pattern", "skipped: ..."); None where it has one.
        held: (N,) bool, the examples of classes that had a pattern once and now have too few failures to tell, and that
            this intervention weighs up: taking the weight off again would bring the failures back.
    """

    labels: NDArray[np.int64]
    values: NDArray[np.float32]
    class_names: tuple[str, ...]
    reasons: tuple[str | None, ...]
    held: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Decision:
    """What an intervention wants.

    Attributes:
        weights: (N,) float64 >= 0, one a training example, 1 = as before.
        classes: For each class what is done, plain values for the report.
        added: (E,) int64, rows of the intervention's own source of examples that join the training set.
        review: Training examples to be looked at by a person, plain values for the report.
    """

    weights: NDArray[np.float64]
    classes: tuple[dict[str, Any], ...]
    added: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    review: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Discovery:
    """The n examples of the discovery part that have an embedding.

    Attributes:
        embeddings: (n, D) float32.
        labels: (n,) int64.
        correct: (n,) bool.
        ids: (n,) int64.
        groups: (n,) int64, or None.
    """

    embeddings: Tensor
    labels: Tensor
    correct: Tensor
    ids: Tensor
    groups: Tensor | None = None


class Round(Protocol):
    """One round of decisions: what an intervention may ask for. ``decide`` runs on every process alike.

    Attributes:
        epoch: The epoch that is acted on.
        seed: Of all that is drawn.
        folder: Where this intervention may keep files; the same in every epoch, and in a resumed run.
        report: What the analysis found on the discovery part: directions, captions, classes.
        encoder: Of the directions.
        discovery: On the first process; None on the others.
        progress: Whether bars may be shown.
    """

    epoch: int
    seed: int
    folder: Path
    report: FailureReport
    discovery: Discovery | None
    progress: bool

    @property
    def encoder(self) -> Encoder: ...  # noqa: D102

    def on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first process, and return what it gave, or raise its error, on all. Collective."""
        ...

    def decision_values(self, images: Tensor, labels: Tensor) -> Tensor:
        """Judge new images (B, 3, H, W) uint8 by the directions of their labels (B,): (B,) float32."""
        ...

    def suspects(self, rows: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
        """Those of the training examples ``rows`` whose label is probably wrong, with the evidence. Collective."""
        ...

    def pick(
        self, pool: Any, view: Any, *, per_class: int, by: By, classes: Sequence[int], similarity: float, triage: bool
    ) -> Picks:
        """Let a whole pool stream by, and choose (see :class:`~.picking.PoolSelector`). Collective.

        With ``triage`` examples whose label is probably wrong are not chosen.
        """
        ...


class Intervention(ABC):
    """Acts on the training set, from the epoch after a validation on. A plain value: do not change it.

    Args:
        start_epoch: First epoch (counted from 0) that it may act on. It needs a validation before, so 1 is the earliest
            that has an effect.
        every_n_epochs: The decision is renewed for every n-th epoch from there on, and holds until the next.
        stop_epoch: First epoch on which it does not act any more. None: never.
        dry_run: Decide and report, but leave the training as it is.
        grow_epoch: Lengthen epochs, so that nothing is drawn less often than before. Else their length stays.

    Raises:
        ConfigurationError: An option outside its range.
    """

    def __init__(
        self,
        *,
        start_epoch: int = 1,
        every_n_epochs: int = 1,
        stop_epoch: int | None = None,
        dry_run: bool = False,
        grow_epoch: bool = False,
    ) -> None:
        self.start_epoch = start_epoch
        self.every_n_epochs = every_n_epochs
        self.stop_epoch = stop_epoch
        self.dry_run = dry_run
        self.grow_epoch = grow_epoch
        self._check("start_epoch", is_number(start_epoch) and start_epoch >= 0, "an integer >= 0")
        self._check("every_n_epochs", is_number(every_n_epochs) and every_n_epochs >= 1, "an integer >= 1")
        later = stop_epoch is None or (is_number(stop_epoch) and stop_epoch > start_epoch)
        self._check("stop_epoch", later, "None or later than start_epoch")

    head_only: bool | str = False
    """What alone is trained while it adds examples: a submodule by name, or True for the last layer; False: all."""
    weight_key: str | None = None
    """Where the batch tells the weight of each example's loss; None: weights are a matter of drawing."""

    @abstractmethod
    def decide(self, examples: JudgedExamples, round: Round) -> Decision:
        """Weigh the training examples, or add to them. The same on every process for the same examples."""

    def prepare(self) -> None:  # noqa: B027 - most have nothing to load
        """Check at set-up what can only be checked by loading it, so that a wrong name is no error of later."""

    def check_encoder(self, encoder: Encoder) -> None:  # noqa: B027 - most take any
        """Refuse, at set-up, an encoder of the directions that it cannot work with."""

    def source(self, training_set: Any, folder: Path) -> Any:
        """The examples, in the form of those of the training set, of which ``Decision.added`` names rows.

        None: it adds nothing.
        """
        return None

    @property
    def acts(self) -> bool:
        """Whether it changes the training at all."""
        return not self.dry_run

    def turn(self, epoch: int) -> int | None:
        """Number of the decision that holds in an epoch, from 0; None outside of start_epoch ... stop_epoch - 1.

        >>> from lightning_failures.interventions import Upweight
        >>> [Upweight(start_epoch=2, every_n_epochs=2, stop_epoch=6).turn(epoch) for epoch in range(1, 7)]
        [None, 0, 0, 1, 1, None]
        """
        if epoch < self.start_epoch or (self.stop_epoch is not None and epoch >= self.stop_epoch):
            return None
        return (epoch - self.start_epoch) // self.every_n_epochs

    def stopped_at(self, epoch: int) -> Intervention:
        """Return a copy that makes no decision for ``epoch`` or later ones.

        >>> from lightning_failures.interventions import Upweight
        >>> Upweight(stop_epoch=9).stopped_at(6).stop_epoch, Upweight(stop_epoch=4).stopped_at(6).stop_epoch
        (6, 4)
        """
        stopped = copy.copy(self)
        stopped.stop_epoch = epoch if self.stop_epoch is None else min(self.stop_epoch, epoch)
        return stopped

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that it was built with, plain values."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: _plain(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ConfigurationError(
                f"{type(self).__name__}({name}=...) must be {allowed}, got {getattr(self, name)!r}."
            )


def named_interventions(interventions: Iterable[Intervention]) -> dict[str, Intervention]:
    """Return the interventions by name; names are keys in checkpoints and names of folders.

    >>> from lightning_failures.interventions import Upweight
    >>> list(named_interventions([Upweight(), Upweight(factor=3)]))
    ['0 Upweight', '1 Upweight']
    """
    return {f"{k} {type(one).__name__}": one for k, one in enumerate(interventions)}


def is_number(value: Any) -> bool:
    """Whether an option can be compared: ``null`` in a YAML file is None for any of them."""
    return isinstance(value, Real)


def _plain(value: Any) -> Any:
    """What a report can hold: numbers and strings as they are, anything else by its kind and size."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    size = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"{getattr(value, '__name__', type(value).__name__)}{size}"
