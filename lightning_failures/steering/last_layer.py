"""The last layer of the model that is trained: what must hold to refit it, its features, and its new weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_failures.core.arrays import as_array
from lightning_failures.core.atomic import replacing
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.held_out import HeldOutSplit
from lightning_failures.encoders.cache.store import EmbeddingStore
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.base import HeadExamples, LastLayer, NewHead
from lightning_failures.steering.training_view import FLUSH_EVERY, ROWS, ExamplesView
from lightning_failures.trainer.epoch_end import LoaderAnalysis
from lightning_failures.trainer.example_reader import ExampleReader, ReadExamples
from lightning_failures.trainer.feature_store import FeatureStore, StoredFeatures
from lightning_failures.trainer.penultimate import PenultimateBatch, penultimate_batches
from lightning_failures.trainer.ranks import Communicator, exchange_by_id
from lightning_failures.trainer.step_logits import StepLogits

REMEDY = "Give the model a last layer nn.Linear with a bias, or leave out the intervention that refits it."

_BATCH = 32  # examples that the model is shown at once, if the validation loader does not say
_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}  # of logits, relative to the largest; others 5e-3


@dataclass(frozen=True)
class LastLayerReader:
    """Reads the last layer and penultimate features after an analysis.

    Attributes:
        trainer: The Trainer.
        ranks: The processes.
        store: The features of the training set.
        view: Reads the training set.
        analysis: The analysis of the validation set.
        classes: Number of classes.
        seed: Seed of random transforms.
        slice_of: Returns the ids of the frozen slice in the grades of a part, or None.
        drops_harmful: Whether a new layer that does harm on the decision part is to be dropped.
    """

    trainer: Trainer
    ranks: Communicator
    store: FeatureStore
    view: ExamplesView
    analysis: LoaderAnalysis
    classes: int
    seed: int
    slice_of: Callable[[Grades], Tensor | None]
    drops_harmful: bool

    def read(
        self,
        head: str | None,
        labels: IntArray,
        values: NDArray[np.float32],
        keys: NDArray[np.int64],
        groups: NDArray[Any] | None,
        *,
        spend_validation: bool,
        discovery: bool = False,
    ) -> LastLayer | None:
        """Return the last layer with its examples on the first process, None on the others. Collective.

        Args:
            head: Name of the last layer, or None to find it.
            labels: (N,) labels of the training examples; a negative one takes no part.
            values: (N,) their decision values.
            keys: (N, 2) their cache keys.
            groups: (N,) names of their sources, or None.
            spend_validation: Whether to fit to the spent part of the validation set.
            discovery: Whether to read the discovery part too.

        Raises:
            ConfigurationError: The last layer cannot be refitted, with the remedy.
        """
        parts = self.analysis.result.parts
        assert parts is not None
        rows = np.flatnonzero(labels >= 0)
        name, layer = self.ranks.run_all(
            lambda: find_last_layer(self.trainer, self.view, head, rows=rows, classes=self.classes)
        )
        if spend_validation:
            if parts.spent is None or not len(parts.spent.grades):
                raise DataError("data='validation': no example of the validation set is left to spend.")
            fitting = self._held_out(name, layer.in_features, parts.spent)
        else:
            fitting = self._training(name, layer.in_features, rows, labels, values, keys, groups)
        report = self._held_out(name, layer.in_features, parts.report)
        decision = self._held_out(name, layer.in_features, parts.decision) if self.drops_harmful else None
        found: HeadExamples | None = None
        if discovery:
            analysed = self.analysis.analysed
            found = self._held_out(name, layer.in_features, HeldOutSplit(analysed, torch.full((len(analysed),), nan)))
        if not self.ranks.is_first:
            return None
        if fitting is None:
            raise ConfigurationError(
                "data='validation' reads the validation set again by dataset index, but its batches have"
                " ids of their own. Leave ids out of the batches, or fit to the training set: data='train'."
            )
        weight, bias = (one.detach().cpu().double().numpy() for one in (layer.weight, layer.bias))
        one_logit = len(bias) == 1
        if one_logit:
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        kind, device = layer.weight.dtype, layer.weight.device
        return LastLayer(NewHead(name, weight, bias), one_logit, kind, device, fitting, report, decision, found)

    def _training(
        self,
        head: str,
        dim: int,
        rows: IntArray,
        labels: IntArray,
        values: NDArray[np.float32],
        keys: NDArray[np.int64],
        groups: NDArray[Any] | None,
    ) -> HeadExamples | None:
        """Compute the features of this rank's share of the training set, and gather all on the first process."""
        ranks = self.ranks
        all_keys = torch.from_numpy(keys)

        def compute() -> EmbeddingStore:
            store = store_of_model(self.trainer, self.store, head)
            mine = rows[ranks.rank :: ranks.world_size]
            mine = mine[_missing(store, all_keys[torch.from_numpy(mine)])]
            unflushed = 0
            batches = self.view.model_batches(mine.tolist())
            with features_of_batches(self.trainer, self.view.reader, batches, head, self.classes) as parts:
                for part in parts:
                    store.put(all_keys[part.ids], part.features)
                    unflushed += len(part.ids)
                    if unflushed >= FLUSH_EVERY:
                        store.flush()
                        unflushed = 0
            store.flush()
            return store

        store = ranks.run_all(compute)
        if ranks.world_size > 1:
            of_rank = np.arange(len(rows)) % ranks.world_size
            gather_features(ranks, store, all_keys[torch.from_numpy(rows)], of_rank, dim)
        if not ranks.is_first:
            return None
        rows = rows[~_missing(store, all_keys[torch.from_numpy(rows)])]
        if not len(rows):
            raise DataError("No training example has finite penultimate features.")
        return HeadExamples(
            StoredFeatures(store, all_keys[torch.from_numpy(rows)]),
            labels[rows],
            rows,
            None if groups is None else groups[rows],
            values[rows],
            np.zeros(len(rows), dtype=np.bool_),
        )

    def _held_out(self, head: str, dim: int, part: HeldOutSplit) -> HeadExamples | None:
        """Return the examples of one part of the validation set on the first process, None on the others. Collective.

        None on all processes if the ids are no indices of the dataset, or the part is empty.
        """
        if not self.analysis.evaluation.grader.indexed or not len(part.grades):
            return None
        ranks, grades = self.ranks, part.grades
        reader = ExampleReader.of_loader(
            self.trainer, self.analysis.loader, self.analysis.index, self.view.reader.reader
        )
        size = getattr(self.analysis.loader, "batch_size", None) or _BATCH

        def compute() -> tuple[Tensor, Tensor]:
            mine = grades.ids[ranks.rank :: ranks.world_size].tolist()
            ids, features = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dim)]
            batches = reader.read(mine, at_once=size, seed=self.seed)
            with features_of_batches(self.trainer, reader, batches, head, self.classes) as parts:
                for batch in parts:
                    ids.append(batch.ids)
                    features.append(batch.features)
            return torch.cat(ids), torch.cat(features)

        ids, features = ranks.run_all(compute)
        all_ids, all_features = ranks.gather_rows(ids, to=0), ranks.gather_rows(features, to=0)
        if all_ids is None or all_features is None:
            return None
        order = torch.argsort(all_ids)
        place = torch.searchsorted(all_ids[order], grades.ids).clamp(max=max(len(order) - 1, 0))
        known = as_array(all_ids[order][place] == grades.ids)  # others could not be read again
        found = as_array(all_features[order][place])
        usable = known & np.isfinite(found).all(axis=1)
        frozen = self.slice_of(grades)
        in_slice = torch.zeros(len(grades), dtype=torch.bool) if frozen is None else torch.isin(grades.ids, frozen)
        return HeadExamples(
            found[usable],
            as_array(grades.labels)[usable],
            as_array(grades.ids)[usable],
            None if grades.groups is None else as_array(grades.groups)[usable],
            as_array(part.values)[usable],
            as_array(in_slice)[usable],
        )


