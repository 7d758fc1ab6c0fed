"""Run by test_processes.py on two ranks: one is killed during the analysis, or raises while it grades a batch."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from lightning_failures.data.grading import grade_batch
from lightning_failures.directions import fit_failure_directions
from tests.helpers.toy import OracleClassifier, callback, loader, trainer
from tests.processes.ddp_faults import everywhere


def main(folder: Path, how: str, failing: int) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])

    def fails(*args, **kwargs):
        (folder / "failed_at.txt").write_text(str(time.time()))
        if how == "raised":
            raise RuntimeError("planted")
        os.kill(os.getpid(), signal.SIGKILL)

    stage = grade_batch if how == "raised" else fit_failure_directions
    failures = callback(pictures=False, on_error="raise" if how == "raised" else "warn")
    run = trainer(folder, failures, max_epochs=2, strategy="ddp", devices=2, num_sanity_val_steps=0)
    with everywhere(stage, fails if rank == failing else stage):
        try:
            run.fit(OracleClassifier(), loader(64), loader(160))
        finally:
            (folder / f"over_{rank}.txt").write_text(str(time.time()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
