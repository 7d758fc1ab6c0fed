"""The live model's penultimate features: the input of the module that computes the logits.

For a linear head, ``features @ head.weight.T + head.bias`` are the logits. Features are kept only on request: those of
evaluation batches are observed while the batches are graded (:class:`PenultimateObserver`), those of the training set
come from a pass in eval mode that leaves the model as it was (:func:`penultimate_features`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_failures.core.eval_mode import eval_mode
from lightning_failures.core.rng import isolated_rng
from lightning_failures.errors import ConfigurationError, did_you_mean
from lightning_failures.trainer.logits_hook import is_sharded
from lightning_failures.trainer.ranks import Communicator, exchange_by_id


@dataclass(frozen=True)
class _Call:
    """One call of a submodule that may be the head."""

    name: str
    features: Tensor
    output: Tensor


class PenultimateObserver:
    """Observes the input of the module that computes the logits, during one step at a time.

    The head is the submodule without submodules of its own (or any ``nn.Linear``) whose output are the logits. It is
    found in the first step and observed alone from then on.

    Args:
        head: Name of the head, or None to find it.
        also: Name of a submodule with submodules of its own that may be the head too, or None.

    Attributes:
        head: Name of the head; None until it is found.

    >>> class Model(LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body, self.fc = nn.Linear(4, 5), nn.Linear(5, 3)
    ...     def forward(self, x):
    ...         return self.fc(self.body(x).relu())
    >>> model, observer = Model(), PenultimateObserver()
    >>> observer.attach(model)
    >>> observer.begin()
    >>> logits = model(torch.ones(2, 4))
    >>> features = observer.features(logits)
    >>> observer.head, features.shape, torch.allclose(features @ model.fc.weight.T + model.fc.bias, logits)
    ('fc', torch.Size([2, 5]), True)
    >>> observer.detach()
    """

    def __init__(self, head: str | None = None, *, also: str | None = None) -> None:
        self.head = head
        self._also = also
        self._module: LightningModule | None = None
        self._handles: list[RemovableHandle] = []
        self._watching = False
        self._calls: list[_Call] = []

    def attach(self, module: LightningModule) -> None:
        """Register the hooks; a second call does nothing.

        Raises:
            ConfigurationError: The module has no submodule of the given name.
        """
        if self._handles:
            return
        submodules = {name: child for name, child in module.named_modules() if name}
        if self.head is None:
            candidates = {
                name: child for name, child in submodules.items() if _may_be_head(child) or name == self._also
            }
        elif self.head in submodules:
            candidates = {self.head: submodules[self.head]}
        else:
            raise ConfigurationError(
                f"head={self.head!r}: {type(module).__name__} has no such submodule."
                + did_you_mean(self.head, submodules)
            )
        self._module = module
        self._handles = [
            child.register_forward_hook(self._recorder(name), with_kwargs=True) for name, child in candidates.items()
        ]

    def detach(self) -> None:
        """Remove the hooks and release what was observed."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._module = [], None
        self.end()

    def begin(self) -> None:
        """Start to observe one step."""
        self.end()
        self._watching = True

    def end(self) -> None:
        """Stop observing and release what was observed."""
        self._watching, self._calls = False, []

    def features(self, logits: Tensor) -> Tensor:
        """Return the penultimate features (B, D) float32, on the CPU, of the step's logits; stop observing.

        Args:
            logits: (B, K) or (B,), as the step computed them.

        Raises:
            ConfigurationError: No submodule computed the logits from an input (B, D).
        """
        calls = self._calls
        self.end()
        found = self.head is not None
        matches = calls if found else [call for call in calls if _computes(call, logits)]
        if not matches:
            raise self._not_found()
        # nested calls end from the inside out; a head that was called several times counts with its last call
        call = matches[-1] if found else matches[0]
        if len(call.features) != len(logits):
            raise ConfigurationError(
                f"The head {call.name!r} was called with {len(call.features)} inputs for {len(logits)} examples."
                " Name a submodule that is called once a step with the whole batch: head='net.fc'."
            )
        if not found:
            self._observe_only(call.name)
        return call.features.float().cpu()

    def _observe_only(self, name: str) -> None:
        module = self._module
        self.detach()
        self.head = name
        if module is not None:
            self.attach(module)

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not self._watching or not isinstance(output, Tensor) or output.ndim > 2:
                return
            inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if inputs and inputs[0].ndim == 2:
                self._calls.append(_Call(name, inputs[0].detach(), output.detach()))

        return record

    def _not_found(self) -> ConfigurationError:
        if self.head is not None:
            return ConfigurationError(
                f"The head {self.head!r} was not called with features of the shape (B, D) in this step. Name the"
                " submodule whose input the features are: head='net.fc'. If torch.compile has compiled the call away,"
                " leave the head out of the compiled part."
            )
        name = "the model" if self._module is None else type(self._module).__name__
        return ConfigurationError(
            f"No submodule of {name} computes the logits from features of the shape (B, D), so there are no"
            " penultimate features. Compute the logits by a layer, such as nn.Linear, that is the last of the model;"
            " or name the submodule whose input the features are: head='net.fc'."
        )


@dataclass(frozen=True)
class PenultimateFeatures:
    """Penultimate features of some examples.

    Attributes:
        ids: (N,) int64.
        features: (N, D) float32.
        head: Name of the submodule whose input they are.
    """

    ids: Tensor
    features: Tensor
    head: str


class PenultimatePass:
    """Keeps the penultimate features of the examples that this rank graded and exchanges them between ranks."""

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._features: list[Tensor] = []

    def add(self, ids: Tensor, features: Tensor) -> None:
        """Add the features (B, D) of the ids (B,) of a batch."""
        self._ids.append(ids)
        self._features.append(features)

    def features(self, head: str) -> PenultimateFeatures:
        """Return the features of this rank's examples, each once, by ascending id; ``head`` names their submodule."""
        if not self._ids:
            return PenultimateFeatures(torch.empty(0, dtype=torch.int64), torch.empty(0, 0), head)
        ids, features = torch.cat(self._ids), torch.cat(self._features)
        order = ids.argsort(stable=True)
        ids, features = ids[order], features[order]
        is_first = torch.ones(len(ids), dtype=torch.bool)
        is_first[1:] = ids[1:] != ids[:-1]
        return PenultimateFeatures(ids[is_first], features[is_first], head)

    def features_of(self, ranks: Communicator, wanted: list[Tensor]) -> Tensor | None:
        """Return the features (u, D) of the ids that this rank asks for. Collective.

        Args:
            ranks: The processes.
            wanted: For each rank the ids (u,) that it asks for, ascending and distinct.

        Returns:
            (u, D) float32; None, on all ranks, if any id has no features.
        """
        widths = ranks.gather_objects(self._features[0].shape[1] if self._features else 0)
        ids = torch.cat([torch.empty(0, dtype=torch.int64), *self._ids])
        features = torch.cat([torch.empty(0, max(widths)), *self._features])
        return exchange_by_id(ranks, ids, lambda rows: features[rows], wanted)


class PenultimateBatch(NamedTuple):
    """A batch that went through the model.

    Attributes:
        ids: (B,) int64.
        features: (B, D) float32, on the CPU.
        logits: (B, K) or (B,), as the model computed them.
        head: Name of the submodule whose input the features are.
    """

    ids: Tensor
    features: Tensor
    logits: Tensor
    head: str


def penultimate_batches(
    module: LightningModule,
    batches: Iterable[tuple[Tensor, Any]],
    *,
    head: str | None = None,
    trainer: Trainer | None = None,
    logits_of: Callable[[Any], Tensor] | None = None,
) -> Generator[PenultimateBatch, None, None]:
    """Yield the penultimate features of batches that are not part of a validation, such as the training set.

    Each batch goes through the model in eval mode and without gradients. The mode of every submodule, the random
    streams and the hooks of the model are restored when the generator ends or is closed, also after an exception.

    Args:
        module: The model, with a ``forward`` that returns the logits.
        batches: Pairs of ids (B,) and a batch: images (B, C, H, W) in the space of the model, or what ``logits_of``
            takes.
        head: Name of the head, or None to find it.
        trainer: The Trainer whose precision is used; None for that of the weights.
        logits_of: Returns the logits of a batch, by a call of the model; None: ``module.forward`` does.

    Raises:
        ConfigurationError: The head cannot be found, ``forward`` returns no logits, or the model is sharded over
            processes.
    """
    if trainer is not None and is_sharded(trainer):
        raise ConfigurationError(
            f"{type(trainer.strategy).__name__} shards the model over processes, so that a single process cannot call"
            " it for penultimate features. Use a strategy that keeps the whole model in each process, such as 'ddp'."
        )
    observer = PenultimateObserver(head)
    with isolated_rng(), torch.no_grad(), eval_mode(module), _uncompiled(), _observing(observer, module):
        for ids, batch in batches:
            observer.begin()
            with nullcontext() if trainer is None else trainer.precision_plugin.val_step_context():
                logits = module(batch.to(module.device)) if logits_of is None else logits_of(batch)
            if not isinstance(logits, Tensor):
                raise ConfigurationError(
                    f"{type(module).__name__}.forward returns a {type(logits).__name__}, but penultimate features need"
                    " one that returns the logits."
                )
            features = observer.features(logits)
            yield PenultimateBatch(ids.long().cpu().clone(), features, logits, observer.head or "")


def penultimate_features(
    module: LightningModule,
    batches: Iterable[tuple[Tensor, Any]],
    *,
    head: str | None = None,
    trainer: Trainer | None = None,
    logits_of: Callable[[Any], Tensor] | None = None,
) -> PenultimateFeatures:
    """Return the penultimate features of all batches together; see :func:`penultimate_batches`."""
    parts = penultimate_batches(module, batches, head=head, trainer=trainer, logits_of=logits_of)
    found = [(part.ids, part.features, part.head) for part in parts]
    if not found:
        return PenultimateFeatures(torch.empty(0, dtype=torch.int64), torch.empty(0, 0), head or "")
    ids, features, heads = zip(*found, strict=True)
    return PenultimateFeatures(torch.cat(ids), torch.cat(features), heads[-1])


def _uncompiled() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled for the block, because compiled code may skip hooks; from torch 2.6 on."""
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()  # without the compiler, which takes seconds to import, nothing is compiled
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _observing(observer: PenultimateObserver, module: LightningModule) -> Iterator[None]:
    observer.attach(module)
    try:
        yield
    finally:
        observer.detach()


def _may_be_head(module: nn.Module) -> bool:
    """Whether a module computes its output itself; a parametrized linear layer has submodules but does so too."""
    return isinstance(module, nn.Linear) or next(module.children(), None) is None


def _computes(call: _Call, logits: Tensor) -> bool:
    """Whether a call returned the logits, up to their dtype, device and a dimension of size 1, and changed its input.

    The second condition passes over layers such as ``nn.Identity``, and dropout in eval mode, that follow the head.
    """
    return _same_values(call.output, logits) and not _same_values(call.features, logits)


def _same_values(tensor: Tensor, logits: Tensor) -> bool:
    if tensor.numel() != logits.numel() or len(tensor) != len(logits):
        return False
    if tensor.data_ptr() == logits.data_ptr():
        return True
    return torch.equal(tensor.to(logits).reshape(logits.shape), logits.detach())
