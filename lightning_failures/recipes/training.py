"""Train the network of a setting, and ask a network for its answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.encoders.base import Encoder
from lightning_failures.encoders.cache.store import EmbeddingCache, EmbeddingStore, embed
from lightning_failures.recipes.base import Materials, Setting
from lightning_failures.recipes.figures import Judged
from lightning_failures.recipes.network import Classifier

EARLY = 10
"""An early network is the one after this part of the epochs, at least after the first."""


@dataclass(frozen=True)
class Answers:
    """What a network answers for a data set.

    Attributes:
        labels: (n,) int, or (n, K) of 0 and 1 in a multilabel task.
        probabilities: (n, K) predicted probabilities.
    """

    labels: Tensor
    probabilities: FloatArray

    @property
    def y(self) -> IntArray:
        """(n,) int64, the labels of a task with one label for each example."""
        labels: IntArray = self.labels.numpy().astype(np.int64)
        return labels

    @property
    def failed(self) -> BoolArray:
        """(n,) bool, of such a task."""
        wrong: BoolArray = self.probabilities.argmax(axis=1) != self.y
        return wrong

    @property
    def confidence(self) -> FloatArray:
        """(n,) predicted probabilities of the labels, of such a task."""
        return self.probabilities[np.arange(len(self.y)), self.y]


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network with its analysis, for the parts of a recipe.

    Attributes:
        setting: What it was trained on.
        model: The network.
        early: Its weights after the first epochs.
        device: Where it is.
        result: The analysis of validation; it has directions.
        test: Answers for the test set.
        embeddings: (n, D) of the test images, unit vectors.
        judged: Verdicts on the test images; one entry, or one for each condition of a multilabel task.
        encoder: Encoder of the failure directions.
        seed: Seed of the run.
        epochs: Number of epochs.
        workers: Processes that load images.
        output: Folder of results.
        quick: Whether a tenth of the data is used.
        materials: Files that the user gave.
    """

    setting: Setting
    model: Classifier
    early: dict[str, Tensor]
    device: torch.device
    result: AnalysisResult
    test: Answers
    embeddings: Tensor
    judged: list[Judged]
    encoder: Encoder
    seed: int
    epochs: int
    workers: int
    output: Path
    quick: bool = False
    materials: Materials = field(default_factory=Materials)

    @cached_property
    def validation(self) -> Answers:
        """Answers for the validation set."""
        return self.answer(self.model, self.setting.validation)

    @cached_property
    def validation_embeddings(self) -> Tensor:
        """(m, D) of the validation images."""
        return self.embed(self.setting.validation)

    @cached_property
    def early_test(self) -> Answers:
        """Answers of the early network for the test set."""
        network = copy.deepcopy(self.model.net)
        network.load_state_dict(self.early)
        return self.answer(network, self.setting.test)

    def answer(self, model: nn.Module, data: Dataset[Any]) -> Answers:
        """Return the answers of a network for a data set of the setting."""
        return answer(model, self.batches(data), self.device, multilabel=self.setting.multilabel)

    def embed(self, data: Dataset[Any], encoder: Encoder | None = None) -> Tensor:
        """Return the embeddings (n, D) of a data set of the setting, by its encoder or another one."""
        if encoder is None:
            return cached_embeddings(self.encoder, self.batches(data), self.setting)
        return torch.cat([encoder.encode_images(images) for images in plain_images(self.batches(data), self.setting)])

    def train(
        self,
        setting: Setting,
        data: Dataset[Any] | None = None,
        *,
        seed: int | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Classifier:
        """Train another network on the training set of a setting, or on other data, without the callback."""
        model = new_network(setting, self.seed if seed is None else seed, loss=loss)
        trainer = L.Trainer(
            max_epochs=self.epochs, logger=False, enable_checkpointing=False, enable_model_summary=False,
            num_sanity_val_steps=0, limit_val_batches=0, log_every_n_steps=1, default_root_dir=self.output,
        )  # fmt: skip
        data = setting.train if data is None else data
        trainer.fit(model, batches(data, setting, shuffle=True, workers=self.workers), self.batches(setting.validation))
        return model

    def batches(self, data: Dataset[Any]) -> DataLoader[Any]:
        """Return the loader of a data set, in its order."""
        return batches(data, self.setting, workers=self.workers)


class KeepEarly(L.Callback):
    """Keep the weights of the network after the first epochs.

    Args:
        epochs: Number of epochs of the whole training.
    """

    def __init__(self, epochs: int) -> None:
        self.at = max(epochs // EARLY, 1)
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the weights at the end of the epoch."""
        if trainer.current_epoch + 1 == self.at:
            self.weights = {
                name: values.detach().cpu().clone()
                for name, values in pl_module.net.state_dict().items()  # type: ignore[union-attr,operator]
            }


def new_network(setting: Setting, seed: int, *, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> Classifier:
    """Return the network of a setting with random weights by seed."""
    L.seed_everything(seed, verbose=False)
    return Classifier(
        len(setting.class_names), setting.size, setting.schedule, multilabel=setting.multilabel,
        architecture=setting.architecture, loss=loss,
    )  # fmt: skip


def batches(data: Any, setting: Setting, *, shuffle: bool = False, workers: int = 0) -> DataLoader[Any]:
    """Return a loader with the batch size of a setting; of shuffled data the last incomplete batch is left out."""
    size = min(setting.schedule.batch_size, len(data))
    return DataLoader(data, size, shuffle=shuffle, drop_last=shuffle, num_workers=workers)


@torch.no_grad()
def answer(model: nn.Module, loader: DataLoader[Any], device: torch.device, *, multilabel: bool = False) -> Answers:
    """Return the answers of a network, in evaluation mode, for the examples of a loader."""
    model = model.to(device).eval()
    labels, probabilities = [], []
    for x, y in loader:
        logits = model(x.to(device)).cpu().double()
        labels.append(torch.as_tensor(y))
        probabilities.append((logits.sigmoid() if multilabel else logits.softmax(1)).numpy())
    return Answers(torch.cat(labels), np.concatenate(probabilities))


def plain_images(loader: DataLoader[Any], setting: Setting) -> Iterator[Tensor]:
    """Yield the images of a loader in [0, 1], batch by batch."""
    mean, std = (torch.tensor(values)[:, None, None] for values in setting.statistics)
    for x, _ in loader:
        yield (x * std + mean).clamp(0, 1)


def cached_embeddings(encoder: Encoder, loader: DataLoader[Any], setting: Setting) -> Tensor:
    """Return the embeddings (n, D) of the images of a loader, through the cache on disk."""
    store: EmbeddingStore = EmbeddingCache().store(encoder.fingerprint)
    keys = [embed(encoder, store, images) for images in plain_images(loader, setting)]
    store.flush()
    return store.get(torch.cat(keys))
