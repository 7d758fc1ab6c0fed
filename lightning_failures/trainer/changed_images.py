"""Ask the live model about examples whose images were changed: is it right about them?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_failures.analysis.counterfactuals import resized
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.example_reader import ExampleReader, ReadExamples
from lightning_failures.trainer.readings import LogitsSource, Reading, ScoredBatch
from lightning_failures.trainer.step_logits import StepLogits

AT_ONCE = 32
"""Number of images that the model is shown at once."""

Answers = Callable[[Sequence[int], Sequence[Tensor]], Tensor]
"""Returns whether the model is right (n,) bool about n examples by id, with other images (C, H, W) in [0, 1]."""


@dataclass(frozen=True)
class ChangedImages:
    """Shows the model examples of an evaluation loader with other images in place of theirs.

    Labels and all else that a batch holds stay. The model is called as its ``validation_step`` calls it, and its scores
    are read as those of the loader were. The dataset and all files are left alone.

    Attributes:
        trainer: The Trainer.
        examples: Reads the examples.
        reading: How the scores of the loader were read.
        classes: Number of logits of an example, or None if it is not known.
    """

    trainer: Trainer
    examples: ExampleReader
    reading: Reading
    classes: int | None = None

    @contextmanager
    def open(self) -> Iterator[Answers]:
        """Return the function from ids and images to answers, for the block; the module is afterwards as before.

        Examples that are asked about twice in a row are read once.
        """
        soft, reader = self.reading.scale != "classes", self.examples.reader
        step = StepLogits(self.trainer, reader, classes=self.classes, dataset=self.examples.dataset, soft=soft)
        last: dict[tuple[int, ...], list[ReadExamples]] = {}
        with step.open() as logits_of:

            def answers(ids: Sequence[int], images: Sequence[Tensor]) -> Tensor:
                if tuple(ids) not in last:
                    last.clear()
                    last[tuple(ids)] = list(self.examples.read(ids, at_once=AT_ONCE))
                right, done = [torch.empty(0, dtype=torch.bool)], 0
                for part in last[tuple(ids)]:
                    some = images[done : done + len(part.ids)]
                    right.append(self._answers(part, some, logits_of))
                    done += len(part.ids)
                return torch.cat(right)

            yield answers

    def _answers(self, part: ReadExamples, images: Sequence[Tensor], logits_of: Callable[[Any], Tensor]) -> Tensor:
        """Return whether the model is right about a batch with other images: (n,) bool."""
        if part.record.labels is None:
            raise ConfigurationError("Batches that are read outside of the loop hold no labels.")
        scores = logits_of(self._changed(part, images)).detach().cpu()
        batch = ScoredBatch(scores, part.record.labels.detach().cpu(), LogitsSource.STEP_OUTPUT)
        rows = self.reading.of_form(batch).grade(batch)
        right = torch.zeros(len(images), dtype=torch.bool)
        right[rows.position] = rows.predictions == rows.labels
        return right

    def _changed(self, part: ReadExamples, images: Sequence[Tensor]) -> Any:
        """Return the batch with other images in place of its own.

        Raises:
            ConfigurationError: The batch holds its images in another form than ``read_batch`` returns them.
        """
        own = self.examples.images_of(part.record)
        space = self.examples.reader.space(self.examples.dataset)
        unit = torch.stack([resized(image.float(), tuple(own.shape[1:])) for image in images])
        new = space.from_unit(unit, own)
        found = 0

        def exchanged(tensor: Tensor) -> Tensor:
            nonlocal found
            if tensor is not own:
                return tensor.clone()  # the step may change it in place
            found += 1
            return new

        batch = apply_to_collection(part.batch, Tensor, exchanged)
        if not found:
            raise ConfigurationError("read_batch returns other images than the batch holds.")
        return batch
