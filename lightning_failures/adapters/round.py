"""What interventions may ask for while they decide: judged images, suspected labels, picks from a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.adapters.distributed import Ranks
from lightning_failures.adapters.lenses import Lens
from lightning_failures.adapters.observer import forward_once_more
from lightning_failures.adapters.training import ROWS, ExamplesView, pool_view
from lightning_failures.directions import FailureDirections
from lightning_failures.encoders import Encoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.grading import grade_batch
from lightning_failures.interventions import Discovery, JudgedExamples
from lightning_failures.interventions.picking import By, Picker
from lightning_failures.interventions.picks import Picks
from lightning_failures.interventions.suspects import suspect_labels
from lightning_failures.records import FailureReport
from lightning_failures.splits import stable_hash

__all__ = ["Memory", "TrainingRound"]

T = TypeVar("T")

REFERENCES = 20_000
"""So many training examples, at most, tell what labels the neighbourhood of an example bears."""


@dataclass
class Memory:
    """What one round leaves to the next ones of the same run.

    Attributes:
        suspects: Training example and prediction -> the evidence if its label is suspected, else None.
        views: Views of the pools, with the keys of what was embedded.
    """

    suspects: dict[tuple[int, int], dict[str, Any] | None] = field(default_factory=dict)
    views: dict[int, ExamplesView] = field(default_factory=dict)


@dataclass
class TrainingRound:
    """Carries out one round on a Trainer; the attributes of :class:`~lightning_failures.interventions.Round` first.

    Attributes:
        examples: The judged training examples.
        keys: (N, 2) int64, of their embeddings.
        groups: (N,) names of their sources, or None.
        view: How they are read.
    """

    epoch: int
    seed: int
    folder: Path
    report: FailureReport
    discovery: Discovery | None
    progress: bool
    trainer: Trainer
    lens: Lens
    ranks: Ranks
    view: ExamplesView
    examples: JudgedExamples
    keys: NDArray[np.int64]
    groups: NDArray[Any] | None
    memory: Memory
    say_once: Callable[..., None]

    @property
    def encoder(self) -> Encoder:
        """Of the directions."""
        return self.lens.encoder

    @property
    def _directions(self) -> FailureDirections:
        assert self.report.directions is not None
        return self.report.directions

    def on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first process, and return what it gave, or raise its error, on all. Collective."""
        result: Any = None
        error: Exception | None = None
        if self.ranks.is_first:
            try:
                result = work()
            except Exception as raised:
                error = raised
        self.ranks.agree(error)
        found: T = self.ranks.broadcast(result)
        return found

    def decision_values(self, images: Tensor, labels: Tensor) -> Tensor:
        """Judge new images (B, 3, H, W) uint8 by the directions of their labels (B,): (B,) float32."""
        return self._directions.decision_values(self.lens.embed_now(images.float() / 255), labels)

    def suspects(self, rows: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
        """Those of the training examples ``rows`` whose label is probably wrong, with the evidence. Collective.

        Of the others only a fixed hash sample bears witness. What was judged before, and is predicted alike, is
        remembered.
        """
        try:
            predictions = self._predict(rows)
        except ConfigurationError as error:
            self.say_once(f"Suspected label errors are not looked for, and flagged with all others: {error}")
            return ()
        labels = self.examples.labels[rows]
        wrong = [(row, p) for row, y, p in zip(rows.tolist(), labels, predictions.tolist(), strict=True) if y != p]
        if new := [pair for pair in wrong if pair not in self.memory.suspects]:
            self.memory.suspects |= self.on_first(lambda: self._suspect(new))
        return tuple(entry for pair in wrong if (entry := self.memory.suspects[pair]) is not None)

    def pick(self, pool: Any, view: Any, *, per_class: int, by: By, classes: Sequence[int], similarity: float) -> Picks:
        """Let a whole pool stream by, and choose. Collective."""
        seen = self.memory.views.setdefault(id(pool), pool_view(pool, view, self.view))
        picker = Picker(per_class, by=by, classes=classes, training_keys=self.keys, seed=self.seed)
        error: Exception | None = None
        try:
            for block in seen.blocks(self.lens, self._directions, self.ranks, progress=self.progress):
                confidence = None
                if by in ("confidence", "flagged_confidence"):
                    asked = torch.isin(block.labels, torch.tensor(classes))
                    if by == "flagged_confidence":
                        asked &= block.values < 0
                    confidence = torch.full((len(block.ids),), float("nan"))
                    confidence[asked] = self._grade(seen, block.ids[asked])[1]
                picker.add(
                    block.ids, block.labels, decision_values=block.values, confidence=confidence, keys=block.keys
                )
        except Exception as raised:
            error = raised
        self.ranks.agree(error)
        parts = self.ranks.gather_objects(picker)

        def choose() -> Picks:
            whole: Picker = parts[0]
            for part in parts[1:]:
                whole.merge(part)
            return whole.pick(training=self._training, similarity=similarity, lookup=self.lens.look_up)

        return self.on_first(choose)

    def _training(self, label: int) -> Iterable[Tensor]:
        """The embeddings of the training examples of a class, block by block."""
        keys = torch.from_numpy(self.keys[self.examples.labels == label])
        return (self.lens.look_up(some) for some in torch.split(keys, ROWS) if len(some))

    def _predict(self, rows: NDArray[np.int64]) -> Tensor:
        """What the model says of training examples, (n,) int64. Collective."""
        predictions = torch.empty(0, dtype=torch.int64)
        error: Exception | None = None
        mine = torch.from_numpy(rows)[self.ranks.number :: self.ranks.size]
        try:
            predictions = self._grade(self.view, mine)[0]
        except Exception as raised:
            error = raised
        unable = self.ranks.gather_objects(str(error) if isinstance(error, ConfigurationError) else None)
        for told in filter(None, unable):
            raise ConfigurationError(told)
        self.ranks.agree(error)
        found = torch.empty(len(rows), dtype=torch.int64)
        for number, part in enumerate(self.ranks.gather_objects(predictions)):
            found[number :: self.ranks.size] = part
        return found

    def _grade(self, view: ExamplesView, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (n,) int64 and confidence in the label (n,) float32 of examples, by the model as it is now."""
        module = self.trainer.lightning_module
        predictions, confidence = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
        with _evaluating(module):
            for record in view.batches(ids.tolist()) if len(ids) else ():
                images = None if record.images is None else record.images.to(module.device)
                assert record.labels is not None  # the view has read them before
                rows = grade_batch(forward_once_more(self.trainer, module, images), record.labels)
                predictions.append(rows.predictions.cpu())
                confidence.append(rows.confidence.cpu().float())
        return torch.cat(predictions), torch.cat(confidence)

    def _suspect(self, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], dict[str, Any] | None]:
        """Judge labels among a sample of the training set."""
        total = len(self.examples.labels)
        asked = np.array([row for row, _ in pairs])
        sample = np.argsort(stable_hash(np.arange(total), self.seed), kind="stable")[:REFERENCES]
        rows = np.union1d(asked, sample)
        labels = self.examples.labels[rows]
        predictions, candidates = labels.copy(), np.isin(rows, asked)
        predictions[np.searchsorted(rows, asked)] = [prediction for _, prediction in pairs]
        keys = torch.from_numpy(self.keys[rows])
        found = suspect_labels(
            torch.cat([self.lens.look_up(some) for some in torch.split(keys, ROWS)]),
            labels,
            predictions,
            groups=None if self.groups is None else self.groups[rows],
            candidates=candidates,
            seed=self.seed,
        )
        outcome: dict[tuple[int, int], dict[str, Any] | None] = dict.fromkeys(pairs)
        names = self.examples.class_names
        for k, row in enumerate(rows[found.rows.numpy()].tolist()):
            if bool(found.suspect[found.rows[k]]):
                label, prediction = int(found.labels[k]), int(found.predictions[k])
                outcome[row, prediction] = {
                    "id": row,
                    "label": label,
                    "class": names[label],
                    "predicted": names[prediction],
                    "probability_of_label": float(found.probability[k]),
                    "neighbours_agreeing": int(found.agreeing[k]),
                }
        return outcome


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    """Evaluation mode for a while, every submodule by itself."""
    modes = {one: one.training for one in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for one, training in modes.items():
            one.training = training
