"""A look at some examples of a pool before it is embedded: whether most can be read, and what identifies the pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from lightning_failures.core.text import listed_reasons
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.errors import DataError
from lightning_failures.pools.rows import NO_CLASSES, usable_rows
from lightning_failures.pools.shards import POOL_UNLABELLED
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.example_reader import WORKER_OPTIONS, BatchForm, ExampleReader
from lightning_failures.trainer.readable import evenly_spaced

REMEDY = "Mend the dataset, or give a pool of the examples that can be read."
"""What to do about a pool of which most examples are left out."""

_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class PoolProbe:
    """What some examples of a pool show.

    Attributes:
        sample: Content keys, in hex, of the first, middle and last image, which identify a pool whose images or
            transforms have changed; "" for an image that cannot be embedded. Empty if a second read gives other keys.
        channels: Number of channels that nearly all images have; None if grey and colour are mixed.
    """

    sample: tuple[str, ...]
    channels: int | None


def probe_pool(
    loader: DataLoader[Any],
    reader: BatchReader,
    transfer: Callable[[Any], Any],
    *,
    task: str | None,
    scored: bool,
    labelled: bool = True,
) -> PoolProbe:
    """Read some examples of a pool, evenly spaced.

    If the user's loader has workers, the examples are read by one: a dataset may open its file on first access, and an
    open file must not be shared with later workers.

    Args:
        loader: The loader of the pool.
        reader: Reads batches in the user's form.
        transfer: Turns a batch of the loader into one of the step, by the user's hooks.
        task: Task given by the user, or None.
        scored: Whether the examples need labels.
        labelled: Whether labels, if there are any, must be classes.

    Raises:
        DataError: Most of the examples cannot be embedded, or lack a class that they need.
        ImageRangeError: Most of them do not fit the normalisation.
    """
    dataset: Any = loader.dataset
    sampled = sorted({0, len(dataset) // 2, len(dataset) - 1})
    some = sorted({*evenly_spaced(len(dataset)), *sampled})
    workers = {name: getattr(loader, name) for name in WORKER_OPTIONS}
    workers["num_workers"] = min(1, loader.num_workers)
    left_out: dict[int, str] = {}
    examples = ExampleReader(
        dataset, BatchForm.of(loader), reader, transfer, workers, "the pool", left_out, alike=False
    )
    space = reader.space(dataset)

    keys: dict[int, list[str]] = {i: [] for i in some}
    channels: dict[int, int] = {}
    labels: dict[int, int] = {}
    has_labels = False
    range_error: Exception | None = None
    for part in examples.read([*some, *sampled], at_once=len(some), one_each=False):
        rows = usable_rows(part.record, part.ids, space, task=task, channels=None)
        range_error = range_error or rows.range_error
        has_labels = has_labels or part.record.labels is not None
        left_out.update(rows.left_out)
        if part.record.images is None or not rows.ids:
            continue
        hexes = dict(zip(part.ids, map(_hex, content_keys(part.record.images).tolist()), strict=True))
        for i, label in zip(rows.ids, rows.labels.tolist(), strict=True):
            keys[i].append(hexes[i])
            channels[i], labels[i] = part.record.images.shape[1], label

    if 2 * len(left_out) > len(some):
        raise range_error or DataError(
            f"{len(left_out)} of {len(some)} examples of the pool cannot be embedded, such as"
            f" {listed_reasons(left_out)}. {REMEDY}"
        )
    if scored and not has_labels:
        raise DataError(
            "Scoring needs the label of each example, but the batches of the pool have none. Set read_batch of the"
            " callback, or omit --directions to embed only."
        )
    n_unlabelled = list(labels.values()).count(POOL_UNLABELLED)
    if labelled and has_labels and 2 * n_unlabelled > len(labels):
        raise DataError(
            "A pool needs one class for each example; most of its labels are negative, fractions or missing."
            f" {NO_CLASSES}"
        )
    found = list(channels.values())
    usual = max(set(found), key=found.count)
    is_usual = found.count(usual) >= _NEARLY_ALL * len(found)
    first = tuple(keys[i][0] if keys[i] else "" for i in sampled)
    second = tuple(keys[i][-1] if keys[i] else "" for i in sampled)
    return PoolProbe(first if first == second else (), usual if is_usual else None)


def _hex(key: list[int]) -> str:
    """Return a content key as 32 hex digits."""
    return "".join(f"{part & (2**64 - 1):016x}" for part in key)
