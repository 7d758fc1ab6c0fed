"""Forks of one checkpoint: trainings that differ in the interventions alone, and what comes out of them.

All forks resume from the same checkpoint, with the same step, optimizer and schedulers, and train to the end of the
same epoch. Those of a pair share the seed of all draws; one goes on with what the interventions decided, in the other
no decision takes effect and none is made. Both are graded on the report part of the validation set, above all on the
slice that was flagged when the intervention began.
"""

from __future__ import annotations

import copy
import random
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
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.adapters.isolation import isolated_rng
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.verdicts import Verdict, not_measured, paired_verdict
from lightning_failures.records import Grades

__all__ = ["PAIRS", "Run", "fork_live", "fork_verdict"]

PAIRS = 3
"""Of forks, by default: the fewest with which an effect stands out from the noise of training at 95 %."""

COMMAND = "lightning-failures verdict --config ... --ckpt_path ..."

_LEFT_OUT = {"Checkpoint", "EarlyStopping"}
"""Callbacks that forks do without: they would fill the disk, or let one fork train longer than the other."""


_SAME = (
    "precision",
    "max_epochs",
    "max_steps",
    "min_epochs",
    "min_steps",
    "limit_train_batches",
    "limit_val_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "reload_dataloaders_every_n_epochs",
)
"""Options that a Trainer keeps under the names of its arguments."""


@dataclass(frozen=True)
class Run:
    """A training that is ready to begin; every fork needs a new one.

    Attributes:
        trainer: Configured as for the training, ``FailureModes(interventions=[...])`` among its callbacks.
        module: The model.
        data: Further arguments of ``trainer.fit``: ``datamodule``, or ``train_dataloaders`` and ``val_dataloaders``.
    """

    trainer: Trainer
    module: LightningModule
    data: Mapping[str, Any]


def fork_verdict(
    make_run: Callable[[], Run],
    ckpt_path: str | Path,
    *,
    epochs: int | None = 1,
    pairs: int = PAIRS,
    seed: int = 0,
    level: float = 0.95,
    files: Path | None = None,
    folder: Path | None = None,
) -> Verdict:
    """Train pairs of forks of one checkpoint, with the interventions and without them, and compare.

    Where the checkpoint holds no decision for the next epoch (it is of a training without interventions, or nothing was
    flagged yet), the training first goes on from it, until there is one; that is forked then.

    Everything in a run is as configured, but for callbacks that write checkpoints or stop early, and loggers, which
    forks do without. The caller's random numbers are not touched.

    Args:
        make_run: Makes the same new run at each call: nothing may be left of the one before.
        ckpt_path: A checkpoint written before the interventions began, like that of the end of the first epoch.
        epochs: How long forks train with the interventions in effect; None: until the ``max_epochs`` of the Trainer.
        pairs: Of forks. Each has a seed of its own; it takes two to say anything, and two see large effects only.
        seed: Of all forks.
        level: Of the intervals.
        files: The folder ``failures`` of the training, in which interventions keep files; None: that beside the folder
            of the checkpoint. Only read.
        folder: Where forks keep temporary files.

    Returns:
        The verdict on the flagged slice, with that on the whole report part as ``overall``. "Not measured" where
        nothing is flagged until the training ends, where the slice is too small, or where a training does not depend
        on its seed: then its noise cannot be known.

    Raises:
        ConfigurationError: An option, or a checkpoint, that cannot give a verdict, with the remedy.
    """
    for name, value, holds, allowed in (
        ("epochs", epochs, epochs is None or epochs >= 1, "None or an integer >= 1"),
        ("pairs", pairs, pairs >= 1, "an integer >= 1"),
    ):
        if not holds:
            raise ConfigurationError(f"A verdict needs {name} to be {allowed}, got {value!r}.")
    files = Path(ckpt_path).parent.parent / "failures" if files is None else files
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with isolated_rng(), tempfile.TemporaryDirectory(prefix=".forks-", dir=folder) as place, _quiet():
        forks = _Forks(make_run, Path(place), seed)
        if (start := forks.begin(str(ckpt_path), files)) is None:
            return not_measured("until the end of the training the interventions found nothing to change")
        until = forks.last_epoch(start, epochs)
        outcomes: dict[bool, list[Grades]] = {False: [], True: []}
        for pair in range(pairs):
            for treated in (False, True):
                rank_zero_info(f"Fork {2 * pair + treated + 1} of {2 * pairs}: {'with' if treated else 'without'}")
                outcomes[treated].append(forks.train(start, until, pair, treated=treated))
    return _compare(outcomes[True], outcomes[False], start.flagged, until - start.epoch, level, seed)


