"""Generation of images of one class: generate, check, keep or drop, until there are enough; resumable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lightning_failures.generators.base import ImageGenerator, takes_embeddings
from lightning_failures.interventions.synthesis.image_checks import blank, near_copy, thumbnails, uint8_images
from lightning_failures.interventions.synthesis.ledger import Ledger, LedgerRow

IN_VALIDATION = "in validation"
"""Why an image is dropped that is, or nearly is, an image of the validation set."""


@dataclass(frozen=True, eq=False)
class Order:
    """An order for images of one class.

    Attributes:
        class_index: Label of the images.
        class_name: Name of the class.
        count: Number of images to keep.
        limit: Maximum number of images to generate.
        prompt: The caption.
        direction: Description of the prompt; see
            :class:`~lightning_failures.interventions.synthesis.ledger.LedgerRow`.
        embedding: (D,) unit vector to decode; None: generate from the prompt.
        only_hard: Drop images with a decision value >= 0, or without one.
    """

    class_index: int
    class_name: str
    count: int
    limit: int
    prompt: str
    direction: str
    embedding: Tensor | None = None
    only_hard: bool = False


@dataclass
class SynthesisResult:
    """The result of an order.

    Attributes:
        rows: Rows of the ledger with the images that were kept.
        made: Number of newly generated images.
        reused: Number of images that were already in the ledger.
        dropped: Reason -> number of dropped images.
        unsafe: Number of newly generated images that the generator's safety checker replaced by black ones.
    """

    rows: list[int] = field(default_factory=list)
    made: int = 0
    reused: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unsafe: int = 0


def image_seeds(seed: int, epoch: int, class_index: int) -> Iterator[int]:
    """Yield the seeds of the images of a class in an epoch, each below 2 ** 32.

    >>> from itertools import islice
    >>> list(islice(image_seeds(0, 1, 2), 3)) == list(islice(image_seeds(0, 1, 2), 3))
    True
    """
    number = 0
    while True:
        yield int(np.random.SeedSequence([seed, epoch, class_index, number]).generate_state(1)[0])
        number += 1


def synthesize(
    order: Order,
    generator: ImageGenerator,
    ledger: Ledger,
    *,
    epoch: int,
    direction_epoch: int | None,
    seed: int,
    batch_size: int,
    judge: Callable[[Tensor, Tensor], Tensor],
    check: Callable[[Tensor], str | None] = lambda image: None,
    in_validation: Callable[[Tensor], bool] = lambda image: False,
    advance: Callable[[int], object] = lambda count: None,
) -> SynthesisResult:
    """Generate images until ``count`` are kept or ``limit`` generated; a batch is in the ledger before the next begins.

    An image that is already in the ledger, with the same epoch, class, prompt, direction, model and seed, is reused, so
    a run that was killed resumes where it stopped.

    Args:
        order: The order.
        generator: The generator; a decoder if the order has an embedding.
        ledger: Gets a row for every image.
        epoch: Epoch of training that the images are for.
        direction_epoch: Epoch of the analysis that found the direction.
        seed: Seed of the seeds of all images.
        batch_size: Number of images generated at once.
        judge: (B, 3, H, W) uint8 and labels (B,) -> decision values (B,).
        check: An image (3, H, W) uint8 that is not blank -> another reason to drop it, or None.
        in_validation: An image (3, H, W) uint8 -> whether it is, or nearly is, an image of the validation set.
        advance: Called with the number of images newly kept.

    Raises:
        GeneratorError: The generator returns something else than images, or an image cannot be saved; earlier images
            stay in the ledger.
    """
    # images of the same order in the ledger
    known = {
        _identity(row): number
        for number, row in enumerate(ledger.rows)
        if (row.epoch, row.class_index) == (epoch, order.class_index) and _usable(ledger, number, row)
    }
    result = SynthesisResult()
    kept_thumbnails = torch.empty(0, thumbnails(torch.zeros(1, 3, 1, 1)).shape[1])
    seeds = image_seeds(seed, epoch, order.class_index)
    unsafe = getattr(generator, "flagged", 0)
    tried = 0
    while len(result.rows) < order.count and tried < order.limit:
        at_once = min(batch_size, order.count - len(result.rows), order.limit - tried)
        rows = [_row(order, generator, epoch, direction_epoch, next(seeds)) for _ in range(at_once)]
        tried += at_once
        new = [row.seed for row in rows if _identity(row) not in known]

        # generate the missing images, and check all in the order of their seeds
        fresh = iter(_generate_and_judge(order, generator, new, judge))
        for row in rows:
            number = known.get(_identity(row))
            if number is not None:
                result.reused += 1
                reason, image = _reuse(ledger, number, check, in_validation)
            else:
                result.made += 1
                image, value = next(fresh)
                reason = blank(image) or check(image) or _reason_to_drop(image, value, order, kept_thumbnails)
                if reason is None and in_validation(image):
                    reason = IN_VALIDATION
                row = replace(row, decision_value=value, dropped=reason)
                number = ledger.append(row, image if reason is None else None)
            if reason is not None:
                result.dropped[reason] += 1
                continue
            kept_thumbnails = torch.cat([kept_thumbnails, thumbnails(image[None])])
            result.rows.append(number)
            advance(1)
    result.unsafe = getattr(generator, "flagged", 0) - unsafe
    return result


def _generate_and_judge(
    order: Order, generator: ImageGenerator, seeds: list[int], judge: Callable[[Tensor, Tensor], Tensor]
) -> list[tuple[Tensor, float]]:
    """Generate one image per seed; return each with its decision value."""
    if not seeds:
        return []
    images = _generate(order, generator, seeds)
    values = judge(images, torch.full((len(seeds),), order.class_index))
    return list(zip(images, values.tolist(), strict=True))


def _reuse(
    ledger: Ledger, number: int, check: Callable[[Tensor], str | None], in_validation: Callable[[Tensor], bool]
) -> tuple[str | None, Tensor]:
    """Return why an image of the ledger was dropped, or None and the image."""
    reason = ledger[number].dropped
    if reason is not None:
        return reason, torch.empty(0)
    image = ledger.image(number)
    check(image)  # it may be the first image, with whose size all others are compared
    return IN_VALIDATION if in_validation(image) else None, image


def _generate(order: Order, generator: ImageGenerator, seeds: list[int]) -> Tensor:
    if order.embedding is None:
        images = generator.generate([order.prompt] * len(seeds), seeds)
    else:
        assert takes_embeddings(generator)
        images = generator.decode(order.embedding.expand(len(seeds), -1), seeds)
    return uint8_images(images, len(seeds), generator.name)


def _reason_to_drop(image: Tensor, value: float, order: Order, kept: Tensor) -> str | None:
    """Return why an image is dropped given the thumbnails of those kept; None if it is not."""
    if order.only_hard and not value < 0:  # also for NaN
        return "not hard"
    return "near copy" if near_copy(thumbnails(image[None])[0], kept) else None


def _row(order: Order, generator: ImageGenerator, epoch: int, direction_epoch: int | None, seed: int) -> LedgerRow:
    return LedgerRow(
        model=generator.name,
        licence=generator.licence,
        prompt=order.prompt,
        seed=seed,
        class_index=order.class_index,
        class_name=order.class_name,
        direction=order.direction,
        direction_epoch=direction_epoch,
        epoch=epoch,
    )


def _identity(row: LedgerRow) -> tuple[object, ...]:
    return row.prompt, row.direction, row.model, row.seed


def _usable(ledger: Ledger, number: int, row: LedgerRow) -> bool:
    """Return whether a row can be reused: an image whose file is gone is generated again."""
    return row.dropped is not None or ledger.has_image(number)
