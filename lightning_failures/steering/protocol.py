"""The interfaces of the callback that interventions, forks and verdicts rely on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.encoders import Encoder
from lightning_failures.interventions import Intervention


class SteeringOptions(Protocol):
    """The options of the callback that interventions need."""

    interventions: Sequence[Intervention]
    groups_from: str | None
    auto_rollback: bool
    cache_folder: str | Path | None
    feature_names: Path | None
    seed: int


class SteeredCallback(Protocol):
    """A callback with interventions; :class:`~lightning_failures.callback.FailureModes` is the one implementation."""

    @property
    def state_key(self) -> str:
        """Key of the callback's state in checkpoints."""
        ...

    @property
    def interventions(self) -> Sequence[Intervention]:
        """The interventions, in the order of their weights and indices."""
        ...

    @property
    def encoder(self) -> str | Path | Encoder | None:
        """Encoder of the failure directions."""
        ...

    @property
    def robust_encoder(self) -> str | Path | Encoder | None:
        """Encoder of the failure trees."""
        ...

    @property
    def auto_rollback(self) -> bool:
        """Whether a harmful intervention is undone, which takes a decision part of the validation set."""
        ...

    @property
    def seed(self) -> int:
        """Seed of splits and draws."""
        ...

    @property
    def last_report(self) -> AnalysisResult | None:
        """Report of the last analysis of the first validation loader."""
        ...

    def prepare_fork(self, stop_epoch: int | None = None) -> None:
        """Configure the callback for a fork: raise errors, draw no pictures, roll nothing back, fork nothing itself.

        Args:
            stop_epoch: First epoch for which no decision is made any more. None keeps the configured one.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints; the key ``"steering"`` holds that of the interventions."""
        ...
