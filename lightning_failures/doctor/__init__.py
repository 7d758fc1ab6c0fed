"""A look at a configuration before it is trained: what is in order, what is not, what it will cost.

:func:`examine` yields findings in the order in which they are told. It trains nothing, writes to temporary
folders only, and asks the network for nothing but weights that are not on this machine.

Files, each importing only from those above it::

    disk              Folders: may they be written, and is there room?
    findings          What a check finds, and how that is told: to people in lines of at most 100 characters, to
    reference_images  Pictures that can be drawn anywhere, with texts of which one is right: does an encoder know
    command           ``lightning-failures doctor``: findings as they come for people, or all of them in JSON for
    dry_run           A validation of a few batches by a Trainer of its own, in one process, which leaves nothing
    caption_checks    Captions: are there words for the classes, and does the encoder know pictures from words at
    data              Batches, images, ids and processes: what the callback would make of this validation set
    encoders          The frozen encoders: can they be had, without a network too, and are they steady?
    environment       Around the callback: installed versions, what others monitor, when it acts, loggers and their
    images            From the images that the model sees to those that an encoder sees
    interventions     Interventions: can they work through the training loader?
    costs             What a validation will cost: a few images are embedded, some classes fitted, and the rest is
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_failures.callback import FailureModes
from lightning_failures.doctor.caption_checks import check_captions, check_known_pictures
from lightning_failures.doctor.costs import check_cache, check_memory, check_time
from lightning_failures.doctor.data import check_batches, check_examples, check_processes
from lightning_failures.doctor.dry_run import CheckContext, check_rehearsal, quiet
from lightning_failures.doctor.encoders import check_encoder, check_robust_encoder
from lightning_failures.doctor.environment import check_loggers, check_monitors, check_schedule, check_versions
from lightning_failures.doctor.findings import Finding, problem, told
from lightning_failures.doctor.images import check_images
from lightning_failures.doctor.interventions import check_interventions

__all__ = ["CHECKS", "Finding", "examine", "quiet"]

CHECKS: dict[str, Callable[[CheckContext], Iterable[Finding]]] = {
    "versions": check_versions,
    "encoder": check_encoder,
    "robust encoder": check_robust_encoder,
    "batches": check_batches,
    "images": check_images,
    "example ids": check_examples,
    "captions": check_captions,
    "known pictures": check_known_pictures,
    "processes": check_processes,
    "interventions": check_interventions,
    "schedule": check_schedule,
    "monitors": check_monitors,
    "loggers": check_loggers,
    "cache": check_cache,
    "rehearsal": check_rehearsal,
    "time": check_time,
    "memory": check_memory,
}
"""In this order: later checks use what earlier ones have loaded and read."""


def examine(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    begin: Callable[[str], None] = lambda check: None,
) -> Iterator[Finding]:
    """Check everything that a run with this Trainer would need.

    Args:
        trainer: As configured, with :class:`~lightning_failures.FailureModes` among its callbacks. It does not run.
        model: Is validated on a few batches, by a Trainer of its own.
        datamodule: The data, unless the model brings its own.
        begin: Told the name of each check before it begins.
    """
    modes = next((one for one in trainer.callbacks if isinstance(one, FailureModes)), None)  # type: ignore[attr-defined]
    if modes is None:
        remedy = "callbacks: [{class_path: lightning_failures.FailureModes}] (see configs/digits.yaml)"
        yield replace(problem("There is no FailureModes among trainer.callbacks.", remedy), check="callback")
        return
    with tempfile.TemporaryDirectory(prefix="failures-doctor-", ignore_cleanup_errors=True) as folder:
        case = CheckContext(trainer, model, datamodule, modes, Path(folder))
        for name, check in CHECKS.items():
            begin(name)
            for finding in told(name, check, case):
                if finding.status == "problem":
                    case.problems.add(name)
                yield finding
