"""Record which dataset indices each evaluation batch holds, by a recorder inside each loader.

Lightning does not pass the examples' indices to callbacks, and ``batch_idx`` identifies nothing once a loader shuffles
or is distributed over processes. The index sampler of the loader draws the indices, so a recorder takes its place. Each
pass over the loader has a record of its own, since other callbacks may begin passes beside that of the loop.

Internals of other packages that this file relies on, for want of a public way; ``tests/trainer/test_index_recorder.py``
notices when they change:

* ``DataLoader.__dict__["sampler"]`` and ``["batch_sampler"]``: ``DataLoader`` refuses assignments to them after it was
  built, and building another loader would lose subclasses and the loader object that the user holds.
* ``DataLoader._iterator``: the iterator with persistent workers, which keep the sampler that they started with.
* ``_BaseDataLoaderIter._sampler_iter`` and ``._num_yielded``: the pass over the sampler that an iterator makes, and the
  number of batches that it has handed out.
* ``_EvaluationLoop._combined_loader._iterator.iterators``: the iterator from which the loop takes its batches.
* ``Strategy.process_dataloader`` and ``Strategy.teardown`` are public, and called for every loader and at the end of
  every run; instance attributes wrap them.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.dataset_attributes import dataset_length

# -- one sampler -------------------------------------------------------------------------------------------------------


class RecordedPass:
    """One pass over a sampler, as the iterator that a loader draws from; it keeps the indices of each batch drawn.

    Workers may run ahead of the loop, so indices are kept by batch number until the batch has been graded.
    """

    def __init__(self, recorder: IndexRecorder) -> None:
        self.recorder = recorder
        self.source = iter(recorder.wrapped)
        self.drawn = 0
        self._pending: dict[int, tuple[Any, ...]] = {}

    def __iter__(self) -> RecordedPass:
        return self

    def __next__(self) -> Any:
        indices = next(self.source)
        if self.recorder.active:
            self._pending[self.drawn] = _copy(indices)
        self.drawn += 1
        return indices

    def take(self, number: int) -> list[int] | None:
        """Return the dataset indices of a batch, and forget those up to it.

        None if the batch was not drawn in this pass, or if the sampler does not draw integers.
        """
        try:
            return [operator.index(i) for i in self._pending[number]]
        except (KeyError, TypeError):
            return None
        finally:
            for past in [one for one in self._pending if one <= number]:
                del self._pending[past]


class IndexRecorder:
    """Stands in for the index sampler of one DataLoader and records what each pass over it draws.

    :func:`record` builds it. Where the class of the sampler allows, the recorder is an instance of that class and
    shares the sampler's attributes. A copy, or another instance built by its type, is a plain sampler.
    """

    __slots__ = ("active", "passes", "wrapped")

    wrapped: Any
    active: bool
    passes: weakref.WeakSet[RecordedPass]

    def __iter__(self) -> Iterator[Any]:
        one = RecordedPass(self)
        self.passes.add(one)
        return one

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in IndexRecorder.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.wrapped, name, value)

    def __copy__(self) -> Any:
        return copy.copy(self.wrapped)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (self.wrapped,)

    def original(self) -> Any:
        """Return the sampler below all inactive recorders; two callbacks may have wrapped one loader."""
        inner = self.wrapped
        return inner.original() if isinstance(inner, IndexRecorder) and not inner.active else inner


def record(sampler: Any) -> IndexRecorder:
    """Return a recorder that stands in for a sampler.

    >>> from torch.utils.data import BatchSampler
    >>> recorder = record(BatchSampler(range(5), batch_size=2, drop_last=False))
    >>> isinstance(recorder, BatchSampler), recorder.batch_size, list(recorder)
    (True, 2, [[0, 1], [2, 3], [4]])
    """
    kind: Any = type(sampler)
    try:
        # __new__ makes another instance of the type a plain sampler: Lightning builds one for predictions
        namespace = {
            "__slots__": (),
            "__new__": lambda cls, *args, **kwargs: kind(*args, **kwargs),
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
        }
        metaclass: Any = type(kind)
        recorder: IndexRecorder = object.__new__(metaclass(kind.__name__, (IndexRecorder, kind), namespace))
        object.__setattr__(recorder, "__dict__", sampler.__dict__)
    except (TypeError, AttributeError):  # a list, or a class with a layout or a metaclass of its own
        recorder = object.__new__(IndexRecorder)
    recorder.wrapped, recorder.active, recorder.passes = sampler, True, weakref.WeakSet()
    return recorder


def _itself(sampler: Any) -> Any:
    return sampler


# -- the loaders of a Trainer ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Position:
    """Where the loop stands in a loader.

    Attributes:
        iterator: The iterator from which the loop takes its batches.
        drawing: The pass over the sampler that the iterator makes.
        yielded: Number of batches that the iterator has handed out in this pass.
        shared: Whether the loader keeps the iterator, so that other passes over the loader use it too.
    """

    iterator: Any
    drawing: Any
    yielded: int
    shared: bool

    @classmethod
    def of(cls, iterator: Any, *, shared: bool) -> _Position:
        """Return where an iterator stands now."""
        return cls(iterator, iterator._sampler_iter, iterator._num_yielded, shared)

    def recorded_by(self, recorder: IndexRecorder) -> RecordedPass | None:
        """Return the pass of one recorder; two recorders may have wrapped one sampler."""
        one = self.drawing
        while isinstance(one, RecordedPass) and one.recorder is not recorder:
            one = one.source
        return one if isinstance(one, RecordedPass) else None


MAP_STYLE_WRAPPER = """It has a length and indices, so that a wrapper gives the examples ids, and pictures at full size:

