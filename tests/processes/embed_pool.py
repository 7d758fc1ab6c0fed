"""Run by tests/pools/test_embedder.py: embed and score pools; on request one rank kills itself before the end."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_failures import FailureModes
from lightning_failures.callback import AdvancedOptions
from lightning_failures.cli.lightning_commands import FailureTrainer
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier

SIZE, SHARD, BATCH, K = 250, 20, 8, 5


class Damaged(Images):
    """Images of which some cannot be read, are grey or spoiled; larger ones can be embedded."""

    BAD: ClassVar = {
        0: "OSError: image 0 is truncated",
        1: "the dataset returns None",
        21: "1 channel, unlike the others with 3",
        22: "Images have the shape (1, 3, 8)",
        47: "NaN or infinite pixels",
        48: "values far outside [0, 1]",
        49: "values far outside [0, 1]",
        **{number: f"OSError: image {number} is truncated" for number in range(100, 120)},  # a block of its own
        SIZE - 1: f"OSError: image {SIZE - 1} is truncated",
    }
    LARGER = (30, 31, 200)

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        reason = self.BAD.get(index, "")
        if reason.startswith("OSError"):
            raise OSError(f"image {index} is truncated")
        if reason.startswith("the dataset"):
            return None
        if reason.startswith("1 channel"):
            image = image[:1]
        if reason.startswith("Images"):
            image = image[:, 0]
        if reason.startswith("NaN"):
            image = image * torch.nan
        if reason.startswith("values"):
            image = image + 900
        if index in self.LARGER:
            image = image.repeat(1, 1, 2)
        return image, label


class Pool(L.LightningDataModule):
    """A pool with images of the toy task."""

    def __init__(self, dataset: Dataset | None = None, **options) -> None:
        super().__init__()
        self.dataset = Images(SIZE, seed=7) if dataset is None else dataset
        self.options = {"batch_size": BATCH} | options

    def predict_dataloader(self):
        return DataLoader(self.dataset, **self.options)


class LoggedEncoder(ColourEncoder):
    """Writes the number of images it embeds, to a file for each rank; kills its process after ``dies_after`` images."""

    def __init__(self, folder: Path, dies_after: int | None = None) -> None:
        super().__init__()
        self.folder, self.dies_after = folder, dies_after

    def encode_images(self, images):
        with (self.folder / f"embedded_{os.environ.get('LOCAL_RANK', '0')}.txt").open("a") as file:
            file.write(f"{len(images)}\n")
        found = super().encode_images(images)
        if self.dies_after is not None and self.embedded >= self.dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def trainer(encoder, **options) -> FailureTrainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [] if encoder is None else [FailureModes(encoder=encoder, advanced=AdvancedOptions(permutations=99))]
    return FailureTrainer(callbacks=callbacks, enable_checkpointing=False, **(defaults | options))


def main(folder: Path, outputs: list[Path], devices: int, nodes: int, dying_rank: int, damaged: int = 0) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dies_after = 60 if dying_rank == int(os.environ.get("LOCAL_RANK", "0")) else None
    pool = Pool(Damaged(SIZE, seed=7) if damaged else None)
    for output in outputs:
        noted = folder / output.name
        noted.mkdir(exist_ok=True)
        run = trainer(LoggedEncoder(noted, dies_after), strategy="ddp", devices=devices, num_nodes=nodes)
        run.embed(OracleClassifier(), pool, directions=folder.parent, k=K, output=output, shard_size=SHARD)


if __name__ == "__main__":
    folder, outputs, *numbers = sys.argv[1:]
    main(Path(folder), [Path(os.path.expandvars(output)) for output in outputs.split(os.pathsep)], *map(int, numbers))