def _compare(
    treated: list[Grades], control: list[Grades], flagged: Tensor, epochs: int, level: float, seed: int
) -> Verdict:
    grades = control[0]
    if any(not torch.equal(other.ids, grades.ids) for other in (*treated, *control)):
        raise ConfigurationError("Forks saw different validation examples. Validate on all of them, in every epoch.")
    groups = None if grades.groups is None else grades.groups.numpy()
    of_slice = torch.isin(grades.ids, flagged).numpy()

    def compare(rows: NDArray[np.bool_], what: str) -> Verdict:
        return paired_verdict(
            np.stack([one.correct.numpy()[rows] for one in treated]),
            np.stack([one.correct.numpy()[rows] for one in control]),
            groups=None if groups is None else groups[rows],
            level=level,
            seed=seed,
            what=what,
        )

    found = compare(of_slice, "flagged examples of the report part")
    overall = compare(np.ones(len(grades), dtype=np.bool_), "examples of the report part")
    if any(torch.equal(one.confidence, other.confidence) for one, other in pairwise(control)):
        found = not_measured(
            "the training does not depend on its seed, so its noise cannot be known; shuffle the training set"
        )
    told = f"{epochs} {'epoch' if epochs == 1 else 'epochs'} from the checkpoint on"
    also = f" Of all {overall.examples}, {overall.treated:.3f} with it and {overall.control:.3f} without"
    if overall.interval is not None:
        also += f" ({overall.difference:+.3f}, {overall.interval[0]:+.3f} to {overall.interval[1]:+.3f})"
    return replace(found, sentence=f"{found.sentence}{also}; {told}.", overall=overall)


def fork_live(
    trainer: Trainer,
    module: LightningModule,
    modes: Any,
    ckpt_path: str | Path,
    *,
    epochs: int | None = None,
    pairs: int = PAIRS,
    folder: Path | None = None,
) -> Verdict:
    """The same at the end of a training that is at hand, with copies of its module and callbacks and a new Trainer.

    The new Trainer has the device, precision, limits and gradient settings of the old one, and one process. The
    datamodule is a shallow copy, which shares the data; without one, the loaders are those of the training. ``modes``
    must have left loaders and module.

    What a module keeps besides its ``state_dict`` is copied as it is at the end. Where no copy can be made, and with
    several processes, the verdict is "not measured", with the command that can.

    Args:
        trainer: That has trained.
        module: That was trained.
        modes: The callback with the interventions.
        ckpt_path: Written before they began.
        epochs: See :func:`fork_verdict`; by default forks train as long as the training did.
        pairs: Of forks.
        folder: The folder ``failures`` of the training.
    """
    if trainer.world_size > 1:
        return not_measured(f"with several processes, run `{COMMAND}`")
    try:
        _copied(trainer, module, modes)
    except Exception as error:
        return not_measured(f"no copy can be made ({type(error).__name__}: {error}), run `{COMMAND}`")
    return fork_verdict(
        lambda: _copied(trainer, module, modes), ckpt_path, epochs=epochs, pairs=pairs, seed=modes.seed, files=folder
    )


def _copied(trainer: Any, module: LightningModule, modes: Any) -> Run:
    shared = (modes.encoder, modes.robust_encoder, *modes.interventions)
    memo = {id(one): one for one in (trainer, module, *shared)} | {id(modes.last_report): None}
    left_out = {"ProgressBar", "ModelSummary", *_LEFT_OUT}
    callbacks = [copy.deepcopy(one, memo) for one in trainer.callbacks if not left_out & _bases(one)]
    device = trainer.strategy.root_device
    run = type(trainer)(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{name: getattr(trainer, name) for name in _SAME},
    )
    del memo[id(module)]
    module.trainer = None  # it would be copied too
    try:
        twin = copy.deepcopy(module)
    finally:
        module.trainer = trainer
    if trainer.datamodule is not None:
        return Run(run, twin, {"datamodule": copy.copy(trainer.datamodule)})
    return Run(run, twin, {"train_dataloaders": trainer.train_dataloader, "val_dataloaders": trainer.val_dataloaders})


