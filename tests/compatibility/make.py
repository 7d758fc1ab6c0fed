"""The small task of the compatibility tests, and the script that made their files with the version before the rooms.

Run with commit fa82c8b (version 0.1.0 before its modules were moved into rooms), from a checkout of that commit::

    PYTHONPATH=. python PATH/TO/tests/compatibility/make.py

It replaces all other files of this folder. Do not run it with a later version: the files would no longer say what the
earlier one wrote. ``tests/test_compatibility.py`` reads them, and uses the task below to resume and to repeat runs.

    run/        log folder of a training with directions, trees, an intervention, pictures, named features and a diary
    later/      log folder of a training of a better model, to compare the first one with
    cache/      embeddings that the first training left in its cache, and those of six digits
    pool/       a pool in two shards, embedded and scored with the directions of the first training
    *.checkpoint    of the first training, which may roll back, and of one with a lottery over classes
    configs/    YAML files with class paths as they were
    expected.json    what that version read in these files
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2 as T

from lightning_failures import FailureModes
from lightning_failures.interventions import Upweight

FOLDER = Path(__file__).parent
EPOCHS = 2
DIGITS = 6
LOTTERY_CLASSES = 26
THUMBNAILS = 10
FEATURE_NAME = "dark top"
CLASS_PATHS = """\
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_failures.callback.FailureModes
      init_args:
        encoder: embedded:digits
        captions:
          class_path: lightning_failures.grammar.CaptionVocabulary
          init_args: {adjectives: [red, blue]}
        interventions:
          - class_path: lightning_failures.interventions.upweight.Upweight
            init_args: {factor: 2.0, dry_run: true}
model:
  class_path: lightning_failures.digits.model.DigitClassifier
data:
  class_path: lightning_failures.digits.data.ColouredDigitsDataModule
  init_args: {train_size: 200, val_size: 200}
