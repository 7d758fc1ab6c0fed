"""Heat maps and feature attacks, made within a time limit and stored with the embeddings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_failures.core.budget import PROGRESS_DELAY, Deadline
from lightning_failures.encoders import DifferentiableEncoder, Encoder, gives_gradients, gives_maps
from lightning_failures.encoders.cache.store import EmbeddingStore, content_keys
from lightning_failures.encoders.feature_attack import ITERATIONS, feature_attack
from lightning_failures.report.images import normalize_maps

LEVELS = (ITERATIONS, 200, 100, 50, 25)
"""Numbers of steps that an attack may have; fewer steps are longer, so that all attacks go equally far."""

DEFAULT_ATTACK_SECONDS = 600.0
"""Time for all attacks of an analysis without a deadline."""

_TRIAL_STEPS = 2


@dataclass(frozen=True)
class FeatureViews:
    """The images as an encoder sees them, the heat maps of its features, and attacks; stored with its embeddings.

    Attributes:
        encoder: The encoder; only heat maps need its maps.
        store: Store of its embeddings, or None to store nothing.
    """

    encoder: Encoder
    store: EmbeddingStore | None = None
    _stores: dict[str, EmbeddingStore] = field(default_factory=dict)

    def seen(self, images: Tensor) -> Tensor:
        """Return the images that heat maps lie on: (n, C, H, W) -> (n, C, h, w) in [0, 1]."""
        return self.encoder.view(images) if gives_gradients(self.encoder) else images

    def maps(self, images: Tensor, feature: int) -> Tensor:
        """Return the heat maps (n, h, w) of a feature, each scaled to [0, 1]."""
        kind = f"heat maps of {tuple(images.shape[1:])}"
        rows = self._read(kind, images, feature)
        if rows is None:
            assert gives_maps(self.encoder)
            maps = normalize_maps(self.encoder.encode_maps(images)[:, feature])
            shape = torch.tensor(maps.shape[1:]).expand(len(maps), 2)
            rows = self._write(kind, images, feature, torch.cat([shape, maps.flatten(1)], dim=1))
        # a row holds height and width, then the map
        height, width = int(rows[0, 0]), int(rows[0, 1])
        return rows[:, 2:].view(-1, height, width)

    def stored_attack(self, seen: Tensor, feature: int, iterations: int) -> Tensor | None:
        """Return the images (n, C, h, w) after an attack that is in the store, or None."""
        rows = self._read(_kind_of_attack(seen, iterations), seen, feature)
        return None if rows is None else rows.view(seen.shape)

    def store_attack(self, seen: Tensor, feature: int, iterations: int, attacked: Tensor) -> Tensor:
        """Store the images after an attack and return them as the store will, rounded."""
        return self._write(_kind_of_attack(seen, iterations), seen, feature, attacked.flatten(1)).view(seen.shape)

    def flush(self) -> None:
        """Write new entries to disk."""
        for store in self._stores.values():
            store.flush()

    def _read(self, kind: str, images: Tensor, feature: int) -> Tensor | None:
        """Return the stored row of each image for a feature, or None if one is missing."""
        if self.store is None:
            return None
        store, keys = self._derived_store(kind), _keys(images, feature)
        return None if store.missing(keys).any() else store.get(keys)

    def _write(self, kind: str, images: Tensor, feature: int, rows: Tensor) -> Tensor:
        """Store a row for each image and return the rows as the store will, rounded."""
        if self.store is None:
            return rows
        store, keys = self._derived_store(kind), _keys(images, feature)
        store.put(keys, rows)
        return store.get(keys)

    def _derived_store(self, kind: str) -> EmbeddingStore:
        assert self.store is not None
        if kind not in self._stores:
            self._stores[kind] = self.store.derived_store(kind)
        return self._stores[kind]


def _keys(images: Tensor, feature: int) -> Tensor:
    return content_keys(images, salt=f"feature {feature}")


def _kind_of_attack(seen: Tensor, iterations: int) -> str:
    return f"feature attacks on {tuple(seen.shape[1:])}, {iterations} steps"


@dataclass(frozen=True)
class AttackResult:
    """The result of one feature attack.

    Attributes:
        images: (n, C, h, w) in [0, 1], or None.
        strength: (n,), the activations of the feature after the attack, or None.
        iterations: Number of steps.
        note: Why there are no images; empty if there are.
    """

    images: Tensor | None = None
    strength: Tensor | None = None
    iterations: int = 0
    note: str = ""


def attack_features(
    views: FeatureViews,
    wanted: Sequence[tuple[int, Tensor]],
    deadline: Deadline | None = None,
    *,
    levels: Sequence[int] = LEVELS,
) -> list[AttackResult]:
    """Attack the features one after the other, the most important first, each on all its images at once.

    Each attack gets an equal share of the remaining time and the largest number of steps (of ``LEVELS``, up to the
    paper's 500) that fits into its share; an attack is skipped if not even the smallest number fits. Stored attacks
    cost no time.

    Args:
        views: The encoder and its stored attacks.
        wanted: Features, each with images (n, C, h, w) as the encoder sees them.
        deadline: When to finish; by default ``DEFAULT_ATTACK_SECONDS`` from now.
        levels: Numbers of steps that an attack may have, descending.

    Returns:
        One result for each entry of ``wanted``.
    """
    encoder = views.encoder
    if not gives_gradients(encoder):
        return [AttackResult(note="no feature attack: the encoder gives no gradients") for _ in wanted]
    deadline = Deadline.after(DEFAULT_ATTACK_SECONDS) if deadline is None else deadline
    results: list[AttackResult] = []
    try:
        with encoder.differentiable() as features, _progress_bar(len(wanted), levels[0]) as on_step:
            for feature, seen in wanted:
                remaining = len(wanted) - len(results)
                attack = _FeatureAttack(views, encoder, features, feature, seen, on_step, tuple(levels))
                results.append(attack.run(deadline, remaining))
    except Exception as error:  # out of memory, an operation without gradient: the other pictures can still be drawn
        reason = f"feature attack left out: {type(error).__name__}: {str(error)[:200]}"
        results += [AttackResult(note=reason)] * (len(wanted) - len(results))
    return results


@dataclass(frozen=True)
class _FeatureAttack:
    """The attack of one feature on its images.

    Attributes:
        views: The stored attacks.
        encoder: The encoder.
        features: Its differentiable features.
        feature: Index of the feature.
        seen: (n, C, h, w), the images as the encoder sees them.
        on_step: Called with the progress of each step.
        levels: Numbers of steps that it may have, descending.
    """

    views: FeatureViews
    encoder: DifferentiableEncoder
    features: Callable[[Tensor], Tensor]
    feature: int
    seen: Tensor
    on_step: Callable[[int], object]
    levels: tuple[int, ...] = LEVELS

    def run(self, deadline: Deadline, remaining: int) -> AttackResult:
        """Return the stored attack with the most steps, or make a new one if more steps fit into the time.

        Args:
            deadline: When all attacks should be finished.
            remaining: Number of attacks that share the remaining time.
        """
        affordable: int | None = None
        for iterations in self.levels:
            attacked = self.views.stored_attack(self.seen, self.feature, iterations)
            if attacked is None:
                affordable = self._affordable_steps(deadline, remaining) if affordable is None else affordable
                new = self._make(iterations, deadline) if iterations <= affordable else None
                if new is None:
                    continue
                attacked = self.views.store_attack(self.seen, self.feature, iterations, new.cpu())
            with torch.no_grad():
                strength = self.features(attacked.to(self.encoder.device))[:, self.feature].cpu()
            return AttackResult(attacked, strength, iterations)
        return AttackResult(note="feature attack left out: out of time")

    def _affordable_steps(self, deadline: Deadline, remaining: int) -> int:
        """Return the number of steps that fits into this attack's share of the time, 0 if none does.

        The smallest number of steps may take more than its share, as long as it ends before the deadline.
        """
        start = time.perf_counter()
        if self._make(_TRIAL_STEPS, deadline) is None:
            return 0
        seconds_per_step = (time.perf_counter() - start) / _TRIAL_STEPS
        fitting = [level for level in self.levels if level * seconds_per_step <= deadline.left / remaining]
        fewest = self.levels[-1] if self.levels[-1] * seconds_per_step <= deadline.left else 0
        return max(fitting, default=fewest)

    def _make(self, iterations: int, deadline: Deadline) -> Tensor | None:
        """Return the images after a new attack, or None if the deadline passed before it ended."""
        progress = self.levels[0] // iterations if iterations != _TRIAL_STEPS else 0
        return feature_attack(
            self.features,
            self.seen.to(self.encoder.device),
            self.feature,
            iterations=iterations,
            deadline=deadline,
            on_step=lambda: self.on_step(progress),
        )


@contextlib.contextmanager
def _progress_bar(attacks: int, steps: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar if the attacks take long."""
    total = attacks * steps
    with tqdm(desc="FailureModes attacks features", total=total, delay=PROGRESS_DELAY, leave=False) as bar:
        yield bar.update
