"""From a report to the next epoch: which interventions are due, what they decide, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from lightning_failures.core.rng import isolated_rng
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.encoders import ModuleEncoder
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions import Discovery, Intervention, JudgedExamples
from lightning_failures.interventions.appended import added_index
from lightning_failures.interventions.base import named_interventions
from lightning_failures.interventions.sampler import SamplingPlan, SamplingSchedule
from lightning_failures.interventions.validation_split import report_numbers
from lightning_failures.interventions.verdicts import Verdict
from lightning_failures.steering.appending import appending, drop_plans_of_others, sources_of
from lightning_failures.steering.checkpoint import NOT_MEASURED, VERSION, read_steering, unreadable
from lightning_failures.steering.head_only import HeadOnly
from lightning_failures.steering.loader_patch import checked_loader, is_stateful, original_dataset, weigh_draws
from lightning_failures.steering.lottery import RandomizedControl
from lightning_failures.steering.rollback import Rollback
from lightning_failures.steering.round import TrainingRound
from lightning_failures.steering.training_view import VIEW, ExamplesView, training_view
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.index_recorder import dataset_attribute
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.writers import write_report

MAX_REVIEW = 200
"""So many suspected label errors are listed in a report, the most doubtful first."""


class InterventionController:
    """The interventions of one callback, and all that they keep from epoch to epoch.

    Every process walks the same path; what it decides follows from the report and the training set alone.

    Args:
        interventions: In the order in which they are listed; their weights multiply.
        reader: Reads training examples.
        seed: Of all draws.
        groups_from: Attribute of the training set with the source of each example, or None.
        auto_rollback: Whether what hurts is undone.
        lottery: Whether half of the classes are left alone, by lot, to tell the effect.
        say_once: Tells a person something that is not worth telling twice.
    """

    def __init__(
        self,
        interventions: Iterable[Intervention],
        *,
        reader: BatchReader,
        seed: int,
        groups_from: str | None,
        auto_rollback: bool,
        lottery: bool,
        say_once: Callable[..., None],
    ) -> None:
        self.interventions = named_interventions(interventions)
        self.draws = SamplingSchedule(seed)
        self._reader, self._seed, self._groups_from, self._say_once = reader, seed, groups_from, say_once
        self._view: tuple[Any, ExamplesView] | None = None
        self._folder: Path | None = None
        self._rollback = Rollback(seed) if auto_rollback else None
        self._lottery = RandomizedControl(seed) if lottery else None
        self._heads = {name: HeadOnly(one.head_only) for name, one in self.interventions.items() if one.head_only}
        self._restore: list[Callable[[], None]] = []
        self.reset()

    @property
    def on(self) -> bool:
        """Whether there are any interventions."""
        return bool(self.interventions)

    def reset(self) -> None:
        """Begin a new run."""
        self.draws.load({"seed": self._seed, "epoch": 0, "plans": {}})
        self._folder = None
        self._turns: dict[str, int] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._trend: list[dict[str, float]] = []
        self._slice: Tensor | None = None  # ids (m,) of the report part that were flagged when it began
        self._slice_epoch: int | None = None
        self.verdict: dict[str, Any] | str = NOT_MEASURED
        self._view = None
        self._views: dict[int, ExamplesView] = {}
        for one in (self._rollback, self._lottery):
            if one is not None:
                one.reset()

    def prepare_fork(self, stop_epoch: int | None = None) -> tuple[Intervention, ...]:
        """Disable rollback, and make no decision for ``stop_epoch`` or later; return the interventions as they are now.

        Loaders are still prepared for all interventions.
        """
        self._rollback = None
        if stop_epoch is not None:
            self.interventions = {name: one.stopped_at(stop_epoch) for name, one in self.interventions.items()}
        return tuple(self.interventions.values())

    # -- before the first batch ------------------------------------------------------------------------------

    def check(self, trainer: Trainer) -> None:
        """Refuse what cannot work, as far as the Trainer tells it at set-up."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if self.on and sum(bool(getattr(one, "interventions", ())) for one in callbacks) > 1:
            raise ConfigurationError("Only one FailureModes of a Trainer may have interventions.")
        for one in self.interventions.values():
            one.prepare()
        if self._rollback is not None:
            self._rollback.check(trainer)
        growing = [one for one in self.interventions.values() if one.grow_epoch and one.acts]
        fits = trainer.state.fn == "fit"
        if fits and growing and trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            raise ConfigurationError(
                f"{growing[0]}: Lightning counts the batches of an epoch when it loads the data. Give"
                " Trainer(reload_dataloaders_every_n_epochs=1), or leave grow_epoch=False."
            )

    def check_lens(self, cached: CachedEncoder | None, module: LightningModule) -> None:
        """Refuse embeddings in which all training examples look right."""
        if not self.on:
            return
        for head in self._heads.values():
            head.find(module)
        if cached is None:
            self._say_once("Without failure directions interventions do nothing in this run.")
        elif isinstance(cached.encoder, ModuleEncoder) and cached.encoder.is_part_of(module):
            raise ConfigurationError(
                "FailureModes(interventions=...) needs an encoder that has not learned the training labels, but"
                f" {cached.encoder.name} is the model that is trained, or a copy of it: in its own latent space nearly"
                " all training examples look right (Jain et al. 2023, appendix B.1.6). Name another, like a CLIP."
            )
        else:
            for one in self.interventions.values():
                one.check_encoder(cached.encoder)

    def attach(self, trainer: Trainer, loader: object, folder: Path) -> None:
        """Put the sampler, and the dataset where examples change, into a training loader that Lightning has prepared.

        ``folder`` is where interventions keep files.
        """
        checked_loader(loader)
        weighs = any(one.weight_key for one in self.interventions.values())  # the step asks for the key in any case
        if weighs and is_stateful(loader):
            raise ConfigurationError(
                f"weight_key does not work with a {type(loader).__name__}, whose sampler would lose its place. Use a"
                " plain DataLoader, or leave weight_key out."
            )
        self._folder = folder if self._folder is None or not self._folder.is_dir() else self._folder
        if not weighs and not any(one.acts for one in self.interventions.values()):
            return
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            if weighs:
                raise ConfigurationError("weight_key does not work with overfit_batches. Leave one of them out.")
            self._say_once("With overfit_batches interventions leave the training set as it is.")
            return
        training_set = original_dataset(loader)
        with isolated_rng():  # examples are read for their form, and their transforms may draw
            sources = sources_of(self.interventions, training_set, self._folder_of)
            append = appending(self.interventions, training_set, sources)
        self._restore.append(weigh_draws(loader, self.draws, append))
        for name in drop_plans_of_others(self.draws, list(self.interventions), len(training_set), sources):
            self._turns.pop(name, None)
            self._say_once(
                f"What {self.interventions[name]} had decided was for another training set or other added examples,"
                " and is dropped; it decides anew."
            )

    @property
    def folder(self) -> Path:
        """Where interventions keep files; a resumed run goes on in that of the run before."""
        assert self._folder is not None
        return self._folder

    def _folder_of(self, name: str) -> Path:
        return self.folder / "interventions" / name.replace(" ", "_")

    def check_loaders(self, trainer: Trainer) -> None:
        """Refuse loaders that interventions cannot work through, before the first batch of training."""
        if self.on:
            self._current_view(trainer)
            if trainer.val_dataloaders is not None:
                (training,) = _flat(trainer.train_dataloader)
                if any(loader is training for loader in _flat(trainer.val_dataloaders)):
                    raise ConfigurationError(
                        "FailureModes(interventions=...): training and validation share one DataLoader, whose draws"
                        " would be changed for both. Give each its own."
                    )

    # -- while it trains -------------------------------------------------------------------------------------

    def begin_epoch(self, trainer: Trainer, ranks: Communicator) -> None:
        """The sampler draws this epoch. Collective."""
        self.draws.epoch = trainer.current_epoch
        self.begin_heads(trainer)
        self.undo(trainer, ranks)

    def begin_heads(self, trainer: Trainer) -> None:
        """Train only the head where a plan wants it so; in the midst of an epoch too, when a run is resumed there."""
        for name, head in self._heads.items():
            plan = self.draws.in_effect(name)
            if plan is not None and len(plan.added):
                head.begin(trainer.lightning_module)

    def before_step(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Before an optimizer steps."""
        for head in self._heads.values():
            head.drop_gradients(module, optimizer)

    def end_epoch(self, trainer: Trainer | None = None) -> None:
        """An epoch is over, be it before its last batch. Without ``trainer``: it is given up."""
        if trainer is not None:
            self.draws.epoch = trainer.current_epoch + 1
        for head in self._heads.values():
            head.end()

    def begins_after(self, epoch: int) -> bool:
        """Whether an intervention begins with the epoch after this one; of those that never act, their slice."""
        return self._first_epoch == epoch + 1

    @property
    def began(self) -> bool:
        """Whether there is anything to judge."""
        return self._first_epoch is not None

    @property
    def _first_epoch(self) -> int | None:
        """The first epoch that is changed, or would be by interventions that never act."""
        if not any(one.acts for one in self.interventions.values()):
            return None if self._slice_epoch is None else self._slice_epoch + 1
        epochs = [entry["began"] for name, entry in self._entries.items() if self.interventions[name].acts]
        return min((epoch for epoch in epochs if epoch is not None), default=None)

    def told(self) -> tuple[dict[str, Any], ...]:
        """What the interventions did, for the report."""
        return tuple(entry | self._outcome() for entry in self._entries.values())

    def conclude(self, report: FailureReport, verdict: Verdict, folder: Path) -> FailureReport:
        """Add a verdict to the last report, and to its file."""
        self.verdict = verdict.to_dict()
        report = replace(report, interventions=self.told())
        write_report(report, folder)
        return report

    def undo(self, trainer: Trainer, ranks: Communicator) -> None:
        """Put back the weights of before where that was decided. Collective."""
        if self._rollback is not None:
            self._rollback.undo(trainer, ranks)

    def detach(self) -> None:
        """Leave every loader, and the module, as they were."""
        self.end_epoch()
        self._views.clear()
        for restore in reversed(self._restore):
            restore()
        self._restore.clear()
        self._view = None

    # -- after a validation ----------------------------------------------------------------------------------

    def act(
        self,
        trainer: Trainer,
        report: FailureReport,
        discovery: Discovery | None,
        cached: CachedEncoder | None,
        ranks: Communicator,
        *,
        min_coverage: float,
    ) -> FailureReport:
        """Decide for the next epoch where it is due, and add to the report what was done. Collective.

        The headline numbers are those of the report part, whose examples no direction was fitted to. ``discovery`` is
        of the first process.
        """
        assert report.report_part is not None
        assert report.decision_part is not None
        epoch = trainer.current_epoch
        steers = trainer.state.fn == "fit" and report.coverage >= min_coverage
        if steers and self._rollback is not None and (self._first_epoch or 0) <= epoch:
            self._undo_what_hurts(epoch, report.decision_part.grades)
        undone = self._rollback is not None and self._rollback.undone is not None
        if steers and not undone and cached is not None and report.directions is not None:
            turns = {name: one.turn(epoch + 1) for name, one in self.interventions.items()}
            due = {name: t for name, t in turns.items() if t is not None and t > self._turns.get(name, -1)}
            if due:
                self._freeze(report, epoch)
                round_of = self._judge(trainer, report, discovery, cached, ranks)
                decided = {name: self._decide(name, round_of(self._folder_of(name))) for name in due}
                ranks.agree(None)  # a process whose decision failed tells the others here, before any plan is kept
                begins = any(entry["changes_training"] for entry, _ in decided.values())
                if begins and self._rollback is not None and not self._rollback.begun:
                    self._rollback.begin(trainer, report.decision_part.grades, self.folder, ranks)
                for name, (entry, plan) in decided.items():  # all or, after an error, none
                    self._entries[name] = entry
                    if self.interventions[name].acts:
                        self.draws.add(name, plan)
                self._turns |= due
        numbers = report_numbers(report.report_part.grades, self._slice)
        numbers |= report_numbers(report.decision_part.grades, self._slice, part="decision")
        if self._slice is not None and steers:
            self._trend = [point for point in self._trend if point["epoch"] < epoch]
            self._trend.append({"epoch": epoch} | numbers)
        if self._lottery is not None and self._slice is not None and steers:
            self.verdict = self._lottery.judge(report.report_part.grades, self._slice).to_dict()
        found, told, decides = (
            report.examples,
            *(len(torch.unique(part.grades.ids)) for part in (report.report_part, report.decision_part)),
        )
        of_decisions = f" {decides} more are the decision part, for what is chosen or undone." if decides else ""
        return replace(
            report,
            summary=report.summary | numbers,
            interventions=self.told(),
            notes=(
                *report.notes,
                f"Interventions are on: everything here is of {found} discovery examples; the keys report/ are of the"
                f" {told} others, which nothing was fitted to.{of_decisions}",
            ),
        )

    def _judge(
        self,
        trainer: Trainer,
        report: FailureReport,
        discovery: Discovery | None,
        cached: CachedEncoder,
        ranks: Communicator,
    ) -> Callable[[Path], TrainingRound]:
        """Judge the training set; the rounds of all interventions see it so, each with a folder of its own."""
        assert report.directions is not None

        def look() -> tuple[ExamplesView, Any, Any, Any]:
            view = self._current_view(trainer)
            if self._view is None and view.looks_random():
                self._say_once(
                    "The transform of the training set looks random, so interventions judge one fixed draw of it."
                    f" Better give the datamodule a {VIEW}: the same examples through the transform of validation."
                )
            (loader,) = _flat(trainer.train_dataloader)
            dataset = original_dataset(loader)
            groups = None if self._groups_from is None else dataset_attribute(dataset, self._groups_from)
            return view, dataset, groups, loader.collate_fn

        view, dataset, groups, collate = ranks.run(look)
        self._view = dataset, view
        names = tuple(entry.name for entry in report.classes)
        shown = getattr(trainer, "progress_bar_callback", None) is not None
        labels, values, keys = view.judge(cached, report.directions, ranks, progress=shown)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            raise ConfigurationError(
                f"Labels of the training set run from {labels.min()} to {labels.max()}, but there are"
                f" {len(names)} classes."
            )
        return lambda folder: TrainingRound(
            epoch=trainer.current_epoch + 1,
            seed=self._seed,
            folder=folder,
            report=report,
            discovery=discovery,
            progress=shown,
            trainer=trainer,
            cached=cached,
            ranks=ranks,
            view=view,
            examples=JudgedExamples(labels, values, names, tuple(map(self._reason, range(len(names)), report.classes))),
            keys=keys,
            groups=None if groups is None or len(groups) != len(labels) else np.asarray(groups),
            collate=collate,
            views=self._views,
            say_once=self._say_once,
        )

    def _undo_what_hurts(self, epoch: int, decision: Grades) -> None:
        assert self._rollback is not None
        verdict = self._rollback.judge(decision)
        if verdict is None or verdict.outcome != "hurt":
            return
        self._rollback.decide(epoch, verdict)
        self.draws.plans.clear()
        for entry in self._entries.values():
            entry["changes_training"] = False
        self._say_once(
            f"The interventions are undone: the next epoch begins with the weights of before. {verdict.sentence}"
        )

    def _freeze(self, report: FailureReport, epoch: int) -> None:
        """The slice is told by the first directions that find a pattern, and stays; in the parts it has no say in."""
        patterns = torch.tensor([entry.pattern for entry in report.classes])
        ids = [torch.empty(0, dtype=torch.int64)]
        for part in (report.report_part, report.decision_part):
            assert part is not None
            ids.append(part.grades.ids[(part.values < 0) & patterns[part.grades.labels]])
        flagged = torch.unique(torch.cat(ids))
        if self._slice is None and len(flagged):
            self._slice, self._slice_epoch = flagged, epoch
        if self._lottery is not None:
            assert report.report_part is not None
            names = [entry.name for entry in report.classes]
            self._lottery.begin(names, patterns.tolist(), report.report_part.grades, self._slice)

    def _reason(self, k: int, entry: ClassReport) -> str | None:
        """Why a class is left alone, if it is."""
        if self._lottery is not None and self._lottery.leaves_alone(k):
            return "left alone by lot, to tell the effect on the others"
        if entry.pattern:
            return None
        return "no pattern" if entry.skipped is None else f"skipped: {entry.skipped}"

    def _decide(self, name: str, round: TrainingRound) -> tuple[dict[str, Any], SamplingPlan]:
        """What an intervention wants, for the report and for the sampler."""
        one = self.interventions[name]
        decision = one.decide(replace(round.examples, held=self._held(name, round)), round)
        added = added_index(list(self.interventions).index(name) + 1, decision.added)
        of_loss = one.weight_key is not None
        plan = SamplingPlan(round.epoch, one.stop_epoch, decision.weights, one.grow_epoch, added, of_loss)
        changes = bool((decision.weights != 1).any()) or bool(len(added))
        began = self._entries.get(name, {}).get("began")
        entry = {
            "kind": type(one).__name__,
            "options": one.options,
            "epoch": round.epoch,
            "began": round.epoch if began is None and changes else began,
            "changes_training": one.acts and changes,
            "flagged": sum(entry.get("flagged", 0) for entry in decision.classes),
            "added": len(added),
            "classes": list(decision.classes),
            "review": list(decision.review[:MAX_REVIEW]),
            "suspected": max(len(decision.review), sum(row.get("suspected") or 0 for row in decision.classes)),
        }
        return entry, plan

    def _held(self, name: str, round: TrainingRound) -> NDArray[np.bool_]:
        """The examples weighed up by the last decision whose class is skipped now."""
        skipped = np.array([entry.skipped is not None for entry in round.report.classes], dtype=np.bool_)
        former = self.draws.plans.get(name, [])
        weighed = former[-1].weights != 1 if former else np.zeros(len(round.examples.labels), dtype=np.bool_)
        return np.asarray(weighed & skipped[round.examples.labels])

    def _outcome(self) -> dict[str, Any]:
        frozen = None if self._slice is None else {"examples": len(self._slice), "epoch": self._slice_epoch}
        undone = None if self._rollback is None else self._rollback.undone
        return {"slice": frozen, "trend": list(self._trend), "verdict": self.verdict, "rolled_back": undone}

    def _current_view(self, trainer: Trainer) -> ExamplesView:
        loaders = _flat(trainer.train_dataloader)
        if len(loaders) != 1:
            raise ConfigurationError(
                f"FailureModes(interventions=...) needs one training DataLoader, got {len(loaders)}. Join their"
                " datasets with torch.utils.data.ConcatDataset, or leave interventions out."
            )
        dataset = original_dataset(loaders[0])
        if self._view is not None and self._view[0] is dataset:
            return self._view[1]
        self._view = None
        with isolated_rng():  # the user's function may draw
            return training_view(trainer, loaders[0], self._reader, seed=self._seed)

    # -- checkpoints -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only; see :class:`~.resuming.ControllerState`."""
        return {
            "version": VERSION,
            "draws": self.draws.to_dict(),
            "turns": dict(self._turns),
            "entries": dict(self._entries),
            "trend": list(self._trend),
            "slice": self._slice,
            "slice_epoch": self._slice_epoch,
            "verdict": self.verdict,
            "folder": None if self._folder is None else str(self._folder),
            "rollback": None if self._rollback is None else self._rollback.to_dict(),
            "lottery": None if self._lottery is None else self._lottery.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was written; what belongs to interventions that are gone is dropped.

        Raises:
            ConfigurationError: It is damaged or of a later version.
        """
        if not self.on:
            return
        saved = read_steering(state)
        self.draws.load({**saved.draws, "plans": self._mine(saved.draws["plans"])})
        self._turns, self._entries = self._mine(saved.turns), self._mine(saved.entries)
        self._trend = list(saved.trend)
        self._slice, self._slice_epoch = saved.slice, saved.slice_epoch
        self.verdict = saved.verdict
        self._folder = None if saved.folder is None else Path(saved.folder)
        try:
            if self._rollback is not None and saved.rollback is not None:
                self._rollback.load(saved.rollback)
            if self._lottery is not None and saved.lottery is not None:
                self._lottery.load(saved.lottery)
        except DataError as error:
            raise unreadable(error) from error
        self._drop_picks_from_other_pools()

    def _drop_picks_from_other_pools(self) -> None:
        """What was picked are rows of a pool."""
        for name, entry in self._entries.items():
            one = self.interventions[name]
            if entry["options"].get("pool") != one.options.get("pool"):
                self._forget(name)
                self._say_once(f"{one} had picked from another pool: what it picked is dropped, and it picks anew.")

    def _forget(self, name: str) -> None:
        """What an intervention decided cannot be carried out any more; it is due again."""
        self.draws.plans.pop(name, None)
        self._turns.pop(name, None)
        if name in self._entries:
            self._entries[name]["changes_training"] = False

    def _mine(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in self.interventions}


def _flat(loaders: Any) -> list[Any]:
    return [] if loaders is None else list(CombinedLoader(loaders, "max_size").flattened)
