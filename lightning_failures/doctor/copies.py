"""Copies: images of the training set in the validation set, and images that the validation set holds twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.data.digests import UNKNOWN_DIGEST, image_digests
from lightning_failures.doctor.dry_run import UNSOLVED, CheckContext
from lightning_failures.doctor.findings import Finding, ok, skipped, warning
from lightning_failures.doctor.interventions import training_loader
from lightning_failures.steering.training_view import training_view
from lightning_failures.trainer.example_reader import ExampleReader

MAX_IMAGES = 4000
"""Maximum number of images of each set that are compared, chosen by the hash of their index."""

SECONDS = 15.0
"""Time for reading the images of one set."""

_AT_ONCE = 64


def check_copies(context: CheckContext) -> Iterator[Finding]:
    """Count exact copies of training images in the validation set, and copies within it, by digest."""
    notes = context.first
    if "images" in context.problems:
        yield skipped(UNSOLVED)
        return
    if notes is None or notes.images is None or not notes.size or notes.grader is None or not notes.grader.indexed:
        yield skipped("images of the validation set cannot be read by index")
        return
    found = _digests(context.example_reader(0), notes.size, context)
    compared = f"{len(found):,} of {notes.size:,}" if len(found) < notes.size else f"{notes.size:,}"
    repeated = len(found) - len(torch.unique(found))
    if repeated:
        yield warning(
            f"{repeated:,} of {compared} validation images are exact copies of another one. Copies are one source.",
            "Remove them, if they are not there on purpose.",
            repeated=repeated,
        )

    # the training set, through the transform of validation where there is one
    try:
        view = training_view(
            context.dry_run_trainer or context.trainer,
            training_loader(context),
            context.reader,
            seed=context.callback.seed,
        )
    except Exception as error:
        yield skipped(f"no training images to compare with: {error}")
        return
    if view.looks_random:
        yield skipped(
            "Training images have random transforms, so copies of them cannot be found. Give the datamodule a"
            " train_analysis_dataset, with the transform of validation, to count them."
        )
        return
    training = _digests(view.reader, len(view), context)
    leaked = int(torch.isin(found, training).sum())
    pairs = f"{compared} validation images and {len(training):,} of {len(view):,} training images were compared"
    if leaked:
        yield warning(
            f"{leaked:,} validation images are also training images ({pairs}), so accuracy is too high.",
            "Remove them from one of the two sets.",
            leaked=leaked,
        )
    elif not repeated:
        yield ok(f"no exact copies: {pairs}", leaked=0)


def _digests(examples: ExampleReader, size: int, context: CheckContext) -> Tensor:
    """Return the known digests of a sample of the examples, as many as there is time for."""
    order = np.argsort(stable_hash(np.arange(size), context.callback.seed), kind="stable")
    ids: Sequence[int] = np.sort(order[:MAX_IMAGES]).tolist()
    deadline = Deadline.after(SECONDS)
    found = [torch.empty(0, dtype=torch.int64)]
    with isolated_rng():
        seed_all(context.callback.seed)
        for start in range(0, len(ids), _AT_ONCE):
            if deadline.passed:
                break
            images = examples.images(ids[start : start + _AT_ONCE])
            found += [image_digests(image[None]) for image in images]
    digests = torch.cat(found)
    return digests[digests != UNKNOWN_DIGEST]
