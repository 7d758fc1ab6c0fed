"""The ids that users give to examples: each example needs one of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_failures.errors import ConfigurationError

EARLY_BATCHES = 16
"""Batches after each of which the ids of the user are checked; later they are checked once, at the end."""


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
            f"FailureModes(read_batch=...) gives {shared} examples an id that another example has, so that they"
            " would be left out. Give each example an id of its own, the same in every epoch: its index in the"
            " dataset, or 64 bits of a hash of its file name. Leave ids None to take the index from the loader."
        )
