"""The interventions of a training: which are due after an analysis, what they decide, and when it takes effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.rng import isolated_rng
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import MAX_REVIEW, ClassReport
from lightning_failures.encoders import ModuleEncoder
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions import Intervention
from lightning_failures.interventions.appended import added_index
from lightning_failures.interventions.base import UNTREATED, named_interventions
from lightning_failures.interventions.sampler import SamplingPlan, SamplingSchedule
from lightning_failures.interventions.validation_split import report_numbers
from lightning_failures.interventions.verdicts import Verdict
from lightning_failures.steering.checkpoint import VERSION, read_steering, save_checkpoint, unreadable
from lightning_failures.steering.early_answers import EarlyAnswersStore
from lightning_failures.steering.former_files import RETRAINED, START_OF_FORKS, copy_files
from lightning_failures.steering.head_only import HeadTraining
from lightning_failures.steering.identity import folders_of, match_interventions, plans_under, pool_digest
from lightning_failures.steering.loader_patch import (
    appended_dataset,
    checked_loader,
    drop_stale_plans,
    install_sampler,
    is_stateful,
    original_dataset,
    sources_of,
)
from lightning_failures.steering.lottery import RandomizedControl
from lightning_failures.steering.new_heads import NewHeads
from lightning_failures.steering.protocol import SteeringOptions
from lightning_failures.steering.record import InterventionRecord, split_note
from lightning_failures.steering.rollback import Rollback, holds_all_weights
from lightning_failures.steering.round import TrainingRound
from lightning_failures.steering.training_judge import TrainingJudge
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.epoch_end import LoaderAnalysis
from lightning_failures.trainer.feature_store import FeatureStore
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.run_folder import INTERVENTIONS, claim_former_folder
from lightning_failures.trainer.schedule import is_last_epoch
from lightning_failures.writers import write_report


class InterventionController:
    """Lets the interventions of one callback decide after an analysis, and carries out their decisions.

    Every process takes the same steps: decisions depend on the report and the training set alone.

    Args:
        options: The callback, whose options these are.
        reader: Reads training batches.
        lottery: Whether half of the classes are left untreated, at random, as a control.
        say_once: Emits each distinct message at most once.

    Attributes:
        interventions: Name -> intervention.
        schedule: The sampling plans, by which samplers draw.
        heads: Training of the last layer alone.
        record: Decisions, frozen slice, trend and verdict.
        features: Penultimate features of the training set, deleted when the callback detaches.
        acts_after_validation: Whether what acts when the training has ended acts after a validation outside of ``fit``.
    """

    def __init__(
        self, options: SteeringOptions, reader: BatchReader, *, lottery: bool, say_once: Callable[..., None]
    ) -> None:
        seed = options.seed
        self.interventions = named_interventions(options.interventions)
        self.schedule = SamplingSchedule(seed)
        self.heads = HeadTraining(self.interventions, self.schedule)
        self.record = InterventionRecord([name for name, one in self.interventions.items() if one.changes_training])
        self._seed, self._say_once = seed, say_once
        self.features = FeatureStore(options.cache_folder)
        self._judge = TrainingJudge(
            reader,
            seed=seed,
            groups_from=options.groups_from,
            features=self.features,
            say_once=say_once,
            feature_names=options.feature_names,
        )
        self._rollback = Rollback(seed) if options.auto_rollback else None
        self._decides_at_end, self._concludes = False, True
        self.acts_after_validation = False
        self._control = RandomizedControl(seed) if lottery else None
        self._restore: list[Callable[[], None]] = []
        self._new_heads = NewHeads()  # which take effect in the next epoch
        self._early = EarlyAnswersStore()
        self.reset()

    @property
    def on(self) -> bool:
        """Whether there are any interventions."""
        return bool(self.interventions)

    @property
    def spends_validation(self) -> bool:
        """Whether an intervention spends a part of the validation set on a fit."""
        return any(one.spends_validation for one in self.interventions.values())

    @property
    def folder(self) -> Path:
        """Folder for files of the interventions; a resumed run keeps that of the run before."""
        assert self._folder is not None
        return self._folder

    def reset(self) -> None:
        """Begin a new run."""
        self.schedule.load({"seed": self._seed, "epoch": 0, "plans": {}})
        self.record.reset()
        self._judge.reset()
        self._folder: Path | None = None
        self._turns: dict[str, int] = {}  # name -> index of the last decision
        self._last: LoaderAnalysis | None = None  # the last analysis that may steer
        self._new_heads.clear()
        self._early.clear()
        self._folder_names: dict[str, str] = {}  # name -> name of its folder, where they differ after a resume
        if self._rollback is not None:
            self._rollback.reset()
        if self._control is not None:
            self._control.reset()

    def prepare_fork(self, stop_epoch: int | None = None) -> tuple[Intervention, ...]:
        """Disable rollback, and make no decision for ``stop_epoch`` or later; return the interventions as they are now.

        Loaders are still prepared for all interventions. The last epoch makes a decision too: forks go on from there.
        """
        self._rollback, self._decides_at_end, self._concludes = None, True, False
        if stop_epoch is not None:
            self.interventions = {name: one.stopped_at(stop_epoch) for name, one in self.interventions.items()}
        return tuple(self.interventions.values())

    # -- before the first batch ------------------------------------------------------------------------------

    def check(self, trainer: Trainer) -> None:
        """Raise an error for what the Trainer at set-up shows cannot work.

        Raises:
            ConfigurationError: With the remedy.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if self.on and sum(bool(getattr(one, "interventions", ())) for one in callbacks) > 1:
            raise ConfigurationError("Only one FailureModes of a Trainer may have interventions.")
        for one in self.interventions.values():
            one.prepare()
            if one.announcement is not None:
                self._say_once(one.announcement, rank_zero_info)
            if one.refits_last_layer and not holds_all_weights(trainer):
                raise ConfigurationError(
                    f"{type(one).__name__} cannot refit the last layer under {type(trainer.strategy).__name__}, which"
                    " shards the weights over processes. Use DDP or one device."
                )
        if self._rollback is not None:
            self._rollback.check(trainer)
        growing = [one for one in self.interventions.values() if one.grow_epoch and one.changes_training]
        fits = trainer.state.fn == "fit"
        if fits and growing and trainer.reload_dataloaders_every_n_epochs != 1:  # type: ignore[attr-defined]
            raise ConfigurationError(
                f"{growing[0]}: Lightning counts the batches of an epoch when it loads the data. Give"
                " Trainer(reload_dataloaders_every_n_epochs=1), or leave grow_epoch=False."
            )

    def check_encoder(self, cached: CachedEncoder | None, module: LightningModule) -> None:
        """Raise an error for an encoder that interventions cannot work with, above all the trained model itself.

        Raises:
            ConfigurationError: With the remedy.
        """
        if not self.on:
            return
        self.heads.check(module)
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

    def attach(self, trainer: Trainer, loader: object, folder: Path, ranks: Communicator) -> None:
        """Install the sampler, and the appended dataset if needed, in a prepared training loader. Collective.

        Args:
            trainer: The Trainer.
            loader: The training loader, changed in place.
            folder: Folder of the run, for files of the interventions if a resumed run does not go on in another one.
            ranks: The processes.

        Raises:
            ConfigurationError: A loader, or an option of the Trainer, that interventions cannot work with.
        """
        checked_loader(loader)
        # a step that reads the weight key needs it in any case
        has_weight_key = any(one.weight_key for one in self.interventions.values())
        if has_weight_key and is_stateful(loader):
            raise ConfigurationError(
                f"weight_key does not work with a {type(loader).__name__}, whose sampler would lose its place. Use a"
                " plain DataLoader, or leave weight_key out."
            )
        self._folder = claim_former_folder(self._folder or folder, folder, trainer, ranks, copy=copy_files)
        draws = [one for one in self.interventions.values() if one.changes_training and not one.refits_last_layer]
        if not has_weight_key and not draws:
            return
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            if has_weight_key:
                raise ConfigurationError("weight_key does not work with overfit_batches. Leave one of them out.")
            self._say_once("With overfit_batches interventions leave the training set unchanged.")
            return

        training_set = original_dataset(loader)
        with isolated_rng():  # examples are read to compare their form, and their transforms may draw
            sources = sources_of(self.interventions, training_set, self._folder_of)
            append = appended_dataset(self.interventions, training_set, sources)
        self._restore.append(install_sampler(loader, self.schedule, append))
        for source in sources.values():
            if left_out := getattr(source, "left_out", None):
                self._say_once(left_out)
        for name in drop_stale_plans(self.schedule, list(self.interventions), len(training_set), sources):
            self._turns.pop(name, None)
            self._say_once(
                f"The decision of {self.interventions[name]} in the checkpoint was made for another training set or"
                " other added examples. It is dropped, and a new decision will be made."
            )

    def check_loaders(self, trainer: Trainer) -> None:
        """Raise an error, before the first training batch, for loaders that interventions cannot work with.

        Raises:
            ConfigurationError: With the remedy.
        """
        if not self.on:
            return
        self._judge.check_loaders(trainer)

    # -- while it trains -------------------------------------------------------------------------------------

    def begin_epoch(self, trainer: Trainer, ranks: Communicator) -> None:
        """Let the plans of this epoch take effect. Collective."""
        self.schedule.epoch = trainer.current_epoch
        self.heads.begin(trainer.lightning_module)
        self.undo(trainer, ranks)
        acting = [
            name for name, one in self.interventions.items() if one.decision_index(self.schedule.epoch) is not None
        ]
        self._new_heads.apply(trainer.lightning_module, acting)

    def end_epoch(self, trainer: Trainer) -> None:
        """Set the schedule to the next epoch, and train all layers again."""
        self.schedule.epoch = trainer.current_epoch + 1
        self.heads.end()

    def save_start_of_forks(self, trainer: Trainer) -> None:
        """Write the checkpoint from which forks resume, just before an intervention begins. Collective."""
        if self.record.first_epoch == trainer.current_epoch + 1:
            save_checkpoint(trainer, self.folder / START_OF_FORKS)

    def undo(self, trainer: Trainer, ranks: Communicator) -> None:
        """Restore the weights from before the interventions, if a rollback is pending. Collective."""
        if self._rollback is not None:
            self._rollback.undo(trainer, ranks)

    def detach(self) -> None:
        """Restore every loader and the module to their original state."""
        self.heads.end()
        for restore in reversed(self._restore):
            restore()
        self._restore.clear()
        self._last = None
        self._judge.reset()

    # -- after a validation ----------------------------------------------------------------------------------

    def act(
        self,
        trainer: Trainer,
        analysis: LoaderAnalysis,
        cached: CachedEncoder | None,
        ranks: Communicator,
        *,
        min_coverage: float,
    ) -> AnalysisResult:
        """Make the decisions that are due for the next epoch, and add all results to the report. Collective.

        Args:
            trainer: The Trainer.
            analysis: The analysis of the discovery part, with the graded report and decision parts. No direction was
                fitted to the report part, so the headline numbers are read on it.
            cached: Encoder of the directions; None: no decision.
            ranks: The processes.
            min_coverage: Share of the validation examples that decisions need.
        """
        result = analysis.result
        assert result.parts is not None
        report, parts = result.report, result.parts
        epoch = trainer.current_epoch
        may_steer = report.coverage >= min_coverage
        steers = trainer.state.fn == "fit" and may_steer
        self._last = analysis if may_steer and any(one.acts_at_end for one in self.interventions.values()) else None
        if trainer.state.fn == "fit":
            self._judge.keep_early(trainer, analysis, ranks, self.interventions, self._early)
        if steers:
            self._undo_harm(epoch, parts.decision.grades)
            if self._rolled_back is None and cached is not None and result.directions is not None:
                self._decide_due(trainer, analysis, cached, ranks)
        if cached is not None:
            judged_before = bool(self._turns) and trainer.state.fn == "fit"
            classes = self._judge.diagnose(trainer, analysis, cached, ranks, judged_before=judged_before)
            result = result.with_report(classes=classes)

        numbers = report_numbers(parts.report.grades, self.record.frozen(report=True))
        numbers |= report_numbers(parts.decision.grades, self.record.frozen(report=False), part="decision")
        if steers and self.record.slice is not None:
            self.record.add_trend(epoch, numbers)
            if self._control is not None:
                verdict = self._control.judge(parts.report.grades, self.record.slice)
                self.record.verdict = verdict.to_dict()
        return result.with_report(
            summary=report.summary | numbers,
            interventions=self.record.summary(self._rolled_back),
            notes=(
                *report.notes,
                split_note(report, parts),
                *self.record.unmatched_notes(parts),
                *self._judge.notes,
                *self.record.notes,
            ),
        )

    def conclude(
        self,
        trainer: Trainer,
        result: AnalysisResult,
        cached: CachedEncoder | None,
        ranks: Communicator,
        *,
        folder: Path,
    ) -> AnalysisResult:
        """Let interventions act that do so when the training has ended; return the revised result. Collective.

        Args:
            trainer: The Trainer, at the end of its training.
            result: The last analysis, as it was published.
            cached: Encoder of the directions; None: no decision.
            ranks: The processes.
            folder: Folder of the run.

        Returns:
            The result with their entries; the same object if there is nothing to do.
        """
        analysis, self._last, self._folder = self._last, None, self._folder or folder
        at_end = [name for name, one in self.interventions.items() if one.acts_at_end]
        if analysis is None or not at_end or cached is None or not self._concludes or self._rolled_back is not None:
            return result
        if analysis.result.directions is None:
            return result
        self._freeze(analysis.result, analysis.result.report.epoch or 0)
        round_in = self._round(trainer, analysis, cached, ranks)
        decided = {name: self._decide(name, round_in(self._folder_of(name)))[0] for name in at_end}
        ranks.raise_if_any(None)
        for name, entry in decided.items():
            # no epoch of the training is changed
            began = self.record.entries.get(name, {}).get("began")
            self.record.entries[name] = entry | {"began": began, "at_end": True}
        if self._new_heads.apply(trainer.lightning_module, at_end) and not self.acts_after_validation:
            save_checkpoint(trainer, self.folder / RETRAINED)
        notes = (*result.report.notes, *(note for entry in decided.values() for note in entry.get("notes", ())))
        return result.with_report(interventions=self.record.summary(self._rolled_back), notes=notes)

    def write_verdict(self, result: AnalysisResult, verdict: Verdict, folder: Path) -> AnalysisResult:
        """Add a verdict to the last report and its file, and return the result."""
        self.record.verdict = verdict.to_dict()
        result = result.with_report(interventions=self.record.summary(self._rolled_back))
        write_report(result.report, folder)
        return result

    @property
    def _rolled_back(self) -> dict[str, Any] | None:
        """Epoch and reason of the rollback, or None."""
        return None if self._rollback is None else self._rollback.undone

    def _folder_of(self, name: str) -> Path:
        return self.folder / INTERVENTIONS / self._folder_names.get(name, name).replace(" ", "_")

    def _undo_harm(self, epoch: int, decision: Grades) -> None:
        """Drop all plans and request a rollback if accuracy on the decision part has fallen."""
        if self._rollback is None:
            return
        if not self.record.began or (self.record.first_epoch or 0) > epoch:
            self._rollback.record(decision)
            return
        verdict = self._rollback.judge(decision)
        if verdict is None or verdict.outcome != "hurt":
            return
        self._rollback.request(epoch, verdict)
        self.schedule.plans.clear()
        self._new_heads.clear()
        for name in self.record.entries:
            self.record.mark_inactive(name)
        self._say_once(
            f"The interventions are undone: the next epoch begins with the weights from before them. {verdict.sentence}"
        )

    def _decide_due(
        self,
        trainer: Trainer,
        analysis: LoaderAnalysis,
        cached: CachedEncoder,
        ranks: Communicator,
    ) -> None:
        """Let the interventions that are due decide; their plans are kept all together, or none after an error."""
        result = analysis.result
        assert result.parts is not None
        epoch = trainer.current_epoch
        due = self._due(epoch + 1)
        if not due:
            return
        self._freeze(result, epoch)
        if is_last_epoch(trainer) and not self._decides_at_end:  # only a dry run reports what it would change
            at_once = {name: one for name, one in self.interventions.items() if not one.acts_at_end}
            due = {name: turn for name, turn in due.items() if name in at_once and not at_once[name].changes_training}
            if not due:
                return
        round_in = self._round(trainer, analysis, cached, ranks)
        decided = {name: self._decide(name, round_in(self._folder_of(name))) for name in due}
        # raises here if the decision of another process failed, before any plan is kept
        ranks.raise_if_any(None)

        begins = any(entry["changes_training"] for entry, _ in decided.values())
        if begins and self._rollback is not None and not self._rollback.begun:
            self._rollback.begin(trainer, result.parts.decision.grades, self.folder, ranks)
        for name, (entry, plan) in decided.items():
            self.record.entries[name] = entry
            if self.interventions[name].changes_training:
                self.schedule.add(name, plan)
        self._turns |= due

    def _round(
        self, trainer: Trainer, analysis: LoaderAnalysis, cached: CachedEncoder, ranks: Communicator
    ) -> Callable[[Path], TrainingRound]:
        """Judge the training set, and return the round of decisions by folder. Collective."""
        return self._judge.judge(
            trainer,
            analysis,
            cached,
            ranks,
            [self._reason(k, entry) for k, entry in enumerate(analysis.result.report.classes)],
            slice_of=self.record.present,
            drops_harmful=self._rollback is not None,
        )

    def _due(self, epoch: int) -> dict[str, int]:
        """Return the interventions without a decision for an epoch, with the index of that decision."""
        due = {}
        for name, one in self.interventions.items():
            index = one.decision_index(epoch)
            if index is not None and index > self._turns.get(name, -1):
                due[name] = index
        return due

    def _freeze(self, result: AnalysisResult, epoch: int) -> None:
        """Freeze the flagged slice and, for a randomized control, the assignment of classes."""
        self.record.freeze(result, epoch)
        if self._control is not None:
            assert result.parts is not None
            names = [entry.name for entry in result.report.classes]
            patterns = [entry.pattern for entry in result.report.classes]
            flagged = self.record.present(result.parts.report.grades)
            self._control.begin(names, patterns, result.parts.report.grades, flagged)

    def _reason(self, k: int, entry: ClassReport) -> str | None:
        """Return why class k is left unchanged; None if it is not."""
        if self._control is not None and self._control.is_control(k):
            return UNTREATED
        if entry.pattern:
            return None
        return "no pattern" if entry.skipped is None else f"skipped: {entry.skipped}"

    def _decide(self, name: str, round: TrainingRound) -> tuple[dict[str, Any], SamplingPlan]:
        """Return the decision of one intervention, as an entry of the report and as a plan of the sampler."""
        one = self.interventions[name]
        examples = replace(round.examples, retained=self._retained(name, round), early=self._early.of(name))
        decision = one.decide(examples, round)
        added = added_index(list(self.interventions).index(name) + 1, decision.added)
        of_loss = one.weight_key is not None
        plan = SamplingPlan(round.epoch, one.stop_epoch, decision.weights, one.grow_epoch, added, of_loss)

        changes = bool((decision.weights != 1).any()) or bool(len(added)) or decision.head is not None
        self._new_heads.put(name, decision.head if one.changes_training else None)
        former = self.record.entries.get(name, {})
        began = former.get("began")
        suspected, doubted = (sum(row.get(key) or 0 for row in decision.classes) for key in ("suspected", "doubted"))
        entry = {
            "kind": type(one).__name__,
            "options": one.options,
            "epoch": round.epoch,
            "began": round.epoch if began is None and changes else began,
            "changes_training": one.changes_training and changes,
            "flagged": sum(row.get("flagged", 0) for row in decision.classes),
            "added": len(added),
            "classes": list(decision.classes),
            "review": list(decision.review[:MAX_REVIEW]),
            "suspected": suspected,
            "doubted": doubted,
        }
        notes = {"notes": list(decision.notes)} if decision.notes else {}
        digest = pool_digest(one)
        of_pool = {} if digest is None else {"pool_digest": digest}
        # the gain that came is measured from the first decision on
        expected = former.get("expected_drop", decision.expected_drop)
        expects = {} if expected is None else {"expected_drop": expected}
        return entry | notes | expects | decision.details | of_pool, plan

    def _retained(self, name: str, round: TrainingRound) -> NDArray[np.bool_]:
        """Return the examples (N,) bool with a weight in the last decision whose class is skipped now."""
        skipped = np.array([entry.skipped is not None for entry in round.report.classes], dtype=np.bool_)
        former = self.schedule.plans.get(name, [])
        weighted = former[-1].weights != 1 if former else np.zeros(len(round.examples.labels), dtype=np.bool_)
        return np.asarray(weighted & skipped[round.examples.labels])

    # -- checkpoints -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors only; see :class:`~.checkpoint.ControllerState`."""
        return (
            self.record.to_dict()
            | {
                "version": VERSION,
                "draws": self.schedule.to_dict(),
                "turns": dict(self._turns),
                "folder": None if self._folder is None else str(self._folder),
                "rollback": None if self._rollback is None else self._rollback.to_dict(),
                "lottery": None if self._control is None else self._control.to_dict(),
            }
            | ({"folder_names": self._folder_names} if self._folder_names else {})
            | self._new_heads.to_dict()
            | self._early.to_dict()
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint; the state of interventions that are no longer configured is dropped.

        Raises:
            ConfigurationError: The state is damaged or of a later version.
        """
        if not self.on:
            return
        saved = read_steering(state)
        stored = list(dict.fromkeys([*saved.draws["plans"], *saved.turns, *saved.entries, *saved.early]))
        names, order = match_interventions(saved.entries, stored, self.interventions), list(self.interventions)
        self.schedule.load({**saved.draws, "plans": plans_under(saved.draws["plans"], names, order)})
        self.record.load(saved, names)
        self._turns = {names[name]: turn for name, turn in saved.turns.items() if name in names}
        self._folder_names = folders_of(saved.folder_names, names, order)
        self._folder = None if saved.folder is None else Path(saved.folder)
        self._new_heads.load(saved.new_heads, names)
        self._early.load(saved.early, names)
        try:
            if self._rollback is not None and saved.rollback is not None:
                self._rollback.load(saved.rollback)
            if self._control is not None and saved.lottery is not None:
                self._control.load(saved.lottery)
        except DataError as error:
            raise unreadable(error) from error
        self._drop_picks_from_other_pools()

    def _drop_picks_from_other_pools(self) -> None:
        """Drop the decisions of interventions whose pool has changed: added examples are rows of the pool."""
        for name, entry in self.record.entries.items():
            one = self.interventions[name]
            digest = entry.get("pool_digest")
            is_other = digest is not None and digest != pool_digest(one)
            if is_other or entry["options"].get("pool") != one.options.get("pool"):
                self.schedule.plans.pop(name, None)
                self._turns.pop(name, None)
                self._early.drop(name)
                self.record.mark_inactive(name)
                self._say_once(
                    f"The examples that {one} had picked came from another pool. They are dropped, and new ones will be"
                    " picked."
                )
