"""Interventions: whether they can work through the training loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from lightning_failures.doctor.disk import bytes_text
from lightning_failures.doctor.dry_run import UNSOLVED, CheckContext, options_of
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.encoders.cache.shard_file import bytes_per_embedding
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.steering.class_order import in_class_order
from lightning_failures.steering.controller import InterventionController
from lightning_failures.steering.last_layer import find_last_layer
from lightning_failures.steering.loader_patch import original_dataset
from lightning_failures.steering.training_view import ExamplesView, training_view
from lightning_failures.trainer.dataset_attributes import class_list_problem, dataset_class_names
from lightning_failures.trainer.reading_ways import VIEW


def check_interventions(context: CheckContext) -> Iterator[Finding]:
    """Check that interventions can work through the training loader."""
    callback = context.callback
    if not callback.interventions:
        yield skipped("none are configured")
        return
    lottery = options_of(callback)["verdict"] == "lottery"
    controller = InterventionController(callback, context.reader, lottery=lottery, say_once=lambda *_: None)
    state = context.trainer.state.fn
    context.trainer.state.fn = TrainerFn.FITTING  # some conditions are checked in training only
    try:
        controller.check(context.trainer)
    finally:
        context.trainer.state.fn = state
    controller.check_encoder(context.cached_encoders.get("directions"), context.model)
    loader = training_loader(context)
    names = ", ".join(type(one).__name__ for one in callback.interventions)
    if context.dry_run_trainer is None:
        yield skipped(UNSOLVED)
        return
    view = training_view(context.dry_run_trainer, loader, context.reader, seed=callback.seed)
    if view.doubt is not None:
        yield warning(f"{names}: training images: {view.doubt}")
    if view.looks_random:
        yield warning(
            f"{names}: training images have random transforms, so each is judged by one random version.",
            f"Give the datamodule a {VIEW} with the same examples and the transform of validation.",
        )
    yield from _last_layers(context, view)
    yield ok(f"{names}: through {type(loader).__name__} over {type(view.dataset).__name__}, {len(view):,} examples")


def _last_layers(context: CheckContext, view: ExamplesView) -> Iterator[Finding]:
    """Check the last layer that interventions would refit, by one batch of the training set."""
    assert context.dry_run_trainer is not None
    for one in context.callback.interventions:
        if not one.refits_last_layer:
            continue
        try:
            name, layer = find_last_layer(context.dry_run_trainer, view, getattr(one, "head", None))
        except (ConfigurationError, DataError) as error:
            yield problem(f"{type(one).__name__}: {error}")
            continue
        disk = bytes_text(len(view) * bytes_per_embedding(layer.in_features))
        yield ok(
            f"{type(one).__name__}: last layer {name!r} with {layer.in_features:,} features and {layer.out_features:,}"
            f" outputs; the features of the training set take {disk} on disk until the run ends"
        )


def _problem_of_pools(context: CheckContext, training_set: Any) -> str | None:
    """Return why a pool cannot be matched to the classes of the training set by their names; None if all can."""
    for one in context.callback.interventions:
        try:
            in_class_order(getattr(one, "pool", None), dataset_class_names(training_set))
        except ConfigurationError as error:
            return f"{one}: {error}"
    return None


def check_class_lists(context: CheckContext) -> Iterator[Finding]:
    """Check that training and validation number their classes alike, and that pools have classes of these names."""
    notes = context.first
    if notes is None or dataset_class_names(notes.dataset) is None:
        yield skipped("the validation set has no class names" if notes else "no batches were read")
        return
    try:
        others = {"training set": original_dataset(training_loader(context))}
    except Exception as error:  # of the user's train_dataloader; training itself reports it
        yield skipped(f"the training set cannot be read ({type(error).__name__})")
        return
    found = class_list_problem(notes.dataset, others) or _problem_of_pools(context, others["training set"])
    if found is not None:
        yield problem(found) if context.callback.interventions else warning(found)
        return
    compared = [what for what, dataset in others.items() if dataset_class_names(dataset) is not None]
    if compared:
        yield ok(f"the validation set and the {', the '.join(compared)} have the same classes in the same order")
    else:
        yield skipped("the training set has no class names")


def training_loader(context: CheckContext) -> DataLoader[Any]:
    """Return the only training loader.

    Raises:
        DataError: There are several.
    """
    source: Any = context.model if context.datamodule is None else context.datamodule
    if context.datamodule is not None:  # the dry run has torn the datamodule down
        context.datamodule.setup("fit")
    loaders = CombinedLoader(source.train_dataloader(), "min_size").flattened
    if len(loaders) != 1:
        raise DataError(f"There are {len(loaders)} training loaders; interventions work through one.")
    return loaders[0]  # type: ignore[no-any-return]
