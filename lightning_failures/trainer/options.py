"""Options of the callback that belong together, their former spellings, and what must hold of all options."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from lightning_failures.core.budget import read_bytes, read_time
from lightning_failures.data.grading import Task
from lightning_failures.data.grouping import (
    CLUSTER,
    DEFAULT_GROUPINGS,
    METADATA,
    SELECTABLE,
    check_processes,
    grouping_named,
)
from lightning_failures.directions.fit import Doubted
from lightning_failures.errors import ConfigurationError
from lightning_failures.generators.base import ImageGenerator
from lightning_failures.generators.load import load_generator
from lightning_failures.interventions import Intervention

CounterfactualsOption = bool | str | ImageGenerator | Callable[[Sequence[str], Sequence[int]], Any]
"""Whether to make counterfactual checks, or the generator that renders captions for them."""


@dataclass(frozen=True)
class DataOptions:
    """What the callback reads of the data beside images and labels.

    Args:
        task: "multiclass", "binary" (one logit) or "multilabel"; None infers it from the shapes.
        groups_from: Attribute of the dataset with a source id for each example (frames of one video, images of one
            patient); examples of one source stay together in every split. Ignored if the dataset has no such
            attribute; None: no groups.
        metadata: Attributes of the dataset with a value for each example ("camera", "hospital"): integers, strings or
            booleans. Nothing is fitted to them; each class reports the values over-represented among its failures.
        clusters_from: Attribute of the dataset with a cluster for each example, integers or strings, None for no
            cluster: every cluster gets a failure tree. With one process only. None: no clusters.
        failed_below: Score below which an example failed, for a ``read_batch`` that returns ``BatchRecord(score=...)``.
    """

    task: Task | None = None
    groups_from: str | None = "groups"
    metadata: Sequence[str] = ()
    failed_below: float | None = None
    clusters_from: str | None = None


@dataclass(frozen=True)
class PictureOptions:
    """When pictures are drawn, and the names of features in them.

    Args:
        every_n: Draw at every n-th analysis too. None: at the last analysis only.
        feature_names: YAML file with names and tags of features of the robust encoder, for many runs. None:
            ``features.yaml`` beside the last report.
        attacks: Change images until they activate a feature as much as possible, as far as time allows.
    """

    every_n: int | None = None
    feature_names: str | Path | None = None
    attacks: bool = True


@dataclass(frozen=True)
class AdvancedOptions:
    """Options that few people change.

    Args:
        every_n_validations: Analyse every n-th validation of ``fit`` instead of every n-th epoch.
        min_coverage: Share of the examples below which a validation steers nothing: it is graded and reported, but
            monitored keys keep their last value.
        auto_rollback: Restore weights and optimizers from before the interventions, and stop them, if accuracy falls
            significantly on a third part of the validation set, ``failures/decision/...``.
        memory_budget: Limit on the embeddings that an analysis holds at a time in each process: bytes, or a size like
            ``"2 GiB"``. A larger validation set is sampled. None: no limit.
        worst_k: Number of classes, those that it pays most to fix, with scalars and pictures of their own.
        groupings: Groups of examples that get a failure tree each: "label", "prediction", "pair" (confused pairs: one
            class, mistaken for another or correct), "union" (label or prediction is the class), "metadata" (each value;
            with one process only).
        n_directions: Maximum number of failure directions per class. The report describes the first; for the others
            see ``last_report.directions.further``.
        doubted: Which examples leave the fit of directions if a probe of the label on the embeddings doubts their
            label: ``"failures"``, all ``"examples"``, or None. They keep their decision values, and the report lists
            them as labels to check.
        permutations: Permutations of the screening test and of the caption test. 0: no p-values, so that no class has
            a pattern.
        cache_folder: Folder of cached embeddings. None: ``$LIGHTNING_FAILURES_CACHE``, else the user's cache folder.
        device: Device of encoders given by name, and of the large products of the analysis. None: the device of the
            training for encoders, the CPU for the analysis.
        seed: Seed of folds, permutations and samples.
        pins: Files, or folders, of pinned slices (``lightning-failures pin``), which every analysis checks: see
            ``last_report.pins`` and the logged ``failures/pins_failing``, the number of those that do not hold.
        counterfactuals: Check hypotheses where pictures are drawn, by images changed in nothing else: True pastes the
            regions of features onto other images; a generator (a name, an object or a function, as of
            ``AddSynthetic``) also renders the captions of classes with a pattern, for at most ten minutes. False: no
            checks.
        compare_methods: Let other methods (Domino, clusters, confidence, margin) rank the examples, too; the page and
            ``lightning-failures compare-methods RUN`` compare them with the failure directions. The report then keeps
            the metadata of at most 20,000 examples.
    """

    every_n_validations: int | None = None
    min_coverage: float = 0.5
    auto_rollback: bool = False
    memory_budget: float | str | None = None
    worst_k: int = 5
    n_directions: int = 1
    doubted: Doubted = "failures"
    permutations: int = 999
    cache_folder: str | Path | None = None
    device: str | torch.device | None = None
    seed: int = 0
    groupings: Sequence[str] = DEFAULT_GROUPINGS
    pins: Sequence[str | Path] = ()
    counterfactuals: CounterfactualsOption = True
    compare_methods: bool = False


class GroupedOptions:
    """The options of the groups as attributes of the callback, each under its own name."""

    task: Task | None
    groups_from: str | None
    clusters_from: str | None
    metadata: Sequence[str]
    failed_below: float | None
    pictures_every_n: int | None
    feature_names: Path | None
    attacks: bool
    every_n_validations: int | None
    min_coverage: float
    auto_rollback: bool
    memory_budget: float | str | None
    worst_k: int
    groupings: Sequence[str]
    doubted: Doubted
    n_directions: int
    permutations: int
    cache_folder: str | Path | None
    device: str | torch.device | None
    seed: int
    pins: Sequence[str | Path]
    counterfactuals: CounterfactualsOption
    compare_methods: bool

    def _take_groups(self, data: DataOptions, pictures: PictureOptions, advanced: AdvancedOptions) -> None:
        for group in (data, advanced):
            for field in fields(group):
                setattr(self, field.name, getattr(group, field.name))
        self.pictures_every_n, self.attacks = pictures.every_n, pictures.attacks
        names = pictures.feature_names
        self.feature_names = None if names is None else Path(names).expanduser()


_GROUP_OF = {field.name: group for group in (DataOptions, PictureOptions, AdvancedOptions) for field in fields(group)}

OPTIONS = {
    *("encoder", "robust_encoder", "class_names", "interventions", "verdict", "every_n_epochs", "captions", "pictures"),
    *("time_budget", "read_batch", "logits_from", "normalization", "reference", "sparse", "on_error"),
    "pictures_every_n",
    *(_GROUP_OF.keys() - {"every_n"}),
}
"""Names of the attributes of the callback that hold its options."""

_SILENT = {"failed_below", "every_n_validations", "min_coverage"}
"""Former spellings that stay as shorthands."""


def merge_former_spellings(
    data: DataOptions | None,
    pictures: bool | PictureOptions,
    advanced: AdvancedOptions | None,
    *,
    task: Task | None = None,
    groups_from: str | None = "groups",
    metadata: Sequence[str] | None = None,
    failed_below: float | None = None,
    pictures_every_n: int | None = None,
    feature_names: str | Path | None = None,
    every_n_validations: int | None = None,
    min_coverage: float | None = None,
    auto_rollback: bool | None = None,
    memory_budget: float | str | None = None,
    worst_k: int | None = None,
    n_directions: int | None = None,
    permutations: int | None = None,
    cache_folder: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
) -> tuple[DataOptions, bool, PictureOptions, AdvancedOptions]:
    """Return the options by group, with options that were given by themselves moved to their group.

    The keywords are those of version 0.1; each is a ``DeprecationWarning`` now, but for ``failed_below``,
    ``every_n_validations`` and ``min_coverage``, which stay as shorthands. The signature is typed, so that LightningCLI
    reads them from YAML too.

    >>> merge_former_spellings(None, False, None, min_coverage=0.8)[3].min_coverage
    0.8
    """
    of_data = {
        "task": task,
        "groups_from": None if groups_from == "groups" else (groups_from,),
        "metadata": metadata,
        "failed_below": failed_below,
    }
    of_pictures = {"every_n": pictures_every_n, "feature_names": feature_names}
    of_advanced = {
        "every_n_validations": every_n_validations,
        "min_coverage": min_coverage,
        "auto_rollback": auto_rollback,
        "memory_budget": memory_budget,
        "worst_k": worst_k,
        "n_directions": n_directions,
        "permutations": permutations,
        "cache_folder": cache_folder,
        "device": device,
        "seed": seed,
    }
    draws = pictures is not False
    given = pictures if isinstance(pictures, PictureOptions) else PictureOptions()
    return (
        _merged(data or DataOptions(), "data", of_data),
        draws,
        _merged(given, "pictures", of_pictures),
        _merged(advanced or AdvancedOptions(), "advanced", of_advanced),
    )


def _merged(group: Any, name: str, former: dict[str, Any]) -> Any:
    """Return the group with the values that are not None, and warn of each."""
    changes = {key: value for key, value in former.items() if value is not None}
    for key in changes.keys() - _SILENT:
        old = "pictures_every_n" if key == "every_n" else key
        warnings.warn(
            f"FailureModes({old}=...) has moved: give FailureModes({name}={type(group).__name__}({key}=...))."
            " The former spelling will be removed in the next version.",
            DeprecationWarning,
            stacklevel=4,
        )
    if "groups_from" in changes:  # in a tuple, since None is a value of its own
        changes["groups_from"] = changes["groups_from"][0]
    return replace(group, **changes)


_TASKS = (None, "multiclass", "binary", "multilabel")
_AT_LEAST_1 = "an integer >= 1"


def group_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of ``FailureModes`` from options that are all given by their own names.

    >>> grouped = group_options({"encoder": None, "seed": 3, "pictures": False})
    >>> grouped["pictures"], grouped["advanced"].seed
    (False, 3)
    """
    grouped = {name: value for name, value in options.items() if name not in _GROUP_OF and name != "pictures_every_n"}
    for name, group in (("data", DataOptions), ("advanced", AdvancedOptions)):
        values = {key: value for key, value in options.items() if _GROUP_OF.get(key) is group}
        if values:
            grouped[name] = group(**values)
    drawing = PictureOptions(
        options.get("pictures_every_n"), options.get("feature_names"), options.get("attacks", True)
    )
    if options.get("pictures", True) is True and drawing != PictureOptions():
        grouped["pictures"] = drawing
    return grouped


