"""Run by test_interventions.py on two ranks: write the examples that each rank draws, and their weights."""

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
    callback = steered()
    run = trainer(folder, callback, max_epochs=2, strategy="ddp", devices=2, use_distributed_sampler=True)
    torch.manual_seed(run.global_rank)
    module = Drawn()
    run.fit(module, train_loader(), loader(400))
    (plans,) = callback.state_dict()["steering"]["draws"]["plans"].values()
    weights = torch.ones(len(DATA))
    plan = next(plan for plan in plans if plan["since"] == 1)
    weights[plan["ids"]] = plan["weights"].float()
    seen = {"epochs": module.epochs, "weights": weights.tolist(), "report": callback.last_report["interventions"]}
    (folder / f"rank_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
