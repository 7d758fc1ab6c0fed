"""A round of decisions without a Trainer, and generators that do as they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.bundled.digits import CLASSES
from lightning_failures.bundled.digits.captions import caption
from lightning_failures.bundled.digits.render import TINTS, Looks, draw_looks, render, source_digits, source_split
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.encoders import Encoder, load_encoder
from lightning_failures.interventions import Discovery, JudgedExamples

HARD, EASY = "red", "green"
PLANTED = (3, 7)
"""Digits that fail where they are red; all others are always right."""


@cache
def encoder() -> Encoder:
    return load_encoder("embedded:digits")


def digits(classes: list[int], tints: list[str], seed: int = 0) -> Tensor:
    """Rendered digits (N, 3, 32, 32) uint8 in the given tints, all else at random."""
    rng = np.random.default_rng(seed)
    sources, labels = source_split("train"), source_digits()[1]
    chosen = torch.tensor([int(rng.choice(sources[labels[sources] == k])) for k in classes])
    looks = draw_looks(len(classes), rng)
    tint = torch.tensor([list(TINTS).index(name) for name in tints])
    return render(source_digits()[0][chosen], Looks(tint, looks.background, looks.stroke, looks.posture), rng)


class Painter:
    """Renders the digit and tint that a prompt names; a prompt of no tint is green. Counts, and may fail or spoil."""

    name, licence = "painter", "MIT"

    def __init__(self, spoil: Callable[[int, Tensor], Tensor] | None = None, fails_at: int | None = None) -> None:
        self.spoil, self.fails_at = spoil, fails_at
        self.seeds: list[int] = []
        self.closed = 0

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:  # YAML wants the types
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            if len(self.seeds) == self.fails_at:
                raise RuntimeError("out of paint")
            digit = next((k for k, name in enumerate(CLASSES) if name in prompt.split()), 0)
            tint = next((name for name in TINTS if name in prompt.split()), EASY)
            image = digits([digit], [tint], seed)
            images.append(image if self.spoil is None else self.spoil(len(self.seeds), image))
            self.seeds.append(seed)
        return torch.cat(images)

    def close(self) -> None:
        self.closed += 1


class Decoder(Painter):
    """Paints the training digit whose embedding is nearest."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_fingerprint = encoder().fingerprint
        self.decoded: list[Tensor] = []

    def decode(self, embeddings, seeds):
        self.decoded.append(embeddings)
        tints = [tint for _ in PLANTED for tint in (HARD, EASY)] * 4
        images = digits([k for k in PLANTED for _ in range(2)] * 4, tints, int(seeds[0]))
        near = (embeddings @ encoder().encode_images(images.float() / 255).T).argmax(1)
        self.seeds += seeds
        return images[near]


@cache
def discovery() -> tuple[Discovery, FailureDirections]:
    """Forty digits of each planted class in either tint; the red ones fail."""
    classes = [k for k in PLANTED for _ in range(80)]
    tints = [HARD, EASY] * 80
    embeddings = encoder().encode_images(digits(classes, tints, seed=1).float() / 255)
    correct = torch.tensor([tint != HARD for tint in tints])
    labels, ids = torch.tensor(classes), torch.arange(160)
    found = fit_failure_directions(embeddings, labels, correct, ids=ids, permutations=99)
    return Discovery(embeddings, labels, correct, ids), found


def entry(k: int, **options: Any) -> ClassReport:
    known: dict[str, Any] = {
        "reference_caption": caption(CLASSES[k]),
        "hardest_captions": (caption(CLASSES[k], tint=HARD),),
        "easiest_captions": (caption(CLASSES[k], tint=EASY),),
    }
    return ClassReport(CLASSES[k], 80, pattern=k in PLANTED, **(known | options))


def report(**options: Any) -> FailureReport:
    entries = tuple(entry(k, **options) for k in range(10))
    return FailureReport(800, 0.9, entries, epoch=0)


@dataclass
class TestRound:
    """One process, no Trainer."""

    __test__ = False

    folder: Path
    epoch: int = 1
    seed: int = 0
    report: FailureReport = field(default_factory=report)
    progress: bool = False

    @property
    def encoder(self) -> Encoder:
        return encoder()

    @property
    def discovery(self) -> Discovery | None:
        return discovery()[0]

    def on_first(self, work):
        return work()

    def decision_values(self, images, labels):
        return discovery()[1].decision_values(encoder().encode_images(images.float() / 255), labels)

    def suspects(self, rows):
        raise AssertionError("not asked for")

    def pick(self, pool, view, **options):
        raise AssertionError("not asked for")


def examples(per_class: int = 40) -> JudgedExamples:
    reasons = tuple(None if k in PLANTED else "no pattern" for k in range(10))
    labels = np.repeat(np.arange(10), per_class)
    return JudgedExamples(labels, np.ones(len(labels), dtype=np.float32), CLASSES, reasons)
