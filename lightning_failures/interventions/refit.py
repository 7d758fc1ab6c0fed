"""What the interventions that refit the last layer have in common: their options, and when they act."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_failures.core.types import FloatArray
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.base import Intervention, LastLayer, NewHead, Round, is_number


class LastLayerIntervention(Intervention):
    """An intervention that replaces the weights of the last layer, at the end of the training or before epochs too.

    Args:
        head: Name of the last layer; None: it is found.
        every_n_epochs: Act before every n-th epoch from ``start_epoch`` on too. None: only at the end.
        penalties: L2 penalties > 0, from which cross-validation chooses.
        folds: Number of folds of the cross-validation.
        **schedule: ``start_epoch``, ``stop_epoch`` and ``dry_run`` of
            :class:`~lightning_failures.interventions.Intervention`.

    Raises:
        ConfigurationError: An option outside its range.
    """

    def __init__(
        self,
        *,
        head: str | None,
        every_n_epochs: int | None,
        penalties: Sequence[float],
        folds: int,
        **schedule: Any,
    ) -> None:
        super().__init__(every_n_epochs=1 if every_n_epochs is None else every_n_epochs, **schedule)
        self.head = head
        self.every_n_epochs = every_n_epochs  # type: ignore[assignment]
        self.penalties = tuple(penalties)
        self.folds = folds
        self._check("head", head is None or bool(head), "None or the name of a submodule")
        usable = bool(self.penalties) and all(is_number(one) and one > 0 for one in self.penalties)
        self._check("penalties", usable, "numbers > 0")
        self._check("folds", is_number(folds) and folds >= 2, "an integer >= 2")
        self._check("grow_epoch", not self.grow_epoch, "False, because no example is added")

    @property
    def acts_at_end(self) -> bool:
        """Whether the intervention makes a decision when the training has ended."""
        return self.stop_epoch is None

    @property
    def refits_last_layer(self) -> bool:
        """Whether the intervention replaces the weights of the last layer."""
        return True

    def decision_index(self, epoch: int) -> int | None:
        """Return the index of the decision that holds in an epoch; always None without ``every_n_epochs``."""
        return None if self.every_n_epochs is None else super().decision_index(epoch)

    def _read_layer(self, round: Round, *, spend_validation: bool = False, discovery: bool = False) -> LastLayer | None:
        """Return the last layer with its examples on the first process, None on the others; errors name this class."""
        try:
            return round.last_layer(self.head, spend_validation=spend_validation, discovery=discovery)
        except (ConfigurationError, DataError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from error

    def _new_head(self, layer: LastLayer, weight: FloatArray, bias: FloatArray) -> NewHead:
        """Return a fitted head in the type of the last layer.

        Raises:
            DataError: Its weights are not finite in that type.
        """
        new = layer.with_weights(weight, bias)
        if not (np.isfinite(new.weight).all() and np.isfinite(new.bias).all()):
            raise DataError(
                f"The refitted weights of {new.name!r} exceed the range of {layer.dtype}. Give larger penalties:"
                f" {type(self).__name__}(penalties=[1.0, 0.1])."
            )
        return new
