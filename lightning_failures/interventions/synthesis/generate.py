"""Filling an order for images of one class: generate, check, keep or drop, until there are enough; resumable."""

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


@dataclass(frozen=True, eq=False)
class Order:
    """Images of one class that are wanted.

    Attributes:
        class_index: Their label.
        class_name: The same in words.
        count: So many are to be kept.
        limit: So many are made at most.
        prompt: The caption.
        direction: What is asked for, in words; see
        :class:`~lightning_failures.interventions.synthesis.ledger.LedgerRow`.
        embedding: (D,) unit vector to decode; None: the prompt is what counts.
        only_hard: Images with a decision value >= 0, or without one, are dropped.
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
    """What became of an order.

    Attributes:
        rows: Of the ledger, the images that were kept.
        made: How many images were generated now.
        reused: How many were in the ledger already.
        dropped: Reason -> how many of these were dropped for it.
        unsafe: How many of those made now the generator's safety checker has replaced by black ones.
    """

    rows: list[int] = field(default_factory=list)
    made: int = 0
    reused: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unsafe: int = 0


def image_seeds(seed: int, epoch: int, class_index: int) -> Iterator[int]:
    """The seeds of the images of a class in an epoch, one after the other, each below 2 ** 32.

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
    advance: Callable[[int], object] = lambda count: None,
) -> SynthesisResult:
    """Make images until ``count`` are kept or ``limit`` were made; each is in the ledger before the next batch begins.

    An image that the ledger holds already, with the same epoch, class, prompt, direction, model and seed, is taken from
    there, so that a run that was killed goes on where it stopped.

    Args:
        order: What is wanted.
        generator: A decoder, if the order has an embedding.
        ledger: Takes a row for every image.
        epoch: That is acted on.
        direction_epoch: That the direction is of.
        seed: Of all seeds.
        batch_size: Images that are made at once.
        judge: (B, 3, H, W) uint8 and labels (B,) -> decision values (B,).
        check: An image (3, H, W) uint8 that shows something -> why it must be dropped all the same, or None.
        advance: Told how many more were kept.

    Raises:
        GeneratorError: The generator breaks its contract, or an image cannot be kept; what was made before stays.
    """
    known = {
        _identity(row): number
        for number, row in enumerate(ledger.rows)
        if (row.epoch, row.class_index) == (epoch, order.class_index) and _usable(ledger, number, row)
    }
    outcome = SynthesisResult()
    small = torch.empty(0, thumbnails(torch.zeros(1, 3, 1, 1)).shape[1])
    seeds = image_seeds(seed, epoch, order.class_index)
    unsafe = getattr(generator, "flagged", 0)
    tried = 0
    while len(outcome.rows) < order.count and tried < order.limit:
        at_once = min(batch_size, order.count - len(outcome.rows), order.limit - tried)
        rows = [_row(order, generator, epoch, direction_epoch, next(seeds)) for _ in range(at_once)]
        tried += at_once
        new = [row.seed for row in rows if _identity(row) not in known]
        images = values = torch.empty(0)
        if new:
            images = _generate(order, generator, new)
            values = judge(images, torch.full((len(new),), order.class_index))
        fresh = iter(zip(images, values.tolist(), strict=True))
        for row in rows:
            if (number := known.get(_identity(row))) is not None:
                outcome.reused += 1
                reason = ledger[number].dropped
                image = ledger.image(number) if reason is None else torch.empty(0)
                if reason is None:
                    check(image)
            else:
                outcome.made += 1
                image, value = next(fresh)
                reason = blank(image) or check(image) or _why_dropped(image, value, order, small)
                row = replace(row, decision_value=value, dropped=reason)
                number = ledger.append(row, image if reason is None else None)
            if reason is not None:
                outcome.dropped[reason] += 1
                continue
            small = torch.cat([small, thumbnails(image[None])])
            outcome.rows.append(number)
            advance(1)
    outcome.unsafe = getattr(generator, "flagged", 0) - unsafe
    return outcome


def _generate(order: Order, generator: ImageGenerator, seeds: list[int]) -> Tensor:
    if order.embedding is None:
        images = generator.generate([order.prompt] * len(seeds), seeds)
    else:
        assert takes_embeddings(generator)
        images = generator.decode(order.embedding.expand(len(seeds), -1), seeds)
    return uint8_images(images, len(seeds), generator.name)


def _why_dropped(image: Tensor, value: float, order: Order, kept: Tensor) -> str | None:
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
    """A row whose image is gone is made again."""
    return row.dropped is not None or ledger.has_image(number)
