"""Run by tests/interventions/synthesis/test_ledger.py: append images to a ledger while another process does."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from lightning_failures.interventions.synthesis.ledger import Ledger, LedgerRow


def main(folder: Path, number: int, count: int) -> None:
    """Append images of class ``number`` whose pixels all have the value of their class."""
    (folder / f"ready_{number}").touch()
    while len(list(folder.glob("ready_*"))) < 2:
        time.sleep(0.005)
    ledger = Ledger(folder / "ledger")
    for seed in range(count):
        row = LedgerRow("model", "mit", "prompt", seed, number, str(number), "hard caption", 0, 1)
        ledger.append(row, torch.full((3, 8, 8), number, dtype=torch.uint8))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ["NUMBER"]), int(sys.argv[2]))
