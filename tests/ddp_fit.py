"""Run by test_distributed.py in real processes: fit and validate under DDP; every rank writes what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.toy import OracleClassifier, callback, loader, trainer


def main(folder: Path, devices: int, size: int) -> None:
    torch.set_num_threads(1)
    modes = callback(permutations=99, pictures=False, metadata=("dark",))
    options = {"strategy": "ddp", "devices": devices} if devices > 1 else {"devices": 1}
    run = trainer(folder, modes, max_epochs=2, use_distributed_sampler=True, **options)
    run.fit(OracleClassifier(), loader(), loader(size))
    seen = {
        "report": modes.last_report.to_dict(),
        "metrics": {k: float(v) for k, v in run.callback_metrics.items() if k.startswith("failures/")},
    }
    (folder / f"rank_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
