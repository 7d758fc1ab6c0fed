"""Find the logits that the model computes inside ``validation_step``, without a second forward."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_failures.core.rng import isolated_rng
from lightning_failures.errors import ConfigurationError, did_you_mean

REMEDY = (
    "Return {'logits': ...} from the step, name the submodule that computes them (logits_from='net'), or give"
    " read_batch."
)

SHARDED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}
"""Strategies that shard the module over processes: a forward that not all processes run never returns."""


class LogitsObserver:
    """Observes the tensors of shape (B, K) or (B,) that a module, or its direct children, return during one step.

    The module's own calls have precedence; the calls of its children count only if the module itself was not called
    (a module without ``forward``). With ``logits_from`` only that submodule is observed. Under DDP in ``fit``,
    Lightning runs the step itself through the module's ``__call__``: that outer call (``redirected=True``) is ignored.

    Args:
        logits_from: Name of the submodule whose output is the logits, or None.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> class Model(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(4, 3)
        ...     def forward(self, x):
        ...         return self.net(x)
        >>> model, observer = Model(), LogitsObserver()
        >>> observer.attach(model)
        >>> observer.begin(redirected=False)
        >>> _ = model(torch.zeros(2, 4))
        >>> observer.logits(batch_size=2, classes=3).shape
        torch.Size([2, 3])
        >>> observer.detach()
    """

    def __init__(self, logits_from: str | None = None) -> None:
        self.logits_from = logits_from
        self._handles: list[RemovableHandle] = []
        self._depth = 0
        self._observing = self._redirected = False
        self._own: list[Tensor] = []
        self._children: list[Tensor] = []

    def attach(self, module: LightningModule) -> None:
        """Register the hooks; a second call does nothing.

        Raises:
            ConfigurationError: The module has no submodule named ``logits_from``.
        """
        if self._handles:
            return
        if self.logits_from is not None:
            named = dict(module.named_modules())
            if self.logits_from not in named:
                raise ConfigurationError(
                    f"FailureModes(logits_from={self.logits_from!r}): {type(module).__name__} has no such submodule."
                    + did_you_mean(self.logits_from, named)
                )
            self._handles.append(named[self.logits_from].register_forward_hook(self._after_child))
            return
        self._handles.append(module.register_forward_pre_hook(self._before_own))
        self._handles.append(module.register_forward_hook(self._after_own, always_call=True))
        self._handles += [child.register_forward_hook(self._after_child) for child in module.children()]

    def detach(self) -> None:
        """Remove the hooks and release what was observed."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.end()

    def begin(self, *, redirected: bool) -> None:
        """Start to observe one step.

        Args:
            redirected: Whether the step itself runs through the module's ``__call__``.
        """
        self.end()
        self._observing, self._redirected = True, redirected

    def end(self) -> None:
        """Stop observing and release what was observed."""
        self._observing, self._depth = False, 0
        self._own, self._children = [], []

    def logits(self, *, batch_size: int, classes: int | None) -> Tensor | None:
        """Return the logits that the step computed, or None without a candidate; stop observing.

        Args:
            batch_size: Number of examples B.
            classes: Number of logits per example, or None if it is not known.

        Raises:
            ConfigurationError: There are several candidates, or the submodule ``logits_from`` returned none.
        """
        own, children = self._own, self._children
        self.end()
        if self.logits_from is not None:
            classes = None  # any width: the grader reports a wrong number of class names
        for seen in (own, children):
            candidates = _distinct([t for t in seen if _may_be_logits(t, batch_size, classes)])
            if len(candidates) > 1:
                shapes = ", ".join(str(tuple(t.shape)) for t in candidates)
                raise ConfigurationError(
                    f"The step computed {len(candidates)} tensors that may be the logits (shapes {shapes}). {REMEDY}"
                )
            if candidates:
                return candidates[0]
        if self.logits_from is not None:  # no extra forward: it might return something else
            named = _distinct([t for t in children if len(t) == batch_size])
            if len(named) == 1:  # of another width, which the grader compares with the class names
                return named[0]
            shapes = ", ".join(str(tuple(t.shape)) for t in children) or "no tensor that may be the logits"
            raise ConfigurationError(
                f"FailureModes(logits_from={self.logits_from!r}): in this step, for {batch_size} examples, the"
                f" submodule returned {shapes}. It was called with other inputs, or not at all, or torch.compile has"
                " compiled the call away. Name the compiled module itself, or return {'logits': ...} from the step."
            )
        return None

    def stacked_rows(self, batch_size: int) -> int | None:
        """Return the number of rows of a call on several copies of the batch, as in test-time augmentation; or None."""
        rows = [len(one) for one in (*self._own, *self._children) if one.ndim == 2]
        return next((n for n in rows if n > batch_size and n % batch_size == 0), None)

    def _before_own(self, module: nn.Module, args: Any) -> None:
        self._depth += 1

    def _after_own(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._observing and self._depth == (1 if self._redirected else 0):
            self._own += _tensors(output)

    def _after_child(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._observing:
            self._children += _tensors(output)


def forward_once_more(trainer: Trainer, module: LightningModule, images: Tensor | None) -> Tensor:
    """Return the logits of an extra forward, for a step that neither returned nor computed logits that were observed.

    Raises:
        ConfigurationError: There are no images, the module has no ``forward`` or is sharded over processes, or
            ``forward`` returns no tensor.
    """
    unseen = "The step computed no logits that FailureModes could observe"
    if images is None:
        raise ConfigurationError(f"{unseen}. {REMEDY}")
    if is_sharded(trainer):
        strategy = type(trainer.strategy)
        raise ConfigurationError(
            f"{unseen}, and {strategy.__name__} shards the model, so that one process cannot call it. {REMEDY}"
        )
    try:
        with isolated_rng(), torch.no_grad(), trainer.precision_plugin.val_step_context():
            logits = module(images)
    except NotImplementedError as error:
        raise ConfigurationError(f"{unseen}, and {type(module).__name__} has no forward. {REMEDY}") from error
    if not isinstance(logits, Tensor):
        raise ConfigurationError(f"forward returns a {type(logits).__name__}, not logits. {REMEDY}")
    return logits


def is_sharded(trainer: Trainer) -> bool:
    """Return whether each process holds only a part of the module, so that all must take part in a forward."""
    bases = {base.__name__ for base in type(trainer.strategy).__mro__}
    return trainer.world_size > 1 and bool(SHARDED & bases)


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors at the top level of a module's output that may be logits; feature maps are not kept."""
    values = (
        output if isinstance(output, tuple | list) else [output.get("logits") if isinstance(output, dict) else output]
    )
    return [v.detach() for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.ndim in (1, 2)]


def _may_be_logits(tensor: Tensor, batch_size: int, classes: int | None) -> bool:
    if len(tensor) != batch_size:
        return False
    columns = tensor.shape[1] if tensor.ndim == 2 else 1
    # a binary task has one logit per example, for one or two named classes
    return classes is None or columns == classes or (columns == 1 and classes <= 2)


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors without repetitions: a module that returns its child's output is one candidate."""
    unique: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    for tensor in tensors:
        unique.setdefault((tensor.data_ptr(), tuple(tensor.shape)), tensor)
    return list(unique.values())