def check_options(callback: Any) -> None:
    """Refuse options of ``FailureModes`` that are out of range; the callback holds each as an attribute of its name.

    Raises:
        ConfigurationError: With the option, what is allowed and what came.
    """
    for name, holds, allowed in _conditions(callback):
        if not holds:
            group, key = _GROUP_OF.get(name), name
            if name == "pictures_every_n":
                group, key = PictureOptions, "every_n"
            owner = "FailureModes" if group is None else group.__name__
            raise ConfigurationError(f"{owner}({key}=...) must be {allowed}, got {getattr(callback, name)!r}.")


def load_counterfactuals(option: CounterfactualsOption) -> bool | ImageGenerator:
    """Return the generator that an option names, without loading its weights; True and False stay as they are.

    Raises:
        GeneratorError: The name is unknown, or the generator is not available.

    >>> load_counterfactuals(True), load_counterfactuals("embedded:digits").name
    (True, 'embedded:digits')
    """
    return option if isinstance(option, bool) else load_generator(option)


def check_groupings(callback: Any, world_size: int) -> None:
    """Refuse groupings of failure trees that need a single process if there are several."""
    chosen = [grouping for grouping in map(grouping_named, callback.groupings) if grouping is not None]
    check_processes([*chosen, *([] if callback.clusters_from is None else [CLUSTER])], world_size)


