"""Keep what a step leaves behind in a module: metrics, lists of outputs, counters, buffers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

_MAX_DEPTH = 6
"""Depth of containers and objects in a module to which state is kept."""

_NOT_STATE = (
    *(Trainer, LightningDataModule, Callback, Logger, Dataset, DataLoader),
    *(nn.Parameter, torch.optim.Optimizer, torch.Generator, FunctionType, MethodType, ModuleType, type),
)


@contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """Restore all state of a module but its parameters after the block, also after an exception.

    State are the attributes and buffers of the module and its submodules, and what tensors, arrays, lists, dicts, sets
    and plain objects in them hold. Each keeps its identity. Datasets, loaders, loggers and the Trainer are left alone.

    >>> module = nn.BatchNorm1d(2)
    >>> module.outputs = [1]
    >>> with state_kept(module):
    ...     module.outputs.append(2)
    ...     module.best = 0.5
    ...     _ = module(torch.ones(4, 2))
    >>> module.outputs, hasattr(module, "best"), module.running_mean.tolist()
    ([1], False, [0.0, 0.0])
    """
    restore: list[Callable[[], Any]] = []
    _keep(module, restore, set(), 0)
    try:
        yield
    finally:
        for one in reversed(restore):  # contents before the containers that hold them
            one()


def _keep(value: Any, restore: list[Callable[[], Any]], seen: set[int], depth: int) -> None:
    """Append the functions that restore a value, and all that it holds, in place."""
    if isinstance(value, _NOT_STATE) or id(value) in seen:
        return
    if isinstance(value, Tensor):
        seen.add(id(value))
        if is_lazy(value) or value.is_meta or value.is_quantized or value.layout != torch.strided:
            return
        copy = value.detach().clone()
        restore.append(lambda: None if torch.equal(value, copy) else value.detach().copy_(copy))
        return
    if isinstance(value, np.ndarray):
        seen.add(id(value))
        if value.flags.writeable:
            array = value.copy()
            restore.append(lambda: np.copyto(value, array))
        return
    inner: list[Any] = []
    if isinstance(value, dict):
        mapping = dict(value)
        restore.append(partial(_refill, value, value.update, mapping))
        inner = list(mapping.values())
    elif isinstance(value, list):
        items = list(value)
        restore.append(lambda: value.__setitem__(slice(None), items))
        inner = items
    elif isinstance(value, set | deque):
        members = list(value)
        restore.append(partial(_refill, value, value.update if isinstance(value, set) else value.extend, members))
        inner = members
    elif isinstance(value, tuple):
        inner = list(value)
    elif isinstance(getattr(value, "__dict__", None), dict):
        # modules inside of modules are no deeper than their parent
        inner = [vars(value)]
        depth = -1 if isinstance(value, nn.Module) else depth
    if not inner and not isinstance(value, dict | list | set | deque):
        return
    seen.add(id(value))
    if depth < _MAX_DEPTH:
        for one in inner:
            _keep(one, restore, seen, depth + 1)


def _refill(holder: Any, add: Callable[[Any], None], content: Any) -> None:
    holder.clear()
    add(content)
