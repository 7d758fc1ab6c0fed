"""Run by test_added.py on two ranks: write the examples that each rank draws after a pool has contributed some."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from lightning_failures.interventions import Upweight
from tests.end_to_end.test_added import filtered
from tests.end_to_end.test_interventions import Drawn, steered, train_loader
from tests.helpers.toy import loader, trainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    early = Upweight(2.0, flags="early", triage=False, max_flagged=1.0, dry_run=True)
    callback = steered(filtered(by="flagged_confidence"), early)
    run = trainer(folder, callback, max_epochs=2, strategy="ddp", devices=2, use_distributed_sampler=True)
    module = Drawn()
    run.fit(module, train_loader(), loader(400))
    seen = {"epoch": module.epochs[1], "interventions": callback.last_report["interventions"]}
    (folder / f"rank_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
