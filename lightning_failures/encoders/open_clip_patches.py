"""Temporary changes to open_clip while it loads a model. open_clip has no public option for any of them.

Each is undone at the end of its block. tests/encoders/test_open_clip_patches.py fails when open_clip stops to call the
functions that are replaced here.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_failures.encoders.frozen import load_tensors, state_dict_of


@contextlib.contextmanager
def plain_tensors_only() -> Iterator[None]:
    """Make open_clip read checkpoints through :func:`~lightning_failures.encoders.frozen.load_tensors`.

    open_clip's own reader is not safe with ``weights_only=True``: after a ``TypeError``, which the author of a file can
    provoke, it loads the file once more without ``weights_only`` and so runs code from it.
    """
    from open_clip import factory

    def load_state_dict(path: str, *_: Any, **__: Any) -> dict[str, Tensor]:
        state = state_dict_of(load_tensors(Path(path)), Path(path))
        from_data_parallel = next(iter(state)).startswith("module.")
        return {key.removeprefix("module."): value for key, value in state.items()} if from_data_parallel else state

    original = factory.load_state_dict
    factory.load_state_dict = load_state_dict
    try:
        yield
    finally:
        factory.load_state_dict = original


@contextlib.contextmanager
def cache_only() -> Iterator[None]:
    """Make open_clip find files in the Hugging Face cache without asking the network, whose retries take a minute.

    ``hf_hub_download(local_files_only=True)`` is not enough: some releases of the client connect all the same.
    """
    from huggingface_hub import try_to_load_from_cache
    from open_clip import pretrained

    def from_cache(repo_id: str, filename: str, revision: str | None = None, **options: Any) -> str:
        path = try_to_load_from_cache(repo_id, filename, revision=revision, cache_dir=options.get("cache_dir"))
        if not isinstance(path, str):
            raise FileNotFoundError(f"{filename} of {repo_id} is not in the cache")
        return path

    original = pretrained.hf_hub_download
    pretrained.hf_hub_download = from_cache
    try:
        yield
    finally:
        pretrained.hf_hub_download = original


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn a QuickGELU mismatch into an error, and keep open_clip out of the user's logging.

    open_clip logs through the module functions of ``logging``, which add a handler to a root logger that has none.
    """

    def keep(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root = logging.getLogger()
    placeholder = logging.NullHandler()
    root.addHandler(placeholder)
    root.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*QuickGELU mismatch")
            yield
    finally:
        root.removeFilter(keep)
        root.removeHandler(placeholder)
