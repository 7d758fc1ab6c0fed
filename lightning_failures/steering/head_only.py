"""Training of the last layer alone, for as long as an intervention asks for it.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 5, where models are
finetuned on generated images by their last layer.
"""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Optimizer

from lightning_failures.errors import ConfigurationError, did_you_mean


class HeadOnly:
    """Holds all but the head of a module as it is, between ``begin`` and ``end``.

    Gradients of the rest are dropped before the optimizer steps, so that nothing changes for DDP or for hooks, and
    weight decay and momentum leave the rest alone too. Normalisation layers of the rest do not update their
    statistics.

    Args:
        head: Name of the submodule that is trained; True: the last linear or convolutional layer that was registered.
    """

    def __init__(self, head: bool | str) -> None:
        self._head = head
        self._paused: list[nn.Module] = []
        self._active = False

    def begin(self, module: LightningModule) -> None:
        """An epoch of the head begins."""
        head = self.find(module)
        self._active = True
        inside = set(head.modules())
        for one in module.modules():
            if one not in inside and one.training and getattr(one, "track_running_stats", False):
                one.training = False
                self._paused.append(one)

    def drop_gradients(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Before a step: only the head has gradients."""
        if not self._active:
            return
        kept = {id(parameter) for parameter in self.find(module).parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in kept:
                    parameter.grad = None

    def end(self) -> None:
        """The epoch is over."""
        for one in self._paused:
            one.training = True
        self._paused, self._active = [], False

    def find(self, module: nn.Module) -> nn.Module:
        """The head.

        Raises:
            ConfigurationError: There is no such submodule.
        """
        named: dict[str, nn.Module] = dict(module.named_modules())
        if isinstance(self._head, str):
            if self._head not in named:
                raise ConfigurationError(
                    f"head_only={self._head!r}: {type(module).__name__} has no such submodule."
                    + did_you_mean(self._head, named)
                )
            return named[self._head]
        layers: list[nn.Module] = [
            one
            for one in named.values()
            if isinstance(one, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            and any(parameter.requires_grad for parameter in one.parameters())
        ]
        if not layers:
            raise ConfigurationError(
                f"head_only=True: {type(module).__name__} has no linear or convolutional layer. Name the submodule:"
                " head_only='head'."
            )
        return layers[-1]
