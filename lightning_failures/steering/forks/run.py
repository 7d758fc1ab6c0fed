"""Pairs of forks from a training configuration: train them, grade them, compare them.

All forks resume from the same checkpoint, with the same step, optimizer and schedulers, and train to the end of the
same epoch. The two forks of a pair share the seed of all draws. One continues with the decisions of the interventions;
in the other, the control, no decision takes effect and none is made. Both are graded on the report part of the
validation set, above all on the slice that was flagged when the intervention began.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.data.grades import Grades
from lightning_failures.data.joining import ExampleKeys, rows_of
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.validation_split import in_report_part, take_grades
from lightning_failures.interventions.verdicts import Verdict, not_measured, paired_verdict
from lightning_failures.steering.checkpoint import read_steering
from lightning_failures.steering.forks.callbacks import (
    Fork,
    UntilDecided,
    base_names,
    has_acted,
    is_decided,
    steered_callback,
)
from lightning_failures.steering.former_files import copy_interventions
from lightning_failures.trainer.schedule import adopt_state

PAIRS = 3
"""Default number of pairs; with fewer, only large effects stand out from the noise of training."""

FORK_EXCLUDED_CALLBACKS = {"Checkpoint", "EarlyStopping"}
"""Callbacks removed from forks: they would fill the disk, or let one fork train longer than the other."""

_EXPECTED_WARNINGS = ("Be aware that when using `ckpt_path`", "Experiment logs directory .* is not empty")
"""Lightning's warnings about removed callbacks and about files copied for a fork."""


@dataclass(frozen=True)
class Run:
    """A training that is ready to begin; every fork needs a new one.

    Attributes:
        trainer: Configured as for the training, with ``FailureModes(interventions=[...])`` among its callbacks.
        module: The model.
        data: Other arguments of ``trainer.fit``: ``datamodule``, or ``train_dataloaders`` and ``val_dataloaders``;
            ``weights_only``.
    """

    trainer: Trainer
    module: LightningModule
    data: Mapping[str, Any]


def fork_verdict(
    make_run: Callable[[], Run],
    ckpt_path: str | Path,
    *,
    epochs: int = 1,
    until: int | None = None,
    pairs: int = PAIRS,
    seed: int = 0,
    level: float = 0.95,
    files: Path | None = None,
    folder: Path | None = None,
) -> Verdict:
    """Train pairs of forks of one checkpoint, with the interventions and without them, and compare them.

    If the checkpoint holds no decision for the next epoch (it comes from a training without interventions or with other
    options, or nothing was flagged yet), the training first continues from it until there is a decision, and is forked
    there.

    A run keeps its configuration, except for callbacks that write checkpoints or stop early, automatic rollback, and
    loggers, which are removed. The caller's random number generators are left untouched.

    Args:
        make_run: Makes the same new run at each call, independent of the runs before.
        ckpt_path: A checkpoint written before the interventions began, for instance at the end of the first epoch.
        epochs: Number of epochs that forks train with the interventions in effect.
        until: First epoch that forks do not train, as an alternative to ``epochs``.
        pairs: Number of pairs. Each has a seed of its own. One pair cannot give a verdict; two detect large effects
            only.
        seed: Seed of all forks.
        level: Level of the intervals, in (0, 1).
        files: The folder ``failures`` of the training, where interventions keep files; it is only read. None: the one
            next to the folder of the checkpoint.
        folder: Parent of the folder for the files of the forks while they train; with several processes, one that all
            of them see.

    Returns:
        The verdict on the flagged slice; its ``overall`` is the verdict on the whole report part. The outcome is "not
        measured" if nothing is flagged before the training ends, if the slice is too small, or if the training does not
        depend on its seed, so that its noise is unknown.

    Raises:
        ConfigurationError: An option or a checkpoint that cannot give a verdict, with the remedy.
    """
    for name, value in (("epochs", epochs), ("pairs", pairs)):
        if value < 1:
            raise ConfigurationError(f"A verdict needs {name} to be an integer >= 1, got {value!r}.")
    files = Path(ckpt_path).parent.parent / "failures" if files is None else files

    with isolated_rng(), _working_folder(folder) as place, warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)

        # where to fork
        forks = Forks(make_run, place, seed)
        start = forks.begin(str(ckpt_path), files)
        if start is None:
            return not_measured("the interventions found nothing to change before the end of the training")
        until = start.epoch + epochs if until is None else until
        if until <= start.epoch:
            return not_measured(
                f"the interventions begin with epoch {start.epoch}, and the training ends before that epoch"
            )

        # control and treated fork of each pair
        outcomes: dict[bool, list[Grades]] = {False: [], True: []}
        for pair in range(pairs):
            for treated in (False, True):
                arm = "with" if treated else "without"
                rank_zero_info(f"Fork {2 * pair + treated + 1} of {2 * pairs}: {arm} the interventions")
                outcomes[treated].append(forks.train(start, until, pair, treated=treated))
    control = outcomes[False]
    flagged = control[0].ids[torch.from_numpy(rows_of(start.flagged, control[0]))]
    return compare_forks(outcomes[True], control, flagged, until - start.epoch, level, seed)


