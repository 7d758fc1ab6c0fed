"""A round of decisions on a Trainer: judged images, suspected labels and pool picks for the interventions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.text import listed_reasons
from lightning_failures.directions.probe import fit_label_probe
from lightning_failures.directions.result import FailureDirections
from lightning_failures.encoders import Encoder
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import CacheError, ConfigurationError, DataError
from lightning_failures.interventions import JudgedExamples, Round
from lightning_failures.interventions.base import LEFT_OUT, EarlyAnswers, LastLayer, PickBy
from lightning_failures.interventions.label_errors import suspect_labels
from lightning_failures.interventions.selection.candidates import Candidates, Picks
from lightning_failures.interventions.selection.near_duplicates import rows_near
from lightning_failures.interventions.selection.picker import By, PoolSelector
from lightning_failures.report.feature_names import FeatureNames
from lightning_failures.steering.class_order import pool_in_class_order
from lightning_failures.steering.early_answers import model_answers
from lightning_failures.steering.last_layer import LastLayerReader
from lightning_failures.steering.training_view import ROWS, ExamplesView, pool_view
from lightning_failures.trainer.model_features import model_fingerprint, names_file
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.readings import VERDICTS, Reading

T = TypeVar("T")

REFERENCES = 20_000
"""Maximum number of training examples among which neighbours of an example are sought."""

RESERVE, TRIAGED_RESERVE = 4, 10
"""Candidates kept for each wanted example of a pool; the second if some are excluded or picks are spread over them."""


@dataclass
class TrainingRound(Round):
    """A round of decisions on a Trainer.

    Attributes:
        trainer: The Trainer.
        cached: Encoder of the directions, with its cache.
        directions: The failure directions.
        ranks: The processes.
        view: Reads the training examples.
        examples: The judged training examples.
        keys: (N, 2) int64, cache keys of their embeddings.
        groups: (N,) names of their sources, or None.
        training_classes: Names of the classes of the training set, or None.
        pool_views: ``id`` of a pool -> its view, with the cache keys of its embeddings; kept from round to round.
        say_once: Emits each distinct message at most once.
        reading: How the scores of the validation loader were read.
        layer_reader: Reads the last layer of the model.
        feature_names: File with names and tags of features; None: ``features.yaml`` in the folder of the run.
    """

    trainer: Trainer
    cached: CachedEncoder
    directions: FailureDirections
    ranks: Communicator
    view: ExamplesView
    examples: JudgedExamples
    keys: NDArray[np.int64]
    groups: NDArray[Any] | None
    training_classes: Sequence[str] | None
    pool_views: dict[int, ExamplesView]
    say_once: Callable[..., None]
    reading: Reading
    layer_reader: LastLayerReader
    feature_names: Path | None

    @property
    def has_predictions(self) -> bool:
        """Whether the validation set was graded by predicted classes."""
        return self.reading != VERDICTS

    @property
    def encoder(self) -> Encoder:
        """Encoder of the failure directions."""
        return self.cached.encoder

    def on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first process, and return its result, or raise its error, on all. Collective."""
        result = self.ranks.run_all(lambda: work() if self.ranks.is_first else None)
        return cast(T, self.ranks.broadcast(result))

    def decision_values(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the decision values (B,) float32 of new images by the directions of their labels.

        Args:
            images: (B, 3, H, W) uint8.
            labels: (B,) int64.
        """
        return self.directions.decision_values(self.cached.embed_now(images.float() / 255), labels)

    def suspects(self, rows: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
        """Return the suspected label errors among the training examples ``rows``, with the evidence. Collective.

        Neighbours are sought in a fixed hash sample of the other training examples.
        """
        predictions = self._predict(self.view, torch.from_numpy(rows))
        if predictions is None:
            return ()
        labels = self.examples.labels[rows]
        wrong = predictions.numpy() != labels
        if not wrong.any():
            return ()
        return self.on_first(lambda: self._suspect_training(rows[wrong], predictions.numpy()[wrong]))

    def label_margins(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Judge the labels of training examples by a probe that is fitted on the discovery part. Collective."""
        return self.on_first(lambda: self._label_margins(rows))

    def last_layer(self, head: str | None, *, spend_validation: bool, discovery: bool = False) -> LastLayer | None:
        """Return the last layer of the model with penultimate features; on the first process, else None. Collective."""
        if not self.has_predictions:
            raise ConfigurationError("A refit of the last layer needs predicted classes; read_batch gives verdicts.")
        examples = self.examples
        return self.layer_reader.read(
            head,
            examples.labels,
            examples.values,
            self.keys,
            self.groups,
            spend_validation=spend_validation,
            discovery=discovery,
        )

    def tagged_features(self, head: str, path: str | Path | None) -> dict[int, str]:
        """Return the tags that people gave to penultimate features of the model, by feature."""
        own = self.feature_names if path is None else Path(path)
        file = names_file(own, self.folder.parent.parent)  # <run>/interventions/<name>
        if path is not None and not file.expanduser().is_file():
            raise ConfigurationError(f"MaskFeatures(features_file=...): there is no file {file}.")
        names = FeatureNames.load(file, encoder=model_fingerprint(self.trainer.lightning_module, head))
        return {feature: one.tag for feature, one in names.entries.items() if one.tag is not None}

    def pick(
        self,
        pool: Any,
        view: Any,
        *,
        per_class: int,
        by: PickBy,
        classes: Sequence[int],
        similarity: float,
        triage: bool,
        diverse: bool = False,
        early: EarlyAnswers | None = None,
    ) -> Picks:
        """Read a whole pool once and select examples of it. Collective."""
        if by == "early" and early is None:
            raise ConfigurationError("Picks by early answers need the answers of the model of an early epoch.")
        reserve = TRIAGED_RESERVE if triage or diverse else RESERVE
        order: By = "confidence" if by == "early" else by
        picker = PoolSelector(
            per_class, by=order, classes=classes, reserve=reserve, training_keys=self.keys, seed=self.seed
        )
        try:
            return self._pick(
                pool,
                view,
                picker,
                similarity=similarity,
                triage=triage,
                diverse=diverse,
                early=early if by == "early" else None,
            )
        except Exception:  # what could not be read may be readable when the next round asks
            self.pool_views.pop(id(pool), None)
            raise

    def _pick(
        self,
        pool: Any,
        view: Any,
        picker: PoolSelector,
        *,
        similarity: float,
        triage: bool,
        diverse: bool,
        early: EarlyAnswers | None,
    ) -> Picks:
        if id(pool) not in self.pool_views:
            ordered = pool_in_class_order(pool, view, self.training_classes, self.examples.class_names)
            self.pool_views[id(pool)] = pool_view(*ordered, self.view)
        pool_images = self.pool_views[id(pool)]
        if (doubt := self.ranks.run_all(lambda: pool_images.doubt)) is not None:
            self.say_once(doubt)
        found = self.discovery  # on the first process
        validation_digests = self.on_first(lambda: None if found is None else found.digests)

        def stream() -> PoolSelector:
            for block in pool_images.blocks(self.cached, self.directions, self.ranks, progress=self.progress):
                confidence = None if early is None else torch.from_numpy(early.confidence)[block.ids]
                if early is None and picker.by in ("confidence", "flagged_confidence"):
                    asked = torch.isin(block.labels, torch.tensor(picker.classes))
                    if picker.by == "flagged_confidence":
                        asked &= block.values < 0
                    confidence = torch.full((len(block.ids),), float("nan"))
                    confidence[asked] = self._grade(pool_images, block.ids[asked])[1]
                in_validation = None
                if validation_digests is not None and block.digests is not None:
                    in_validation = torch.isin(block.digests, validation_digests)
                picker.add(
                    block.ids,
                    block.labels,
                    decision_values=block.values,
                    confidence=confidence,
                    keys=block.keys,
                    in_validation=in_validation,
                )
            return picker

        # the candidates of all processes together
        whole, *others = self.ranks.gather_results(stream)
        left_out: dict[int, str] = {}
        for part in self.ranks.gather_objects(pool_images.left_out):
            left_out |= part
        if 2 * len(left_out) > len(pool_images):
            raise DataError(
                f"{len(left_out)} of {len(pool_images)} items of the pool cannot be read or embedded, such as"
                f" {listed_reasons(left_out)}. Give a pool whose examples have the form, and the transform, of those of"
                " the training set."
            )
        for other in others:
            whole.merge(other)
        candidates = whole.candidates()
        predictions = None
        if triage and candidates is not None:
            predictions = self._predict(pool_images, torch.from_numpy(candidates.ids))

        def choose() -> Picks:
            suspected: Any = ()
            if candidates is not None and predictions is not None:
                suspected = self._suspect_candidates(candidates, predictions)
            return whole.pick(
                training=self._training,
                similarity=similarity,
                lookup=self._look_up,
                suspected=suspected,
                in_validation=() if candidates is None else self._validation_copies(candidates, similarity),
                diverse=diverse,
            )

        return replace(self.on_first(choose), left_out=left_out)

    def _validation_copies(self, candidates: Candidates, similarity: float) -> NDArray[np.int64]:
        """Return the ids of the pool candidates that are, or nearly are, images of the validation set.

        The embeddings of the validation set are known on the first process.
        """
        assert candidates.keys is not None  # every block comes with keys
        validation = None if self.discovery is None else self.discovery.validation
        if validation is None:
            return np.empty(0, dtype=np.int64)
        blocks = torch.split(torch.from_numpy(candidates.keys), ROWS)
        near = [rows_near(self._look_up(keys), [validation], similarity=similarity) for keys in blocks]
        return np.asarray(candidates.ids[np.concatenate(near)], dtype=np.int64)

    def _look_up(self, keys: Tensor) -> Tensor:
        """Return the embeddings (n, D) of cache keys; other processes may have computed some of them.

        Raises:
            CacheError: This process cannot read them, with the remedy.
        """
        try:
            return self.cached.look_up(keys)
        except CacheError as error:
            if self.ranks.world_size == 1:
                raise
            raise CacheError(
                f"{error} Processes must share one cache folder that they can write: set LIGHTNING_FAILURES_CACHE, or"
                " AdvancedOptions(cache_folder=...), to a folder that all of them see."
            ) from error

    def _training(self, label: int) -> Iterable[Tensor]:
        """Return the embeddings of the training examples of a class, block by block."""
        keys = torch.from_numpy(self.keys[self.examples.labels == label])
        return (self._look_up(some) for some in torch.split(keys, ROWS) if len(some))

    def _predict(self, view: ExamplesView, ids: Tensor) -> Tensor | None:
        """Return the model's predictions (n,) int64; None, with a message, if it cannot be called. Collective."""
        if not self.has_predictions:
            self.say_once("Without predicted classes, label errors are not sought: read_batch gives verdicts.")
            return None
        predictions = torch.empty(0, dtype=torch.int64)
        error: Exception | None = None
        try:
            predictions = self._grade(view, ids[self.ranks.rank :: self.ranks.world_size])[0]
        except Exception as raised:
            error = raised
        unable = self.ranks.gather_objects(str(error) if isinstance(error, ConfigurationError) else None)
        reason = next(filter(None, unable), None)
        if reason is not None:
            self.say_once(f"Suspected label errors are not detected, and are treated like all other examples: {reason}")
            return None
        self.ranks.raise_if_any(error)
        found = torch.empty(len(ids), dtype=torch.int64)
        for number, part in enumerate(self.ranks.gather_objects(predictions)):
            found[number :: self.ranks.world_size] = part
        return found

    def _grade(self, view: ExamplesView, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions (n,) int64 and confidence in the label (n,) float32 by the model in its current state."""
        classes = len(self.examples.class_names)
        return model_answers(self.trainer, self.reading, view, ids, classes=classes)[1:3]

    def _label_margins(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the label margins (n,) and the best other classes (n,) of rows of the training set, block by block."""
        margins, rivals = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=np.int64)
        found = self.discovery
        if found is None:
            return margins, rivals
        probe = fit_label_probe(
            as_array(found.embeddings),
            as_array(found.labels),
            as_array(found.ids if found.groups is None else found.groups),
            as_array(self.directions.mean).astype(np.float64),
            as_array(self.directions.std).astype(np.float64),
            seed=self.seed,
        )
        if probe is None:
            return margins, rivals
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            embeddings = as_array(self._look_up(torch.from_numpy(self.keys[some])))
            part = slice(start, start + len(some))
            margins[part], rivals[part] = probe.margins(embeddings, self.examples.labels[some])
        return margins, rivals

    def _suspect_training(self, rows: NDArray[np.int64], predictions: NDArray[np.int64]) -> tuple[dict[str, Any], ...]:
        """Return the suspected labels among rows of the training set, the most doubtful first."""
        found = self._suspect(
            torch.from_numpy(self.keys[rows]),
            self.examples.labels[rows],
            predictions,
            groups=None if self.groups is None else self.groups[rows],
            among=np.setdiff1d(self._references(), rows),
        )
        names = self.examples.class_names
        entries = []
        for place, evidence in found.items():
            row = int(rows[place])
            label = int(self.examples.labels[row])
            example = {"id": row, "label": label, "class": names[label], "predicted": names[predictions[place]]}
            entries.append(example | evidence)
        return tuple(sorted(entries, key=lambda entry: float(entry["probability_of_label"])))

    def _suspect_candidates(self, candidates: Candidates, predictions: Tensor) -> NDArray[np.int64]:
        """Return the ids of the pool candidates whose label is probably wrong."""
        assert candidates.keys is not None  # every block comes with keys
        found = self._suspect(
            torch.from_numpy(candidates.keys),
            candidates.labels,
            predictions.numpy(),
            groups=None,
            among=self._references(),
        )
        return np.asarray(candidates.ids[list(found)], dtype=np.int64)

    def _references(self) -> NDArray[np.int64]:
        """Return a fixed hash sample of the training examples, ascending."""
        order = np.argsort(stable_hash(np.arange(len(self.examples.labels)), self.seed), kind="stable")
        order = order[self.examples.labels[order] != LEFT_OUT]
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
        """Judge n labels, with the training examples ``among`` as neighbours.

        Args:
            keys: (n, 2) int64, cache keys.
            labels: (n,) int64.
            predictions: (n,) int64.
            groups: (n,) names of the sources, or None.
            among: (m,) int64, rows of the training set.

        Returns:
            Row of a suspected label among the n -> the evidence.
        """
        all_keys = torch.cat([keys, torch.from_numpy(self.keys[among])])
        other_labels = self.examples.labels[among]
        all_groups = None
        if groups is not None and self.groups is not None:
            all_groups = np.concatenate([groups, self.groups[among]])
        found = suspect_labels(
            torch.cat([self._look_up(some) for some in torch.split(all_keys, ROWS)]),
            np.concatenate([labels, other_labels]),
            np.concatenate([predictions, other_labels]),
            groups=all_groups,
            candidates=np.arange(len(all_keys)) < len(labels),
            seed=self.seed,
        )
        evidence = {}
        for k, row in enumerate(found.rows.tolist()):
            if bool(found.suspect[row]):
                evidence[row] = {
                    "probability_of_label": float(found.probability[k]),
                    "neighbours_agreeing": int(found.agreeing[k]),
                }
        return evidence
