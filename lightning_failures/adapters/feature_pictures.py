"""What the features look for that rules mention: images, heat maps, attacks and a caption for each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_failures.adapters.training import PATIENCE
from lightning_failures.attacks import ITERATIONS, feature_attack
from lightning_failures.budget import Deadline
from lightning_failures.cache import EmbeddingStore, content_keys
from lightning_failures.encoders import DifferentiableEncoder, FeatureEncoder, gives_gradients
from lightning_failures.visuals import normalize_maps

__all__ = ["Attacked", "FeatureViews", "attack_features"]

LEVELS = (ITERATIONS, 200, 100, 50, 25)
"""Steps of an attack, as many as time allows; fewer are longer, so that all go as far."""

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

    def seen(self, images: Tensor) -> Tensor:
        """What heat maps belong on: (n, C, H, W) -> (n, C, h, w) in [0, 1]."""
        return self.encoder.view(images) if gives_gradients(self.encoder) else images

    def maps(self, images: Tensor, feature: int) -> Tensor:
        """The maps (n, h, w) of a feature, each stretched to [0, 1]."""

        def compute() -> Tensor:  # (n, h, w) -> (n, 2 + h * w): the shape goes with the values
            maps = normalize_maps(self.encoder.encode_maps(images)[:, feature])
            return torch.cat([torch.tensor(maps.shape[1:]).expand(len(maps), 2), maps.flatten(1)], dim=1)

        height, width = images.shape[2:]
        flat = self._kept(f"heat maps of {height}x{width}", images, f"feature {feature}", compute)
        assert flat is not None
        return flat[:, 2:].view(-1, int(flat[0, 0]), int(flat[0, 1]))

    def attacked(
        self, seen: Tensor, feature: int, iterations: int, compute: Callable[[], Tensor | None]
    ) -> Tensor | None:
        """Images (n, C, h, w) after an attack: as kept, or as computed; None where that gives None."""
        kind = f"feature attack of {tuple(seen.shape[1:])}, {iterations} steps"
        flat = self._kept(kind, seen, f"feature {feature}", lambda: None if (x := compute()) is None else x.flatten(1))
        return None if flat is None else flat.view(-1, *seen.shape[1:])

    def _kept(self, kind: str, images: Tensor, salt: str, compute: Callable[[], Tensor | None]) -> Tensor | None:
        """Vectors of images, one a row: from the store, else computed and put there."""
        if self.store is None or not len(images):
            return compute()
        store, keys = self.store.beside(kind), content_keys(images, salt=salt)
        if store.missing(keys).any():
            values = compute()
            if values is None:
                return None
            store.put(keys, values)
            store.flush()
        return store.get(keys)


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
    views: FeatureViews, wanted: Sequence[tuple[int, Tensor]], deadline: Deadline | None
) -> list[Attacked]:
    """Attack one feature after the other, the most important first, each on all its images at once.

    Without a deadline an attack has the paper's 500 steps. Else each gets an equal share of the time that is left, and
    the most steps (of ``LEVELS``) that it allows; what does not even allow the fewest is left out.

    Args:
        views: The encoder and what is kept of earlier attacks.
        wanted: Features, each with images (n, C, h, w) as the encoder sees them.
        deadline: When to be over.

    Returns:
        One outcome for each of ``wanted``.
    """
    encoder = views.encoder
    if not gives_gradients(encoder):
        return [Attacked(note="no feature attack: the encoder gives no gradients") for _ in wanted]
    done: list[Attacked] = []
    try:
        with encoder.differentiable() as features, _bar(len(wanted)) as step:
            for place, (feature, seen) in enumerate(wanted):
                done.append(_attack(views, encoder, features, feature, seen, deadline, len(wanted) - place, step))
    except Exception as error:  # out of memory, an operation without gradient: the other pictures are worth as much
        why = f"feature attack left out: {type(error).__name__}: {str(error)[:200]}"
        done += [Attacked(note=why)] * (len(wanted) - len(done))
    return done


def _attack(
    views: FeatureViews,
    encoder: DifferentiableEncoder,
    features: Callable[[Tensor], Tensor],
    feature: int,
    seen: Tensor,
    deadline: Deadline | None,
    queue: int,
    on_step: Callable[[int], object],
) -> Attacked:
    images = seen.to(encoder.device)
    levels = LEVELS if deadline is None else _affordable(features, images, feature, deadline, queue)
    for iterations in LEVELS:

        def compute(iterations: int = iterations) -> Tensor | None:
            if iterations not in levels:
                return None
            return feature_attack(
                features,
                images,
                feature,
                iterations=iterations,
                deadline=deadline,
                on_step=lambda: on_step(ITERATIONS // iterations),
            )

        moved = views.attacked(seen, feature, iterations, compute)
        if moved is not None:
            with torch.no_grad():
                strength = features(moved.to(encoder.device))[:, feature].cpu()
            return Attacked(moved.cpu(), strength, iterations)
    return Attacked(note="feature attack left out: out of time")


def _affordable(
    features: Callable[[Tensor], Tensor], images: Tensor, feature: int, deadline: Deadline, queue: int
) -> tuple[int, ...]:
    """The levels that fit into this attack's share of the time, or, if none does, the least if the time is there."""
    begun = time.perf_counter()
    if feature_attack(features, images, feature, iterations=_TRIAL, deadline=deadline) is None:
        return ()
    seconds = (time.perf_counter() - begun) / _TRIAL
    fitting = tuple(level for level in LEVELS if level * seconds <= deadline.left / queue)
    return fitting or (LEVELS[-1:] if LEVELS[-1] * seconds <= deadline.left else ())


@contextlib.contextmanager
def _bar(attacks: int) -> Iterator[Callable[[int], object]]:
    """A bar for long attacks."""
    total = attacks * ITERATIONS
    with tqdm(desc="FailureModes attacks features", total=total, delay=PATIENCE, leave=False) as bar:
        yield bar.update
