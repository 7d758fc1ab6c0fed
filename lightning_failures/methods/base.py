"""The protocol of a method that explains errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from lightning_failures.analysis.method import FittableMethod
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.encoders.base import Encoder
from lightning_failures.report.gallery import Picture

ImageReader = Callable[[Sequence[int]], Mapping[int, Tensor]]
"""Returns the images (C, H, W) in [0, 1] of examples by their ids."""


class Method(ABC):
    """A way to explain errors: the features it needs, its fit, and what it adds to the report and to doctor.

    A subclass sets ``name`` and implements :meth:`fitter`; everything else has a safe default. A method is stateless:
    what it fits travels in the :class:`~lightning_failures.analysis.AnalysisResult`.

    Attributes:
        name: Identifier of its timing, its section in ``report.json`` (``methods``) and its fitted object.
        title: Name for people, in messages.
        source: Where its features come from: the option of ``FailureModes`` with their encoder, ``"encoder"`` or
            ``"robust_encoder"``, or ``"penultimate"`` for the penultimate features of the live model.
        aggregates: Logged aggregates, without the ``failures/`` prefix, with the worst value of each.
        last_only: Whether the method is costly and runs in the last analysis of ``fit``, and in ``validate`` and
            ``test``, of the first loader only. Its fit may read training features (``FitTask.training``).
        remedy: What to give if an aggregate is monitored and the method is off.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    source: ClassVar[Literal["encoder", "robust_encoder", "penultimate"]] = "encoder"
    last_only: ClassVar[bool] = False
    aggregates: ClassVar[Mapping[str, float]] = {}
    remedy: ClassVar[str] = ""

    def enabled(self, callback: Any) -> bool:
        """Return whether a callback with these options uses the method. By default: whether it has the source."""
        return self.source == "penultimate" or getattr(callback, self.source) is not None

    @abstractmethod
    def fitter(self, callback: Any) -> FittableMethod:
        """Return the fit with the options of a callback."""

    def pictures(self, result: AnalysisResult, *, worst_k: int) -> Sequence[Picture]:
        """Return additional pictures of an analysis, on the first process only. By default none.

        Args:
            result: The analysis; ``result.fitted[name]`` is the fitted object.
            worst_k: Number of classes, the worst, that have pictures of their own.
        """
        return ()

    def pictures_of_examples(self, result: AnalysisResult, images: ImageReader, *, worst_k: int) -> Sequence[Picture]:
        """Return additional pictures that show examples. By default those of :meth:`pictures`.

        Args:
            result: The analysis.
            images: Returns the images (C, H, W) in [0, 1] of examples, by id; without those that cannot be read.
            worst_k: Number of classes that have pictures of their own.
        """
        return self.pictures(result, worst_k=worst_k)

    def problems(self, encoder: Encoder | None) -> Iterable[str]:
        """Return why the method cannot work with its encoder, one sentence each, for doctor. By default nothing.

        ``encoder`` is None for penultimate features.
        """
        return ()
