"""Heat maps and attacks of features, made within a time and kept beside the embeddings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_failures.core.budget import PROGRESS_DELAY, Deadline
from lightning_failures.encoders import DifferentiableEncoder, FeatureEncoder, gives_gradients
from lightning_failures.encoders.cache.store import EmbeddingStore, content_keys
from lightning_failures.encoders.feature_attack import ITERATIONS, feature_attack
from lightning_failures.report.images import normalize_maps

LEVELS = (ITERATIONS, 200, 100, 50, 25)
"""Steps of an attack, as many as time allows; fewer are longer, so that all go as far."""
PATIENT = 600.0
"""Seconds that all attacks of an analysis may take where nothing else limits them."""

_TRIAL = 2


@dataclass(frozen=True)
class FeatureViews:
    """What an encoder sees of some images, and where a feature is seen; kept beside the encoder's embeddings.

    Attributes:
        encoder: The encoder.
        store: Of its embeddings, or None to keep nothing.
    """

    encoder: FeatureEncoder
    store: EmbeddingStore | None = None
    _stores: dict[str, EmbeddingStore] = field(default_factory=dict)

    def seen(self, images: Tensor) -> Tensor:
        """What heat maps belong on: (n, C, H, W) -> (n, C, h, w) in [0, 1]."""
        return self.encoder.view(images) if gives_gradients(self.encoder) else images

    def maps(self, images: Tensor, feature: int) -> Tensor:
        """The maps (n, h, w) of a feature, each stretched to [0, 1]."""
        kind = f"heat maps of {tuple(images.shape[1:])}"
        flat = self._find(kind, images, feature)
        if flat is None:
            maps = normalize_maps(self.encoder.encode_maps(images)[:, feature])
            shape = torch.tensor(maps.shape[1:]).expand(len(maps), 2)
            flat = self._keep(kind, images, feature, torch.cat([shape, maps.flatten(1)], dim=1))
        return flat[:, 2:].view(-1, int(flat[0, 0]), int(flat[0, 1]))

    def attacked(self, seen: Tensor, feature: int, iterations: int) -> Tensor | None:
        """Images (n, C, h, w) after an attack that was made before, or None."""
        flat = self._find(_attack(seen, iterations), seen, feature)
        return None if flat is None else flat.view(seen.shape)

    def keep_attacked(self, seen: Tensor, feature: int, iterations: int, moved: Tensor) -> Tensor:
        """Keep an attack, and return it as it will be found."""
        return self._keep(_attack(seen, iterations), seen, feature, moved.flatten(1)).view(seen.shape)

    def flush(self) -> None:
        """Write what is new."""
        for store in self._stores.values():
            store.flush()

    def _find(self, kind: str, images: Tensor, feature: int) -> Tensor | None:
        """Vectors of images for one feature, a row an image, or None if one is lacking."""
        if self.store is None:
            return None
        store, keys = self._beside(kind), _keys(images, feature)
        return None if store.missing(keys).any() else store.get(keys)

    def _keep(self, kind: str, images: Tensor, feature: int, vectors: Tensor) -> Tensor:
        """Put vectors into the store, and return them as it will give them."""
        if self.store is None:
            return vectors
        store, keys = self._beside(kind), _keys(images, feature)
        store.put(keys, vectors)
        return store.get(keys)

    def _beside(self, kind: str) -> EmbeddingStore:
        assert self.store is not None
        if kind not in self._stores:
            self._stores[kind] = self.store.beside(kind)
        return self._stores[kind]


def _keys(images: Tensor, feature: int) -> Tensor:
    return content_keys(images, salt=f"feature {feature}")


def _attack(seen: Tensor, iterations: int) -> str:
    return f"feature attacks on {tuple(seen.shape[1:])}, {iterations} steps"


@dataclass(frozen=True)
class Attacked:
    """The outcome of one attack.

    Attributes:
        images: (n, C, h, w) in [0, 1], or None.
        strength: (n,) of the feature afterwards, or None.
        iterations: Number of steps.
        note: Why there are no images; empty where there are.
    """

    images: Tensor | None = None
    strength: Tensor | None = None
    iterations: int = 0
    note: str = ""


def attack_features(
    views: FeatureViews, wanted: Sequence[tuple[int, Tensor]], deadline: Deadline | None = None
) -> list[Attacked]:
    """Attack one feature after the other, the most important first, each on all its images at once.

    Each gets an equal share of the time that is left, and the most steps (of ``LEVELS``, up to the paper's 500) that
    this allows; what does not even allow the fewest is left out. Attacks that were made before cost nothing.

    Args:
        views: The encoder and what is kept of earlier attacks.
        wanted: Features, each with images (n, C, h, w) as the encoder sees them.
        deadline: When to be over; by default ``PATIENT`` seconds from now.

    Returns:
        One outcome for each of ``wanted``.
    """
    encoder = views.encoder
    if not gives_gradients(encoder):
        return [Attacked(note="no feature attack: the encoder gives no gradients") for _ in wanted]
    deadline = Deadline.after(PATIENT) if deadline is None else deadline
    done: list[Attacked] = []
    try:
        with encoder.differentiable() as features, _bar(len(wanted)) as on_step:
            for feature, seen in wanted:
                queue = len(wanted) - len(done)
                done.append(_Attack(views, encoder, features, feature, seen, on_step).run(deadline, queue))
    except Exception as error:  # out of memory, an operation without gradient: the other pictures are worth as much
        why = f"feature attack left out: {type(error).__name__}: {str(error)[:200]}"
        done += [Attacked(note=why)] * (len(wanted) - len(done))
    return done


@dataclass(frozen=True)
class _Attack:
    """One feature on its images."""

    views: FeatureViews
    encoder: DifferentiableEncoder
    features: Callable[[Tensor], Tensor]
    feature: int
    seen: Tensor
    on_step: Callable[[int], object]

    def run(self, deadline: Deadline, queue: int) -> Attacked:
        """Look for it among those that were made, and make it where time allows, the most steps first."""
        most: int | None = None
        for iterations in LEVELS:
            moved = self.views.attacked(self.seen, self.feature, iterations)
            if moved is None:
                most = self._most(deadline, queue) if most is None else most
                fresh = self._make(iterations, deadline) if iterations <= most else None
                if fresh is None:
                    continue
                moved = self.views.keep_attacked(self.seen, self.feature, iterations, fresh.cpu())
            with torch.no_grad():
                strength = self.features(moved.to(self.encoder.device))[:, self.feature].cpu()
            return Attacked(moved, strength, iterations)
        return Attacked(note="feature attack left out: out of time")

    def _most(self, deadline: Deadline, queue: int) -> int:
        """The most steps that its share of the time allows; the fewest where at least these are possible; else 0."""
        begun = time.perf_counter()
        if self._make(_TRIAL, deadline) is None:
            return 0
        seconds = (time.perf_counter() - begun) / _TRIAL
        fitting = [level for level in LEVELS if level * seconds <= deadline.left / queue]
        return max(fitting, default=LEVELS[-1] if LEVELS[-1] * seconds <= deadline.left else 0)

    def _make(self, iterations: int, deadline: Deadline) -> Tensor | None:
        return feature_attack(
            self.features,
            self.seen.to(self.encoder.device),
            self.feature,
            iterations=iterations,
            deadline=deadline,
            on_step=lambda: self.on_step(ITERATIONS // iterations if iterations != _TRIAL else 0),
        )


@contextlib.contextmanager
def _bar(attacks: int) -> Iterator[Callable[[int], object]]:
    """A bar for long attacks."""
    total = attacks * ITERATIONS
    with tqdm(desc="FailureModes attacks features", total=total, delay=PROGRESS_DELAY, leave=False) as bar:
        yield bar.update
