"""Run by test_processes.py on two ranks: evaluations of streams, of which pictures show the images that were kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from tests.helpers.toy import Images, OracleClassifier, callback, loader, trainer

SIZE = 160


class Stream(IterableDataset):
    """The share of a rank of a stream of images with ids, in another order in each pass."""

    def __init__(self, share) -> None:
        self.data, self.share, self.passes = Images(SIZE), share, 0
        self.classes, self.transform = self.data.classes, self.data.transform

    def __iter__(self):
        self.passes += 1
        ids = list(self.share(dist.get_rank()))
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(self.passes)).tolist()
        for i in (ids[k] for k in order):
            image, label = self.data[i]
            yield {"image": image, "label": label, "id": 1000 + i}


class Reads(OracleClassifier):
    """A model of batches that are mappings."""

    def validation_step(self, batch, batch_idx):
        self(batch["image"])


SHARES = {
    "every second": lambda rank: range(rank, SIZE, 2),
    "few on the second": lambda rank: range(SIZE - 4) if rank == 0 else range(SIZE - 4, SIZE),
    "all on both": lambda rank: range(SIZE),
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, share in SHARES.items():
        print(name, flush=True)  # shows where a run hangs
        failures = callback(pictures=True)
        run = trainer(
            folder / name, failures, max_epochs=2, num_sanity_val_steps=0, strategy="ddp", devices=2, logger=True
        )
        run.fit(Reads(), loader(64), DataLoader(Stream(share), batch_size=8))
        report = failures.last_report.to_dict()
        (folder / f"{name}_{run.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
