"""Run by test_processes.py on two nodes of one rank: each has its own cache and log folder, as without NFS."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from lightning_failures.interventions import AddFiltered, Upweight
from tests.helpers.toy import ColourEncoder, Images, callback, loader, trainer
from tests.processes.ddp_faults import Model, Numbered
from tests.processes.ddp_steering import CountsByEpoch, Generates, synthetic


def main(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    node = int(os.environ["NODE_RANK"])
    here = folder / f"node_{node}"
    (here / "logs").mkdir(parents=True, exist_ok=True)
    os.chdir(here)  # the log folder has the same relative path on both nodes
    seen = {}
    cases = {
        "plain": {"robust_encoder": ColourEncoder("robust")},
        "Upweight": {"interventions": [Upweight(factor=4.0, triage=False)]},
        "Upweight with triage": {"interventions": [Upweight(factor=4.0)]},
        "AddFiltered": {"interventions": [AddFiltered(Numbered(200, 11), per_class=5)]},
        "AddSynthetic": {"interventions": [synthetic()], "encoder": Generates()},
    }
    for name, options in cases.items():
        print(name, flush=True)
        failures = callback(pictures=False, cache_folder="cache", on_error="warn", **options)
        run = trainer(
            "logs", failures, max_epochs=2, strategy="ddp", devices=devices, num_nodes=2, use_distributed_sampler=True
        )
        module = CountsByEpoch() if name == "AddSynthetic" else Model()
        data = Images(96, seed=5) if name == "AddSynthetic" else Numbered(96, 5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.fit(module, DataLoader(data, batch_size=16, shuffle=True), loader(400))
        seen[name] = {
            "report": failures.last_report.to_dict(),
            "epochs": module.epochs,
            "warnings": [text for one in caught if "FailureModes" in (text := str(one.message))],
            "world": run.world_size,
            "steps": run.global_step,
        }
    (folder / f"rank_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