"""
POOL = {"k": 3, "shard_size": 16}


class Images(Dataset):
    """8 x 8 images whose first pixels encode the label. Half of the images of a class are dark."""

    def __init__(self, size: int, classes: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(size) % classes
        self.dark = torch.rand(size, generator=generator) < 0.5
        noise = torch.rand(size, 3, 2, 2, generator=generator)
        quarters = (0.2 + 0.4 * ~self.dark[:, None, None, None] + 0.3 * noise).clamp(0, 1)
        self.images = quarters.repeat_interleave(4, 2).repeat_interleave(4, 3)  # smooth: their pictures take less space
        self.images[:, :, 0, 0] = 0.1 * (self.labels % 8)[:, None]
        self.images[:, :, 0, 1] = 0.1 * (self.labels // 8)[:, None]
        self.classes = [f"class {k}" for k in range(classes)]
        self.transform = T.Normalize([0.5], [0.25])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


class Data(L.LightningDataModule):
    """Training and validation images; the validation images are the pool, too."""

    def __init__(self, classes: int = 4, train: int = 96, validation: int = 320) -> None:
        super().__init__()
        self.train = Images(train, classes, seed=1)
        self.validation = Images(validation, classes, seed=2)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.validation, batch_size=16)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(Images(32, seed=3), batch_size=8)


class Classifier(L.LightningModule):
    """Reads the label, and errs on most dark images, whatever its weights are.

    Args:
        classes: Number of classes.
        errors: Share of the dark images with a wrong prediction.
    """

    def __init__(self, classes: int = 4, errors: float = 0.8) -> None:
        super().__init__()
        self.classes, self.errors = classes, errors
        self.net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, classes))

    def forward(self, x: Tensor) -> Tensor:
        pixels = x * 0.25 + 0.5
        tens, units = (pixels[:, 0, 0, 1] * 10).round(), (pixels[:, 0, 0, 0] * 10).round()
        labels = (8 * tens + units).long() % self.classes
        wrong = (pixels.mean((1, 2, 3)) < 0.45) & (pixels[:, 1, 3, 3] * 1000 % 1 < self.errors)
        return self.net(x) * 0 + 4.0 * F.one_hot((labels + wrong.long()) % self.classes, self.classes).float()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class ColourEncoder:
    """Six numbers of each channel. ``embedded`` counts the images that were encoded."""

    def __init__(self, name: str = "colours") -> None:
        self.name = name
        self.fingerprint = f"tests-{name}"
        self.dim = 12
        self.embedded = 0

    def encode_images(self, images: Tensor) -> Tensor:
        self.embedded += len(images)
        return self.encode_maps(images).mean((2, 3))

    def encode_maps(self, images: Tensor) -> Tensor:
        coarse = F.adaptive_avg_pool2d(images.float(), 4)
        return torch.cat([coarse, coarse**2, coarse.roll(1, 2) * coarse, 1 - coarse], dim=1)


def new_callback(**options: object) -> FailureModes:
    """Return the callback of the first training, with two encoders that count."""
    defaults = {
        "encoder": ColourEncoder(),
        "robust_encoder": ColourEncoder("robust"),
        "interventions": [Upweight(factor=2.0)],
        "auto_rollback": True,
        "permutations": 99,
        "worst_k": 1,
        "on_error": "raise",
    }
    return FailureModes(**(defaults | options))


def trainer(folder: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    """Return a quiet Trainer that logs to ``folder``."""
    defaults = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "logger": CSVLogger(folder.parent, name=folder.name, version=""),
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))


def fit(folder: Path, callback: FailureModes, model: Classifier, data: Data, *, checkpoint: str = "") -> None:
    """Train with the callback; keep the last checkpoint under the name ``checkpoint``, beside ``folder``."""
    L.seed_everything(1, verbose=False)
    kept = [ModelCheckpoint(folder.parent, filename=checkpoint, enable_version_counter=False)] if checkpoint else []
    run = trainer(folder, callback, *kept, enable_checkpointing=bool(kept))
    run.fit(model, data)


def lottery_task() -> tuple[Classifier, Data]:
    """Return a model and data with enough classes for a lottery with a failure mode."""
    return Classifier(LOTTERY_CLASSES, errors=0.95), Data(LOTTERY_CLASSES, validation=70 * LOTTERY_CLASSES)


def digits() -> Tensor:
    """Return six images for the packaged encoder: (6, 3, 32, 32) float in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(DIGITS, 3, 32, 32, generator=generator) * 255).round() / 255


def make(folder: Path) -> None:
    """Write all files."""
    from lightning_failures.cache import EmbeddingCache, embed

    from lightning_failures.cli import FailureTrainer
    from lightning_failures.encoders import load_encoder

    # the first training, with its cache, and an entry of features.yaml filled in
    os.environ["LIGHTNING_FAILURES_CACHE"] = str(folder / "cache")
    fit(folder / "run", new_callback(), Classifier(), Data(), checkpoint="run")
    names = folder / "run" / "failures" / "features.yaml"
    template = names.read_text()
    assert "  name:\n" in template
    names.write_text(template.replace("  name:\n", f"  name: {FEATURE_NAME}\n", 1))

    packaged, cache = load_encoder("embedded:digits"), EmbeddingCache()
    store = cache.store(packaged.fingerprint)
    embed(packaged, store, digits())
    store.flush()

    # the other trainings
    os.environ["LIGHTNING_FAILURES_CACHE"] = str(folder / "other-cache")
    later = new_callback(robust_encoder=None, interventions=(), auto_rollback=False, pictures=False)
    fit(folder / "later", later, Classifier(errors=0.3), Data())
    lottery = new_callback(verdict="lottery", robust_encoder=None, auto_rollback=False, pictures=False)
    fit(folder / "lottery-run", lottery, *lottery_task(), checkpoint="lottery")

    embedder = FailureTrainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[new_callback()],
    )  # fmt: skip
    embedder.embed(Classifier(), Data(), directions=folder / "run", output=folder / "pool", **POOL)

    write_configs(folder / "configs")
    thin_out(folder)
    (folder / "expected.json").write_text(json.dumps(expected(folder, packaged)) + "\n")


