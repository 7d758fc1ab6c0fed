"""The interface of an intervention: when it acts, what it sees, what it can ask for, and what it decides."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.report import FailureReport
from lightning_failures.encoders import Encoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.head import FeatureRows
from lightning_failures.interventions.selection.candidates import Picks
from lightning_failures.interventions.selection.picker import By

T = TypeVar("T")

PickBy = By | Literal["early"]
PICKS_BY: tuple[PickBy, ...] = (*get_args(By), "early")
"""The order of picks from a pool; see :class:`~lightning_failures.interventions.AddFiltered`."""

LEFT_OUT = -1
"""Label of a training example that takes no part in interventions: its weight stays 1."""

UNTREATED = "untreated control, chosen at random"
"""Why a class is left unchanged in a lottery over classes."""


@dataclass(frozen=True, eq=False)
class EarlyAnswers:
    """The answers of the model of an early epoch on N examples of a training set or a pool.

    Source: Liu et al., Just Train Twice, ICML 2021, section 4: the errors of a model after few epochs.

    Attributes:
        epoch: The epoch after which the model answered, counted from 0.
        confidence: (N,) float32 in [0, 1], the predicted probability of the label; NaN for an example that could not be
            read.
        wrong: (N,) bool, whether the predicted class is another one than the label.
    """

    epoch: int
    confidence: NDArray[np.float32]
    wrong: BoolArray


@dataclass(frozen=True)
class JudgedExamples:
    """The N training examples with their decision values by the failure directions of this epoch.

    Attributes:
        labels: (N,) int64, index into ``class_names``; ``LEFT_OUT`` for an example that takes no part, because it has
            no embedding or no label of a class.
        values: (N,) float32, decision value by the direction of the example's own class, negative = predicted failure.
            NaN if the class has no direction.
        class_names: K names.
        reasons: K strings or None: why a class has no pattern ("no pattern", "skipped: ..."); None if it has one.
        retained: (N,) bool, examples that this intervention has upweighted and whose class, which once had a pattern,
            now has too few failures for one. Without the weight the failures would come back.
        early: Answers of an early epoch on the training set, or on the pool of the intervention; None if it did not ask
            for them.
    """

    labels: NDArray[np.int64]
    values: NDArray[np.float32]
    class_names: tuple[str, ...]
    reasons: tuple[str | None, ...]
    retained: NDArray[np.bool_] | None = None
    early: EarlyAnswers | None = None


@dataclass(frozen=True, eq=False)
class HeadExamples:
    """The n examples of one part of the data, by their penultimate features.

    Attributes:
        features: (n, D).
        labels: (n,) int64, index into the class names.
        rows: (n,) int64, rows of the training set, or ids in the validation set.
        groups: (n,) names of their sources, or None.
        values: (n,) float32, decision values; NaN for a class without a direction.
        in_slice: (n,) bool, examples of the frozen slice; in the report and decision parts only.
    """

    features: FeatureRows
    labels: IntArray
    rows: IntArray
    groups: NDArray[Any] | None
    values: NDArray[np.float32]
    in_slice: BoolArray


@dataclass(frozen=True, eq=False)
class NewHead:
    """New weights of the last layer.

    Attributes:
        name: Name of the submodule.
        weight: (K, D) float64; for a model with one logit K is 2, and the first row is 0.
        bias: (K,) float64.
    """

    name: str
    weight: FloatArray
    bias: FloatArray


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The last layer of the model, and the examples that a new one can be fitted to and measured on.

    Attributes:
        head: Its name and weights.
        one_logit: Whether the model has one logit for two classes.
        dtype: Precision of the weights in the model.
        device: Device of the model, on which a new layer is fitted.
        fitting: The training set, or the part of the validation set that is spent on the fit.
        report: The report part; None if its examples cannot be read again.
        decision: The decision part, if a new layer that does harm is to be dropped; else None.
        discovery: The discovery part, if it was asked for and can be read again; else None.
    """

    head: NewHead
    one_logit: bool
    dtype: torch.dtype
    device: torch.device
    fitting: HeadExamples
    report: HeadExamples | None = None
    decision: HeadExamples | None = None
    discovery: HeadExamples | None = None

    def with_weights(self, weight: FloatArray, bias: FloatArray) -> NewHead:
        """Return new weights (K, D) and biases (K,) in the form and the precision of the layer."""
        if self.one_logit:
            weight, bias = weight - weight[:1], bias - bias[:1]
        weight, bias = (torch.from_numpy(one).to(self.dtype).double().numpy() for one in (weight, bias))
        return NewHead(self.head.name, weight, bias)


