"""One pass over one evaluation loader: batches go in, grades and embeddings come out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.analysis.enrichment import Attribute, read_attribute
from lightning_failures.analysis.metrics import GradesMetric
from lightning_failures.core.budget import places_in_line
from lightning_failures.data.grades import Grades
from lightning_failures.data.grading import Task, assemble_grades, expand_class_names, grade_batch, infer_task
from lightning_failures.data.partition import owned_rows
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.embedding_budget import SampleBudget
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.index_recorder import dataset_attribute
from lightning_failures.trainer.ranks import Communicator


class Collector:
    """Grades the batches of one pass and embeds the images that the cache does not know.

    Args:
        dataset: The dataset of the loader, for class names, groups and the number of examples; None if unknown.
        class_names: The user's, or None to read ``dataset.classes``.
        task: None infers it from the first batch.
        lenses: The encoders with their caches.
        ranks: The processes of the run.
        groups_from: Name of the dataset's attribute with a source for each example, a number or a name.
        metadata: Names of the dataset's attributes whose values are counted among failures.
        allowance: Which share of the examples is looked at; by default all.
        gathers: Whether the first process holds all embeddings, as interventions want it.
        seed: Of the sample that is looked at.
    """

    def __init__(
        self,
        *,
        dataset: Any,
        class_names: Sequence[str] | None,
        task: Task | None,
        cached_encoders: Sequence[CachedEncoder],
        ranks: Communicator,
        groups_from: str | None = "groups",
        metadata: Sequence[str] = (),
        allowance: SampleBudget | None = None,
        gathers: bool = False,
        seed: int = 0,
    ) -> None:
        self.task = task
        self.named = class_names is not None
        self.columns: int | None = None
        self.indexed = True  # whether ids are indices of the dataset
        self._range = (math.inf, -math.inf)
        self._names = told_apart(class_names if self.named else dataset_attribute(dataset, "classes"))
        self._cached_encoders, self._ranks = cached_encoders, ranks
        self._allowance, self._seed, self._gathers = allowance or SampleBudget(), seed, gathers
        self._expected = _length(dataset)
        self._groups = None if groups_from is None else _sources(dataset, groups_from)
        self._attributes = {name: _attribute(dataset, name) for name in metadata}
        self._metric = GradesMetric(process_group=ranks.group)
        self._unlabelled: list[Tensor] = []
        self._ids: list[Tensor] = []
        self._keys: list[Tensor] = []

    @property
    def logit_columns(self) -> int | None:
        """How many logits an example has, as far as that is known before its batch is graded."""
        if self.columns is not None:
            return self.columns
        return None if self._names is None else len(self._names)

    @property
    def looks(self) -> bool:
        """Whether any lens wants the images."""
        return bool(self._cached_encoders)

    @property
    def has_names(self) -> bool:
        """Whether classes have names, and so captions."""
        return self._names is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class; "0" ... "K-1" where nobody gave any."""
        assert self.task is not None
        assert self.columns is not None
        names = self._names
        if names is None:
            names = [str(k) for k in range(max(self.columns, 2) if self.task != "multilabel" else self.columns)]
        return expand_class_names(names, self.task)

    @property
    def doubt(self) -> str | None:
        """A word about scores of a binary or multilabel task that are all between 0 and 1, as raw ones hardly are."""
        low, high = self._range
        if not 0 <= low < high <= 1:
            return None
        return (
            f"All scores of this {self.task} task lie between 0 and 1, so each counts as positive. If they are"
            " probabilities, return {'preds': ...} from the step, or give read_batch for the logits."
        )

    def name_ids(self, ids: Tensor | None, drawn: Sequence[int] | None) -> Tensor | Sequence[int] | None:
        """Return the user's ids of a batch, or else the indices that were drawn for it.

        Raises:
            ConfigurationError: groups or metadata, found by index, are wanted for ids that are no indices.
        """
        if ids is not None and (drawn is None or ids.tolist() != drawn):
            self.indexed = False
            if self._groups is not None:
                raise ConfigurationError(
                    "FailureModes(read_batch=...) gives ids that are not known to be indices of the dataset, so its"
                    " groups cannot be found by them. Leave ids None, or give groups_from=None."
                )
            if self._attributes:
                raise ConfigurationError(
                    "FailureModes(read_batch=...) gives ids that are not known to be indices of the dataset, so its"
                    " metadata cannot be found by them either. Leave ids None, or give metadata=()."
                )
        return ids if ids is not None else drawn

    def grade(self, logits: Tensor, labels: Tensor, ids: Sequence[int] | Tensor) -> Tensor:
        """Grade one batch; returns its ids (B,) int64."""
        if self.task is None:
            self.task = infer_task(logits, labels)
        if self.columns is None:
            self.columns = logits.shape[1] if logits.ndim == 2 else self._hard_columns(logits)
            self._check_names()
        rows = grade_batch(logits, labels, task=self.task)
        if logits.is_floating_point() and self.task != "multiclass" and logits.numel():
            low, high = logits.detach().cpu().aminmax()
            self._range = min(self._range[0], float(low)), max(self._range[1], float(high))
        if not logits.is_floating_point() and len(rows.labels) and int(rows.labels.max()) >= len(self.class_names):
            raise DataError(
                f"Labels run from {int(labels.min())} to {int(labels.max())}, but the {len(self.class_names)} classes"
                f" allow 0 to {len(self.class_names) - 1}."
            )
        # copies: a tensor that a worker sent keeps a file open for as long as it lives
        ids = torch.as_tensor(ids).long().cpu().reshape(-1).clone()
        if len(ids) != len(labels):
            raise ConfigurationError(
                f"The batch has {len(labels)} labels, but {len(ids)} ids are known of it. Give read_batch to name them."
            )
        conditions = self._conditions
        self._metric.update(
            ids[rows.position] * conditions + rows.condition, rows.labels.clone(), rows.predictions, rows.confidence
        )
        if len(rows.position) < len(ids):
            unlabelled = torch.ones(len(ids), dtype=torch.bool)
            unlabelled[rows.position] = False
            self._unlabelled.append(ids[unlabelled])
        return ids

    def embed(self, images: Tensor, space: ImageSpace, ids: Tensor) -> None:
        """Embed those of the images (B, C, H, W), which are in ``space``, that some lens does not know.

        Images that are not in the sample are passed over.
        """
        start, spent, seen = time.perf_counter(), self._allowance.spent, len(ids)
        places = places_in_line(ids.numpy(), self._seed)
        rows = torch.from_numpy(places < self._allowance.reach)
        if not rows.all():
            images, ids, places = images[rows.to(images.device)], ids[rows], places[rows.numpy()]
        keys = content_keys(images, salt=repr(space))
        known = ~torch.stack([cached.store.missing(keys) for cached in self._cached_encoders]).any(0)
        line = np.flatnonzero(~known.numpy())
        line = line[np.argsort(places[line], kind="stable")]
        self._allowance.plan(seen, places[line], rows=self._conditions)
        for portion in self._allowance.portions(places[line]):
            began, some = time.perf_counter(), torch.from_numpy(np.sort(line[portion]))
            unit = space.to_unit(images[some.to(images.device)])
            for cached in self._cached_encoders:
                cached.embed(unit, keys[some])
            self._allowance.pay(len(some), time.perf_counter() - began)
            known[some] = True
        self._allowance.spent = spent + time.perf_counter() - start
        self._ids.append(ids[known])
        self._keys.append(keys[known])

    @property
    def seconds(self) -> float:
        """Spent on embedding."""
        return self._allowance.spent

    def sampled(self, grades: Grades) -> NDArray[np.bool_]:
        """Which rows of ``grades`` are looked at, the same on all ranks: (N,) bool. Collective."""
        sizes = np.bincount(grades.labels.numpy())
        size = self._ranks.size
        # what the process with the most examples holds
        held = max(int(owned_rows(grades, rank, size, predicted=True).sum()) for rank in range(size))
        self._allowance.fit(len(grades) if self._gathers else held, int(sizes.max(initial=0)))
        share = min(self._ranks.gather_objects(self._allowance.share))
        return np.asarray(places_in_line(grades.ids.numpy(), self._seed) < share)

    def grades(self) -> Grades:
        """All rows of all ranks, each example once. Collective."""
        unlabelled = self._ranks.gather_objects(torch.cat([torch.empty(0, dtype=torch.int64), *self._unlabelled]))
        keys, labels, predictions, confidence = self._metric.compute()
        self._agree_on_task()
        seen = torch.unique(torch.cat([keys // self._conditions, *unlabelled]))
        return assemble_grades(
            keys,
            labels,
            predictions,
            confidence,
            class_names=self.class_names,
            conditions=self._conditions,
            groups=None if self._groups is None else self._groups[keys // self._conditions],
            coverage=1.0 if not self._expected else len(seen) / self._expected,
        )

    def metadata(self, grades: Grades) -> dict[str, Attribute]:
        """The wanted attributes of the rows of ``grades``."""
        return {name: attribute[grades.ids.numpy()] for name, attribute in self._attributes.items()}

    def embeddings(self, cached: CachedEncoder, wanted: Sequence[Tensor]) -> Tensor | None:
        """Hand out the embeddings, wherever they were computed, to the ranks that want them. Collective.

        Args:
            cached: Which.
            wanted: For each rank the ids (u,) that it wants, ascending.

        Returns:
            (u, D) float32, those of the ids that this rank wants; None, on all ranks, if some have no embedding.
        """
        ids = torch.cat([torch.empty(0, dtype=torch.int64), *self._ids])
        keys = torch.cat([torch.empty(0, 2, dtype=torch.int64), *self._keys])
        order = ids.argsort(stable=True)  # as in the dataset, often by class, however they were drawn
        ids, keys = ids[order], keys[order]
        self._ranks.run(lambda: cached.store.flush(order=keys))
        mine: Tensor | None = None
        for rank, asked in enumerate(wanted):
            rows = torch.isin(ids, asked)
            held = self._ranks.run(partial(_look_up, cached, keys[rows]))
            all_ids, all_rows = (self._ranks.gather_rows(part, to=rank) for part in (ids[rows], held))
            if all_ids is not None and all_rows is not None:
                mine = _of_each(asked, all_ids, all_rows)
        return mine if all(self._ranks.gather_objects(mine is not None)) else None

    def on_first(self, cached: CachedEncoder | None, ids: Tensor) -> Tensor | None:
        """The embeddings (u, D) of the distinct ids, ascending, on the first process, else None. Collective."""
        if cached is None:
            return None
        rows = self.embeddings(cached, [torch.unique(ids), *[ids[:0]] * (self._ranks.size - 1)])
        return rows if self._ranks.is_first else None

    @property
    def _conditions(self) -> int:
        return self.columns or 1 if self.task == "multilabel" else 1

    def _agree_on_task(self) -> None:
        """A rank without a batch learns the task from the others; and what is true of one's ids is true of all."""
        told = self._ranks.gather_objects((self.task, self.columns, self.indexed))
        self.task, self.columns, _ = next((seen for seen in told if seen[1] is not None), told[0])
        self.indexed = all(indexed for _, _, indexed in told)

    def _hard_columns(self, logits: Tensor) -> int:
        if logits.is_floating_point():
            return 1
        if self._names is None:
            raise ConfigurationError(
                "The step returns predicted classes but no logits, so the number of classes is unknown: give"
                " class_names."
            )
        return len(self._names)

    def _check_names(self) -> None:
        if self._names is None:
            return
        assert self.columns is not None
        allowed = (1, 2) if self.columns == 1 else (self.columns,)
        if len(self._names) not in allowed:
            origin = "FailureModes(class_names=...)" if self.named else "dataset.classes"
            raise ConfigurationError(
                f"{origin} has {len(self._names)} names, but the model has {self.columns} logits an example, which need"
                f" {' or '.join(map(str, allowed))}."
            )


def _look_up(cached: CachedEncoder, keys: Tensor) -> Tensor:
    return cached.look_up(keys) if len(keys) else torch.empty(0, cached.encoder.dim)


def _of_each(wanted: Tensor, ids: Tensor, rows: Tensor) -> Tensor | None:
    """The row of each id (u,), ascending, among those of ids (n,) that may come twice; None if one has none."""
    if torch.equal(ids, wanted):
        return rows
    order = torch.argsort(ids, stable=True)
    first = torch.searchsorted(ids[order], wanted).clamp(max=max(len(order) - 1, 0))
    if len(order) < len(wanted) or not torch.equal(ids[order[first]], wanted):
        return None
    return rows[order[first]]


def told_apart(names: Any) -> list[str] | None:
    """Class names as text, all different: of synonyms the first, with its index where two classes share a name."""
    if not isinstance(names, Sequence | np.ndarray):
        return None
    texts = [str(name[0] if isinstance(name, tuple | list) and name else name) for name in names]
    count = Counter(texts)
    return [f"{text} ({k})" if count[text] > 1 else text for k, text in enumerate(texts)]


def _sources(dataset: Any, attribute: str) -> Tensor | None:
    """The source of each example as (N,) int64; names are numbered."""
    groups = dataset_attribute(dataset, attribute)
    if groups is None:
        return None
    values, length = np.asarray(groups), _length(dataset)
    if values.ndim != 1 or values.dtype == object or length not in (None, len(values)):
        raise ConfigurationError(
            f"FailureModes(groups_from={attribute!r}): this attribute of {type(dataset).__name__} must hold an integer"
            f" or a string for each of its {length} examples, but is a {type(groups).__name__} of shape {values.shape}."
            " Name another attribute, or None for no groups."
        )
    return torch.from_numpy(values if values.dtype.kind == "i" else np.unique(values, return_inverse=True)[1]).long()


def _attribute(dataset: Any, name: str) -> Attribute:
    """The values of one attribute of all examples of a dataset."""
    values, length = dataset_attribute(dataset, name), _length(dataset)
    problem = "is not there" if values is None else ""
    if values is not None:
        try:
            attribute = read_attribute(values, name)
            if length in (None, len(attribute)):
                return attribute
            problem = f"has {len(attribute)} values for {length} examples"
        except DataError as error:
            problem = f"cannot be counted: {error}"
    raise ConfigurationError(
        f"FailureModes(metadata=...): the attribute {name!r} of {type(dataset).__name__} {problem}. It must hold an"
        " integer, a string or a boolean for each example, None where it is not known."
    )


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None