def write_configs(folder: Path) -> None:
    """Keep the configs of the repository, one with the class paths that help texts named, and one as a run saves it."""
    from lightning_failures.cli import main

    shutil.copytree("configs", folder)
    (folder / "class_paths.yaml").write_text(CLASS_PATHS)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(["fit", "--config", str(folder / "digits.yaml"), "--print_config"])
    assert "time_budget" in printed.getvalue()
    (folder / "digits_saved.yaml").write_text(printed.getvalue())


def thin_out(folder: Path) -> None:
    """Remove what no test reads, and most images of the gallery."""
    for unwanted in ("other-cache", "lottery-run", "later/failures/epoch=0000-step=000006"):
        shutil.rmtree(folder / unwanted)
    for pattern in ("report.html", "report.md", "metrics.csv", "images/*.png"):
        for file in folder.rglob(pattern):
            file.unlink()
    for images in folder.rglob("images"):
        images.rmdir()
    for checkpoint in folder.glob("*.ckpt"):  # which git ignores
        checkpoint.rename(checkpoint.with_suffix(".checkpoint"))

    file = folder / "run" / "failures" / "gallery.json"
    gallery = json.loads(file.read_text())
    gallery["thumbnails"] = {name: values[:THUMBNAILS] for name, values in gallery["thumbnails"].items()}
    for picture in gallery["pictures"]:
        picture["rows"] = picture["rows"][:1]
    file.write_text(json.dumps(gallery))


def expected(folder: Path, packaged: Any) -> dict[str, Any]:
    """Return what this version reads in the files."""
    from lightning_failures.adapters.diary_files import load_diary
    from lightning_failures.comparison import compare
    from lightning_failures.runs import open_run

    run, later = open_run(folder / "run"), open_run(folder / "later")
    assert not run.notes
    diary = load_diary(folder / "run" / "failures" / "epoch=0001-step=000012" / "modes.safetensors")
    embeddings = ColourEncoder().encode_images(Data().validation.images[:8])
    comparison = compare(run, later).to_dict()
    for kind in ("fixed", "new", "persistent"):
        comparison[kind] = [example["id"] for example in comparison[kind]]
    for side in ("a", "b"):
        del comparison[side]["folder"]

    checkpoints = {}
    for name in ("run", "lottery"):
        state = torch.load(folder / f"{name}.checkpoint", weights_only=True)["callbacks"]
        ((key, value),) = ((key, value) for key, value in state.items() if "FailureModes" in key)
        checkpoints[name] = {"key": key, "steering": describe(value["steering"])}
    return {
        "history": [[report.epoch, report.global_step, report.accuracy] for report in run.history],
        "modes": [mode.name for mode in run.report.modes],
        "feature_names": {feature.feature: feature.name for feature in run.report.features},
        "flagged": int((run.table.values < 0).sum()),
        "pictures": [[picture.tag, picture.caption] for picture in run.gallery.pictures],
        "diary": {"analyses": diary.analyses, "modes": [mode.name for mode in diary.modes]},
        "decision_values": run.directions.decision_values(embeddings, Data().validation.labels[:8]).tolist(),
        "comparison": comparison,
        "checkpoints": checkpoints,
        "fingerprint": packaged.fingerprint,
        "embeddings": packaged.encode_images(digits())[:, :4].tolist(),
    }


def describe(state: Any) -> Any:
    """Return a form of a callback's state that JSON can hold: lists for tensors."""
    if isinstance(state, Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {str(key): describe(value) for key, value in state.items() if key not in ("file", "folder")}
    return [describe(value) for value in state] if isinstance(state, list | tuple) else state


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch))
        for made in Path(scratch).iterdir():
            target = FOLDER / made.name
            shutil.rmtree(target, ignore_errors=True) if made.is_dir() else target.unlink(missing_ok=True)
            shutil.move(made, target)
