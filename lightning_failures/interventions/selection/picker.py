"""Streaming selection of examples of every class from a pool of any size.

Only the best few candidates of a class are kept, so memory depends on the number of classes and picks, not on the pool.
The picks depend neither on the order of the rows nor on how they are split into blocks, shards or processes: candidates
are ranked by value, and equal values by a hash of the example's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array, as_mask, as_rows, as_vector
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.selection.candidates import (
    Candidates,
    ClassPicks,
    Picks,
    best_candidates,
    identities,
)
from lightning_failures.interventions.selection.diverse import spread
from lightning_failures.interventions.selection.near_duplicates import distinct_rows

By = Literal["decision_value", "confidence", "random", "flagged_confidence"]
"""The order of the picks; see :class:`PoolSelector`."""

_PENDING = 4096  # new rows that are collected before they are ranked with the others


class PoolSelector:
    """Keeps the best candidates of every class while a labelled pool is streamed.

    ``by`` is the order of the candidates:

    * ``"decision_value"``: the most negative decision values, flagged or not (Jain et al., ICLR 2023, section 4.1).
      Rows of classes without an SVM have NaN and are never picked.
    * ``"confidence"``: the lowest probabilities of the true class.
    * ``"flagged_confidence"``: the same among the flagged rows only, decision value < 0: the direction filters, the
      confidence ranks. Rows with the most negative decision values look alike; these do not.
    * ``"random"``: a uniform draw, by a hash of each example's identity and the seed.

    An example's identity is its content key, or its id if there are no keys. Of exact copies, and of a repeated row
    (the padding of distributed samplers), only the one with the best value counts; equal contents are expected to have
    equal values.

    Not thread-safe. Processes and shards each fill one selector, and ``merge`` combines them.

    Args:
        k: Number of picks per class.
        by: See above.
        classes: The classes to pick from. Default: all that appear.
        reserve: ``reserve * k`` candidates per class are kept, so that near-duplicates can be replaced.
        training_keys: (T, 2) :func:`~lightning_failures.encoders.cache.store.content_keys` of the training images; a
            row with such a key is never picked, whatever its label. Needs keys for the pool too.
        seed: Seed of the hash.

    Raises:
        ConfigurationError: An option outside its range.

    >>> selector = PoolSelector(2, by="decision_value")
    >>> selector.add([10, 11, 12], [0, 0, 1], decision_values=[-1.0, 0.5, float("nan")])
    >>> selector.add([13, 14], [0, 0], decision_values=[-2.0, -0.1])
    >>> picks = selector.pick()
    >>> picks.classes[0].ids.tolist(), picks.shortfalls
    ([13, 10], {1: 'no example with a decision value'})
    """

    def __init__(
        self,
        k: int,
        *,
        by: By = "flagged_confidence",
        classes: Sequence[int] | None = None,
        reserve: int = 4,
        training_keys: Any = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("k", k), ("reserve", reserve)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"PoolSelector: {name} must be an integer >= 1; got {value!r}.")
        if by not in get_args(By):
            raise ConfigurationError(f"PoolSelector: by must be one of {', '.join(get_args(By))}; got {by!r}.")
        self.k, self.by, self.reserve, self.seed = k, by, reserve, seed
        self.classes = None if classes is None else tuple(sorted({int(c) for c in classes}))
        self._training = None if training_keys is None else np.unique(identities(_as_keys(training_keys, None), seed))
        self._candidates: Candidates | None = None  # ranked, at most reserve * k per class
        self._limits = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)  # full classes, their worst values
        self._pending: list[Candidates] = []
        self._n_pending = 0
        self._counts: dict[int, NDArray[np.int64]] = {}  # class -> seen, eligible, in training, in validation
        self._columns: tuple[bool, int | None] | None = None  # has keys, length of embeddings; the same in every block
        self._seen = 0

    def add(
        self,
        ids: Any,
        labels: Any,
        *,
        decision_values: Any = None,
        confidence: Any = None,
        keys: Any = None,
        embeddings: Any = None,
        in_validation: Any = None,
    ) -> None:
        """Add a block of the pool.

        Args:
            ids: (B,) int, unique in the pool.
            labels: (B,) int.
            decision_values: (B,) float, of the SVM of the label; NaN if the class has none. Negative: flagged.
            confidence: (B,) float, the probability of the label by the model; NaN if unknown.
            keys: (B, 2) int64, content keys.
            embeddings: (B, D) float, for near-duplicates; kept in their dtype, so float16 halves the memory. Optional
                if ``pick`` can look them up by key.
            in_validation: (B,) bool, copies of images of the validation set, which are never picked. Default: none.

        Raises:
            DataError: Shapes that do not match, a missing argument that ``by`` needs, or blocks of different kinds.
        """
        # validate the block
        names = as_vector(ids, "ids", len(ids))
        y = as_vector(labels, "labels", len(names))
        if names.dtype.kind != "i" or y.dtype.kind != "i":
            raise DataError("ids and labels must be integers.")
        block, pairs = self._columns_of(len(names), embeddings, keys)
        identity = identities(names if pairs is None else pairs, self.seed)
        values, eligible = self._values(identity, decision_values, confidence)
        self._expect((keys is not None, None if block is None else block.shape[1]))

        # count the rows of each class
        wanted = np.ones(len(names), dtype=np.bool_) if self.classes is None else np.isin(y, self.classes)
        trained = np.zeros_like(wanted) if self._training is None else _among(identity, self._training)
        validated = np.zeros_like(wanted) if in_validation is None else as_mask(in_validation, "in_validation", len(y))
        eligible &= ~trained & ~validated
        self._seen += len(names)
        self._count(y, wanted, eligible, trained, validated)

        # keep the rows that can still be candidates
        rows = np.flatnonzero(wanted & eligible)
        rows = rows[values[rows] <= self._worst_kept(y[rows])]
        if len(rows):
            copies = np.ones(len(names), dtype=np.int64)
            self._pending.append(Candidates(y, values, identity, names, copies, pairs, block).take(rows))
            self._n_pending += len(rows)
            if self._n_pending >= max(_PENDING, 0 if self._candidates is None else len(self._candidates)):
                self._rank()

    def _columns_of(
        self, size: int, embeddings: Any, keys: Any
    ) -> tuple[NDArray[Any] | None, NDArray[np.int64] | None]:
        """Validate the embeddings (B, D) and keys (B, 2) of a block."""
        block = None if embeddings is None else as_rows(embeddings, "embeddings")
        if block is not None and len(block) != size:
            raise DataError(f"embeddings must have {size} rows like ids, got {len(block)}.")
        if self._training is not None and keys is None:
            raise DataError("PoolSelector(training_keys=...) needs keys in every block.")
        return block, None if keys is None else _as_keys(keys, size)

    def _count(
        self,
        labels: NDArray[np.int64],
        wanted: NDArray[np.bool_],
        eligible: NDArray[np.bool_],
        trained: NDArray[np.bool_],
        validated: NDArray[np.bool_],
    ) -> None:
        """Count the rows of each class: all, those that can be picked, copies of training and of validation images."""
        for label in np.unique(labels[wanted]).tolist():
            mine = labels == label
            counts = self._counts.setdefault(label, np.zeros(4, dtype=np.int64))
            counts += [mine.sum(), (mine & eligible).sum(), (mine & trained).sum(), (mine & validated).sum()]

    def merge(self, other: PoolSelector) -> None:
        """Add the candidates and counts of another selector, with the same options, of another part of the pool.

        Raises:
            ConfigurationError: The options differ.
        """
        for name in ("k", "by", "classes", "reserve", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise ConfigurationError(
                    f"PoolSelector.merge: {name} must be the same; got {getattr(self, name)!r} and"
                    f" {getattr(other, name)!r}."
                )
        if other._columns is not None:
            self._expect(other._columns)
        self._seen += other._seen
        for label, counts in other._counts.items():
            self._counts[label] = self._counts.get(label, 0) + counts
        self._pending += [*other._pending, *([] if other._candidates is None else [other._candidates])]
        self._rank()

    def candidates(self) -> Candidates | None:
        """Return the best ``reserve * k`` rows of every class so far; None if there are none."""
        self._rank()
        return self._candidates

    def pick(
        self,
        *,
        training: Callable[[int], Iterable[Any]] | None = None,
        similarity: float = 0.995,
        lookup: Callable[[Tensor], Any] | None = None,
        suspected: Any = (),
        in_validation: Any = (),
        diverse: bool = False,
    ) -> Picks:
        """Choose the picks among the candidates; more blocks can be added afterwards.

        From the best candidate on, a candidate is dropped if its cosine with a training image of its class or with an
        earlier pick is above ``similarity``. At 0.995 the packaged digits-CLIP treats noise of 1 %, coarser colours and
        most shifts by a pixel as the same image, and hardly any other similar image; embeddings of natural photos are
        more spread out, so 0.95 to 0.98 suits them.

        Args:
            training: Class -> blocks (n, D) of the embeddings of its training images, one block in memory at a time.
            similarity: The cosine in (-1, 1] above which two images are near-duplicates; 1 drops none.
            lookup: (n, 2) content keys -> (n, D) embeddings, for instance
                :meth:`~lightning_failures.encoders.cache.store.EmbeddingStore.get`, if ``add`` got no embeddings.
                Called class by class. Without either, only exact copies are dropped.
            suspected: Ids of candidates that are not picked, because their labels are probably wrong.
            in_validation: Ids of candidates that are not picked, because they are, or nearly are, images of the
                validation set.
            diverse: Spread the picks over the candidates, from the best one on, instead of taking the best: each pick
                is the one farthest from the picks before it. Ranked by decision values, only flagged candidates take
                part, as long as there are enough. Needs embeddings.

        Returns:
            The picks, the best first, with counts of the rows seen and dropped.

        Raises:
            DataError: ``training`` or ``diverse`` was given but the candidates have no embeddings, or of another
                length.
            ConfigurationError: ``similarity`` is out of range.
        """
        if not -1 < similarity <= 1:
            raise ConfigurationError(f"PoolSelector.pick: similarity must be in (-1, 1]; got {similarity}.")
        self._rank()
        labels = sorted(set(self.classes or ()) | set(self._counts))
        excluded = as_array(suspected).astype(np.int64)
        held_out = as_array(in_validation).astype(np.int64)
        found = {
            label: self._pick_class(label, training, similarity, lookup, excluded, held_out, diverse=diverse)
            for label in labels
        }
        return Picks(found, self._seen)

    def _pick_class(
        self,
        label: int,
        training: Callable[[int], Iterable[Any]] | None,
        similarity: float,
        lookup: Callable[[Tensor], Any] | None,
        excluded: NDArray[np.int64],
        held_out: NDArray[np.int64],
        *,
        diverse: bool,
    ) -> ClassPicks:
        """Choose the picks of one class."""
        counts = self._counts.get(label, np.zeros(4, dtype=np.int64)).tolist()
        seen, eligible, in_training, in_validation = counts
        labels = np.empty(0) if self._candidates is None else self._candidates.labels
        start, stop = np.searchsorted(labels, [label, label + 1])
        if self._candidates is None or start == stop:
            none = torch.empty(0, dtype=torch.int64)
            reason = self._reason_for_none(seen, in_training, in_validation)
            return ClassPicks(
                none, none.float(), seen, eligible, in_training, in_validation=in_validation, shortfall=reason
            )
        candidates = self._candidates.take(slice(start, stop))
        validated = np.isin(candidates.ids, held_out)
        doubted = np.isin(candidates.ids, excluded) & ~validated
        rows = candidates.take(~validated & ~doubted)
        embeddings = _embeddings_of(rows, lookup)
        if embeddings is None and (training is not None or diverse):
            raise DataError(
                f"PoolSelector.pick: {'diverse' if diverse else 'training'} needs embeddings of the pool. Give them to"
                " add, or give a lookup."
            )
        wanted = len(rows) if diverse else self.k
        chosen, dropped = np.arange(min(wanted, len(rows))), 0
        if embeddings is not None and similarity < 1:
            blocks = () if training is None else training(label)
            chosen, dropped = distinct_rows(embeddings, wanted, similarity=similarity, training=blocks)
        if embeddings is not None and diverse and len(chosen) > self.k:
            chosen = self._spread(as_array(embeddings)[chosen], rows.values[chosen], chosen)
        suspected, near_validation = int(doubted.sum()), int(validated.sum())
        kinds = ["near-duplicates"] + ["images of the validation set"] * (near_validation > 0)
        kinds += ["suspected label errors"] * (suspected > 0)
        return ClassPicks(
            ids=torch.from_numpy(rows.ids[chosen]),
            values=torch.from_numpy(rows.values[chosen]),
            seen=seen,
            eligible=eligible,
            in_training=in_training,
            copies=int(rows.copies.sum()) - len(rows),
            near_duplicates=dropped,
            suspected=suspected,
            in_validation=in_validation + near_validation,
            shortfall=self._shortfall(len(chosen), len(candidates), kinds),
        )

    def _spread(
        self, embeddings: NDArray[Any], values: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return k of more than k rows, the best first, spread over the flagged ones if there are enough of them."""
        flagged = int(np.count_nonzero(values < 0)) if self.by == "decision_value" else len(rows)
        if flagged <= self.k:
            return rows[: self.k]
        return rows[np.sort(spread(embeddings[:flagged], self.k))]

    def _shortfall(self, chosen: int, candidates: int, kinds: Sequence[str]) -> str | None:
        """Return why a class with candidates has fewer than k picks; None if it has k."""
        if chosen >= self.k:
            return None
        if candidates < self.reserve * self.k:
            return f"{chosen} of {self.k}: the pool has no more"
        return f"{chosen} of {self.k}: the candidates that were kept are {' or '.join(kinds)}; raise reserve"

    def _reason_for_none(self, seen: int, in_training: int, in_validation: int) -> str:
        """Return why a class has no candidate."""
        if self._seen == 0:
            return "empty pool"
        if seen == 0:
            return "pool class absent"
        if in_validation and in_training + in_validation >= seen:
            return "only copies of training or validation images" if in_training else "only copies of validation images"
        if in_training == seen or self.by == "random":
            return "only copies of training images"
        return {
            "decision_value": "no example with a decision value",
            "confidence": "no example with a confidence",
            "flagged_confidence": "no flagged example",
        }[self.by]

    def _values(
        self, identity: NDArray[np.uint64], decision_values: Any, confidence: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the values to rank by, the smallest first, and which rows can be picked, (B,) each."""
        n = len(identity)
        if self.by == "random":
            return ((identity >> np.uint64(40)) / np.float32(1 << 24)).astype(np.float32), np.ones(n, dtype=np.bool_)
        given = {}
        for name, values in (("decision_values", decision_values), ("confidence", confidence)):
            if values is not None:
                given[name] = as_array(values).astype(np.float32)
                if given[name].shape != (n,):
                    raise DataError(f"{name} must have shape ({n},), got {given[name].shape}.")
            elif self.by == "flagged_confidence" or self.by == name.removesuffix("s"):
                raise DataError(f"by={self.by!r} needs {name}.")
        if self.by == "decision_value":
            return given["decision_values"], ~np.isnan(given["decision_values"])
        eligible = ~np.isnan(given["confidence"])
        if self.by == "flagged_confidence":
            eligible &= given["decision_values"] < 0  # false for NaN
        return given["confidence"], eligible

    def _worst_kept(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the value (n,) above which a row of each label can no longer be a candidate."""
        classes, worst = self._limits
        if not len(classes):
            return np.full(len(labels), np.inf, dtype=np.float32)
        place = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
        return np.where(classes[place] == labels, worst[place], np.float32(np.inf))

    def _rank(self) -> None:
        """Rank the pending rows together with the candidates, and keep the best."""
        if self._pending:
            parts = [*self._pending, *([] if self._candidates is None else [self._candidates])]
            self._candidates = best_candidates(Candidates.join(parts), self.reserve * self.k)
            self._pending, self._n_pending = [], 0
            classes, start, counts = np.unique(self._candidates.labels, return_index=True, return_counts=True)
            full = counts == self.reserve * self.k
            self._limits = classes[full], self._candidates.values[(start + counts - 1)[full]]

    def _expect(self, has: tuple[bool, int | None]) -> None:
        if self._columns not in (None, has):
            raise DataError("Either all blocks or none must have keys, and all or none embeddings, of one length.")
        self._columns = has


def _embeddings_of(rows: Candidates, lookup: Callable[[Tensor], Any] | None) -> Any:
    """Return the embeddings of candidates, looked up by key if they have none; None without a lookup."""
    if rows.embeddings is not None or lookup is None:
        return rows.embeddings
    if rows.keys is None:
        raise DataError("PoolSelector.pick: lookup needs the keys of the pool. Give them to add.")
    return lookup(torch.from_numpy(rows.keys))


def _as_keys(keys: Any, length: int | None) -> NDArray[np.int64]:
    array = as_array(keys)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu" or length not in (None, len(array)):
        raise DataError(f"keys must be integers of shape ({'N' if length is None else length}, 2), got {array.shape}")
    return array.astype(np.int64)


def _among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which values are in ``known``, which is sorted."""
    if not len(known):
        return np.zeros(len(values), dtype=np.bool_)
    place = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.asarray(known[place] == values)
