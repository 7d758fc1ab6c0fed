"""A setting: three data sets, how to train on them, what is planted, what the paper says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from lightning_failures.core.types import BoolArray


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: SGD with momentum, at a rate that rises to a peak and falls to 0, in straight lines.

    Attributes:
        epochs: Number of epochs.
        learning_rate: The peak.
        peak_epoch: When it is reached.
        batch_size: Images a step.
        momentum: Of SGD.
        weight_decay: Of SGD.
    """

    epochs: int
    learning_rate: float
    peak_epoch: float
    batch_size: int
    momentum: float = 0.9
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        text: What it says.
        key: The measurement that it is about.
        above: The measurement that it says is lower; None: the claim is a figure to compare by eye.
        published: The paper's figures, as text.
        source: Paper and section.
    """

    text: str
    key: str
    above: str | None
    published: str
    source: str


@dataclass(frozen=True, eq=False)
class Setting:
    """What is trained and analysed for one seed.

    Attributes:
        train: Training examples, (image, label); the transform of the data set ends with a normalisation.
        validation: The examples that are analysed.
        test: The examples that what was found is judged on.
        class_names: K names.
        schedule: How the network is trained.
        size: Edge of the images in pixels.
        statistics: Mean and standard deviation that normalise the images, 3 values each.
        captions: The ``captions`` of ``FailureModes``.
        hard_in_test: (n,) bool over ``test``, the group that training under-represents; None where nothing is planted.
        hard_words: Words by class index; a caption that holds one of them names the hard group of the class.
        complete: Whether the data are those of the paper, all of them.
        notes: Sentences on what departs from the paper.
        multilabel: Whether labels are (K,) of 0 and 1; then ``class_names`` are conditions, and the classes of
            ``hard_words`` the absence and the presence of each.
        metadata: Attributes of the data sets with a value for each example, which reports compare.
        reference: The ``reference`` of ``FailureModes``; "train" also informs the diagnosis.
        focus: Names of conditions with figures of their own.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    class_names: tuple[str, ...]
    schedule: Schedule
    size: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    captions: str = "general"
    hard_in_test: BoolArray | None = None
    hard_words: Mapping[int, Sequence[str]] | None = None
    complete: bool = True
    notes: tuple[str, ...] = ()
    multilabel: bool = False
    metadata: tuple[str, ...] = ()
    reference: Literal["validation", "train"] = "validation"
    focus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What one seed gave.

    Attributes:
        seed: The seed.
        figures: Measurements by name; shares are in [0, 1].
        report: Path of the HTML report of the run.
        complete: Whether the data were those of the paper, all of them.
        notes: Sentences on what departs from the paper.
    """

    seed: int
    figures: dict[str, float]
    report: str
    complete: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Examination:
    """What a recipe gets that examines trained networks instead of training one.

    Attributes:
        data: Folder of the data set.
        seed: Seed of samples and folds.
        quick: Whether a tenth of the data is enough.
        weights: File of the trained network, a ResNet; None if none was given.
        robust: The ``robust_encoder``, an adversarially trained ResNet; None if none was given.
        output: Folder of the logs and the report.
        workers: Processes that load images.
    """

    data: Path
    seed: int
    quick: bool
    weights: Path | None
    robust: Path | None
    output: Path
    workers: int = 0


@dataclass(frozen=True)
class Recipe:
    """One experiment of a paper.

    Attributes:
        name: Its name in the shell.
        summary: One line.
        data: What the folder must hold, and where people get it.
        source: Paper and sections.
        claims: What the paper says.
        setting: ``(folder, seed, quick) -> Setting``; quick: a tenth of the data. None: ``examine`` is given.
        examine: Measures trained networks, for a recipe that trains none.
    """

    name: str
    summary: str
    data: str
    source: str
    claims: tuple[Claim, ...]
    setting: Callable[[Path, int, bool], Setting] | None
    examine: Callable[[Examination], Measured] | None = None
