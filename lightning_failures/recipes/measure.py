"""Train one seed with the callback, and measure what the paper measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_failures.callback import AdvancedOptions, DataOptions, FailureModes
from lightning_failures.data.class_names import both_classes
from lightning_failures.encoders.base import Encoder, TextEncoder
from lightning_failures.encoders.frozen import first_line
from lightning_failures.errors import DataError
from lightning_failures.recipes.base import Found, Materials, Measured, Part, Setting
from lightning_failures.recipes.figures import (
    caption_figures,
    caption_texts,
    diagnosis_figures,
    focus_figures,
    judge,
    nearest_figures,
    test_figures,
)
from lightning_failures.recipes.training import KeepEarly, Trained, answer, batches, cached_embeddings, new_network


def measure(
    setting: Setting,
    *,
    seed: int,
    encoder: Encoder,
    output: Path,
    epochs: int | None = None,
    workers: int = 0,
    parts: Sequence[Part] = (),
    materials: Materials | None = None,
    quick: bool = False,
) -> Measured:
    """Train with the callback, judge what it found on the test set, and run the parts of the recipe.

    Args:
        setting: What is trained and analysed.
        seed: Seed of the weights, the order of the images and the analysis.
        encoder: Image and text encoder of the failure directions.
        output: Folder of the logs and the report.
        epochs: Number of epochs; None: the paper's.
        workers: Processes that load images.
        parts: Parts beside the main run.
        materials: Files that they need.
        quick: Whether a tenth of the data is used.

    Raises:
        DataError: A part of the data is empty, or the last validation was not analysed.
    """
    for name in ("train", "validation", "test"):
        if not len(getattr(setting, name)):
            raise DataError(f"No image is left for {name}: the data set is too small to be split as the recipe does.")
    trained, report = train(
        setting, seed=seed, encoder=encoder, output=output, epochs=epochs, workers=workers,
        materials=materials or Materials(), quick=quick,
    )  # fmt: skip
    found = Found(main_figures(trained), caption_texts(trained.result), notes=setting.notes)
    for part in parts:
        print(f"  {part.name}: {part.summary}", flush=True)
        found = found.and_then(_found(part, trained))
    return Measured(
        seed, dict(found.figures), report, setting.complete, found.notes, dict(found.texts), dict(found.files)
    )


def _found(part: Part, trained: Trained) -> Found:
    """Return what a part found; one that fails costs neither the main run nor the other parts."""
    try:
        return part.run(trained)
    except Exception as error:
        note = f"The part {part.name} failed: {type(error).__name__}: {first_line(error)}"
        print(f"  {note}", flush=True)
        return Found(notes=(note,))


def train(
    setting: Setting,
    *,
    seed: int,
    encoder: Encoder,
    output: Path,
    epochs: int | None,
    workers: int,
    materials: Materials,
    quick: bool,
    name: str | None = None,
) -> tuple[Trained, str]:
    """Train with the callback, and return the network with its verdicts on the test set, and the path of its report.

    Args:
        setting: What is trained and analysed.
        seed: Seed of the run.
        encoder: Encoder of the failure directions.
        output: Folder of the logs and the report.
        epochs: Number of epochs; None: the paper's.
        workers: Processes that load images.
        materials: Files of the user.
        quick: Whether a tenth of the data is used.
        name: Name of the run; None: by its seed.

    Raises:
        DataError: The last validation was not analysed.
    """
    plan = setting.schedule
    epochs = epochs or plan.epochs
    model = new_network(setting, seed)
    callback = FailureModes(
        encoder=encoder,
        class_names=setting.class_names,
        captions=setting.captions if isinstance(encoder, TextEncoder) else None,
        every_n_epochs=max(1, epochs // 5),
        reference=setting.reference,
        data=DataOptions(task="multilabel" if setting.multilabel else None, metadata=setting.metadata),
        advanced=AdvancedOptions(seed=seed, compare_methods=True),
    )
    early = KeepEarly(epochs)
    logger = TensorBoardLogger(output, name="", version=name or f"seed-{seed}")
    trainer = L.Trainer(
        max_epochs=epochs, logger=logger, callbacks=[callback, early], enable_model_summary=False,
        num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=output, enable_checkpointing=False,
    )  # fmt: skip
    validation = batches(setting.validation, setting, workers=workers)
    trainer.fit(model, batches(setting.train, setting, shuffle=True, workers=workers), validation)
    result = callback.last_report
    if result is None or result.directions is None:
        raise DataError("The last validation was not analysed; the warnings before this message say why.")
    device = trainer.strategy.root_device
    test = batches(setting.test, setting, workers=workers)
    answers = answer(model, test, device, multilabel=setting.multilabel)
    embeddings = cached_embeddings(encoder, test, setting)
    judged = judge(result, answers.labels, answers.probabilities, embeddings, multilabel=setting.multilabel)
    page = Path(str(logger.log_dir)) / "failures" / "report.html"
    trained = Trained(
        setting, model, early.weights, device, result, answers, embeddings, judged, encoder, seed, epochs, workers,
        output, quick, materials,
    )  # fmt: skip
    return trained, str(page.relative_to(output))


def main_figures(trained: Trained) -> dict[str, float]:
    """Return the figures of every recipe: of the test set, of captions and of the diagnosis."""
    setting, judged, hard = trained.setting, trained.judged, trained.setting.hard_in_test
    values, confidence, y, failed = (
        np.concatenate([getattr(one, name) for one in judged]) for name in ("values", "confidence", "labels", "failed")
    )
    figures = test_figures(values, confidence, y, failed, None if hard is None else np.tile(hard, len(judged)))
    for name in setting.focus:
        figures |= focus_figures(judged[setting.class_names.index(name)], both_classes(name), hard)
    figures |= caption_figures(trained.result, setting) | diagnosis_figures(trained.result)
    if isinstance(trained.encoder, TextEncoder):
        figures |= nearest_figures(trained.result, trained.encoder, trained.embeddings, judged)
    figures["accuracy"] = float(1 - np.mean([one.failed.mean() for one in judged]))
    return figures
