"""A setting: three data sets, how to train on them, what is planted, what the paper says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Recipe:
    """One experiment of a paper.

    Attributes:
        name: Its name in the shell.
        summary: One line.
        data: What the folder must hold, and where people get it.
        source: Paper and sections.
        claims: What the paper says.
        setting: ``(folder, seed, quick) -> Setting``; quick: a tenth of the data.
    """

    name: str
    summary: str
    data: str
    source: str
    claims: tuple[Claim, ...]
    setting: Callable[[Path, int, bool], Setting]
