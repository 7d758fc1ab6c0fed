"""Run by test_interventions.py in two real processes: what each draws, and by which weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.end_to_end.test_interventions import DATA, Drawn, steered, train_loader
from tests.helpers.toy import loader, trainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(len(str(folder)))
    modes = steered()
    run = trainer(folder, modes, max_epochs=2, strategy="ddp", devices=2, use_distributed_sampler=True)
    torch.manual_seed(run.global_rank)
    module = Drawn()
    run.fit(module, train_loader(), loader(400))
    (plans,) = modes.state_dict()["steering"]["draws"]["plans"].values()
    weights = torch.ones(len(DATA))
    plan = next(plan for plan in plans if plan["since"] == 1)
    weights[plan["ids"]] = plan["weights"].float()
    seen = {"epochs": module.epochs, "weights": weights.tolist(), "report": modes.last_report["interventions"]}
    (folder / f"rank_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
