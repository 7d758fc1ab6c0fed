"""Barlow on ImageNet: failure trees of two trained networks on the features of a robust one.

Source: Singla et al., CVPR 2021, sections 6, 7 and E. The failures of a standard and of a robust ResNet-50 on the
training set of ImageNet are explained by trees of depth 1 and 3 on features of the robust network, in the groups of a
label and in those of a prediction. Sparse decision layers (Wong et al., ICML 2021, section 3) are fitted to the
features of both networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_failures.callback import AdvancedOptions, FailureModes, PictureOptions
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.encoders.cache.store import EmbeddingCache, embed
from lightning_failures.encoders.feature_attack import ITERATIONS
from lightning_failures.encoders.robust import LoadedResNet, RobustEncoder, load_resnet
from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.base import Claim, Examination, Measured, Recipe
from lightning_failures.recipes.imagenet import RESIZED, SIZE, TRAINING_IMAGES, read_imagenet
from lightning_failures.recipes.parts.feature_sheet import ShownFeature, feature_sheet
from lightning_failures.recipes.parts.files import write_picture
from lightning_failures.recipes.splits import at_most, every_tenth, stratified_split
from lightning_failures.recipes.transforms import for_evaluation
from lightning_failures.sparse import fit_sparse_layer
from lightning_failures.trees import fit_failure_tree

DEPTHS = (1, 3)
DELTA, TAU = 0.1, 0.2
MOST_FOR_SPARSE = 50_000
"""Number of images that the sparse layers are fitted to; the paper takes all."""

RULE_CLASS, RULE_FEATURE, RULE_THRESHOLD = "purse", 1456, 0.3641
"""A published rule: images of the class at which the feature is below the threshold fail more often."""

SHOWN_CLASSES, QUICK_STEPS = 3, 25
"""Classes whose features are shown, and steps of an attack with ``--quick``; otherwise the paper's."""

UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Features = Callable[[IntArray], Tensor]
"""Returns the features of rows (n,) as (n, D)."""


