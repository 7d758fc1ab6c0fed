"""Interventions: can they work through the training loader?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from lightning_failures.doctor.dry_run import CheckContext, options_of
from lightning_failures.doctor.findings import Finding, ok, skipped, warning
from lightning_failures.errors import DataError
from lightning_failures.steering.controller import InterventionController
from lightning_failures.steering.training_view import VIEW, training_view


def check_interventions(case: CheckContext) -> Iterator[Finding]:
    """Whether interventions can work through the training loader."""
    modes = case.modes
    if not modes.interventions:
        yield skipped("none are configured")
        return
    options = options_of(modes)
    steering = InterventionController(
        modes.interventions,
        reader=case.reader,
        seed=modes.seed,
        groups_from=modes.groups_from,
        auto_rollback=modes.auto_rollback,
        lottery=options["verdict"] == "lottery",
        say_once=lambda *_: None,
    )
    state = case.trainer.state.fn
    case.trainer.state.fn = TrainerFn.FITTING  # some conditions hold for training only
    try:
        steering.check(case.trainer)
    finally:
        case.trainer.state.fn = state
    steering.check_encoder(case.cached_encoders.get("directions"), case.model)
    loader = training_loader(case)
    names = ", ".join(type(one).__name__ for one in modes.interventions)
    view = training_view(case.rehearsed or case.trainer, loader, case.reader, seed=modes.seed)
    if view.looks_random():
        yield warning(
            f"{names}: training images are seen through random transforms, so they are judged as they happen to look.",
            f"Give the datamodule a {VIEW}: the same examples through the transform of validation.",
        )
    yield ok(f"{names}: through {type(loader).__name__} over {type(view.dataset).__name__}, {len(view):,} examples")


def training_loader(case: CheckContext) -> DataLoader[Any]:
    """The training loader, or what stands in its place."""
    source: Any = case.model if case.datamodule is None else case.datamodule
    if case.datamodule is not None:  # the rehearsal has torn down what it had set up
        case.datamodule.setup("fit")
    loaders = CombinedLoader(source.train_dataloader(), "min_size").flattened
    if len(loaders) != 1:
        raise DataError(f"There are {len(loaders)} training loaders; interventions work through one.")
    return loaders[0]  # type: ignore[no-any-return]
