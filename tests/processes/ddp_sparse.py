"""Run by test_sparse.py on two ranks with caches of their own: write what each reports and logs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import lightning as L
import torch

from tests.helpers.shortcut import Multilabel, TwoLayers, condition_loaders, tinted_loaders
from tests.helpers.toy import callback, trainer


def main(folder: Path, kind: str = "classes") -> None:
    torch.set_num_threads(1)
    L.seed_everything(1, verbose=False)
    rank = int(os.environ["LOCAL_RANK"])
    # no rank sees the disk of the other
    failures = callback(encoder=None, sparse=True, cache_folder=str(folder / f"cache_{rank}"))
    run = trainer(folder, failures, max_epochs=1, strategy="ddp", devices=2, use_distributed_sampler=True)
    if kind == "conditions":
        run.fit(Multilabel(), *condition_loaders())
    else:
        run.fit(TwoLayers(), *tinted_loaders())
    result = failures.last_report
    seen = {
        "section": result.report.to_dict()["methods"]["sparse"],
        "summary": result.summary,
        "logged": {key: float(value) for key, value in run.callback_metrics.items() if "sparse" in key},
        "weight": result.fitted["sparse"].layer.weight.tolist(),
    }
    (folder / f"rank_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
