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
from lightning_failures.callback import AdvancedOptions, DataOptions, FailureModes
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.class_names import both_classes
from lightning_failures.data.grading import best_f1_threshold
from lightning_failures.encoders.base import Encoder, TextEncoder
from lightning_failures.encoders.cache.store import EmbeddingCache, embed
from lightning_failures.errors import DataError
from lightning_failures.recipes.base import Measured, Setting
from lightning_failures.recipes.network import Classifier

TOPS = (10, 50, 100)
NEAREST = 0.2
"""Share of the images of a class that count as nearest to a caption."""


@dataclass(frozen=True)
class Judged:
    """The test examples of one classification problem; a multilabel task has one for each condition.

    Attributes:
        labels: (n,) int, class indices of the failure directions.
        confidence: (n,) predicted probabilities of the labels.
        failed: (n,) bool.
        values: (n,) decision values; NaN in classes without a direction.
    """

    labels: IntArray
    confidence: FloatArray
    failed: BoolArray
    values: FloatArray


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
    model = Classifier(len(setting.class_names), setting.size, plan, multilabel=setting.multilabel)
    callback = FailureModes(
        encoder=encoder,
        class_names=setting.class_names,
        captions=setting.captions if hasattr(encoder, "encode_texts") else None,
        every_n_epochs=max(1, (epochs or plan.epochs) // 5),
        reference=setting.reference,
        data=DataOptions(task="multilabel" if setting.multilabel else None, metadata=setting.metadata),
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
    judged = judge(result, labels, probabilities, embeddings, multilabel=setting.multilabel)
    hard = setting.hard_in_test
    values, confidence, y, failed = (
        np.concatenate([getattr(one, name) for one in judged]) for name in ("values", "confidence", "labels", "failed")
    )
    figures = test_figures(values, confidence, y, failed, None if hard is None else np.tile(hard, len(judged)))
    for name in setting.focus:
        k = setting.class_names.index(name)
        figures |= _focus_figures(judged[k], both_classes(name), hard)
    figures |= caption_figures(result, setting) | diagnosis_figures(result)
    if isinstance(encoder, TextEncoder):
        figures |= nearest_figures(result, encoder, embeddings, judged)
    figures["accuracy"] = float(1 - np.mean([one.failed.mean() for one in judged]))
    page = Path(str(logger.log_dir)) / "failures" / "report.html"
    return Measured(seed, figures, str(page.relative_to(output)), setting.complete, setting.notes)


def judge(
    result: AnalysisResult, labels: Tensor, probabilities: FloatArray, embeddings: Tensor, *, multilabel: bool
) -> list[Judged]:
    """Return the verdicts and the decision values of test examples.

    Args:
        result: The analysis of validation. In a multilabel task it also gives the thresholds of best F1.
        labels: (n,) int, or (n, K) of 0 and 1 in a multilabel task.
        probabilities: (n, K).
        embeddings: (n, D).
        multilabel: Whether it is such a task.
    """
    assert result.directions is not None
    if not multilabel:
        y = labels.numpy().astype(np.int64)
        values = result.directions.decision_values(embeddings, labels).numpy()
        return [Judged(y, probabilities[np.arange(len(y)), y], probabilities.argmax(axis=1) != y, values)]
    judged = []
    for k, threshold in enumerate(_thresholds(result, probabilities.shape[1])):
        present, positive = labels[:, k].long(), probabilities[:, k]
        values = result.directions.decision_values(embeddings, 2 * k + present).numpy()
        y = present.numpy().astype(np.int64)
        judged.append(
            Judged(2 * k + y, np.where(y == 1, positive, 1 - positive), (positive >= threshold) != (y == 1), values)
        )
    return judged


def _thresholds(result: AnalysisResult, conditions: int) -> list[float]:
    """Return the threshold of best F1 of each condition in validation, as the callback uses it."""
    table = result.table
    assert table is not None
    assert table.confidence is not None
    present = table.labels % 2
    positive = torch.where(present == 1, table.confidence, 1 - table.confidence)
    of_condition = [table.labels // 2 == k for k in range(conditions)]
    return [best_f1_threshold(positive[rows], present[rows]) if rows.any() else 0.5 for rows in of_condition]


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
    for name, rows in (("flagged", flagged), ("failures", known & failed)):
        if rows.any():
            figures[f"hard among {name}"] = float(hard[rows].mean())
    rankings = {"": values, " by confidence": confidence}
    for top in TOPS:
        for name, ranking in rankings.items():
            shares = [hard[hardest_rows(-ranking, rows, top)].mean() for rows in _members(labels, known)]
            figures[f"hard in top {top}{name}"] = float(np.mean(shares))
    return figures


def _focus_figures(judged: Judged, names: tuple[str, str], hard: BoolArray | None) -> dict[str, float]:
    """Return the figures of both sides of one condition: without it, and with it."""
    figures: dict[str, float] = {}
    for side, name in enumerate(names):
        rows = judged.labels % 2 == side
        found = test_figures(
            judged.values[rows], judged.confidence[rows], judged.labels[rows], judged.failed[rows],
            None if hard is None else hard[rows],
        )  # fmt: skip
        figures |= {f"{key}: {name}": value for key, value in found.items()}
    return figures


def diagnosis_figures(result: AnalysisResult) -> dict[str, float]:
    """Return the share of each kind of failure among the classes that were diagnosed."""
    kinds = [entry.diagnosis.kind for entry in result.report.classes if entry.diagnosis is not None]
    return {f"diagnosed {kind}": kinds.count(kind) / len(kinds) for kind in dict.fromkeys(kinds)}


def nearest_figures(
    result: AnalysisResult, encoder: TextEncoder, embeddings: Tensor, judged: Sequence[Judged]
) -> dict[str, float]:
    """Return the error rates of the fifths of a class nearest to its hardest and its easiest caption.

    They are means over classes.

    Args:
        result: The analysis with the captions.
        encoder: Embeds them.
        embeddings: (n, D) of the test examples, unit vectors.
        judged: Their verdicts.
    """
    rates: dict[str, list[float]] = {"hardest": [], "easiest": []}
    for one in judged:
        for label in np.unique(one.labels):
            entry = result.report.classes[label]
            if not (entry.hardest_captions and entry.easiest_captions):
                continue
            rows = np.flatnonzero(one.labels == label)
            texts = encoder.encode_texts([entry.hardest_captions[0], entry.easiest_captions[0]])
            near = (embeddings[torch.from_numpy(rows)] @ texts.T.to(embeddings.dtype)).numpy()
            count = max(round(NEAREST * len(rows)), 1)
            for column, found in enumerate(rates.values()):
                found.append(float(one.failed[rows[np.argsort(-near[:, column], kind="stable")[:count]]].mean()))
    return {f"error rate nearest to the {end} caption": float(np.mean(some)) for end, some in rates.items() if some}


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
) -> tuple[Tensor, FloatArray, Tensor]:
    """Return labels (n,) or (n, K), predicted probabilities (n, K) and embeddings (n, D) of the test set."""
    model = model.to(device).eval()
    store = EmbeddingCache().store(encoder.fingerprint)
    mean, std = (torch.tensor(values)[:, None, None] for values in setting.statistics)
    labels, probabilities, keys = [], [], []
    for x, y in loader:
        labels.append(y)
        logits = model(x.to(device)).cpu().double()
        probabilities.append((logits.sigmoid() if setting.multilabel else logits.softmax(1)).numpy())
        keys.append(embed(encoder, store, (x * std + mean).clamp(0, 1)))
    store.flush()
    return torch.cat(labels), np.concatenate(probabilities), store.get(torch.cat(keys))