def store_of_model(trainer: Trainer, features: FeatureStore, head: str) -> EmbeddingStore:
    """Return the store of the penultimate features of the trained model, for its weights of now."""
    precision = type(trainer.precision_plugin).__name__
    return features.of_weights(trainer.lightning_module, head, precision=f"{precision} {trainer.precision}")


def gather_features(ranks: Communicator, store: EmbeddingStore, keys: Tensor, of_rank: IntArray, dim: int) -> None:
    """Send the first process, block by block, the features that it does not find on its disk. Collective.

    Args:
        ranks: The processes.
        store: The store of each process.
        keys: (n, 2) int64, the same on all processes.
        of_rank: (n,) int64, the process that has computed each.
        dim: Width of the features.
    """
    if ranks.is_first:
        store.refresh()
    lacking: IntArray = ranks.broadcast(np.flatnonzero(_missing(store, keys)))  # those of the first
    mine = torch.from_numpy(np.flatnonzero(of_rank == ranks.rank))
    mine = mine[~torch.from_numpy(_missing(store, keys[mine]))]

    def rows_of(chosen: Tensor) -> Tensor:
        return store.get(keys[mine[chosen]]) if bool(chosen.any()) else torch.empty(0, dim)

    no_ids = [torch.empty(0, dtype=torch.int64)] * (ranks.world_size - 1)
    for start in range(0, len(lacking), ROWS):
        wanted = torch.from_numpy(lacking[start : start + ROWS])
        found = exchange_by_id(ranks, mine, rows_of, [wanted, *no_ids])
        if ranks.is_first and found is not None:
            store.put(keys[wanted], found)  # rows that no process has are NaN, and left out
    ranks.run_all(store.flush if ranks.is_first else lambda: None)


