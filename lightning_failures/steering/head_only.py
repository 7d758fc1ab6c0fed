"""Training of the last layer alone, in the epochs in which an intervention asks for it.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 5, where models are
finetuned on generated images by their last layer.
"""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Optimizer

from lightning_failures.errors import ConfigurationError, did_you_mean
from lightning_failures.interventions import Intervention
from lightning_failures.interventions.sampler import SamplingSchedule


class HeadOnly:
    """Freezes all of a module but its head between ``begin`` and ``end``.

    Gradients of the rest are dropped before the optimizer steps. So nothing changes for DDP or for hooks, and weight
    decay and momentum leave the rest unchanged too. Normalization layers of the rest do not update their statistics.

    Args:
        head: Name of the submodule that is trained; True: the linear or convolutional layer that was registered last.
    """

    def __init__(self, head: bool | str) -> None:
        self._head = head
        self._paused: list[nn.Module] = []
        self._active = False

    def begin(self, module: LightningModule) -> None:
        """Begin an epoch that trains only the head."""
        head = self.find(module)
        self._active = True
        inside = set(head.modules())
        for one in module.modules():
            if one not in inside and one.training and getattr(one, "track_running_stats", False):
                one.training = False
                self._paused.append(one)

    def drop_gradients(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of all parameters outside the head, before an optimizer steps."""
        if not self._active:
            return
        kept = {id(parameter) for parameter in self.find(module).parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in kept:
                    parameter.grad = None

    def end(self) -> None:
        """Train all layers again."""
        for one in self._paused:
            one.training = True
        self._paused, self._active = [], False

    def find(self, module: nn.Module) -> nn.Module:
        """Return the head of a module.

        Raises:
            ConfigurationError: The module has no such submodule.
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


class HeadTraining:
    """Trains only the heads that interventions name, in the epochs in which they add examples.

    Args:
        interventions: Name -> intervention.
        schedule: The plans of the interventions.
    """

    def __init__(self, interventions: Mapping[str, Intervention], schedule: SamplingSchedule) -> None:
        self._schedule = schedule
        self._heads = {name: HeadOnly(one.head_only) for name, one in interventions.items() if one.head_only}

    def check(self, module: LightningModule) -> None:
        """Raise an error if a head does not exist.

        Raises:
            ConfigurationError: The module has no such submodule.
        """
        for head in self._heads.values():
            head.find(module)

    def begin(self, module: LightningModule) -> None:
        """Begin an epoch, or resume in the middle of one, according to the plans in effect."""
        for name, head in self._heads.items():
            plan = self._schedule.in_effect(name)
            if plan is not None and len(plan.added):
                head.begin(module)

    def drop_gradients(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of all parameters outside the heads, before an optimizer steps."""
        for head in self._heads.values():
            head.drop_gradients(module, optimizer)

    def end(self) -> None:
        """Train all layers again."""
        for head in self._heads.values():
            head.end()
