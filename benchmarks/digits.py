"""Shared by the benchmarks on coloured digits: one training run, graded and embedded."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import Tensor

from lightning_failures.bundled.digits import TINTS, ColouredDigits, ColouredDigitsDataModule, DigitClassifier
from lightning_failures.captions.candidates import ClassCaptions, caption_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.data.grades import Grades
from lightning_failures.data.grading import grade_batch
from lightning_failures.encoders import OpenCLIPEncoder, load_encoder

Item = TypeVar("Item")


@dataclass(frozen=True)
class Split:
    """A graded split and its embeddings."""

    data: ColouredDigits
    grades: Grades
    embeddings: Tensor

    def unusual(self, class_index: int) -> Tensor:
        """(N,) bool: the digit has the tint that is unusual for its class."""
        planted = self.data.truth[class_index]
        tint = None if planted is None else planted["unusual_tint"]
        return torch.tensor([TINTS_OF[t] == tint for t in self.data.attributes.tint.tolist()])


TINTS_OF = list(TINTS)


def train(
    seed: int,
    shortcut: float,
    *,
    epochs: int = 6,
    val_size: int = 4000,
    prepare: Callable[[ColouredDigits], None] | None = None,
) -> tuple[DigitClassifier, ColouredDigitsDataModule]:
    """Run the demo's training without its callback; ``prepare`` can change the training set first."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(seed, verbose=False)
    data = ColouredDigitsDataModule(seed=seed, shortcut=shortcut, val_size=val_size)
    if prepare is not None:
        data.setup("fit")
        prepare(data.sets["train"])
    model = DigitClassifier()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
        ).fit(model, datamodule=data)
    data.setup("validate")
    data.setup("test")
    return model.eval(), data


def grade(model: DigitClassifier, data: ColouredDigits, encoder: OpenCLIPEncoder) -> Split:
    """Grade and embed a split."""
    logits, embeddings = [], []
    with torch.no_grad():
        for rows in torch.arange(len(data)).split(256):
            batch = torch.stack([data[i][0] for i in rows.tolist()])
            logits.append(model(batch))
            embeddings.append(encoder.encode_images(data.images[rows].float() / 255))
    rows = grade_batch(torch.cat(logits), torch.as_tensor(data.labels))
    grades = Grades(
        ids=torch.arange(len(data)),
        labels=rows.labels,
        predictions=rows.predictions,
        confidence=rows.confidence,
        class_names=tuple(data.classes),
        groups=torch.as_tensor(data.groups),
    )
    return Split(data, grades, torch.cat(embeddings))


def digits_captions(encoder: OpenCLIPEncoder) -> list[ClassCaptions]:
    """Return the embedded candidate captions of every class."""
    names = ColouredDigits("test", size=10).classes
    source = caption_source(encoder, CaptionVocabulary.load("digits"), names)
    found = [source(k) for k in range(len(names))]
    return [captions for captions in found if captions is not None]


def digits_encoder() -> OpenCLIPEncoder:
    """Return the packaged CLIP encoder."""
    encoder = load_encoder("embedded:digits")
    assert isinstance(encoder, OpenCLIPEncoder)
    return encoder


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Print the progress of a long benchmark."""
    for number, item in enumerate(items, 1):
        print(f"{what} {number}/{len(items)}: {item}", file=sys.stderr, flush=True)
        yield item


def read_options(description: str | None, *, seeds: Sequence[int], name: str) -> argparse.Namespace:
    """Read ``--seeds`` and ``--output`` (by default benchmarks/results/<name>.json) from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--output", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    return parser.parse_args()