@dataclass(frozen=True)
class _Start:
    """Where forks begin: a checkpoint, the first epoch of theirs, the slice, and the files of the interventions."""

    checkpoint: str
    epoch: int
    flagged: Tensor
    files: Path


class _Forks:
    """Runs trainings, one after the other."""

    def __init__(self, make_run: Callable[[], Run], place: Path, seed: int) -> None:
        self.make_run, self.place, self.seed = make_run, place, seed

    def begin(self, checkpoint: str, files: Path) -> _Start | None:
        """Where to fork: at the checkpoint, or at the end of the epoch in which there is a decision; None: never."""
        run = self.make_run()
        modes = _steered(run.trainer)
        state = run.trainer.strategy.checkpoint_io.load_checkpoint(checkpoint)
        try:
            epoch = state["loops"]["fit_loop"]["epoch_progress"]["current"]["started"]
        except KeyError as error:
            raise ConfigurationError(
                f"{checkpoint} holds no state of a training, so it cannot be resumed. Give one that ModelCheckpoint"
                " wrote with save_weights_only=False."
            ) from error
        steering = state.get("callbacks", {}).get(modes.state_key, {}).get("steering")
        if steering is not None and _has_acted(steering, epoch):
            raise ConfigurationError(
                f"{checkpoint} was written after the interventions had begun: both forks would have their effect behind"
                " them. Give one of an epoch before, as ModelCheckpoint(save_top_k=-1) keeps them."
            )
        if steering is not None and _is_decided(modes, steering):
            return _Start(checkpoint, epoch, steering["slice"], files)
        rank_zero_info("The checkpoint holds no decision yet: the training goes on until there is one.")
        waits = _Waits(modes, str(self.place / "decided.ckpt"))
        self._prepare(run, "until-decided", files, waits)
        _seed_all(self.seed)
        run.trainer.fit(run.module, ckpt_path=checkpoint, **run.data)
        if waits.state is None:
            return None
        files = self.place / "until-decided" / "failures"
        return _Start(waits.path, run.trainer.current_epoch, waits.state["slice"], files)

    def last_epoch(self, start: _Start, epochs: int | None) -> int:
        """The first epoch that forks do not train any more."""
        if epochs is not None:
            return start.epoch + epochs
        until = self.make_run().trainer.max_epochs
        if until is None or until <= start.epoch:
            raise ConfigurationError(
                f"Forks begin with epoch {start.epoch}, and Trainer(max_epochs={until}) leaves none. Give epochs."
            )
        return until

    def train(self, start: _Start, until: int, pair: int, *, treated: bool) -> Grades:
        """Train one fork, and return the grades of the report part."""
        run = self.make_run()
        modes = _steered(run.trainer)
        seed = int(np.random.SeedSequence([self.seed, pair]).generate_state(1)[0])
        # what is decided at the end would never take effect; in the other fork nothing is decided at all
        _end_decisions(modes, until if treated else start.epoch)
        self._prepare(run, f"{pair}-{treated:d}", start.files, _Fork(modes, seed, until, treated=treated))
        trainer = run.trainer
        if trainer.max_epochs is not None and -1 < trainer.max_epochs < until:
            trainer.fit_loop.max_epochs = until
        _seed_all(seed)
        trainer.fit(run.module, ckpt_path=start.checkpoint, **run.data)
        if trainer.current_epoch < until:
            raise ConfigurationError(
                f"A fork ended before epoch {trainer.current_epoch} instead of {until}: look at max_steps and max_time"
                " of the Trainer, or give fewer epochs."
            )
        report = modes.last_report
        if report is None or report.global_step != trainer.global_step:  # not validated, or not analysed, at the end
            loaders = {"dataloaders": run.data["val_dataloaders"]} if "val_dataloaders" in run.data else run.data
            trainer.validate(run.module, verbose=False, **loaders)
        shutil.rmtree(self.place / f"{pair}-{treated:d}", ignore_errors=True)
        grades: Grades = modes.last_report.report_part.grades
        return grades

    def _prepare(self, run: Run, name: str, files: Path, fork: _Fork | _Waits) -> None:
        """Give a run a folder of its own, with a copy of what interventions had kept."""
        trainer: Any = run.trainer
        fork.modes.on_error, fork.modes.verdict = "raise", None  # a fork has no forks of its own
        if (files / "interventions").is_dir():
            shutil.copytree(files / "interventions", self.place / name / "failures" / "interventions")
        trainer.loggers = [CSVLogger(self.place, name="", version=name)]
        kept = [one for one in trainer.callbacks if not _LEFT_OUT & _bases(one)]
        trainer.callbacks = [fork, *kept]


