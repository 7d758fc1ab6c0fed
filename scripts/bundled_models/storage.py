"""Weights and figures on disk: float16 safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lightning_failures.core.atomic import write_atomically

__all__ = ["half_precision", "round_figures", "write_json", "write_weights"]


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors as float16, the others as they are; all contiguous, detached and on the CPU."""
    return {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in state.items()
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as indented JSON."""
    write_atomically(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as float16 safetensors."""
    write_atomically(path, save(half_precision(state), metadata={"format": "pt"}))


def round_figures(values: Mapping[str, float]) -> dict[str, float]:
    """Four decimals are all that a few thousand images can tell."""
    return {name: round(float(value), 4) for name, value in values.items()}
