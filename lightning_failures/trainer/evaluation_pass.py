"""One pass over one evaluation loader: its grades, and the embeddings of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import finite_rows
from lightning_failures.core.budget import sampling_rank
from lightning_failures.core.text import listed_ids
from lightning_failures.data.grades import Grades
from lightning_failures.data.grading import Task
from lightning_failures.data.partition import owned_rows
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.encoders.frozen import first_line
from lightning_failures.trainer.embedding_budget import SampleBudget
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.image_space import ImageRangeError, ImageSpace, pixel_problems
from lightning_failures.trainer.kept_images import KeptImages
from lightning_failures.trainer.penultimate import PenultimatePass
from lightning_failures.trainer.ranks import Communicator, exchange_by_id

MIN_JUDGED = 8
"""Number of images outside [0, 1] after which the normalisation is said to be wrong, if most images are like them."""

MIN_CHECKED = 2
"""The same in a sanity check, which may see two batches of one image."""


class EmbeddingPass:
    """Embeds the images of one pass that are not cached yet, and exchanges embeddings between ranks.

    An image that cannot be embedded costs only itself; an encoder that fails for many images in a row, only itself.

    Args:
        cached_encoders: The encoders with their caches.
        ranks: The processes of the run.
        budget: Decides which share of the examples is embedded; all of them by default.
        gathers_all: Whether the first process will hold all embeddings, as interventions require.
        seed: Seed of the sample.
    """

    def __init__(
        self,
        *,
        cached_encoders: Sequence[CachedEncoder],
        ranks: Communicator,
        budget: SampleBudget | None = None,
        gathers_all: bool = False,
        seed: int = 0,
    ) -> None:
        self._cached_encoders, self._ranks = cached_encoders, ranks
        self._budget, self._gathers_all, self._seed = budget or SampleBudget(), gathers_all, seed
        self._ids: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._left_out: dict[str, set[int]] = {}  # by reason
        self._failed: dict[str, str] = {}  # by fingerprint of an encoder
        self._images_in_range = self._images_outside = 0
        self._doubt: str | None = None

    @property
    def has_encoders(self) -> bool:
        """Whether any encoder needs the images."""
        return bool(self._working)

    @property
    def _working(self) -> list[CachedEncoder]:
        """The encoders that have not failed in this pass."""
        return [cached for cached in self._cached_encoders if cached.encoder.fingerprint not in self._failed]

    @property
    def seconds(self) -> float:
        """Time spent on embedding."""
        return self._budget.spent

    def embed(
        self, images: Tensor, space: ImageSpace, ids: Tensor, *, rows_per_example: int = 1, check: bool = False
    ) -> None:
        """Embed the images of a batch that belong to the sample and lack an embedding.

        After an error no encoder, or not the one that failed, is asked any more in this pass.

        Args:
            images: (B, C, H, W), as the model saw them.
            space: How to bring the images to [0, 1].
            ids: (B,) int64.
            rows_per_example: Number of rows that one example has in the grades.
            check: Only check that the images can be brought to [0, 1].

        Raises:
            ImageRangeError: Most images do not fit the normalisation.
            DataError: The images do not have the form that encoders need.
            Exception: The error of an encoder that failed for many images in a row.
        """
        if not self._working:
            return
        if check:
            self._to_unit(images, space, check=True)
            return

        start, spent, seen = perf_counter(), self._budget.spent, len(ids)
        sampling_ranks = sampling_rank(ids.numpy(), self._seed)
        in_sample = torch.from_numpy(sampling_ranks < self._budget.threshold)
        if not in_sample.all():
            images, ids = images[in_sample.to(images.device)], ids[in_sample]
            sampling_ranks = sampling_ranks[in_sample.numpy()]

        # the images without an embedding, in the order of the sample
        keys = content_keys(images, salt=repr(space))
        known = ~torch.stack([cached.store.missing(keys) for cached in self._working]).any(0)
        self._images_in_range += int(known.sum())
        missing = np.flatnonzero(~known.numpy())
        missing = missing[np.argsort(sampling_ranks[missing], kind="stable")]
        self._budget.plan_batch(seen, sampling_ranks[missing], rows_per_example=rows_per_example)

        error: Exception | None = None
        for portion in self._budget.portions(sampling_ranks[missing]):
            portion_start = perf_counter()
            rows = torch.from_numpy(np.sort(missing[portion]))
            error = self._embed_rows(images[rows.to(images.device)], keys[rows], space, ids[rows]) or error
            self._budget.record_cost(len(rows), perf_counter() - portion_start)
            known[rows] = True
        self._budget.spent = spent + perf_counter() - start
        self._ids.append(ids[known])
        self._keys.append(keys[known])
        if error is not None:
            raise error

    def notes(self) -> tuple[str, ...]:
        """Return sentences on images and encoders that failed, and on doubts, for the report. Collective."""
        states = self._ranks.gather_objects((self._left_out, self._failed, self._doubt))
        left_out: dict[str, set[int]] = {}
        failed: dict[str, str] = {}
        for some_left_out, some_failed, _ in states:
            failed |= some_failed
            for reason, ids in some_left_out.items():
                left_out.setdefault(reason, set()).update(ids)
        doubts = dict.fromkeys(doubt for *_, doubt in states if doubt is not None)
        images = [
            f"{len(ids)} image{'s' if len(ids) > 1 else ''} could not be embedded ({reason}): {listed_ids(ids)}."
            for reason, ids in left_out.items()
        ]
        return (*doubts, *dict.fromkeys(failed.values()), *images)

    def _embed_rows(self, images: Tensor, keys: Tensor, space: ImageSpace, ids: Tensor) -> Exception | None:
        """Embed images (n, C, H, W) with every working encoder, and record those that have no embedding after it.

        Returns:
            The error of an encoder that failed; the others have embedded the images.
        """
        failure: Exception | None = None
        unit_images = self._to_unit(images, space)
        fits = finite_rows(unit_images).cpu()
        for row, reason in pixel_problems(images, unit_images).items():
            self._leave_out(reason, ids[row : row + 1])
        for cached in self._working:
            name = cached.encoder.name
            cached.last_error = None
            try:
                cached.embed(unit_images, keys)
            except Exception as error:
                message = f"{type(error).__name__}: {first_line(error)}"
                self._failed[cached.encoder.fingerprint] = f"Nothing was fitted on the encoder {name}: {message}"
                failure = error
                continue
            failed = fits & cached.store.missing(keys)
            self._leave_out(cached.problem, ids[failed])
        return failure

    def _to_unit(self, images: Tensor, space: ImageSpace, *, check: bool = False) -> Tensor:
        """Bring images (n, C, H, W) to [0, 1]; those that cannot be are NaN.

        A single batch may be small, so whether the normalisation is wrong is decided by all images so far.
        """
        self._doubt = self._doubt or space.doubt
        try:
            unit_images = space.to_unit(images)
        except ImageRangeError as error:
            self._images_outside += len(images)
            least = MIN_CHECKED if check else MIN_JUDGED
            if self._images_outside < least or self._images_outside <= self._images_in_range:
                return torch.full(images.shape, torch.nan, device=images.device)
            self._fail_all(error)
            raise
        except Exception as error:
            self._fail_all(error)
            raise
        self._images_in_range += len(images)
        return unit_images

    def _fail_all(self, error: Exception) -> None:
        reason = f"Images could not be embedded in this analysis: {error}"
        self._failed = {cached.encoder.fingerprint: reason for cached in self._cached_encoders}

    def _leave_out(self, reason: str, ids: Tensor) -> None:
        if len(ids):
            self._left_out.setdefault(reason, set()).update(ids.tolist())

    def sampled_rows(self, grades: Grades) -> NDArray[np.bool_]:
        """Return which rows of ``grades`` are in the sample, the same on all ranks: (N,) bool. Collective."""
        class_sizes = np.bincount(grades.labels.numpy())
        world_size = self._ranks.world_size
        owned = [int(owned_rows(grades, rank, world_size, predicted=True).sum()) for rank in range(world_size)]
        examples_in_memory = len(grades) if self._gathers_all else max(owned)
        self._budget.fit_memory(examples_in_memory, int(class_sizes.max(initial=0)))
        share = min(self._ranks.gather_objects(self._budget.share))
        return np.asarray(sampling_rank(grades.ids.numpy(), self._seed) < share)

    def embeddings_of(self, cached: CachedEncoder, wanted: Sequence[Tensor]) -> Tensor | None:
        """Return the embeddings that this rank asks for, from whichever ranks computed them. Collective.

        Args:
            cached: The encoder.
            wanted: For each rank the ids (u,) that it asks for, ascending and distinct.

        Returns:
            (u, D) float32 for the ids of this rank, NaN for ids without an embedding; None, on all ranks, if no id has
            one, or if the encoder failed on any rank.
        """
        if any(self._ranks.gather_objects(cached.encoder.fingerprint in self._failed)):
            return None
        ids = torch.cat([torch.empty(0, dtype=torch.int64), *self._ids])
        keys = torch.cat([torch.empty(0, 2, dtype=torch.int64), *self._keys])
        order = ids.argsort(stable=True)  # dataset order, which often groups by class, whatever the loader's order
        ids, keys = ids[order], keys[order]
        self._ranks.run_all(lambda: cached.store.flush(order=keys))
        known = ~cached.store.missing(keys)
        ids, keys = ids[known], keys[known]
        return exchange_by_id(self._ranks, ids, lambda rows: cached.look_up(keys[rows]), wanted)

    def embeddings_on_first(self, cached: CachedEncoder | None, ids: Tensor) -> Tensor | None:
        """Return the embeddings (u, D) of the distinct ids, ascending, on rank 0; None elsewhere. Collective.

        An id without an embedding has NaN.
        """
        if cached is None:
            return None
        nothing = [ids[:0]] * (self._ranks.world_size - 1)
        embeddings = self.embeddings_of(cached, [torch.unique(ids), *nothing])
        return embeddings if self._ranks.is_first else None


class PassOptions(Protocol):
    """The options of the callback that an evaluation pass needs."""

    class_names: tuple[str, ...] | None
    task: Task | None
    groups_from: str | None
    metadata: Sequence[str]
    groupings: Sequence[str]
    clusters_from: str | None
    seed: int


@dataclass(frozen=True)
class EvaluationPass:
    """Grades and embeddings of one pass over an evaluation loader.

    Attributes:
        grader: Grades of the examples.
        embeddings: Embeddings of their images.
        penultimate: Penultimate features of the model, for the examples whose features were asked for.
        kept: Small copies of some images, if their ids are no indices of the dataset.
    """

    grader: Grader
    embeddings: EmbeddingPass
    penultimate: PenultimatePass = field(default_factory=PenultimatePass)
    kept: KeptImages = field(default_factory=KeptImages)

    @classmethod
    def begin(
        cls,
        dataset: Any,
        cached_encoders: Sequence[CachedEncoder],
        ranks: Communicator,
        budget: SampleBudget,
        *,
        options: PassOptions,
        gathers_all: bool,
    ) -> EvaluationPass:
        """Return an empty pass over a loader.

        Args:
            dataset: Dataset of the loader; None if unknown.
            cached_encoders: Encoders of the images.
            ranks: The processes.
            budget: Which share of the examples is embedded.
            options: Options of the callback.
            gathers_all: Whether the first process will ask for all embeddings.
        """
        grader = Grader(
            dataset=dataset,
            class_names=options.class_names,
            task=options.task,
            ranks=ranks,
            groups_from=options.groups_from,
            metadata=options.metadata,
            groupings=options.groupings,
            clusters_from=options.clusters_from,
        )
        embeddings = EmbeddingPass(
            cached_encoders=cached_encoders, ranks=ranks, budget=budget, gathers_all=gathers_all, seed=options.seed
        )
        return cls(grader, embeddings, kept=KeptImages(options.seed))

    def keep_images(self, images: Tensor, space: ImageSpace, ids: Tensor, *, wanted: bool) -> None:
        """Keep small copies of some images of a batch, if pictures are wanted that cannot be read again later.

        Args:
            images: (B, C, H, W), as the model saw them.
            space: How to bring the images to [0, 1].
            ids: (B,) int64, the ids of the batch that was graded last.
            wanted: Whether there may be pictures.
        """
        if wanted and not self.grader.indexed:
            self.kept.add(images, space, ids, self.grader.last_confidence(ids))