@dataclass(frozen=True)
class Start:
    """The starting point of forks.

    Attributes:
        checkpoint: Path of the checkpoint.
        epoch: First epoch of the forks.
        flagged: Keys of the m examples of the flagged slice.
        files: Folder with the files of the interventions.
    """

    checkpoint: str
    epoch: int
    flagged: ExampleKeys
    files: Path


def _slice_of(steering: Mapping[str, Any]) -> ExampleKeys:
    """Return the keys of the flagged slice in a state of the interventions."""
    digests = (steering.get("slice_then") or {}).get("digests")
    return ExampleKeys(as_array(steering["slice"]), None if digests is None else as_array(digests))


class Forks:
    """Runs forks one after the other.

    Args:
        make_run: Makes a new run.
        place: Folder for the files of the forks.
        seed: Seed of all forks.
    """

    def __init__(self, make_run: Callable[[], Run], place: Path, seed: int) -> None:
        self.make_run, self.place, self.seed = make_run, place, seed

    def begin(self, checkpoint: str, files: Path) -> Start | None:
        """Return where to fork: at the checkpoint, or at the end of the first epoch with a decision.

        Returns:
            None if the training ends without a decision.

        Raises:
            ConfigurationError: The checkpoint is missing, holds weights only, or was written too late.
        """
        run = self._new_run()
        callback = steered_callback(run.trainer)
        state = _load_checkpoint(run, checkpoint)
        epoch = state["loops"]["fit_loop"]["epoch_progress"]["current"]["started"]
        states = state.get("callbacks", {})
        adopt_state(states, callback.state_key)
        steering = states.get(callback.state_key, {}).get("steering")
        if steering is not None:
            read_steering(steering)
            if has_acted(steering, epoch):
                raise ConfigurationError(
                    f"{checkpoint} was written after the interventions had begun, so their effect would be in both"
                    " forks. Give a checkpoint of an earlier epoch; ModelCheckpoint(save_top_k=-1) keeps all of them."
                )
            if is_decided(callback, steering):
                return Start(checkpoint, epoch, _slice_of(steering), files)

        rank_zero_info("The checkpoint holds no decision yet: training continues until the interventions make one.")
        wait = UntilDecided(callback, str(self.place / "decided.ckpt"))
        self._prepare(run, "until-decided", wait, files)
        _allow_epochs(run.trainer, epoch + 1)
        run.trainer.fit(run.module, ckpt_path=checkpoint, **run.data)
        if wait.state is None:
            return None
        kept = self.place / "until-decided" / "failures"
        return Start(wait.path, run.trainer.current_epoch, _slice_of(wait.state), kept)

    def train(self, start: Start, until: int, pair: int, *, treated: bool) -> Grades:
        """Train one fork, and return the grades of the report part."""
        run, name = self._new_run(), f"{pair}-{treated:d}"
        trainer, callback = run.trainer, steered_callback(run.trainer)
        # Forks drop what selects by the decision part, but their report part still excludes that part.
        has_decision_part = callback.auto_rollback or any(
            str(getattr(one, "monitor", None)).startswith("failures/decision/")
            for one in trainer.callbacks  # type: ignore[attr-defined]
        )
        seed = int(np.random.SeedSequence([self.seed, pair]).generate_state(1)[0])
        self._prepare(run, name, Fork(callback, seed, start=start.epoch, until=until, treated=treated), start.files)
        _allow_epochs(trainer, until)
        trainer.fit(run.module, ckpt_path=start.checkpoint, **run.data)
        if trainer.current_epoch < until:
            raise ConfigurationError(
                f"A fork ended before epoch {trainer.current_epoch} instead of {until}. Check max_steps and max_time of"
                " the Trainer, or give fewer epochs."
            )

        report = callback.last_report
        if report is None or report.global_step != trainer.global_step:  # no analysis at the end of the last epoch
            data = {name: run.data[name] for name in ("datamodule",) if name in run.data}
            trainer.validate(run.module, run.data.get("val_dataloaders"), verbose=False, **data)
            report = callback.last_report
        if trainer.is_global_zero:
            shutil.rmtree(self.place / name, ignore_errors=True)
        if report is None or report.parts is None:
            raise DataError("the last validation of a fork was not analysed, see the warnings before this one")
        grades = report.parts.report.grades
        return take_grades(grades, in_report_part(grades, seed=callback.seed, decision=has_decision_part))

    def _new_run(self) -> Run:
        """Make a run with seeded generators: the ``setup`` of its data may split them at random."""
        seed_all(self.seed)
        return self.make_run()

    def _prepare(self, run: Run, name: str, fork: Fork | UntilDecided, files: Path) -> None:
        """Give a run a folder of its own, with a copy of the files of the interventions."""
        trainer: Any = run.trainer
        if trainer.is_global_zero:
            copy_interventions(files, self.place / name / "failures")
        trainer.loggers = [CSVLogger(self.place, name="", version=name)]
        kept = [one for one in trainer.callbacks if not FORK_EXCLUDED_CALLBACKS & base_names(one)]
        trainer.callbacks = [fork, *kept]