def find_last_layer(
    trainer: Trainer, view: ExamplesView, head: str | None, *, rows: IntArray | None = None, classes: int | None = None
) -> tuple[str, nn.Linear]:
    """Return the name of the last layer and the layer, checked by one batch of the training set.

    Args:
        trainer: The Trainer.
        view: Reads the training set.
        head: Name of the last layer, or None to find it.
        rows: (n,) examples to choose the batch from; None: all.
        classes: Number of classes, if it is known.

    Raises:
        ConfigurationError: The layer cannot be refitted, with the remedy.
        DataError: No example can be read.
    """
    module = trainer.lightning_module
    some = (np.arange(len(view)) if rows is None else rows)[: view.batch_size].tolist()
    with features_of_batches(trainer, view.reader, view.model_batches(some), head, classes) as parts:
        batch = next(parts, None)
    if batch is None:
        raise DataError("No training example can be read, so the last layer cannot be refitted.")
    layer: Any = dict(module.named_modules())[batch.head]
    check_last_layer(module, batch.head, layer)
    check_linear(batch, layer, classes=classes)
    return batch.head, layer


@contextmanager
def features_of_batches(
    trainer: Trainer, reader: ExampleReader, batches: Iterable[ReadExamples], head: str | None, classes: int | None
) -> Iterator[Iterator[PenultimateBatch]]:
    """Return batches with their penultimate features, for the block."""
    step = StepLogits(trainer, reader.reader, classes=classes, dataset=reader.dataset, soft=True)
    with step.open() as logits_of:
        pairs = ((torch.tensor(part.ids), part.batch) for part in batches)
        parts = penultimate_batches(trainer.lightning_module, pairs, head=head, trainer=trainer, logits_of=logits_of)
        with closing(parts):
            yield parts


