"""Keep a frozen model apart from the training around it: inference state, device, batches, fingerprint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from lightning_failures.core.precision import full_precision
from lightning_failures.errors import EncoderError

_FINGERPRINT_VERSION = 1  # increase when code changes embeddings although weights and options stay the same


@contextlib.contextmanager
def frozen_inference(device: torch.device) -> Iterator[None]:
    """Compute in full precision and without gradients: ordinary tensors even if the caller is in ``inference_mode``."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(device):
        yield


@contextlib.contextmanager
def open_to_gradients(device: torch.device) -> Iterator[None]:
    """Enable gradients, even if the caller is in ``inference_mode`` or ``no_grad``, and compute in full precision."""
    with torch.inference_mode(False), torch.enable_grad(), full_precision(device):
        yield


@contextlib.contextmanager
def isolated_build() -> Iterator[None]:
    """Restore the CPU random generator after the block, which builds a model with random initial weights."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        yield


def freeze(module: nn.Module, device: torch.device) -> nn.Module:
    """Put a model into its final state, in place: float32, on its device, eval mode, no gradients."""
    return module.to(device=device, dtype=torch.float32).eval().requires_grad_(False)


def as_device(device: str | torch.device) -> torch.device:
    """Return the device after a test allocation on it.

    Raises:
        EncoderError: The device does not exist on this machine.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EncoderError(f"device={str(device)!r} cannot be used here: {first_line(error)}") from error


def in_chunks(function: Callable[[Any], Tensor], rows: Any, size: int) -> Tensor:
    """Apply a function to slices of at most ``size`` rows and join the results as float32 on the CPU.

    >>> in_chunks(lambda rows: rows * 2, torch.arange(5), 2)
    tensor([0., 2., 4., 6., 8.])
    """
    starts = range(0, max(len(rows), 1), size)
    return torch.cat([function(rows[start : start + size]).to("cpu", torch.float32) for start in starts])


def fingerprint(module: nn.Module, *, without: str | None = None, **description: Any) -> str:
    """Hash the weights of a model and a JSON-like description of all other factors of its output: 32 hex digits.

    Args:
        module: The model.
        without: Name of a submodule whose weights do not count.
        **description: The other factors.

    >>> model = nn.Linear(2, 1)
    >>> [fingerprint(model, size=8) == fingerprint(model, size=size) for size in (8, 9)]
    [True, False]
    """
    described = json.dumps([_FINGERPRINT_VERSION, description], sort_keys=True, default=str)
    hasher = xxhash.xxh3_128(described.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if without is not None and name.startswith(f"{without}."):
            continue
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()


def load_tensors(path: Path) -> Any:
    """Read a checkpoint of tensors and plain values without running code from it.

    Args:
        path: A ``.safetensors`` file, or a file written by ``torch.save``.

    Raises:
        EncoderError: The file is damaged, or it holds Python objects, whose loading would run code from the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{path} cannot be read: {first_line(error)}") from error
    except Exception as error:
        raise EncoderError(
            f"{path} cannot be loaded as plain tensors ({first_line(error)}). Files that hold Python objects (dill or "
            "pickled modules, TorchScript) are refused, because loading them runs code from the file. If you trust the "
            "file, load it once in the environment that wrote it, and save its tensors: "
            "safetensors.torch.save_file({k: v.contiguous() for k, v in checkpoint['model'].items()}, 'x.safetensors')."
        ) from error


def state_dict_of(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """Return the dictionary of tensors in a checkpoint: the checkpoint itself, or the value of one of the usual keys.

    Raises:
        EncoderError: The checkpoint holds no such dictionary.
    """
    for _ in range(3):  # {"state_dict": {"model": {...}}} has been seen
        if not isinstance(checkpoint, Mapping):
            break
        nested = [checkpoint.get(key) for key in ("model", "state_dict", "model_state_dict", "net")]
        inner = next((value for value in nested if isinstance(value, Mapping)), None)
        if inner is None:
            tensors = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
        checkpoint = inner
    raise EncoderError(
        f"{path} holds no state dict: expected tensors by name, or a mapping of them under 'model' or 'state_dict'."
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error, shortened to fit into another message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