def _conditions(o: Any) -> Iterator[tuple[str, bool, str]]:
    """Name of an option, whether it is in order, what is allowed."""
    validations, acting = o.every_n_validations, o.interventions
    listed = isinstance(o.metadata, Sequence) and not isinstance(o.metadata, str)
    yield "metadata", listed, "a sequence of names, like ['camera']"
    named = isinstance(o.groupings, Sequence) and not isinstance(o.groupings, str)
    yield "groupings", named and set(o.groupings) <= set(SELECTABLE), f"a list of names out of {', '.join(SELECTABLE)}"
    yield "groupings", METADATA.name not in o.groupings or len(o.metadata) > 0, "without 'metadata' if there is none"
    single = o.task != "multilabel" or (METADATA.name not in o.groupings and o.clusters_from is None)
    yield "task", single, "another with clusters_from or the grouping 'metadata': they need one row for each example"
    yield "every_n_epochs", _at_least(1, o.every_n_epochs), _AT_LEAST_1
    yield "every_n_validations", validations is None or _at_least(1, validations), f"None or {_AT_LEAST_1}"
    named = o.class_names is None or len(o.class_names) > 0
    yield "class_names", named, "None, a list of names, or a mapping between names and the labels 0 ... K-1"
    every = o.pictures_every_n
    yield "pictures_every_n", every is None or _at_least(1, every), f"None or {_AT_LEAST_1}"
    yield "min_coverage", _at_least(0, o.min_coverage) and o.min_coverage <= 1, "a share from 0 to 1"
    yield "permutations", _at_least(0, o.permutations), "an integer >= 0"
    yield "n_directions", _at_least(1, o.n_directions), _AT_LEAST_1
    checks = o.counterfactuals
    known = isinstance(checks, bool | str | ImageGenerator) or callable(checks)
    yield "counterfactuals", known, "True, False, or a generator: its name, an object, or (prompts, seeds) -> images"
    yield "doubted", o.doubted in ("failures", "examples", None), "'failures', 'examples' or None"
    yield "time_budget", _reads(read_time, o.time_budget), "None, seconds, or a share of an epoch like '10%'"
    yield "memory_budget", _reads(read_bytes, o.memory_budget), "None, bytes, or a size like '2 GiB'"
    number = o.failed_below is None or (isinstance(o.failed_below, Real) and not isinstance(o.failed_below, bool))
    yield "failed_below", number and o.failed_below == o.failed_below, "None or a number"
    judged = o.failed_below is None or o.read_batch is not None
    yield "failed_below", judged, "given with read_batch, which returns BatchRecord(score=...)"
    listed = isinstance(o.pins, Sequence) and not isinstance(o.pins, str)
    yield "pins", listed, "a sequence of files or folders, like ['pins']"
    yield "reference", o.reference in ("validation", "train"), "'validation' or 'train'"
    yield "sparse", isinstance(o.sparse, bool), "True or False"
    yield "on_error", o.on_error in ("warn", "raise"), "'warn' or 'raise'"
    yield "task", o.task in _TASKS, "None, 'multiclass', 'binary' or 'multilabel'"
    known = isinstance(acting, Sequence) and all(isinstance(one, Intervention) for one in acting)
    yield "interventions", known, "a sequence of interventions, like [Upweight()]"
    if acting:
        yield "encoder", o.encoder is not None, "an encoder: interventions need failure directions"
        yield "permutations", o.permutations > 0, "positive: without p-values no class has a pattern"
        yield "task", o.task != "multilabel", "another: interventions know one class an example"
        yield "verdict", o.verdict in (None, "fork", "lottery"), "None, 'fork' or 'lottery'"
    else:
        yield "verdict", o.verdict is None, "None without interventions"
        yield "auto_rollback", not o.auto_rollback, "False without interventions"


def _at_least(least: int, value: Any) -> bool:
    """Also false for what is no number: null in a YAML file is None for any option."""
    number = isinstance(value, Real)
    return number and bool(value >= least)


def _reads(read: Callable[[Any], Any], value: Any) -> bool:
    try:
        return value is None or read(value) is not None
    except (TypeError, ValueError):
        return False