def check_last_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Raise an error if new weights cannot be written into the last layer, or would change more than it.

    Args:
        module: The model.
        name: Name of the layer in the model.
        layer: The layer.

    Raises:
        ConfigurationError: With the remedy.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    >>> check_last_layer(model, "1", model[1])
    Traceback (most recent call last):
    lightning_failures.errors.ConfigurationError: The last layer '1' of Sequential has no bias. Give ...
    """
    where = f"The last layer {name!r} of {type(module).__name__}"
    if not isinstance(layer, nn.Linear):
        raise ConfigurationError(f"{where} is {type(layer).__name__}, not nn.Linear. {REMEDY}")
    if nn.utils.parametrize.is_parametrized(layer) or hasattr(layer, "weight_g"):
        raise ConfigurationError(
            f"{where} computes its weight from other parameters, so that no weight can be written into it. {REMEDY}"
        )
    if layer.bias is None:
        raise ConfigurationError(f"{where} has no bias. {REMEDY}")
    for parameter in (layer.weight, layer.bias):
        data: Any = parameter.data
        if type(data) is not Tensor or data.layout != torch.strided or not data.is_floating_point() or data.is_meta:
            raise ConfigurationError(
                f"{where} holds its weights as {type(data).__name__} of {data.dtype}: quantized, or sharded over"
                " processes. Use plain floating-point weights that every process holds as a whole, or leave"
                " out the intervention that refits the layer."
            )
    for other, owner in module.named_modules():
        if owner is layer:  # under another name, as in a part that torch.compile has wrapped
            continue
        for own_name, parameter in owner.named_parameters(prefix=other, recurse=False):
            if any(_overlap(parameter, own) for own in (layer.weight, layer.bias)):
                raise ConfigurationError(
                    f"{where} shares its weights with {own_name!r}, which would change too. Give it weights of its own,"
                    " or leave out the intervention that refits it."
                )


def check_linear(batch: PenultimateBatch, layer: Any, *, classes: int | None = None) -> None:
    """Raise an error if the logits of a batch are not those of the last layer, one for each class.

    Probabilities count as logits.

    Raises:
        ConfigurationError: With the remedy.
    """
    logits = batch.logits.detach().cpu()
    width = layer.out_features
    if classes is not None and width < classes and not (width == 1 and classes == 2):
        raise ConfigurationError(
            f"The last layer {batch.head!r} has {width} outputs for {classes} classes. It needs a logit"
            " for each class, of which one is right."
        )
    weight, bias = (one.detach().cpu().float() for one in (layer.weight, layer.bias))
    computed = batch.features @ weight.T + bias
    given = logits.float().reshape(len(logits), -1)
    tolerance = _TOLERANCE.get(logits.dtype, _TOLERANCE.get(layer.weight.dtype, 5e-3))
    forms = [computed, computed.sigmoid() if width == 1 else computed.softmax(1), computed.log_softmax(1)]
    if not any(_close(form, given, tolerance) for form in forms):
        raise ConfigurationError(
            f"The logits of the model are not features @ weight.T + bias of {batch.head!r}, but scaled,"
            " normalized or changed in another way, so that a layer that is fitted to the features would not do what"
            f" was measured. {REMEDY}"
        )


def set_head(module: nn.Module, new: NewHead) -> None:
    """Write new weights into the last layer, in place.

    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> set_head(model, NewHead("0", np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([0.0, 3.0])))
    >>> model[0].weight.tolist(), model[0].bias.tolist()
    ([[1.0, 2.0]], [3.0])
    """
    layer: Any = dict(module.named_modules())[new.name]
    weight, bias = new.weight, new.bias
    if layer.out_features == 1:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))


def write_with_last_layer(source: Path, target: Path, module: nn.Module, head: str) -> None:
    """Copy a checkpoint of Lightning, with the last layer of a module in place of its own.

    Args:
        source: The checkpoint.
        target: The copy.
        module: The model with the new last layer.
        head: Name of the layer.

    Raises:
        DataError: The checkpoint holds more than tensors and plain values, or not the weights of the layer.
    """
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file, or objects that could run code
        raise DataError(
            f"{source} cannot be read as tensors and plain values ({str(error)[:200]}). Save the hyperparameters of the"
            " module as plain values, or refit the layer in the training: FailureModes(interventions=[RetrainHead()])."
        ) from error
    weights, new = checkpoint["state_dict"], module.state_dict()
    for name in (f"{head}.weight", f"{head}.bias"):
        if name not in weights:
            raise DataError(f"{source} holds no {name!r}, so the new last layer cannot be written into a copy of it.")
        weights[name] = new[name].detach().to("cpu", weights[name].dtype)
    with replacing(target) as opened:
        torch.save(checkpoint, opened)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors share memory."""
    if a.is_meta or b.is_meta or a.device != b.device:
        return False
    first, second = sorted((a, b), key=Tensor.data_ptr)
    return second.data_ptr() < first.data_ptr() + first.numel() * first.element_size()


def _close(computed: Tensor, given: Tensor, tolerance: float) -> bool:
    if computed.shape != given.shape:
        return False
    return bool((computed - given).abs().max() <= tolerance * given.abs().max().clamp(min=1.0))


def _missing(store: EmbeddingStore, keys: Tensor) -> BoolArray:
    """Return which keys (n, 2) have no features, (n,) bool."""
    missing: BoolArray = store.missing(keys).numpy()
    return missing
