"""Run by test_processes.py, once for each of two ranks: one of them is killed amid the analysis."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from lightning_failures.directions import fit_failure_directions
from tests.ddp_faults import everywhere
from tests.toy import OracleClassifier, callback, loader, trainer


def main(folder: Path, killed: int) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])

    def dies(*args, **kwargs):
        (folder / "killed_at.txt").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    modes = callback(pictures=False, on_error="warn")
    run = trainer(folder, modes, max_epochs=2, strategy="ddp", devices=2, num_sanity_val_steps=0)
    with everywhere(fit_failure_directions, dies if rank == killed else fit_failure_directions):
        try:
            run.fit(OracleClassifier(), loader(64), loader(160))
        finally:
            (folder / f"over_{rank}.txt").write_text(str(time.time()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