def examine_imagenet(task: Examination) -> Measured:
    """Fit the trees and the sparse layers, and write the report of the standard network.

    Raises:
        ConfigurationError: A file of weights was not given, or the networks do not fit the classes.
    """
    if task.weights is None or task.robust is None:
        raise ConfigurationError(
            "imagenet-barlow examines trained networks: give the standard ResNet-50 with --weights FILE (torchvision's"
            " state dict), and the robust one with --robust-encoder FILE (such as imagenet_l2_3_0.pt)."
        )
    training, _ = read_imagenet(task.data)
    data = training.chosen(
        every_tenth(np.arange(len(training)), task.quick), for_evaluation(SIZE, UNIT, resized=RESIZED)
    )
    loader: DataLoader[Any] = DataLoader(data, 64, num_workers=task.workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = {"standard": task.weights, "robust": task.robust}
    networks = {name: load_resnet(path) for name, path in paths.items()}
    encoders = {name: RobustEncoder(path, device=device) for name, path in paths.items()}
    labels = np.asarray(data.labels, dtype=np.int64)
    for name, found in networks.items():
        outputs = getattr(found.net.fc, "out_features", 0)
        if outputs != len(data.classes):
            raise ConfigurationError(
                f"The {name} network tells {outputs} classes apart; {task.data} has {len(data.classes)}."
            )

    report = _write_report(networks["standard"], encoders["robust"], loader, tuple(data.classes), task)
    features = {name: _features(encoder, loader) for name, encoder in encoders.items()}
    figures: dict[str, float] = {}
    texts: dict[str, str] = {}
    failures: dict[str, BoolArray] = {}
    for name, found in networks.items():
        predictions = _predictions(found, loader, device)
        failed = failures[name] = predictions != labels
        figures[f"{name}: accuracy"] = float(1 - failed.mean())
        for grouping, groups in (("label", labels), ("prediction", predictions)):
            for depth in DEPTHS:
                scores = _tree_scores(features["robust"], groups, failed, depth, task.seed)
                figures |= {f"{name}, {grouping} groups, depth {depth}: {key}": value for key, value in scores.items()}
            if name == "standard" and RULE_CLASS in data.classes:
                rows = np.flatnonzero(groups == data.classes.index(RULE_CLASS))
                figures |= _rule_figures(features["robust"], rows, failed, grouping)
                again, rule = _rule_again(features["robust"], rows, failed, grouping, task.seed)
                figures, texts = figures | again, texts | rule
    for name, of_rows in features.items():
        figures |= _sparse_figures(name, of_rows, labels, task.seed)
    shown = _shown_features(encoders, features, labels, failures["standard"], data.classes, task.seed)
    files = {}
    if shown:
        path = task.output / f"features-seed-{task.seed}.png"
        steps = QUICK_STEPS if task.quick else ITERATIONS
        write_picture(
            feature_sheet(shown, lambda rows: torch.stack([data[row][0] for row in rows.tolist()]), steps), path
        )
        files = {f"features of the robust and the standard network, seed {task.seed}": path.name}
    return Measured(
        task.seed,
        figures,
        report,
        complete=not task.quick and len(training) == TRAINING_IMAGES,
        notes=(
            "Features for the trees are chosen by information gain, and a leaf holds at least 20 images and 2 %.",
            f"Sparse layers are fitted to {MOST_FOR_SPARSE:,} images at most.",
        ),
        texts=texts,
        files=files,
    )


def _tree_scores(features: Features, groups: IntArray, failed: BoolArray, depth: int, seed: int) -> dict[str, float]:
    """Return the means over groups with failures and successes: ALER - BER, and whether the best leaf is valid."""
    gains: list[float] = []
    held_out: list[float] = []
    valid: list[float] = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        tree = fit_failure_tree(features(rows), failed[rows], max_depth=depth, seed=seed)
        if tree.skipped is not None:
            continue
        best = max(tree.leaves, key=lambda leaf: leaf.importance)
        gains.append(tree.aler - tree.base_error_rate)
        valid.append(float(best in tree.valid_leaves(DELTA, TAU)))
        held_out.append(tree.heldout_aler_minus_ber)
    found = {"ALER - BER": gains, "valid leaf fraction": valid, "held-out ALER - BER": held_out}
    return {key: float(np.nanmean(values)) for key, values in found.items() if np.isfinite(values).any()}


def _rule_figures(features: Features, rows: IntArray, failed: BoolArray, grouping: str) -> dict[str, float]:
    """Return the error rates of a class, and of its images that the published rule holds for."""
    name = f"{RULE_CLASS}, {grouping} group"
    if not len(rows):
        return {}
    figures = {f"{name}: error rate": float(failed[rows].mean())}
    found = features(rows)
    if found.shape[1] > RULE_FEATURE:
        below = (found[:, RULE_FEATURE] < RULE_THRESHOLD).numpy()
        if below.any():
            figures[f"{name}: error rate by the published rule"] = float(failed[rows[below]].mean())
    return figures


def _rule_again(
    features: Features, rows: IntArray, failed: BoolArray, grouping: str, seed: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Return whether a tree of depth 1 splits a class on the published feature, and its best rule as text."""
    if not len(rows):
        return {}, {}
    tree = fit_failure_tree(features(rows), failed[rows], max_depth=1, seed=seed)
    best = max(tree.leaves, key=lambda leaf: leaf.importance)
    if tree.skipped is not None or not best.splits:
        return {}, {}
    name = f"{RULE_CLASS}, {grouping} group"
    figures = {
        f"{name}: the tree splits on the published feature": float(best.splits[0].feature == RULE_FEATURE),
        f"{name}: threshold of the tree": float(best.splits[0].threshold),
        f"{name}: error rate by the tree's rule": best.error_rate,
    }
    return figures, {f"{name}: rule of the tree": best.rule}


def _shown_features(
    encoders: Mapping[str, RobustEncoder],
    features: Mapping[str, Features],
    labels: IntArray,
    failed: BoolArray,
    class_names: Sequence[str],
    seed: int,
) -> list[ShownFeature]:
    """Return the features that trees of depth 1 split the classes with most failures on, of each network its own."""
    failures = np.bincount(labels, failed, minlength=len(class_names))
    shown = []
    for k in np.argsort(-failures, kind="stable")[:SHOWN_CLASSES].tolist():
        rows = np.flatnonzero(labels == k)
        for name, encoder in encoders.items():
            values = features[name](rows)
            tree = fit_failure_tree(values, failed[rows], max_depth=1, seed=seed)
            splits = [split for leaf in tree.leaves for split in leaf.splits]
            if splits:
                feature = splits[0].feature
                title = f"{class_names[k]}, {name} network, feature {feature}"
                shown.append(ShownFeature(title, encoder, feature, values[:, feature], rows))
    return shown


def _sparse_figures(name: str, features: Features, labels: IntArray, seed: int) -> dict[str, float]:
    """Return the accuracy of a sparse layer and of a dense one on held-out images, and the features of a class."""
    some = at_most(np.arange(len(labels)), MOST_FOR_SPARSE, seed)
    fitted, held = (some[part] for part in stratified_split(labels[some], (0.8, 0.2), seed))
    layer = fit_sparse_layer(
        features(fitted).float(), labels[fitted], validation=(features(held).float(), labels[held]), seed=seed
    )
    return {
        f"{name}: accuracy of the sparse layer": float(layer.accuracy),
        f"{name}: accuracy of the dense layer": float(layer.dense_accuracy),
        f"{name}: features per class": float(layer.features_per_class),
    }


def _batches(loader: DataLoader[Any]) -> Iterator[Tensor]:
    for x, _ in loader:
        yield x


def _features(encoder: RobustEncoder, loader: DataLoader[Any]) -> Features:
    """Embed all images once, and return the access to their features."""
    store = EmbeddingCache().store(encoder.fingerprint)
    keys = torch.cat([embed(encoder, store, x) for x in _batches(loader)])
    store.flush()
    return lambda rows: store.get(keys[torch.from_numpy(rows)])


@torch.no_grad()
def _predictions(found: LoadedResNet, loader: DataLoader[Any], device: torch.device) -> IntArray:
    network = TrainedNetwork(found).to(device)
    return np.concatenate([network(x.to(device)).argmax(1).cpu().numpy() for x in _batches(loader)]).astype(np.int64)


class TrainedNetwork(L.LightningModule):
    """A trained ResNet for images in [0, 1], which is only evaluated."""

    def __init__(self, found: LoadedResNet) -> None:
        super().__init__()
        self.net = found.net
        self.register_buffer("mean", torch.tensor(found.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(found.std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, 3, H, W)."""
        logits: Tensor = self.net((x - self.mean) / self.std)  # type: ignore[operator]
        return logits

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the accuracy of a batch."""
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())


def _write_report(
    found: LoadedResNet,
    encoder: RobustEncoder,
    loader: DataLoader[Any],
    class_names: tuple[str, ...],
    task: Examination,
) -> str:
    """Analyse the network on all images by trees of depth 3; returns the path of the page below the output folder."""
    logger = TensorBoardLogger(task.output, name="", version=f"seed-{task.seed}")
    trainer = L.Trainer(
        logger=logger, enable_model_summary=False, default_root_dir=task.output, enable_checkpointing=False,
        callbacks=[
            FailureModes(
                encoder=None, robust_encoder=encoder, class_names=class_names, captions=None,
                advanced=AdvancedOptions(seed=task.seed), pictures=PictureOptions(attacks=not task.quick),
            )
        ],
    )  # fmt: skip
    trainer.validate(TrainedNetwork(found), loader, verbose=False)
    page = Path(str(logger.log_dir)) / "failures" / "report.html"
    return str(page.relative_to(task.output))


IMAGENET_BARLOW = Recipe(
    name="imagenet-barlow",
    summary="failure trees of a standard and a robust ResNet-50 on the training set of ImageNet; nothing is trained",
    data="train/ and val/ as for imagenet; --weights with torchvision's ResNet-50, --robust-encoder with a robust one",
    source="Singla et al., CVPR 2021, sections 6, 7 and E; Wong et al., ICML 2021, section 3",
    claims=(
        Claim("Purses fail more often where feature 1456 is below 0.3641", f"{RULE_CLASS}, label group: error rate by"
              " the published rule", f"{RULE_CLASS}, label group: error rate", "0.4179 against 0.3085",
              "Singla et al."),
        Claim("The tree of this class splits on the same feature", f"{RULE_CLASS}, label group: the tree splits on the"
              " published feature", None, "feature 1456 < 0.3641", "Singla et al."),
        Claim("Trees of depth 3 find more than trees of depth 1, label groups of the standard network",
              "standard, label groups, depth 3: ALER - BER", "standard, label groups, depth 1: ALER - BER", "",
              "Singla et al., 6"),
        Claim("Groups whose most important leaf is valid, label groups of the standard network, depth 1",
              "standard, label groups, depth 1: valid leaf fraction", None, "Table 1", "Singla et al., 6"),
        Claim("The same, of the robust network", "robust, label groups, depth 1: valid leaf fraction", None, "Table 1",
              "Singla et al., 6"),
        Claim("A sparse layer of the standard network loses at most five points",
              "standard: accuracy of the sparse layer", None, "within 5 points, with 20 to 30 features a class",
              "Wong et al., 3"),
    ),
    setting=None,
    examine=examine_imagenet,
)  # fmt: skip