def _load_checkpoint(run: Run, checkpoint: str) -> dict[str, Any]:
    """Load a checkpoint that a training can resume from."""
    how = {name: run.data[name] for name in ("weights_only",) if name in run.data}
    try:
        state: dict[str, Any] = run.trainer.strategy.checkpoint_io.load_checkpoint(checkpoint, **how)
    except FileNotFoundError as error:
        raise ConfigurationError(f"There is no checkpoint {checkpoint}.") from error
    if "optimizer_states" not in state:
        raise ConfigurationError(
            f"{checkpoint} holds weights only, so no training can resume from it. Give a checkpoint that"
            " ModelCheckpoint wrote with save_weights_only=False."
        )
    return state


@contextmanager
def _working_folder(folder: Path | None) -> Iterator[Path]:
    """Make a folder for the files of the forks, and remove it at the end."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="forks-") as temporary:
            yield Path(temporary)
        return
    place = folder / ".forks"
    first = getattr(rank_zero_only, "rank", 0) == 0
    if first:
        shutil.rmtree(place, ignore_errors=True)  # left by forks that were killed
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield place
    finally:
        if first:
            shutil.rmtree(place, ignore_errors=True)


def _allow_epochs(trainer: Trainer, until: int) -> None:
    """Raise ``max_epochs`` if it ends the training before epoch ``until``."""
    if trainer.max_epochs is not None and -1 < trainer.max_epochs < until:
        trainer.fit_loop.max_epochs = until


def compare_forks(
    treated: list[Grades], control: list[Grades], flagged: Tensor, epochs: int, level: float = 0.95, seed: int = 0
) -> Verdict:
    """Compare the accuracy of treated and control forks, on the flagged examples and on all of them.

    Args:
        treated: Grades of the report part of each treated fork, n rows each.
        control: Grades of each control fork, the same examples; those whose images differ between forks are left out.
        flagged: (m,) int64, ids of the flagged slice.
        epochs: Number of epochs that the forks trained, for the sentence.
        level: Level of the intervals.
        seed: Seed of the bootstrap.

    Raises:
        ConfigurationError: The forks have graded different examples.
    """
    grades = control[0]
    if any(not torch.equal(other.ids, grades.ids) for other in (*treated, *control)):
        raise ConfigurationError("Forks saw different validation examples. Validate on all of them, in every epoch.")
    same_image = np.ones(len(grades), dtype=np.bool_)
    for other in (*treated, *control):
        if other.digests is not None and grades.digests is not None:
            same_image &= as_array(other.digests == grades.digests)
    groups = None if grades.groups is None else grades.groups.numpy()

    def compare(rows: NDArray[np.bool_], what: str) -> Verdict:
        return paired_verdict(
            np.stack([one.correct.numpy()[rows] for one in treated]),
            np.stack([one.correct.numpy()[rows] for one in control]),
            groups=None if groups is None else groups[rows],
            level=level,
            seed=seed,
            what=what,
        )

    found = compare(torch.isin(grades.ids, flagged).numpy() & same_image, "flagged examples of the report part")
    overall = compare(same_image, "examples of the report part")
    if any(_equally_trained(one, other) for one, other in pairwise(control)):
        found = not_measured(
            "the training does not depend on its seed, so its noise is unknown; shuffle the training set"
        )

    sentence = found.sentence.removesuffix(".")
    sentence += f", {epochs} {'epoch' if epochs == 1 else 'epochs'} from the checkpoint on"
    if overall.difference is not None:
        sentence += (
            f"; of all {overall.examples} examples {overall.treated:.3f} with it, {overall.control:.3f} without"
            f" ({overall.difference:+.3f}"
        )
        if overall.interval is not None:
            low, high = overall.interval
            sentence += f", {low:+.3f} to {high:+.3f}"
        sentence += ")"
    return replace(found, sentence=f"{sentence}.", overall=overall)


def _equally_trained(one: Grades, other: Grades) -> bool:
    """Return whether two models of different seeds look like one: equal confidence, or verdicts if there is none."""
    if one.confidence is None or other.confidence is None:
        return torch.equal(one.correct, other.correct)
    return torch.equal(one.confidence, other.confidence)
