"""Forks of one checkpoint: trainings that differ in the interventions alone, and what comes out of them.

All forks resume from the same checkpoint, with the same step, optimizer and schedulers, and train to the end of the
same epoch. Those of a pair share the seed of all draws; one goes on with what the interventions decided, in the other
no decision takes effect and none is made. Both are graded on the report part of the validation set, above all on the
slice that was flagged when the intervention began.
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

from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.data.grades import Grades
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.validation_split import in_report_part, take_grades
from lightning_failures.interventions.verdicts import Verdict, not_measured, paired_verdict
from lightning_failures.steering.checkpoint import read_steering
from lightning_failures.steering.forking import Fork, UntilDecided, bases, has_acted, is_decided, steered

PAIRS = 3
"""Of forks, by default: with fewer only large effects stand out from the noise of training."""

FORK_EXCLUDED_CALLBACKS = {"Checkpoint", "EarlyStopping"}
"""Callbacks that forks do without: they would fill the disk, or let one fork train longer than the other."""


_EXPECTED = ("Be aware that when using `ckpt_path`", "Experiment logs directory .* is not empty")
"""Warnings of Lightning about what is left out, and about files that were copied for a fork."""


@dataclass(frozen=True)
class Run:
    """A training that is ready to begin; every fork needs a new one.

    Attributes:
        trainer: Configured as for the training, ``FailureModes(interventions=[...])`` among its callbacks.
        module: The model.
        data: Further arguments of ``trainer.fit``: ``datamodule``, or ``train_dataloaders`` and ``val_dataloaders``;
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
    """Train pairs of forks of one checkpoint, with the interventions and without them, and compare.

    Where the checkpoint holds no decision for the next epoch (it is of a training without interventions, or with other
    options, or nothing was flagged yet), the training first goes on from it until there is one, and that is forked.

    Everything in a run is as configured, but for callbacks that write checkpoints or stop early, for automatic
    rollback, and for loggers, which forks do without. The caller's random numbers are not touched.

    Args:
        make_run: Makes the same new run at each call: nothing may be left of the one before.
        ckpt_path: A checkpoint written before the interventions began, like that of the end of the first epoch.
        epochs: How long forks train with the interventions in effect.
        until: Instead of it, the first epoch that they do not train any more.
        pairs: Of forks. Each has a seed of its own; one pair says nothing, two only tell of large effects.
        seed: Of all forks.
        level: Of the intervals.
        files: The folder ``failures`` of the training, in which interventions keep files; None: that beside the folder
            of the checkpoint. Only read.
        folder: Where forks keep their files while they train; with several processes, one that all of them see.

    Returns:
        The verdict on the flagged slice, with that on the whole report part as ``overall``. "Not measured" where
        nothing is flagged until the training ends, or only then, where the slice is too small, or where a training
        does not depend on its seed: then its noise cannot be known.

    Raises:
        ConfigurationError: An option, or a checkpoint, that cannot give a verdict, with the remedy.
    """
    for name, value, holds, allowed in (
        ("epochs", epochs, epochs >= 1, "an integer >= 1"),
        ("pairs", pairs, pairs >= 1, "an integer >= 1"),
    ):
        if not holds:
            raise ConfigurationError(f"A verdict needs {name} to be {allowed}, got {value!r}.")
    files = Path(ckpt_path).parent.parent / "failures" if files is None else files
    with isolated_rng(), _place(folder) as place, warnings.catch_warnings():
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message)
        forks = Forks(make_run, place, seed)
        if (start := forks.begin(str(ckpt_path), files)) is None:
            return not_measured("until the end of the training the interventions found nothing to change")
        until = start.epoch + epochs if until is None else until
        if until <= start.epoch:
            return not_measured(f"the interventions begin with epoch {start.epoch}, and the training ends before")
        outcomes: dict[bool, list[Grades]] = {False: [], True: []}
        for pair in range(pairs):
            for treated in (False, True):
                rank_zero_info(f"Fork {2 * pair + treated + 1} of {2 * pairs}: {'with' if treated else 'without'}")
                outcomes[treated].append(forks.train(start, until, pair, treated=treated))
    return compare_forks(outcomes[True], outcomes[False], start.flagged, until - start.epoch, level, seed)


@dataclass(frozen=True)
class Start:
    """Where forks begin: a checkpoint, their first epoch, the flagged ids, and the files of the interventions."""

    checkpoint: str
    epoch: int
    flagged: Tensor
    files: Path