class _Fork(Callback):
    """Turns a resumed training into one fork of it.

    Args:
        modes: The callback with the interventions.
        seed: Of the draws.
        until: First epoch that is not trained any more.
        treated: Whether the decisions of the checkpoint take effect.
    """

    def __init__(self, modes: Any, seed: int, until: int, *, treated: bool) -> None:
        self.modes, self.seed, self.until, self.treated = modes, seed, until, treated

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw the training examples by the seed of the fork, where they have a generator of their own."""
        if stage != "fit":
            return
        process = trainer.strategy.process_dataloader

        def process_and_seed(loader: object) -> object:
            loader = process(loader)
            if trainer.training:
                _seed_draws(loader, self.seed)
            return loader

        trainer.strategy.process_dataloader = process_and_seed  # type: ignore[method-assign, assignment]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nobody else needs the loaders seeded."""
        vars(trainer.strategy).pop("process_dataloader", None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before the callbacks read their states."""
        states = checkpoint["callbacks"]
        state = states[self.modes.state_key]
        draws = {**state["steering"]["draws"], "seed": self.seed}
        if not self.treated:
            draws["plans"] = {}
        states[self.modes.state_key] = {**state, "steering": {**state["steering"], "draws": draws}}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not by ``max_epochs``, which schedulers look at."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self.until


class _Waits(Callback):
    """Ends a training when the interventions have decided something for the next epoch, and keeps a checkpoint."""

    def __init__(self, modes: Any, path: str) -> None:
        self.modes, self.path = modes, path
        self.state: dict[str, Any] | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the validation of the epoch."""
        state = self.modes.state_dict()["steering"]
        if _is_decided(self.modes, state):
            self.state = state
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def _is_decided(modes: Any, steering: Mapping[str, Any]) -> bool:
    """Whether there is a slice, and something that begins to act; what never acts (factor 1) need not."""
    acts = any(one.acts for one in modes.interventions)
    changes = any(entry["changes_training"] for entry in steering["entries"].values())
    return steering["slice"] is not None and (changes or not acts)


def _has_acted(steering: Mapping[str, Any], epoch: int) -> bool:
    """Whether any change was in effect before this epoch; only what acts has plans."""
    acting = [steering["entries"][name] for name in steering["draws"]["plans"] if name in steering["entries"]]
    return any(entry["began"] is not None and entry["began"] < epoch for entry in acting)


def _steered(trainer: Any) -> Any:
    """The one callback that has interventions."""
    found = [one for one in trainer.callbacks if getattr(one, "interventions", ())]
    if len(found) != 1:
        raise ConfigurationError(
            "A verdict needs one lightning_failures.FailureModes(interventions=[...]) among the callbacks of the"
            f" Trainer, got {len(found)}."
        )
    if all(one.dry_run for one in found[0].interventions):
        raise ConfigurationError("A verdict on interventions with dry_run=True: they change nothing. Leave it out.")
    return found[0]


def _bases(callback: object) -> set[str]:
    """By name, because lightning and pytorch_lightning have a class each."""
    return {base.__name__ for base in type(callback).__mro__}


def _end_decisions(modes: Any, epoch: int) -> None:
    """From this epoch on nothing is decided any more; the loaders are prepared as if it were."""

    def ended(one: Any) -> Any:
        one = copy.copy(one)
        one.stop_epoch = epoch if one.stop_epoch is None else min(one.stop_epoch, epoch)
        return one

    steering = modes._steering
    steering.interventions = {name: ended(one) for name, one in steering.interventions.items()}
    modes.interventions = tuple(steering.interventions.values())


def _seed_draws(loader: Any, seed: int) -> None:
    """Draws that hang on a generator, or on a seed, of their own; all others on the global one."""
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    for holder in (loader, *samplers, getattr(samplers[1], "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        if isinstance(holder, torch.utils.data.DistributedSampler):
            holder.seed = seed


def _seed_all(seed: int) -> None:
    """Inside of ``isolated_rng`` only: forks of a pair begin with the same random numbers."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what the user's transforms draw from
    torch.manual_seed(seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning misses the callbacks that forks do without."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        yield