@dataclass(frozen=True)
class Decision:
    """The decision of an intervention for the next epochs.

    Attributes:
        weights: (N,) float64 >= 0, one per training example, 1 = unchanged.
        classes: One entry per class for the report, plain values.
        added: (E,) int64, rows of the intervention's own source of examples that join the training set.
        review: Training examples that a person should inspect, plain values for the report.
        notes: Sentences for the notes of the report.
        expected_drop: How much the error rate of the flagged validation examples would fall if they failed as the
            others of their classes do: the most that an intervention can gain. None: not known.
        head: New weights of the last layer, or None.
        details: Further fields of the intervention's entry in the report, plain values.
    """

    weights: NDArray[np.float64]
    classes: tuple[dict[str, Any], ...]
    added: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    review: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    expected_drop: float | None = None
    head: NewHead | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Discovery:
    """The n examples of the discovery part that have an embedding, and what must not be trained on.

    Attributes:
        embeddings: (n, D) float32.
        labels: (n,) int64.
        correct: (n,) bool.
        ids: (n,) int64.
        groups: (n,) int64, or None.
        validation: (V, D) float32, embeddings of all parts of the validation set; None if they are not known.
        digests: (U,) int64, digests of all images of the validation set; None if they are not known.
    """

    embeddings: Tensor
    labels: Tensor
    correct: Tensor
    ids: Tensor
    groups: Tensor | None = None
    validation: Tensor | None = None
    digests: Tensor | None = None