class Indexed(torch.utils.data.Dataset):
    def __init__(self, dataset): self.dataset = dataset
    def __len__(self): return len(self.dataset)
    def __getitem__(self, index): return self.dataset[index]

Otherwise:"""
"""What to do about iterable datasets that can be indexed."""


class IndexRecorderHook:
    """Puts an :class:`IndexRecorder` into every evaluation loader of a Trainer and removes all of them again.

    The hook wraps ``trainer.strategy.process_dataloader``, which Lightning calls at each reload for each loader, after
    it has injected its own sampler. Training loaders are passed to ``on_training``. Attaching and detaching are
    idempotent.

    Args:
        gather: Returns the values of all processes. Called on every process for each evaluation loader, because the
            hooks of an evaluation are not called on a process without a batch.
    """

    def __init__(self, gather: Callable[[int], list[int]] = lambda value: [value]) -> None:
        self._gather = gather
        # weak references: a loader that Lightning has replaced must be released, and its workers with it
        self._attached: list[tuple[weakref.ref[DataLoader[Any]], str, IndexRecorder]] = []
        self._wrapped: list[tuple[Any, str, Callable[..., Any]]] = []
        self._now: _Position | None = None
        self._before: _Position | None = None
        self._lengths: dict[int, list[int]] = {}  # by id of the loader, for each process

    def attach(
        self,
        trainer: Trainer,
        on_training: Callable[[Trainer, object], None] | None = None,
        on_interrupt: Callable[[], None] | None = None,
    ) -> None:
        """Record in all evaluation loaders that the Trainer prepares from now on; pass training loaders on.

        Args:
            trainer: The Trainer.
            on_training: Called with each training loader.
            on_interrupt: Called when the Trainer ends after an error, unless the hook is detached by then. A tuner
                replaces the callbacks, so that theirs is never called.
        """
        if self._wrapped:
            return
        process, teardown = trainer.strategy.process_dataloader, trainer.strategy.teardown

        def process_and_attach(dataloader: object) -> object:
            processed = process(dataloader)
            if self._wrapped and not trainer.training:
                self._attach_to(processed)
                length = dataset_length(processed)
                self._lengths[id(processed)] = self._gather(1 if length is None else length)
            elif self._wrapped and on_training is not None:
                on_training(trainer, processed)
            return processed

        def teardown_and_detach() -> None:
            teardown()
            if self._wrapped and trainer.interrupted and on_interrupt is not None:
                on_interrupt()

        for name, wrapper in (("process_dataloader", process_and_attach), ("teardown", teardown_and_detach)):
            self._wrapped.append((trainer.strategy, name, wrapper))
            setattr(trainer.strategy, name, wrapper)

    def attach_to_prepared(self, trainer: Trainer) -> None:
        """Record in validation loaders that a tuner prepared in another stage; call it before they are iterated."""
        if trainer.val_dataloaders is not None:
            for loader in CombinedLoader(trainer.val_dataloaders, "sequential").flattened:
                self._attach_to(loader)

    def detach(self) -> None:
        """Restore every sampler and the strategy's methods."""
        for reference, attribute, recorder in reversed(self._attached):
            recorder.active = False
            loader = reference()
            if loader is not None and loader.__dict__.get(attribute) is recorder:
                loader.__dict__[attribute] = recorder.original()
        self._attached.clear()
        for strategy, name, wrapper in self._wrapped:
            if strategy.__dict__.get(name) is wrapper:
                delattr(strategy, name)
        self._wrapped.clear()
        self._lengths.clear()
        self._now = self._before = None

    def recorder(self, loader: object) -> IndexRecorder | None:
        """Return the recorder inside a loader, or None if the indices of the loader cannot be known."""
        return next((recorder for attached, _, recorder in self._attached if attached() is loader), None)

    # -- one evaluation ------------------------------------------------------------------------------------------------

    def all_ranks_have_batches(self, trainer: Trainer, say_once: Callable[[str], None]) -> bool:
        """Return whether every process has a batch of this evaluation; report it once if not.

        Lightning calls no hook of the evaluation on a process without a batch, so that nothing can be exchanged in it.
        """
        known = [self._lengths.get(id(loader)) for loader in evaluation_loaders(trainer)]
        totals = [sum(lengths) for lengths in zip(*[one for one in known if one is not None], strict=True)]
        if None in known or all(totals):
            return True
        empty = ", ".join(str(rank) for rank, total in enumerate(totals) if not total)
        say_once(
            f"FailureModes skips the analyses: process {empty} of {len(totals)} has no batch of these evaluation"
            " loaders. Leave use_distributed_sampler=True, or give every process some examples."
        )
        return False

    def begin_evaluation(self, trainer: Trainer) -> list[Any]:
        """Note where the loop stands before its first batch, and return the loaders of the evaluation."""
        loaders = evaluation_loaders(trainer)
        self._now = self._before = None
        if loaders:
            self.begin_batch(trainer, loaders[0])
            self.end_batch()
        return loaders

    def begin_batch(self, trainer: Trainer, loader: object) -> None:
        """Note which batch of which pass the loop has just taken, before other passes begin."""
        self._now = _position(trainer, loader)

    def end_batch(self) -> None:
        """Note where the loop stands after a batch, if it shares the iterator with others."""
        now = self._now
        self._now, self._before = None, _Position.of(now.iterator, shared=True) if now and now.shared else None

    def take(self, loader: object, batch_idx: int) -> list[int] | None:
        """Return and forget the dataset indices of the batch that the loop has taken; None if they cannot be known.

        Raises:
            DataError: Something else draws from the iterator of the loop.
        """
        recorder, now = self.recorder(loader), self._now
        if recorder is None:
            return None
        drawing = None if now is None else now.recorded_by(recorder)
        if now is None or drawing is None:  # the loader has an iterator of another kind
            alive = [one for one in recorder.passes if one.drawn]
            return alive[0].take(batch_idx) if len(alive) == 1 else None
        if not now.shared:
            return drawing.take(batch_idx)
        before = self._before
        if before is not None and before.iterator is now.iterator:
            moved_on = before.drawing is now.drawing and before.yielded + 1 == now.yielded
            if not moved_on:
                raise DataError(
                    "another callback draws from the evaluation loader while the loop does. The loader keeps a single"
                    " iterator (persistent_workers, or a loader that never ends), so the loop itself has lost its"
                    " place and misses examples. Give the other callback a DataLoader of its own."
                )
        return drawing.take(now.yielded - 1)

    def _attach_to(self, loader: object) -> None:
        if (
            not isinstance(loader, DataLoader)
            or isinstance(loader.dataset, IterableDataset)
            or not getattr(loader, "in_order", True)
            or self.recorder(loader) is not None
        ):
            return
        attribute = "sampler" if loader.batch_sampler is None else "batch_sampler"
        loader._iterator = None  # persistent workers of an earlier pass would continue with the old sampler
        recorder = _earlier_recorder(loader)
        if recorder is None:
            recorder = record(getattr(loader, attribute))
        recorder.active = True
        loader.__dict__[attribute] = recorder
        self._attached = [entry for entry in self._attached if entry[0]() is not None]
        self._attached.append((weakref.ref(loader), attribute, recorder))


