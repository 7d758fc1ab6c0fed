"""Write weights as float16 safetensors and figures as JSON, atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lightning_failures.core.atomic import write_atomically


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating tensors to float16; all tensors are returned contiguous, detached and on the CPU."""
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
    """Round to four decimals; a few thousand images do not support more."""
    return {name: round(float(value), 4) for name, value in values.items()}
