"""Which logits the model computed: a look at the calls inside ``validation_step``, without a second forward."""

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
"""Strategies whose processes hold parts of the module: a forward that not all of them run waits for ever."""


class LogitsObserver:
    """Remembers the tensors of shape (B, K) or (B,) that a module, or its direct children, returned during one step.

    The module's own calls come first; only where it was not called (a module without ``forward``) do its
    children count. With ``logits_from`` only that submodule is looked at. Under DDP in ``fit``, Lightning runs
    the step itself through the module's ``__call__``: that outer call (``redirected=True``) is not one of the
    model's.

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
        self._watching = self._redirected = False
        self._own: list[Tensor] = []
        self._children: list[Tensor] = []

    def attach(self, module: LightningModule) -> None:
        """Register the hooks; a second call does nothing.

        Raises:
            ConfigurationError: ``logits_from`` names no submodule.
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
        """Remove the hooks and forget what was seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.end()

    def begin(self, *, redirected: bool) -> None:
        """Start to watch one step. ``redirected`` says that the step itself runs through the module's ``__call__``."""
        self.end()
        self._watching, self._redirected = True, redirected

    def end(self) -> None:
        """Stop to watch and let go what was seen."""
        self._watching, self._depth = False, 0
        self._own, self._children = [], []

    def logits(self, *, batch_size: int, classes: int | None) -> Tensor | None:
        """Return what the step computed, None if it computed no candidate; stops watching.

        Raises:
            ConfigurationError: more than one candidate, or none of the submodule that ``logits_from`` names.
        """
        own, children = self._own, self._children
        self.end()
        if self.logits_from is not None:
            classes = None  # it was named: if its logits are not as many as there are names, that is told
        for seen in (own, children):
            candidates = _distinct([t for t in seen if _may_be_logits(t, batch_size, classes)])
            if len(candidates) > 1:
                shapes = ", ".join(str(tuple(t.shape)) for t in candidates)
                raise ConfigurationError(
                    f"The step computed {len(candidates)} tensors that may be the logits (shapes {shapes}). {REMEDY}"
                )
            if candidates:
                return candidates[0]
        if self.logits_from is not None:  # another forward might give something else
            named = _distinct([t for t in children if len(t) == batch_size])
            if len(named) == 1:  # of another width: class names that do not fit are told where they are known
                return named[0]
            shapes = ", ".join(str(tuple(t.shape)) for t in children) or "nothing that may be logits"
            raise ConfigurationError(
                f"FailureModes(logits_from={self.logits_from!r}): in this step, for {batch_size} examples, the"
                f" submodule gave {shapes}. It was called otherwise, not at all, or torch.compile has compiled the call"
                " away: then name the compiled module itself, or return {'logits': ...} from the step."
            )
        return None

    def _before_own(self, module: nn.Module, args: Any) -> None:
        self._depth += 1

    def _after_own(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._watching and self._depth == (1 if self._redirected else 0):
            self._own += _tensors(output)

    def _after_child(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._watching:
            self._children += _tensors(output)


def forward_once_more(trainer: Trainer, module: LightningModule, images: Tensor | None) -> Tensor:
    """Return the logits of an extra forward, where the step neither returned nor computed any that could be seen.

    Raises:
        ConfigurationError: nothing to give to ``forward``, no ``forward``, a module that is shared out over processes,
            or no tensor comes out.
    """
    unseen = "The step computed no logits that FailureModes could see"
    if images is None:
        raise ConfigurationError(f"{unseen}. {REMEDY}")
    if is_sharded(trainer):
        strategy = type(trainer.strategy)
        raise ConfigurationError(f"{unseen}, and {strategy.__name__} takes no forward of single processes. {REMEDY}")
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
    """The tensors at the top level of what a module returned that may be logits; feature maps are not kept."""
    values = (
        output if isinstance(output, tuple | list) else [output.get("logits") if isinstance(output, dict) else output]
    )
    return [v.detach() for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.ndim in (1, 2)]


def _may_be_logits(tensor: Tensor, batch_size: int, classes: int | None) -> bool:
    if len(tensor) != batch_size:
        return False
    columns = tensor.shape[1] if tensor.ndim == 2 else 1
    # one logit an example is how a binary task with two named classes looks
    return classes is None or columns == classes or (columns == 1 and classes <= 2)


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    """A module that hands on its child's tensor is one candidate, not two."""
    unique: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    for tensor in tensors:
        unique.setdefault((tensor.data_ptr(), tuple(tensor.shape)), tensor)
    return list(unique.values())