def _position(trainer: Trainer, loader: object) -> _Position | None:
    """Return where the loop stands in a loader; None if the loader has an iterator of another kind."""
    loop = {"fit": trainer.fit_loop.epoch_loop.val_loop, "test": trainer.test_loop}.get(
        str(trainer.state.fn.value) if trainer.state.fn is not None else "", trainer.validate_loop
    )
    try:
        iterator = loop._combined_loader._iterator.iterators[0]  # type: ignore[union-attr]
    except (AttributeError, IndexError):
        return None
    kept = _kept_iterators(loader)
    if not isinstance(iterator, _BaseDataLoaderIter):
        if len(kept) != 1:  # a loader whose passes are shares of a single one, such as timm's, keeps that one
            return None
        (iterator,) = kept
    # without a length the loop takes one batch ahead, and the batches that it has cannot be counted here
    shared = any(one is iterator for one in kept) and dataset_length(loader) is not None
    return _Position.of(iterator, shared=shared)


def _kept_iterators(loader: object) -> list[Any]:
    """Return the iterators that a loader keeps from one pass to the next."""
    return [value for value in vars(loader).values() if isinstance(value, _BaseDataLoaderIter)]


def _earlier_recorder(loader: DataLoader[Any]) -> IndexRecorder | None:
    """Return the inactive recorder of an earlier run from which an iterator that the loader keeps still draws."""
    for iterator in _kept_iterators(loader):
        if isinstance(iterator._sampler_iter, RecordedPass) and not iterator._sampler_iter.recorder.active:
            return iterator._sampler_iter.recorder
    return None


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
    if isinstance(loader, DataLoader) and _kept_iterators(loader) and not loader.persistent_workers:
        return ConfigurationError(
            f"The dataset indices of the examples cannot be read from a {type(loader).__name__}, which began a pass"
            " without end before the Trainer prepared it. Give a DataLoader with persistent_workers=True, which keeps"
            " its workers too; or give the callback read_batch= with ids."
        )
    dataset = dataset_of(loader)
    wrapper = f" {MAP_STYLE_WRAPPER}" if _can_be_indexed(dataset) else ""
    return ConfigurationError(
        f"The dataset indices of the examples cannot be read from a {type(loader).__name__} over"
        f" {type(dataset).__name__}.{wrapper} Let batches name their examples under a key such as id, index or __key__,"
        " or by the names of their files behind images and labels; or give the callback read_batch=, a function"
        " (outputs, batch) -> BatchRecord whose ids are integers or texts, unique and stable for each example."
    )


def _can_be_indexed(dataset: Any) -> bool:
    """Return whether an iterable dataset, such as litdata's StreamingDataset, has indices and a length as well."""
    own = getattr(type(dataset), "__getitem__", None)
    inherited = getattr(IterableDataset, "__getitem__", None)
    return isinstance(dataset, IterableDataset) and own is not inherited and dataset_length(dataset) is not None
