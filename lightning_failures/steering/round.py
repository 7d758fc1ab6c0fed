"""What interventions may ask for while they decide: judged images, suspected labels, picks from a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.hashing import stable_hash
from lightning_failures.data.grading import grade_batch
from lightning_failures.data.report import FailureReport
from lightning_failures.directions.fit import FailureDirections
from lightning_failures.encoders import Encoder
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import CacheError, ConfigurationError
from lightning_failures.interventions import Discovery, JudgedExamples
from lightning_failures.interventions.label_errors import suspect_labels
from lightning_failures.interventions.selection.candidates import Candidates
from lightning_failures.interventions.selection.picker import By, PoolSelector
from lightning_failures.interventions.selection.picks import Picks
from lightning_failures.steering.training_view import ROWS, ExamplesView, pool_view
from lightning_failures.trainer.logits_hook import forward_once_more
from lightning_failures.trainer.ranks import Communicator

T = TypeVar("T")

REFERENCES = 20_000
"""So many training examples, at most, tell what labels the neighbourhood of an example bears."""

RESERVE, TRIAGED_RESERVE = 4, 10
"""Candidates that are kept for each example of a pool that is wanted, without triage and with it."""


@dataclass
class TrainingRound:
    """Carries out one round on a Trainer; the attributes of :class:`~lightning_failures.interventions.Round` first.

    Attributes:
        examples: The judged training examples.
        keys: (N, 2) int64, of their embeddings.
        groups: (N,) names of their sources, or None.
        collate: Of the training loader.
        views: Those of the pools, with the keys of what was embedded; they outlast the round.
        view: How they are read.
    """

    epoch: int
    seed: int
    folder: Path
    report: FailureReport
    discovery: Discovery | None
    progress: bool
    trainer: Trainer
    cached: CachedEncoder
    ranks: Communicator
    view: ExamplesView
    examples: JudgedExamples
    keys: NDArray[np.int64]
    groups: NDArray[Any] | None
    collate: Callable[[list[Any]], Any]
    views: dict[int, ExamplesView]
    say_once: Callable[..., None]

    @property
    def encoder(self) -> Encoder:
        """Of the directions."""
        return self.cached.encoder

    @property
    def _directions(self) -> FailureDirections:
        assert self.report.directions is not None
        return self.report.directions

    def on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first process, and return what it gave, or raise its error, on all. Collective."""
        result = self.ranks.run(lambda: work() if self.ranks.is_first else None)
        return cast(T, self.ranks.broadcast(result))

    def decision_values(self, images: Tensor, labels: Tensor) -> Tensor:
        """Judge new images (B, 3, H, W) uint8 by the directions of their labels (B,): (B,) float32."""
        return self._directions.decision_values(self.cached.embed_now(images.float() / 255), labels)

    def suspects(self, rows: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
        """Those of the training examples ``rows`` whose label is probably wrong, with the evidence. Collective.

        Of the others only a fixed hash sample bears witness.
        """
        predictions = self._predict(self.view, torch.from_numpy(rows))
        if predictions is None:
            return ()
        labels = self.examples.labels[rows]
        wrong = predictions.numpy() != labels
        if not wrong.any():
            return ()
        return self.on_first(lambda: self._suspect_training(rows[wrong], predictions.numpy()[wrong]))

    def pick(
        self, pool: Any, view: Any, *, per_class: int, by: By, classes: Sequence[int], similarity: float, triage: bool
    ) -> Picks:
        """Let a whole pool stream by, and choose. Collective."""
        seen = self.views.setdefault(id(pool), pool_view(pool, view, self.view, self.collate))
        reserve = TRIAGED_RESERVE if triage else RESERVE
        picker = PoolSelector(
            per_class, by=by, classes=classes, reserve=reserve, training_keys=self.keys, seed=self.seed
        )

        def stream() -> PoolSelector:
            for block in seen.blocks(self.cached, self._directions, self.ranks, progress=self.progress):
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
            return picker

        whole, *others = self.ranks.each(stream)
        for other in others:
            whole.merge(other)
        held = whole.candidates()
        predictions = self._predict(seen, torch.from_numpy(held.ids)) if triage and held is not None else None

        def choose() -> Picks:
            suspected: Any = ()
            if held is not None and predictions is not None:
                suspected = self._suspect_candidates(held, predictions)
            return whole.pick(training=self._training, similarity=similarity, lookup=self._look_up, suspected=suspected)

        return self.on_first(choose)

    def _look_up(self, keys: Tensor) -> Tensor:
        """Embeddings (n, D), of which other processes may have computed some.

        Raises:
            CacheError: They are not to be had here, with the remedy.
        """
        try:
            return self.cached.look_up(keys)
        except CacheError as error:
            if self.ranks.size == 1:
                raise
            raise CacheError(
                f"{error} Processes must share one cache folder that they can write: set LIGHTNING_FAILURES_CACHE, or"
                " FailureModes(cache_folder=...), to a folder that all of them see."
            ) from error

    def _training(self, label: int) -> Iterable[Tensor]:
        """The embeddings of the training examples of a class, block by block."""
        keys = torch.from_numpy(self.keys[self.examples.labels == label])
        return (self._look_up(some) for some in torch.split(keys, ROWS) if len(some))

    def _predict(self, view: ExamplesView, ids: Tensor) -> Tensor | None:
        """What the model says of examples, (n,) int64; None, said once, where it cannot be asked. Collective."""
        predictions = torch.empty(0, dtype=torch.int64)
        error: Exception | None = None
        try:
            predictions = self._grade(view, ids[self.ranks.number :: self.ranks.size])[0]
        except Exception as raised:
            error = raised
        unable = self.ranks.gather_objects(str(error) if isinstance(error, ConfigurationError) else None)
        if told := next(filter(None, unable), None):
            self.say_once(f"Suspected label errors are not looked for, and treated as all others: {told}")
            return None
        self.ranks.agree(error)
        found = torch.empty(len(ids), dtype=torch.int64)
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

    def _suspect_training(self, rows: NDArray[np.int64], predictions: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
        """Judge labels of the training set; the most doubtful come first."""
        found = self._suspect(
            torch.from_numpy(self.keys[rows]),
            self.examples.labels[rows],
            predictions,
            groups=None if self.groups is None else self.groups[rows],
            among=np.setdiff1d(self._references(), rows),
        )
        names = self.examples.class_names
        entries = []
        for place, entry in found.items():
            row, label = int(rows[place]), int(self.examples.labels[rows[place]])
            told = {"id": row, "label": label, "class": names[label], "predicted": names[predictions[place]]}
            entries.append(told | entry)
        return tuple(sorted(entries, key=lambda entry: float(entry["probability_of_label"])))

    def _suspect_candidates(self, held: Candidates, predictions: Tensor) -> NDArray[np.int64]:
        """The ids of candidates of a pool whose label is probably wrong."""
        assert held.keys is not None  # every block comes with keys
        found = self._suspect(
            torch.from_numpy(held.keys), held.labels, predictions.numpy(), groups=None, among=self._references()
        )
        return np.asarray(held.ids[list(found)], dtype=np.int64)

    def _references(self) -> NDArray[np.int64]:
        """A fixed hash sample of the training examples, ascending."""
        order = np.argsort(stable_hash(np.arange(len(self.examples.labels)), self.seed), kind="stable")
        return np.sort(order[:REFERENCES])

    def _suspect(
        self,
        keys: Tensor,
        labels: NDArray[np.int64],
        predictions: NDArray[np.int64],
        *,
        groups: NDArray[Any] | None,
        among: NDArray[np.int64],
    ) -> dict[int, dict[str, Any]]:
        """Judge n labels beside those of the training examples ``among``: places of the suspects -> the evidence."""
        everywhere = torch.cat([keys, torch.from_numpy(self.keys[among])])
        others = self.examples.labels[among]
        found = suspect_labels(
            torch.cat([self._look_up(some) for some in torch.split(everywhere, ROWS)]),
            np.concatenate([labels, others]),
            np.concatenate([predictions, others]),
            groups=None if groups is None or self.groups is None else np.concatenate([groups, self.groups[among]]),
            candidates=np.arange(len(everywhere)) < len(labels),
            seed=self.seed,
        )
        return {
            place: {
                "probability_of_label": float(found.probability[k]),
                "neighbours_agreeing": int(found.agreeing[k]),
            }
            for k, place in enumerate(found.rows.tolist())
            if bool(found.suspect[place])
        }


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
