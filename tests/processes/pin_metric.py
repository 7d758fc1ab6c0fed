"""Run by tests/regression/test_metric.py on two ranks: the metric of a pin, from its share of the images."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lightning_failures.regression import PinnedSliceErrorRate
from tests.regression.pins import looked_at, pin

LOOKED = looked_at(16, 9)
SHARES = {"padded": (torch.arange(0, 60), torch.arange(50, 100)), "one-sided": (torch.arange(100), None)}


def main(folder: Path) -> None:
    """Write the error rate and the check that a rank computes in each case."""
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    values = {}
    for name, shares in SHARES.items():
        metric = PinnedSliceErrorRate(pin(), class_index=0)
        rows = shares[rank]
        if rows is not None:
            metric.update(LOOKED.predictions[rows], LOOKED.labels[rows], digests=LOOKED.digests[rows])
        values[name] = (float(metric.compute()), metric.check().to_dict())
    torch.save(values, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