class Forks:
    """Runs trainings, one after the other."""

    def __init__(self, make_run: Callable[[], Run], place: Path, seed: int) -> None:
        self.make_run, self.place, self.seed = make_run, place, seed

    def begin(self, checkpoint: str, files: Path) -> Start | None:
        """Where to fork: at the checkpoint, or at the end of the epoch in which there is a decision; None: never."""
        run = self._new_run()
        modes = steered(run.trainer)
        how = {name: run.data[name] for name in ("weights_only",) if name in run.data}
        try:
            state = run.trainer.strategy.checkpoint_io.load_checkpoint(checkpoint, **how)
        except FileNotFoundError as error:
            raise ConfigurationError(f"There is no checkpoint {checkpoint}.") from error
        if "optimizer_states" not in state:
            raise ConfigurationError(
                f"{checkpoint} holds weights only, so no training can resume from it. Give one that ModelCheckpoint"
                " wrote with save_weights_only=False."
            )
        epoch = state["loops"]["fit_loop"]["epoch_progress"]["current"]["started"]
        steering = state.get("callbacks", {}).get(modes.state_key, {}).get("steering")
        if steering is not None:
            read_steering(steering)
        if steering is not None and has_acted(steering, epoch):
            raise ConfigurationError(
                f"{checkpoint} was written after the interventions had begun: both forks would have their effect behind"
                " them. Give one of an epoch before, as ModelCheckpoint(save_top_k=-1) keeps them."
            )
        if steering is not None and is_decided(modes, steering):
            return Start(checkpoint, epoch, steering["slice"], files)
        rank_zero_info("The checkpoint holds no decision yet: the training goes on until there is one.")
        wait = UntilDecided(modes, str(self.place / "decided.ckpt"))
        self._prepare(run, "until-decided", wait, files)
        _let_train(run.trainer, epoch + 1)
        run.trainer.fit(run.module, ckpt_path=checkpoint, **run.data)
        if wait.state is None:
            return None
        kept = self.place / "until-decided" / "failures"
        return Start(wait.path, run.trainer.current_epoch, wait.state["slice"], kept)

    def train(self, start: Start, until: int, pair: int, *, treated: bool) -> Grades:
        """Train one fork, and return the grades of the report part."""
        run, name = self._new_run(), f"{pair}-{treated:d}"
        trainer, modes = run.trainer, steered(run.trainer)
        # what chooses by the decision part is left out of forks, but the report part stays without it
        of_decisions = modes.auto_rollback or any(
            str(getattr(one, "monitor", None)).startswith("failures/decision/")
            for one in trainer.callbacks  # type: ignore[attr-defined]
        )
        seed = int(np.random.SeedSequence([self.seed, pair]).generate_state(1)[0])
        self._prepare(run, name, Fork(modes, seed, start=start.epoch, until=until, treated=treated), start.files)
        _let_train(trainer, until)
        trainer.fit(run.module, ckpt_path=start.checkpoint, **run.data)
        if trainer.current_epoch < until:
            raise ConfigurationError(
                f"A fork ended before epoch {trainer.current_epoch} instead of {until}: look at max_steps and max_time"
                " of the Trainer, or give fewer epochs."
            )
        report = modes.last_report
        if report is None or report.global_step != trainer.global_step:  # not validated, or not analysed, at the end
            data = {name: run.data[name] for name in ("datamodule",) if name in run.data}
            trainer.validate(run.module, run.data.get("val_dataloaders"), verbose=False, **data)
        if trainer.is_global_zero:
            shutil.rmtree(self.place / name, ignore_errors=True)
        grades: Grades = modes.last_report.report_part.grades
        return take_grades(grades, in_report_part(grades, seed=modes.seed, decision=of_decisions))

    def _new_run(self) -> Run:
        """Begin all runs alike, until after the ``setup`` of their data: it may split them at random."""
        seed_all(self.seed)
        return self.make_run()

    def _prepare(self, run: Run, name: str, fork: Fork | UntilDecided, files: Path) -> None:
        """Give a run a folder of its own, with a copy of what interventions had kept."""
        trainer: Any = run.trainer
        steered(trainer).pictures = False  # nobody would see them
        if trainer.is_global_zero and (files / "interventions").is_dir():
            shutil.copytree(files / "interventions", self.place / name / "failures" / "interventions")
        trainer.loggers = [CSVLogger(self.place, name="", version=name)]
        trainer.callbacks = [fork, *(one for one in trainer.callbacks if not FORK_EXCLUDED_CALLBACKS & bases(one))]


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """A folder that goes when the forks are done."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="forks-") as temporary:
            yield Path(temporary)
        return
    place = folder / ".forks"
    first = getattr(rank_zero_only, "rank", 0) == 0
    if first:
        shutil.rmtree(place, ignore_errors=True)  # of forks that were killed
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield place
    finally:
        if first:
            shutil.rmtree(place, ignore_errors=True)


def _let_train(trainer: Trainer, until: int) -> None:
    if trainer.max_epochs is not None and -1 < trainer.max_epochs < until:
        trainer.fit_loop.max_epochs = until


def compare_forks(
    treated: list[Grades], control: list[Grades], flagged: Tensor, epochs: int, level: float = 0.95, seed: int = 0
) -> Verdict:
    """Compare what forks got right, on the examples with the ids ``flagged`` (m,) and on all."""
    grades = control[0]
    if any(not torch.equal(other.ids, grades.ids) for other in (*treated, *control)):
        raise ConfigurationError("Forks saw different validation examples. Validate on all of them, in every epoch.")
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

    found = compare(torch.isin(grades.ids, flagged).numpy(), "flagged examples of the report part")
    overall = compare(np.ones(len(grades), dtype=np.bool_), "examples of the report part")
    if any(torch.equal(one.confidence, other.confidence) for one, other in pairwise(control)):
        found = not_measured(
            "the training does not depend on its seed, so its noise cannot be known; shuffle the training set"
        )
    sentence = found.sentence.removesuffix(".")
    sentence += f", {epochs} {'epoch' if epochs == 1 else 'epochs'} from the checkpoint on"
    if overall.difference is not None:
        sentence += (
            f"; of all {overall.examples} examples {overall.treated:.3f} with it, {overall.control:.3f} without"
            f" ({overall.difference:+.3f}"
        )
        sentence += "" if overall.interval is None else f", {overall.interval[0]:+.3f} to {overall.interval[1]:+.3f}"
        sentence += ")"
    return replace(found, sentence=f"{sentence}.", overall=overall)
