"""Record which dataset indices each evaluation batch holds, by a recorder inside each loader.

Lightning does not pass the examples' indices to callbacks, and ``batch_idx`` identifies nothing once a loader shuffles
or is distributed over processes. The index sampler of the loader draws the indices, so a recorder is wrapped around it.

Internals of other packages that this file relies on, for want of a public way; ``tests/trainer/test_index_recorder.py``
notices when they change:

* ``DataLoader.__dict__["sampler"]`` and ``["batch_sampler"]``: ``DataLoader`` refuses assignments to them after it was
  built, and building another loader would lose subclasses and the loader object that the user holds.
* ``DataLoader._iterator``: the iterator with persistent workers, which keep the sampler that they started with.
* ``Strategy.process_dataloader`` is public, and called for every loader; an instance attribute wraps it.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_failures.errors import ConfigurationError


class IndexRecorder:
    """Wraps the index sampler of one DataLoader and records what it yields until the batch has been graded.

    Workers may run ahead of the loop, so indices are kept by batch number; each new pass starts with an empty record.
    All other attributes (``set_epoch`` of a sampler, ``batch_size``, ...) are those of the wrapped sampler.
    """

    def __init__(self, sampler: Any) -> None:
        self.wrapped = sampler
        self.active = True
        self._pending: dict[int, tuple[Any, ...]] = {}

    def __iter__(self) -> Iterator[Any]:
        if not self.active:
            yield from self.wrapped
            return
        pending = self._pending = {}
        for number, indices in enumerate(self.wrapped):
            pending[number] = _copy(indices)
            yield indices

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not yet set while unpickling
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def original(self) -> Any:
        """Return the sampler below all inactive recorders; two callbacks may have wrapped one loader."""
        inner = self.wrapped
        return inner.original() if isinstance(inner, IndexRecorder) and not inner.active else inner

    def take(self, batch_idx: int) -> list[int] | None:
        """Return and forget the dataset indices of a batch of the current pass.

        None if the batch was not drawn in this pass, or if the sampler does not draw integers.
        """
        try:
            return [operator.index(i) for i in self._pending.pop(batch_idx)]
        except (KeyError, TypeError):
            return None


class IndexRecorderHook:
    """Puts an :class:`IndexRecorder` into every evaluation loader of a Trainer and removes all of them again.

    The hook wraps ``trainer.strategy.process_dataloader``, which Lightning calls at each reload for each loader, after
    it has injected its own sampler. Training loaders are passed to ``on_training``. Attaching and detaching are
    idempotent.
    """

    def __init__(self) -> None:
        # weak references: a loader that Lightning has replaced must be released, and its workers with it
        self._attached: list[tuple[weakref.ref[DataLoader[Any]], str, IndexRecorder]] = []
        self._strategy: Any = None
        self._wrapper: Callable[[object], object] | None = None

    def attach(self, trainer: Trainer, on_training: Callable[[Trainer, object], None] | None = None) -> None:
        """Record in all evaluation loaders that the Trainer prepares from now on; pass training loaders on."""
        if self._wrapper is not None:
            return
        self._strategy = trainer.strategy
        process = trainer.strategy.process_dataloader

        def process_and_attach(dataloader: object) -> object:
            processed = process(dataloader)
            if self._wrapper is not None and not trainer.training:
                self._attach_to(processed)
            elif self._wrapper is not None and on_training is not None:
                on_training(trainer, processed)
            return processed

        self._wrapper = process_and_attach
        trainer.strategy.process_dataloader = process_and_attach  # type: ignore[method-assign]

    def attach_to_prepared(self, trainer: Trainer) -> None:
        """Record in validation loaders that a tuner prepared in another stage; call it before they are iterated."""
        if trainer.val_dataloaders is not None:
            for loader in CombinedLoader(trainer.val_dataloaders, "sequential").flattened:
                self._attach_to(loader)

    def detach(self) -> None:
        """Restore every sampler and the strategy's ``process_dataloader``."""
        for reference, attribute, recorder in reversed(self._attached):
            recorder.active = False
            loader = reference()
            if loader is not None and loader.__dict__.get(attribute) is recorder:
                loader.__dict__[attribute] = recorder.original()
        self._attached.clear()
        if self._strategy is not None and self._strategy.__dict__.get("process_dataloader") is self._wrapper:
            del self._strategy.process_dataloader
        self._strategy = self._wrapper = None

    def recorder(self, loader: object) -> IndexRecorder | None:
        """Return the recorder inside a loader, or None if the indices of the loader cannot be known."""
        return next((recorder for attached, _, recorder in self._attached if attached() is loader), None)

    def _attach_to(self, loader: object) -> None:
        if (
            not isinstance(loader, DataLoader)
            or isinstance(loader.dataset, IterableDataset)
            or not getattr(loader, "in_order", True)
            or self.recorder(loader) is not None
        ):
            return
        attribute = "sampler" if loader.batch_sampler is None else "batch_sampler"
        recorder = IndexRecorder(getattr(loader, attribute))
        loader.__dict__[attribute] = recorder
        loader._iterator = None  # persistent workers of an earlier pass would continue with the old sampler
        self._attached = [entry for entry in self._attached if entry[0]() is not None]
        self._attached.append((weakref.ref(loader), attribute, recorder))


def _copy(indices: Any) -> tuple[Any, ...]:
    """Return one index, or the indices of a batch, as a tuple; an iterator is not consumed."""
    try:
        len(indices)
    except TypeError:
        return (indices,)
    return tuple(indices)


def evaluation_loaders(trainer: Trainer) -> list[Any]:
    """Return the loaders of the running validation or test, by dataloader index."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return [] if loaders is None else list(CombinedLoader(loaders, "sequential").flattened)


def dataset_of(loader: object) -> Any:
    """Return the dataset of a loader, or None."""
    return getattr(loader, "dataset", None)


def missing_ids_error(loader: object) -> ConfigurationError:
    """Return the error for a loader whose examples have no ids."""
    return ConfigurationError(
        f"The dataset indices of the examples cannot be read from a {type(loader).__name__} over"
        f" {type(dataset_of(loader)).__name__}. Give the callback read_batch=, a function (outputs, batch) ->"
        " BatchRecord whose ids are integers, unique and stable for each example."
    )
