"""Run by tests/analysis/test_metrics.py on two ranks: what each of them computes from its share of the grades."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lightning_failures.analysis.metrics import GradesMetric

IDS = torch.tensor([5, 1, 3, 1, 8])
LABELS = torch.tensor([0, 1, 2, 1, 0])
PREDICTIONS = torch.tensor([0, 2, 2, 2, 1])
CONFIDENCE = torch.tensor([0.9, 0.25, 0.5, 0.25, 0.125])
COLUMNS = (IDS, LABELS, PREDICTIONS, CONFIDENCE)


def main(folder: Path) -> None:
    """Write the columns that a rank computes in each case."""
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=60))
    values = {}
    ragged = GradesMetric(process_group=group)
    part = slice(0, 3) if rank == 0 else slice(3, 5)
    ragged.update(*(column[part] for column in COLUMNS))
    ragged = ragged.clone()
    values["ragged"] = ragged.compute()
    ragged.reset()
    ragged.update(*(column[part] for column in COLUMNS))
    values["after a reset"] = ragged.compute()
    one_sided = GradesMetric(process_group=group)
    if rank == 0:  # the other process has no batch at all
        one_sided.update(*COLUMNS)
    values["one-sided"] = one_sided.compute()
    torch.save(values, folder / f"{rank}.pt")
    dist.barrier(group)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
