"""The embeddings that the directions are standardised with: those of the evaluation, or of training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_failures.data.grades import Grades
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import DataError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.dataset_attributes import dataset_class_names
from lightning_failures.trainer.example_reader import TrainingSample, training_sample
from lightning_failures.trainer.index_recorder import dataset_of
from lightning_failures.trainer.normalization_guard import normalization_doubt
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.reading_ways import best_trial, training_ways

REFERENCE_BLOCK = 64
"""Training examples that one rank reads at a time."""


@dataclass(frozen=True)
class ReferenceEmbeddings:
    """Gives this rank's part of the reference of each analysis.

    Attributes:
        kind: "validation" or "train".
        reader: Reads training examples.
        seed: Seed of the sample and of random transforms.
        say_once: Emits each distinct message at most once.
    """

    kind: str
    reader: BatchReader
    seed: int
    say_once: Callable[..., None]
    # cache keys (n, 2) and labels (n,) of this rank's share of the training reference, once it is embedded
    _embedded: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def of_analysis(
        self, trainer: Trainer, grades: Grades, cached: CachedEncoder | None, ranks: Communicator
    ) -> tuple[Tensor | None, Tensor | None, str]:
        """Return this rank's part of the reference, its labels, and a description of the whole. Collective.

        None instead of embeddings means the analysed examples themselves. The labels are None where the training set
        has other classes than the evaluation.
        """
        if self.kind == "validation" or cached is None:
            return None, None, f"validation ({len(torch.unique(grades.ids))} examples)"
        sample = training_sample(trainer, seed=self.seed)
        if not self._embedded or bool(cached.store.missing(self._embedded[0][0]).any()):
            self._embedded[:] = [self._embed(trainer, cached, sample, ranks)]
        ((keys, labels),) = self._embedded
        names = dataset_class_names(sample.loader.dataset)
        comparable = names is None or list(names) == list(grades.class_names)
        source = f"train ({len(sample.ids)} of {sample.total} examples)"
        return cached.look_up(keys), labels if comparable and bool((labels >= 0).any()) else None, source

    def _embed(
        self, trainer: Trainer, cached: CachedEncoder, sample: TrainingSample, ranks: Communicator
    ) -> tuple[Tensor, Tensor]:
        """Embed this rank's part of a sample of the training set; return cache keys (n, 2), and labels (n,) or -1.

        Random transforms are seeded by block, so that they give the same images for any number of processes.
        """
        ways = training_ways(trainer, sample.loader, dataset_of(sample.loader), self.reader)
        examples = replace(best_trial(ways, seed=self.seed, labelled=False).way, workers={})
        space = self.reader.space(examples.dataset)
        keys, labels = [torch.empty(0, 2, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
        for number in range(ranks.rank, -(-len(sample.ids) // REFERENCE_BLOCK), ranks.world_size):
            ids = sample.ids[number * REFERENCE_BLOCK :][:REFERENCE_BLOCK]
            for part in examples.read(ids, seed=self.seed + number, one_each=False):
                if (doubt := normalization_doubt(examples.images_of(part.record), space)) is not None:
                    self.say_once(doubt)
                images = examples.unit_images(part.record)
                keys.append(content_keys(images))
                labels.append(_class_labels(part.record.labels, len(images)))
                cached.embed(images, keys[-1])
        cached.store.flush()
        all_keys = torch.cat(keys)
        known = ~cached.store.missing(all_keys)
        if len(all_keys) and not known.any():
            raise DataError(f"None of {len(all_keys)} training images could be embedded for reference='train'.")
        return all_keys[known], torch.cat(labels)[known]


def _class_labels(labels: Tensor | None, n: int) -> Tensor:
    """Return one class for each of n images, (n,) int64; -1 where labels are no classes."""
    if labels is None or labels.shape != (n,) or labels.is_floating_point():
        return torch.full((n,), -1)
    return labels.detach().cpu().long()
