"""Run by test_processes.py: Lightning spawns the ranks, and they end with the fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from tests.helpers.toy import Images, OracleClassifier, callback, trainer


class Writes(Callback):
    """Writes the report: only files and logged values come back from a spawned process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        (failures,) = (one for one in trainer.callbacks if hasattr(one, "last_report"))
        seen = {"report": failures.last_report.to_dict(), "world": trainer.world_size}
        (self.folder / f"rank_{trainer.global_rank}.json").write_text(json.dumps(seen))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    failures = callback(pictures=False)
    run = trainer(
        folder, failures, Writes(folder), strategy="ddp_spawn", devices=2, use_distributed_sampler=True, max_epochs=1
    )
    # a loader with a torch.Generator of its own cannot be sent to a spawned process, with the callback or without
    run.fit(OracleClassifier(), DataLoader(Images(64), batch_size=16), DataLoader(Images(157), batch_size=16))
    back = {"report": failures.last_report is not None, "accuracy": float(run.callback_metrics["failures/accuracy"])}
    (folder / "back.json").write_text(json.dumps(back))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
