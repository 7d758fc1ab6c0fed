"""A setting: three data sets, how to train on them, what is planted, what the paper says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from lightning_failures.core.types import BoolArray
from lightning_failures.errors import ConfigurationError, did_you_mean


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
        above: The measurement that it says is lower, or a number; None: the claim is a figure to compare by eye.
        published: The paper's figures, as text.
        source: Paper and section.
    """

    text: str
    key: str
    above: str | float | None
    published: str
    source: str


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled examples that training may add.

    Attributes:
        plain: The examples, (image, label), transformed as for evaluation.
        augmented: The same examples, transformed as for training.
        picks: How many of each class are added.
        hard: (n,) bool, the group that training under-represents; None where nothing is planted.
    """

    plain: Dataset[Any]
    augmented: Dataset[Any]
    picks: int
    hard: BoolArray | None = None


@dataclass(frozen=True, eq=False)
class Sweep:
    """The same setting at several levels of what is planted.

    Attributes:
        name: What varies, such as "strength".
        levels: The levels, ascending: more is planted.
        at: Returns the setting at a level.
    """

    name: str
    levels: tuple[float, ...]
    at: Callable[[float], Setting]


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
        architecture: Name of a network of torchvision.
        pool: Examples that training may add; None: the setting has none.
        sweep: The same setting at other levels of what is planted; None: it has one level.
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
    architecture: str = "resnet18"
    pool: Pool | None = None
    sweep: Sweep | None = None


@dataclass(frozen=True)
class Found:
    """What a part of a recipe found.

    Attributes:
        figures: Measurements by name; shares are in [0, 1].
        texts: Texts by name, such as captions.
        files: Paths of pictures and tables by name, relative to the output folder.
        notes: Sentences on what departs from the paper, or why something is missing.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def and_then(self, other: Found) -> Found:
        """Return what both found."""
        return Found(
            {**self.figures, **other.figures},
            {**self.texts, **other.texts},
            {**self.files, **other.files},
            (*self.notes, *other.notes),
        )


@dataclass(frozen=True)
class Materials:
    """Files of the user that parts of recipes need; None: the part says that it was left out.

    Attributes:
        inception: Weights of torchvision's Inception v3.
        vit: Weights of torchvision's ViT-B/16.
        generator: What ``load_generator`` takes, for images from captions.
        decoder: Folder of an unCLIP pipeline, which decodes embeddings of the encoder.
    """

    inception: Path | None = None
    vit: Path | None = None
    generator: str | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class Measured:
    """What one seed gave.

    Attributes:
        seed: The seed.
        figures: Measurements by name; shares are in [0, 1].
        report: Path of the HTML report of the run.
        complete: Whether the data were those of the paper, all of them.
        notes: Sentences on what departs from the paper.
        texts: Texts by name, such as captions.
        files: Paths of pictures and tables by name, relative to the output folder.
    """

    seed: int
    figures: dict[str, float]
    report: str
    complete: bool
    notes: tuple[str, ...]
    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


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
class Part:
    """A part of a recipe beside its main run, which people can leave out.

    Attributes:
        name: Its name in the shell.
        summary: One line.
        run: Takes the trained network, a ``Trained``, and returns what was found.
    """

    name: str
    summary: str
    run: Callable[[Any], Found]


@dataclass(frozen=True)
class Recipe:
    """One experiment of a paper.

    Attributes:
        name: Its name in the shell.
        summary: One line.
        data: What the folder must hold, and where people get it.
        source: Paper and sections.
        claims: What the paper says.
        setting: ``(folder, seed, quick) -> Setting``, with ``variant=`` if there are variants; quick: a tenth of the
            data. None: ``examine`` is given.
        examine: Measures trained networks, for a recipe that trains none.
        variants: Names of the variants, the usual one first.
        parts: Parts beside the main run.
    """

    name: str
    summary: str
    data: str
    source: str
    claims: tuple[Claim, ...]
    setting: Callable[..., Setting] | None
    examine: Callable[[Examination], Measured] | None = None
    variants: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()

    def prepare(self, data: Path, seed: int, quick: bool = False, variant: str | None = None) -> Setting:
        """Read the data set and return the setting of one seed.

        Raises:
            ConfigurationError: The recipe trains no network, there is no such variant, or the folder is of another
                form.
        """
        if self.setting is None:
            raise ConfigurationError(f"{self.name} examines trained networks; it has no setting to train in.")
        chosen = self.chosen_variant(variant)
        return self.setting(data, seed, quick, **({} if chosen is None else {"variant": chosen}))

    def chosen_variant(self, name: str | None) -> str | None:
        """Return the variant with this name; None: the usual one, or None for a recipe without variants.

        Raises:
            ConfigurationError: There is no such variant.
        """
        if name is None:
            return self.variants[0] if self.variants else None
        if name not in self.variants:
            known = f"Variants: {', '.join(self.variants)}." if self.variants else "It has none."
            raise ConfigurationError(f"{self.name} has no variant {name!r}.{did_you_mean(name, self.variants)} {known}")
        return name

    def chosen_parts(self, names: Sequence[str] | None) -> tuple[Part, ...]:
        """Return the parts with these names; None: all.

        Raises:
            ConfigurationError: There is no such part.
        """
        if names is None:
            return self.parts
        known = {one.name: one for one in self.parts}
        for name in names:
            if name not in known:
                listed = f"Parts: {', '.join(known)}." if known else "It has none."
                raise ConfigurationError(f"{self.name} has no part {name!r}.{did_you_mean(name, list(known))} {listed}")
        return tuple(known[name] for name in dict.fromkeys(names))
