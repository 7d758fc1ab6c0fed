"""Pre-flight checks of a configuration: what works, what does not, and what it will cost.

:func:`examine` yields findings in the order of the checks. It trains nothing, writes to temporary folders only, and
uses the network only for weights that are not on this machine.

Files, each importing only from those above it::

    disk              Folders: whether they can be written, and how much room is left
    findings          The results of checks, formatted for people and for machines
    reference_images  Synthetic images with captions of which one is right, for testing an encoder
    command           ``lightning-failures doctor``: findings as text, one by one, or all of them as JSON
    dry_run           A validation of a few batches in a temporary folder, and the context that checks share
    caption_checks    Captions: whether classes have names in words, and the encoder matches images with captions
    data              Batches, example ids and processes: how the callback reads the validation set
    encoders          The frozen encoders: whether they can be loaded, offline too, and are deterministic
    environment       Installed versions, monitored keys, schedule, and loggers with their limits
    images            From the images of the model to those of the encoders: normalisation and preprocessing
    interventions     Interventions: whether they can work through the training loader
    copies            Images of the training set in the validation set, and images that it holds twice
    methods           Methods that were added to the built-in ones
    costs             Time, memory and cache space of the analyses, from measurements on a few images and classes
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_failures.callback import FailureModes
from lightning_failures.doctor.caption_checks import check_captions, check_known_pictures
from lightning_failures.doctor.copies import check_copies
from lightning_failures.doctor.costs import check_cache, check_memory, check_time
from lightning_failures.doctor.data import check_batches, check_examples, check_processes
from lightning_failures.doctor.dry_run import CheckContext, check_dry_run, quiet
from lightning_failures.doctor.encoders import check_encoder, check_robust_encoder
from lightning_failures.doctor.environment import check_loggers, check_monitors, check_schedule, check_versions
from lightning_failures.doctor.findings import Finding, problem, run_check
from lightning_failures.doctor.images import check_images
from lightning_failures.doctor.interventions import check_class_lists, check_interventions
from lightning_failures.doctor.methods import check_methods

__all__ = ["CHECKS", "Finding", "examine", "quiet"]

CHECKS: dict[str, Callable[[CheckContext], Iterable[Finding]]] = {
    "versions": check_versions,
    "encoder": check_encoder,
    "robust encoder": check_robust_encoder,
    "batches": check_batches,
    "images": check_images,
    "example ids": check_examples,
    "copies": check_copies,
    "captions": check_captions,
    "known pictures": check_known_pictures,
    "methods": check_methods,
    "processes": check_processes,
    "class lists": check_class_lists,
    "interventions": check_interventions,
    "schedule": check_schedule,
    "monitors": check_monitors,
    "loggers": check_loggers,
    "cache": check_cache,
    "dry run": check_dry_run,
    "time": check_time,
    "memory": check_memory,
}
"""The checks in order; later ones use what earlier ones have loaded and read."""


def examine(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    begin: Callable[[str], None] = lambda check: None,
) -> Iterator[Finding]:
    """Check everything that a run with this Trainer needs.

    Args:
        trainer: The configured Trainer, with :class:`~lightning_failures.FailureModes` among its callbacks. It is only
            inspected.
        model: The model; a temporary Trainer validates it on a few batches.
        datamodule: The data, unless the model has its own data loaders.
        begin: Called with the name of each check before it starts.
    """
    callback = next((one for one in trainer.callbacks if isinstance(one, FailureModes)), None)  # type: ignore[attr-defined]
    if callback is None:
        remedy = "callbacks: [{class_path: lightning_failures.FailureModes}] (see configs/digits.yaml)"
        yield replace(problem("There is no FailureModes among trainer.callbacks.", remedy), check="callback")
        return
    with tempfile.TemporaryDirectory(prefix="failures-doctor-", ignore_cleanup_errors=True) as folder:
        context = CheckContext(trainer, model, datamodule, callback, Path(folder))
        for name, check in CHECKS.items():
            begin(name)
            for finding in run_check(name, check, context):
                if finding.status == "problem":
                    context.problems.add(name)
                yield finding
