"""Train one seed, and measure what the paper measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.baselines.ranking import hardest_rows
from lightning_failures.callback import AdvancedOptions, FailureModes
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.encoders.base import Encoder
from lightning_failures.encoders.cache.store import EmbeddingCache, embed
from lightning_failures.errors import DataError
from lightning_failures.recipes.base import Setting
from lightning_failures.recipes.network import Classifier

TOPS = (10, 50, 100)


@dataclass(frozen=True)
class Measured:
    """What one seed gave.

    Attributes:
        seed: The seed.
        figures: Measurements by name, in [0, 1].
        report: Path of the HTML report of the run.
        complete: Whether the data were those of the paper, all of them.
        notes: Sentences on what departs from the paper.
    """

    seed: int
    figures: dict[str, float]
    report: str
    complete: bool
    notes: tuple[str, ...]


def measure(
    setting: Setting, *, seed: int, encoder: Encoder, output: Path, epochs: int | None = None, workers: int = 0
) -> Measured:
    """Train with the callback, and judge what it found on the test set.

    Args:
        setting: What is trained and analysed.
        seed: Seed of the weights, the order of the images and the analysis.
        encoder: Image and text encoder of the failure directions.
        output: Folder of the logs and the report.
        epochs: Number of epochs; None: the paper's.
        workers: Processes that load images.

    Raises:
        DataError: A part is empty, or the last validation was not analysed.
    """
    for name in ("train", "validation", "test"):
        if not len(getattr(setting, name)):
            raise DataError(f"No image is left for {name}: the data set is too small to be split as the recipe does.")
    L.seed_everything(seed, verbose=False)
    plan = setting.schedule
    model = Classifier(len(setting.class_names), setting.size, plan)
    callback = FailureModes(
        encoder=encoder,
        class_names=setting.class_names,
        captions=setting.captions if hasattr(encoder, "encode_texts") else None,
        every_n_epochs=max(1, (epochs or plan.epochs) // 5),
        advanced=AdvancedOptions(seed=seed, compare_methods=True),
    )

    def loader(data: Any, *, shuffle: bool = False) -> DataLoader[Any]:
        size = min(plan.batch_size, len(data))
        return DataLoader(data, size, shuffle=shuffle, drop_last=shuffle, num_workers=workers)

    logger = TensorBoardLogger(output, name="", version=f"seed-{seed}")
    trainer = L.Trainer(
        max_epochs=epochs or plan.epochs, logger=logger, callbacks=[callback], enable_model_summary=False,
        num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=output, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, loader(setting.train, shuffle=True), loader(setting.validation))
    result = callback.last_report
    if result is None or result.directions is None:
        raise DataError("The last validation was not analysed; the warnings before this message say why.")
    device = trainer.strategy.root_device
    labels, probabilities, embeddings = _judge(model, loader(setting.test), device, encoder, setting)
    values = result.directions.decision_values(embeddings, torch.from_numpy(labels)).numpy()
    confidence = probabilities[np.arange(len(labels)), labels]
    failed = probabilities.argmax(axis=1) != labels
    figures = test_figures(values, confidence, labels, failed, setting.hard_in_test)
    figures |= caption_figures(result, setting)
    figures["accuracy"] = float(1 - failed.mean())
    page = Path(str(logger.log_dir)) / "failures" / "report.html"
    return Measured(seed, figures, str(page.relative_to(output)), setting.complete, setting.notes)


def test_figures(
    values: FloatArray, confidence: FloatArray, labels: IntArray, failed: BoolArray, hard: BoolArray | None
) -> dict[str, float]:
    """Return the figures of the test set.

    Args:
        values: (n,) decision values; NaN in classes without a direction, which do not count.
        confidence: (n,) predicted probabilities of the labels.
        labels: (n,) int.
        failed: (n,) bool.
        hard: (n,) bool, the group that training under-represents, or None.

    >>> values, labels = np.array([-1.0, -0.5, 0.5, 1.0]), np.zeros(4, int)
    >>> failed = hard = np.array([True, False, False, False])
    >>> found = test_figures(values, 1 - failed, labels, failed, hard)
    >>> found["error rate of flagged"], found["hard among flagged"], found["hard in all"]
    (0.5, 0.5, 0.25)
    """
    known = np.isfinite(values)
    flagged, others = known & (values < 0), known & (values >= 0)
    figures = {}
    if flagged.any() and others.any():
        figures["error rate of flagged"] = float(failed[flagged].mean())
        figures["error rate of others"] = float(failed[others].mean())
    if hard is None or not known.any():
        return figures
    figures["hard in all"] = float(hard[known].mean())
    if flagged.any():
        figures["hard among flagged"] = float(hard[flagged].mean())
    rankings = {"": values, " by confidence": confidence}
    for top in TOPS:
        for name, ranking in rankings.items():
            shares = [hard[hardest_rows(-ranking, rows, top)].mean() for rows in _members(labels, known)]
            figures[f"hard in top {top}{name}"] = float(np.mean(shares))
    return figures


def caption_figures(result: AnalysisResult, setting: Setting) -> dict[str, float]:
    """Return in which share of the classes the hardest caption, or one of the two hardest, names the hard group."""
    words = setting.hard_words or {}
    captioned = [
        (entry, words[k]) for k, entry in enumerate(result.report.classes) if entry.hardest_captions and k in words
    ]
    if not captioned:
        return {}
    ranks = [_names(entry.hardest_captions, some) for entry, some in captioned]
    return {
        "hard caption first": float(np.mean([1 in found for found in ranks])),
        "hard caption in two": float(np.mean([bool({1, 2} & found) for found in ranks])),
    }


def _names(captions: Sequence[str], words: Sequence[str]) -> set[int]:
    """Return the ranks, from 1, of the captions that hold one of the words."""
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, words)) + r")\b")
    return {rank for rank, caption in enumerate(captions, 1) if pattern.search(caption)}


def _members(labels: IntArray, known: BoolArray) -> list[IntArray]:
    return [np.flatnonzero(known & (labels == label)) for label in np.unique(labels[known])]


@torch.no_grad()
def _judge(
    model: Classifier, loader: DataLoader[Any], device: torch.device, encoder: Encoder, setting: Setting
) -> tuple[IntArray, FloatArray, Tensor]:
    """Return the labels (n,), the predicted probabilities (n, K) and the embeddings (n, D) of the test set."""
    model = model.to(device).eval()
    store = EmbeddingCache().store(encoder.fingerprint)
    mean, std = (torch.tensor(values)[:, None, None] for values in setting.statistics)
    labels, probabilities, keys = [], [], []
    for x, y in loader:
        labels.append(y.numpy())
        probabilities.append(model(x.to(device)).softmax(1).cpu().double().numpy())
        keys.append(embed(encoder, store, (x * std + mean).clamp(0, 1)))
    store.flush()
    return np.concatenate(labels).astype(np.int64), np.concatenate(probabilities), store.get(torch.cat(keys))