@dataclass
class Round(ABC):
    """One round of decisions: what an intervention can ask for. ``decide`` runs on every process alike.

    Attributes:
        epoch: The epoch that the decision is for.
        seed: Seed of all draws.
        folder: Folder for files of this intervention; the same in every epoch, and in a resumed run.
        report: Result of the analysis of the discovery part: directions, captions, classes.
        discovery: The examples of the discovery part on the first process; None on the others.
        progress: Whether progress bars may be shown.
    """

    epoch: int
    seed: int
    folder: Path
    report: FailureReport
    discovery: Discovery | None
    progress: bool

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """Encoder of the failure directions."""

    @abstractmethod
    def on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first process, and return its result, or raise its error, on all. Collective."""

    @abstractmethod
    def decision_values(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the decision values (B,) float32 of new images (B, 3, H, W) uint8 by the directions of their labels.

        Args:
            images: (B, 3, H, W) uint8.
            labels: (B,) int64.
        """

    @abstractmethod
    def suspects(self, rows: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
        """Return the suspected label errors among the training examples ``rows``, with the evidence. Collective."""

    @abstractmethod
    def label_margins(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Judge the labels of training examples by a probe that is fitted on the discovery part. Collective.

        Args:
            rows: (n,) int64, some of the N training examples.

        Returns:
            (n,) float64, how far the score of the label lies above that of the best other class; NaN where the probe
            does not know the class. (n,) int64, the best other class.
        """

    @abstractmethod
    def last_layer(self, head: str | None, *, spend_validation: bool, discovery: bool = False) -> LastLayer | None:
        """Return the last layer of the model with penultimate features; on the first process, else None. Collective.

        Args:
            head: Name of the last layer, or None to find it.
            spend_validation: Whether it will be fitted to the spent part of the validation set, not to the training
                set.
            discovery: Whether the features of the discovery part are wanted too.

        Raises:
            ConfigurationError: The model has no last layer that can be refitted, with the remedy.
        """

    @abstractmethod
    def tagged_features(self, head: str, path: str | Path | None) -> dict[int, str]:
        """Return the tags that people gave to penultimate features of the model, for its weights of now, by feature.

        Args:
            head: Name of the last layer.
            path: The YAML file; None: that of the callback, else ``features.yaml`` in the folder of the run.

        Raises:
            ConfigurationError: The file cannot be read.
        """

    @abstractmethod
    def pick(
        self,
        pool: Any,
        view: Any,
        *,
        per_class: int,
        by: PickBy,
        classes: Sequence[int],
        similarity: float,
        triage: bool,
        diverse: bool = False,
        early: EarlyAnswers | None = None,
    ) -> Picks:
        """Read a whole pool once and select examples of it (see :class:`~.picker.PoolSelector`). Collective.

        With ``triage``, suspected label errors are not selected; images of the validation set never are. With
        ``diverse``, the selected examples are spread over the candidates. ``by="early"`` needs the early answers.
        """


class Intervention(ABC):
    """A change of the training set from the epoch after a validation on. A plain value: do not modify it.

    Args:
        start_epoch: First epoch (counted from 0) that it may change. It needs a validation before, so 1 is the earliest
            epoch with an effect.
        every_n_epochs: A new decision is made for every n-th epoch from ``start_epoch`` on, and holds until the next.
        stop_epoch: First epoch that it no longer changes. None: never.
        dry_run: Decide and report, but leave the training unchanged.
        grow_epoch: Lengthen epochs, so that nothing is drawn less often than before; needs
            ``Trainer(reload_dataloaders_every_n_epochs=1)``. Otherwise the length of an epoch stays.

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
    """The part trained in epochs with added examples: a submodule by name, True for the last layer, False for all."""
    weight_key: str | None = None
    """Key of the loss weights in the batch. None: weights change how often examples are drawn."""

    @abstractmethod
    def decide(self, examples: JudgedExamples, round: Round) -> Decision:
        """Weight the training examples, or add to them; the same examples give the same decision on every process."""

    @property
    def announcement(self) -> str | None:
        """What a run with this intervention says once, before it starts."""
        return None

    def prepare(self) -> None:  # noqa: B027 - most interventions have nothing to load
        """Check at set-up what can only be checked by loading it, for instance the name of a generator."""

    def check_encoder(self, encoder: Encoder) -> None:  # noqa: B027 - most interventions work with any encoder
        """Raise an error at set-up if this intervention cannot work with the encoder of the directions."""

    def source(self, training_set: Any, folder: Path) -> Any:
        """Return the examples whose rows ``Decision.added`` names, in the form of those of the training set.

        None if the intervention adds no examples.
        """
        return None

    @property
    def changes_training(self) -> bool:
        """Whether the intervention can change the training at all."""
        return not self.dry_run

    def decision_index(self, epoch: int) -> int | None:
        """Return the index of the decision that holds in an epoch; None outside start_epoch ... stop_epoch - 1.

        >>> from lightning_failures.interventions import Upweight
        >>> [Upweight(start_epoch=2, every_n_epochs=2, stop_epoch=6).decision_index(epoch) for epoch in range(1, 7)]
        [None, 0, 0, 1, 1, None]
        """
        if epoch < self.start_epoch or (self.stop_epoch is not None and epoch >= self.stop_epoch):
            return None
        return (epoch - self.start_epoch) // self.every_n_epochs

    @property
    def wants_early(self) -> int | None:
        """Epoch after which the answers of the model on the pool, or else on the training set, are kept; None: none."""
        return None

    @property
    def acts_at_end(self) -> bool:
        """Whether the intervention makes a decision when the training has ended."""
        return False

    @property
    def refits_last_layer(self) -> bool:
        """Whether the intervention replaces the weights of the last layer."""
        return False

    @property
    def spends_validation(self) -> bool:
        """Whether the intervention spends a part of the validation set on a fit."""
        return False

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
        """The arguments of the constructor as plain values, those of the schedule last."""
        return {name: _plain_value(getattr(self, name)) for name in _argument_names(type(self))}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def _check_early(self, early_epoch: int, *, wanted: bool) -> None:
        """Raise an error for an early epoch that is not over when the intervention first acts."""
        holds = is_number(early_epoch) and early_epoch >= 0 and not (wanted and early_epoch >= self.start_epoch)
        self._check("early_epoch", holds, f"an integer from 0 on, before start_epoch={self.start_epoch}")

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
    """Return whether an option can be compared with a number: ``null`` in a YAML file gives None for any option."""
    return isinstance(value, Real)


def _argument_names(kind: type[Intervention]) -> list[str]:
    """Return the names of the constructor's arguments; ``**schedule`` stands for those of the base class."""
    names: list[str] = []
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]  # without self
        names += [one.name for one in parameters if one.kind is not one.VAR_KEYWORD and one.name not in names]
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return names


def _plain_value(value: Any) -> Any:
    """Return numbers and strings unchanged, and anything else as its kind and size, for the report."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    size = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"{getattr(value, '__name__', type(value).__name__)}{size}"
