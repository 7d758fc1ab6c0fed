"""Run by test_retrain_head.py on two ranks with caches of their own: write the last layer of each, and the report."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import lightning as L
import torch

from lightning_failures.interventions import RetrainHead
from tests.helpers.shortcut import TwoLayers, tinted_loaders
from tests.helpers.toy import callback, trainer


def main(folder: Path, data: str) -> None:
    torch.set_num_threads(1)
    L.seed_everything(1, verbose=False)
    rank = int(os.environ["LOCAL_RANK"])
    # no rank sees the disk of the other; without triage no embedding has to be exchanged
    retrain = RetrainHead(data=data, triage=False)
    failures = callback(interventions=[retrain], cache_folder=str(folder / f"cache_{rank}"))
    run = trainer(folder, failures, max_epochs=2, strategy="ddp", devices=2, use_distributed_sampler=True)
    module = TwoLayers()
    run.fit(module, *tinted_loaders())
    seen = {
        "head": [module.fc.weight.tolist(), module.fc.bias.tolist()],
        "body": module.body[1].weight.sum().item(),
        "report": failures.last_report["interventions"],
        "diagnosis": [entry["diagnosis"] for entry in failures.last_report.to_dict()["classes"]],
        "checkpoints": len(list(folder.rglob("retrained.ckpt"))),
    }
    (folder / f"rank_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
