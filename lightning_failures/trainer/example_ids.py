"""The ids that users give to examples: each example needs one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.data.grades import Grades
from lightning_failures.errors import ConfigurationError

EARLY_BATCHES = 16
"""Batches after each of which the ids of the user are checked; later they are checked once, at the end."""

ID_KEYS = ("__key__", "id", "ids", "idx", "index", "image_id", "file_name", "filename", "path")
"""Keys of a batch that name its examples, the preferred ones first."""

MAX_MOVED = 0.5
"""Largest share of the images of two analyses that may have changed their ids."""

MAX_RELABELLED = 0.1
"""Largest share of the ids of two analyses whose examples may have changed their labels."""


def ids_in(batch: Any, size: int) -> Tensor | None:
    """Return the ids (B,) int64 that a batch itself gives its examples; None if it gives none.

    They are looked for in a mapping, or in the mappings that a tuple holds, under ``ID_KEYS``: integers or texts. A
    list of texts behind images and labels, such as file names, is another form.

    Args:
        batch: A batch.
        size: Number of its examples, B.

    >>> ids_in({"jpg": torch.zeros(2, 3, 4, 4), "idx": torch.tensor([7, 8])}, 2)
    tensor([7, 8])
    >>> ids_in((torch.zeros(2, 3, 4, 4), torch.zeros(2), ["a.png", "b.png"]), 2).shape, ids_in([1, 2], 2)
    (torch.Size([2]), None)
    """
    if isinstance(batch, Mapping):
        found = (_as_ids(batch[key], size) for key in ID_KEYS if key in batch)
        ids = next((some for some in found if some is not None), None)
        shards: Any = batch.get("__url__")
        if ids is None or "__key__" not in batch or not _are_texts(shards, size):
            return ids
        # keys of webdataset are unique within a shard
        pairs = zip(shards, batch["__key__"], strict=True)
        return hashed_names([f"{PurePosixPath(_text(shard)).name}/{_text(key)}" for shard, key in pairs])
    if isinstance(batch, list | tuple):
        for part in batch[2:]:
            ids = ids_in(part, size) if isinstance(part, Mapping) else None
            if ids is None and _are_texts(part, size):
                ids = hashed_names(part)
            if ids is not None:
                return ids
    return None


def hashed_names(names: Sequence[Any]) -> Tensor:
    """Return a hash of each name, 63 bits of XXH3 that are the same in every process: (B,) int64.

    >>> hashed_names(["n01.jpg", b"n01.jpg"]).unique().shape
    torch.Size([1])
    """
    hashes = [xxhash.xxh3_64_intdigest(_text(name).encode("utf-8", "surrogatepass")) >> 1 for name in names]
    return torch.tensor(hashes, dtype=torch.int64)


def are_names(values: Any) -> bool:
    """Return whether values are a list of texts or paths, which can be ids."""
    return isinstance(values, list | tuple | np.ndarray) and len(values) > 0 and _are_texts(values, len(values))


def _as_ids(values: Any, size: int) -> Tensor | None:
    """Return values of a batch as B ids; None if they are no integers or texts, one for each example."""
    if _are_texts(values, size):
        return hashed_names(values)
    if isinstance(values, list | tuple | np.ndarray):
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError):
            return None
    if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool:
        return None
    values = values.detach().cpu()
    return values.reshape(-1).long() if values.shape in ((size,), (size, 1)) else None


def _are_texts(values: Any, size: int) -> bool:
    is_list = isinstance(values, list | tuple | np.ndarray)
    return is_list and len(values) == size and all(isinstance(one, str | bytes | PurePath) for one in values)


def _text(name: Any) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def unstable_ids(former: Grades, now: Grades) -> str | None:
    """Return a warning if the ids of an analysis named other examples in a former one; None if they did not.

    An image is recognised by its digest. Where random transforms change all images, labels show it.
    """
    (old_ids, old_digests, old_labels), (ids, digests, labels) = _first_rows(former), _first_rows(now)
    pairs = set(zip(old_digests.tolist(), old_ids.tolist(), strict=True))
    again = np.isin(digests, old_digests) & (digests != UNKNOWN_DIGEST)
    moved = sum(pair not in pairs for pair in zip(digests[again].tolist(), ids[again].tolist(), strict=True))
    _, before, after = np.intersect1d(old_ids, ids, assume_unique=True, return_indices=True)
    relabelled = int((old_labels[before] != labels[after]).sum())
    if moved <= MAX_MOVED * int(again.sum()) and relabelled <= MAX_RELABELLED * len(before):
        return None
    seen = f"{moved} of {int(again.sum())} images have another id than in the analysis before"
    if moved <= MAX_MOVED * int(again.sum()):
        seen = f"{relabelled} of {len(before)} ids have another label than in the analysis before"
    return (
        f"{seen}, so these ids do not name examples; a running counter does not. Ids must be stable: give each example"
        " the same id in every epoch, such as its key or the name of its file. Until then, whatever follows examples"
        " from one epoch to the next is wrong."
    )


def _first_rows(grades: Grades) -> tuple[Any, Any, Any]:
    """Return the ids, digests and labels of the examples, each once."""
    ids, rows = np.unique(grades.ids.numpy(), return_index=True)
    unknown = np.full(len(ids), UNKNOWN_DIGEST)
    digests = unknown if grades.digests is None else grades.digests.numpy()[rows]
    return ids, digests, grades.labels.numpy()[rows]


class GivenIds:
    """The ids of the user in one pass over a loader, compared with the indices that the loader draws.

    Attributes:
        untraced: Whether ids came without an index, so that only contradictory grades show an id that is shared.
    """

    def __init__(self) -> None:
        self.untraced = False
        self._pairs: list[tuple[Tensor, Tensor]] = []  # ids of the user and the indices drawn for them

    def add(self, ids: Tensor, drawn: Sequence[int] | None) -> None:
        """Add the ids of a batch and the dataset indices drawn for it, if they are known.

        Raises:
            ConfigurationError: One of the first batches gives an id to examples with different indices.
        """
        if drawn is None:
            self.untraced = True
        elif ids.numel() == len(drawn):
            self._pairs.append((ids.long().cpu().reshape(-1).clone(), torch.tensor(drawn)))
            if len(self._pairs) <= EARLY_BATCHES:
                self.check()

    def check(self) -> None:
        """Check that no id belongs to examples with different indices.

        Raises:
            ConfigurationError: An id does.
        """
        if self._pairs:
            ids, drawn = (torch.cat(column) for column in zip(*self._pairs, strict=True))
            pairs = torch.unique(torch.stack([ids, drawn]), dim=1)
            refuse_shared_ids(pairs.shape[1] - len(torch.unique(pairs[0])))


def refuse_shared_ids(shared: int) -> None:
    """Raise an error if some examples have an id that another example has.

    Raises:
        ConfigurationError: ``shared`` is not 0.
    """
    if shared:
        raise ConfigurationError(
            f"The batches, or read_batch, give {shared} examples an id that another example has, so that they would be"
            " left out. Give each example an id of its own, the same in every epoch: its index in the"
            " dataset, or 64 bits of a hash of its file name. Leave ids None to take the index from the loader."
        )
