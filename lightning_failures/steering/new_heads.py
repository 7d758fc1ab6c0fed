"""New last layers that interventions have decided on, until they take effect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from lightning_failures.interventions.base import NewHead
from lightning_failures.steering.last_layer import set_head


class NewHeads:
    """New last layers by the name of the intervention; each takes effect once."""

    def __init__(self) -> None:
        self._heads: dict[str, NewHead] = {}

    def clear(self) -> None:
        """Forget all of them."""
        self._heads.clear()

    def put(self, name: str, head: NewHead | None) -> None:
        """Keep the last decision of an intervention; None: it keeps the layer as it is."""
        self._heads.pop(name, None)
        if head is not None:
            self._heads[name] = head

    def apply(self, module: nn.Module, names: Collection[str]) -> bool:
        """Write those of some interventions into the module, and forget all; return whether there were any."""
        wanted = [head for name, head in self._heads.items() if name in names]
        for head in wanted:
            set_head(module, head)
        self.clear()
        return bool(wanted)

    def to_dict(self) -> dict[str, Any]:
        """Return the field ``new_heads`` of :class:`~.checkpoint.ControllerState`; nothing if there are none."""
        heads = {
            name: {"head": new.name, "weight": torch.from_numpy(new.weight), "bias": torch.from_numpy(new.bias)}
            for name, new in self._heads.items()
        }
        return {"new_heads": heads} if heads else {}

    def load(self, saved: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> None:
        """Restore what :meth:`to_dict` has returned, under the names of today; others are dropped."""
        self._heads = {
            names[name]: NewHead(one["head"], one["weight"].numpy(), one["bias"].numpy())
            for name, one in saved.items()
            if name in names
        }
