"""Monitored keys: which keys other callbacks and schedulers monitor, and the values of those without an analysis.

A monitored key that is missing makes ``ModelCheckpoint`` and a strict ``EarlyStopping`` raise, and NaN stops
training; so a monitored aggregate always has a value. Keys of single classes may be absent.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_failures.data.report import FailureReport
from lightning_failures.errors import ConfigurationError, did_you_mean
from lightning_failures.methods import registered_methods
from lightning_failures.trainer.run_folder import safe_name

PREFIX = "failures/"
LOADER = "/dataloader_"

GRADE_AGGREGATES = ("accuracy", "coverage", "analysis_age")

DECISION_KEYS = {"decision/accuracy": 0.0, "decision/worst_class_accuracy": 0.0, "decision/flagged_error_rate": 1.0}
"""Keys that selection may use while interventions are on, with their worst values."""


def aggregates() -> dict[str, float]:
    """Return the aggregates of all registered methods (keys without the prefix) with their worst values."""
    return {key: worst for method in registered_methods() for key, worst in method.aggregates.items()}


def _worst_values() -> dict[str, float]:
    return aggregates() | {"accuracy": 0.0, "coverage": 0.0} | DECISION_KEYS


def monitored_keys(trainer: Trainer) -> set[str]:
    """Return the keys under ``failures/`` that a callback or scheduler of the Trainer monitors.

    Schedulers are known from the start of ``fit`` on.
    """
    names = [getattr(callback, "monitor", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    names += [config.monitor for config in trainer.lr_scheduler_configs]
    return {name for name in names if isinstance(name, str) and name.startswith(PREFIX)}


def check_monitored(keys: Iterable[str], methods: Collection[str], *, interventions: bool = False) -> None:
    """Refuse monitored keys that this callback can never log.

    Args:
        keys: The monitored keys.
        methods: Names of the methods that are on.
        interventions: Whether there are interventions, and so a decision part.

    Raises:
        ConfigurationError: An unknown aggregate, or an aggregate of a method that is off.

    >>> check_monitored(["failures/aler_minus_ber_mean"], ["directions", "trees"])
    >>> check_monitored(["failures/aler_minus_ber"], ["directions", "trees"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    lightning_failures.errors.ConfigurationError: monitor=...
    """
    owners = {key: method for method in registered_methods() for key in method.aggregates}
    for key in keys:
        name = key.removeprefix(PREFIX).split(LOADER)[0]
        if name in GRADE_AGGREGATES or name.startswith("class/"):
            continue
        if name.startswith("report/"):
            raise ConfigurationError(
                f"monitor={key!r}: the report part measures whether an intervention helped, so nothing may be selected"
                f" by it. Monitor one of {', '.join(DECISION_KEYS)} instead."
            )
        if name in DECISION_KEYS:
            if LOADER in key:
                raise ConfigurationError(f"monitor={key!r}: only the first validation loader has a decision part.")
            if not interventions:
                raise ConfigurationError(
                    f"monitor={key!r} belongs to the decision part, which exists only with interventions."
                    f" Monitor 'failures/{name.removeprefix('decision/')}'."
                )
            continue
        if name not in owners:
            raise ConfigurationError(
                f"monitor={key!r} is not an aggregate that FailureModes logs: {', '.join(owners)}."
                + did_you_mean(name, [*owners, *DECISION_KEYS])
            )
        owner = owners[name]
        if owner.name not in methods:
            remedy = f": give {owner.remedy}" if owner.remedy else ""
            raise ConfigurationError(f"monitor={key!r} needs {owner.title or owner.name}{remedy}.")


def promised_values(monitored: Iterable[str], last: Mapping[str, float]) -> dict[str, float]:
    """Return the aggregates that must be logged without a new analysis: the last values, else the worst of the metric.

    >>> promised_values({"failures/flagged_fraction/dataloader_1"}, {"cv_score_mean": 0.7})
    {'flagged_fraction/dataloader_1': 1.0, 'cv_score_mean': 0.7}
    """
    names = sorted(key.removeprefix(PREFIX) for key in monitored)
    worst_values = _worst_values()
    worst = {name: worst_values.get(name.split(LOADER)[0]) for name in names}
    return {name: value for name, value in worst.items() if value is not None} | dict(last)


def log_values(trainer: Trainer, module: LightningModule, values: Mapping[str, float]) -> None:
    """Log scalars of a validation or test under ``failures/``; all processes log the same values.

    Values are not reduced, so that no process waits for one that failed to log.
    """
    if trainer.world_size > 1:  # Lightning recommends sync_dist
        warnings.filterwarnings("ignore", rf".*self\.log\('{PREFIX}.*sync_dist=True", UserWarning)
    module.log_dict(
        {PREFIX + key: value for key, value in values.items()},
        on_step=False,
        on_epoch=True,
        batch_size=1,
        add_dataloader_idx=False,
    )


def log_afterwards(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Log scalars under ``failures/`` when the training has ended, where Lightning does not take them any more."""
    keyed = {PREFIX + key: value for key, value in values.items()}
    if not keyed:
        return
    trainer.callback_metrics.update({key: torch.tensor(value) for key, value in keyed.items()})
    for logger in trainer.loggers:
        logger.log_metrics(keyed, step=trainer.global_step)


def worst_class_values(report: FailureReport, k: int, monitored: Collection[str] = ()) -> dict[str, float]:
    """Return the scalars of the k worst classes, and those monitored; undefined ones are absent.

    Classes are ranked as in the tables of the report, by what fixing them gains. Lightning
    keeps the last value of a key that is not logged again, so a monitored key is logged at any accuracy.
    """
    names = _distinct([safe_name(entry.name) for entry in report.classes])
    graded = [(name, entry) for name, entry in zip(names, report.classes, strict=True) if entry.accuracy is not None]
    graded.sort(key=lambda item: item[1].rank)
    return {
        f"class/{name}/{key}": float(value)
        for rank, (name, entry) in enumerate(graded)
        for key in ("accuracy", "cv_score", "p_value", "aler")
        if (rank < k or f"class/{name}/{key}" in monitored) and (value := getattr(entry, key)) is not None
    }


def _distinct(names: list[str]) -> list[str]:
    """Number equal names until all are different.

    >>> _distinct(["a", "a", "a_1"])
    ['a_0', 'a_1_1', 'a_1_2']
    """
    count = Counter(names)
    if len(count) == len(names):
        return names
    return _distinct([f"{name}_{i}" if count[name] > 1 else name for i, name in enumerate(names)])


class KeyLog:
    """Logs the scalars of each validation, among them the monitored ones.

    Args:
        worst_k: Number of classes, the worst, with keys of their own.
        min_coverage: Share of the examples below which monitored keys keep their last value.
        say_once: Emits each distinct message at most once.
    """

    def __init__(self, *, worst_k: int, min_coverage: float, say_once: Callable[..., None]) -> None:
        self.monitored: set[str] = set()
        self._worst_k, self._min_coverage, self._say_once = worst_k, min_coverage, say_once
        self._logged: set[str] = set()
        self._before: dict[str, Tensor] = {}

    def check(self, trainer: Trainer, methods: Collection[str], *, interventions: bool) -> None:
        """Find the monitored keys, and refuse keys that can never be logged or would be logged twice."""
        _check_alone(trainer)
        self.monitored = monitored_keys(trainer)
        check_monitored(self.monitored, methods, interventions=interventions)

    @property
    def of_decisions(self) -> bool:
        """Whether a key of the decision part is monitored."""
        return any(key.startswith(f"{PREFIX}decision/") for key in self.monitored)

    def begin(self, trainer: Trainer) -> None:
        """Begin a validation: nothing is logged yet."""
        self._logged = set()
        self._before = dict(trainer.callback_metrics)

    def of_module(self, trainer: Trainer) -> dict[str, float]:
        """Return the metrics that the module has logged in this validation or test. Collective, if they are reduced."""
        now = dict(trainer.callback_metrics)  # a metric that was logged again is another object
        new = {key: value for key, value in now.items() if self._before.get(key) is not value}
        return {key: float(value) for key, value in new.items() if value.numel() == 1 and not key.startswith(PREFIX)}

    def log(
        self, trainer: Trainer, module: LightningModule, report: FailureReport, index: int, last: dict[str, float]
    ) -> None:
        """Log the scalars of the analysis of one loader, and keep those for later validations in ``last``."""
        suffix = "" if index == 0 else f"{LOADER}{index}"
        monitored = {key.removeprefix(PREFIX) for key in self.monitored}
        of_this_loader = {key.removesuffix(suffix) for key in monitored if key.endswith(suffix)}
        values = report.summary | worst_class_values(report, self._worst_k, of_this_loader)
        values = {key + suffix: value for key, value in values.items()}
        steering = {key + suffix for key in aggregates() | DECISION_KEYS} | monitored
        if report.coverage < self._min_coverage:
            values = {key: value for key, value in values.items() if key not in steering}
            if self.monitored:
                self._say_once(
                    f"Only {report.coverage:.0%} of the validation examples were seen"
                    f" (min_coverage={self._min_coverage:.0%}): monitored failure keys keep their last value."
                )
        else:
            # an aggregate that is undefined now, because nothing fails, keeps its last value too
            last |= {key: value for key, value in values.items() if key in steering}
        log_values(trainer, module, values)
        self._logged |= set(values)

    def promise(self, trainer: Trainer, module: LightningModule, last: Mapping[str, float], age: int) -> None:
        """Log the monitored aggregates that this validation has not logged, with their last or worst value."""
        promised = promised_values(self.monitored, last)
        values = {key: value for key, value in promised.items() if key not in self._logged}
        log_values(trainer, module, values | {"analysis_age": float(age)})


def _check_alone(trainer: Trainer) -> None:
    """Refuse two callbacks, since Lightning would average what both log under one key."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    ours = sum("FailureModes" in {base.__name__ for base in type(one).__mro__} for one in callbacks)
    if ours > 1:
        raise ConfigurationError(
            f"Only one FailureModes can be in a Trainer, but there are {ours}: they would log under the same keys and"
            " write the same files. To use another encoder, analyse the same model in another run: trainer.validate or"
            " `lightning-failures analyse`."
        )
