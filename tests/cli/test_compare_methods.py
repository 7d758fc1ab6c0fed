"""The command ``compare-methods``, on a run that a real Trainer left."""

from __future__ import annotations

import json

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from lightning_failures.cli import main
from tests.helpers.toy import OracleClassifier, callback, loader


def test_compare__directions_with_baselines(tmp_path, capsys):
    logger = CSVLogger(tmp_path, name="", version="")
    watching = callback(compare_methods=True)
    L.Trainer(
        accelerator="cpu", logger=logger, callbacks=[watching], enable_progress_bar=False, enable_model_summary=False
    ).validate(OracleClassifier(), loader(400, seed=1), verbose=False)
    dark = loader(400, seed=1).dataset.dark
    attributes = tmp_path / "dark.csv"
    attributes.write_text("id,dark\n" + "\n".join(f"{i},{'yes' if one else 'no'}" for i, one in enumerate(dark)))
    assert main(["compare-methods", str(tmp_path), "--attributes", str(attributes), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"directions", "confidence", "domino", "clusters"}
    assert all(row["shares"]["dark=yes"] > 0.9 for row in rows.values())
    assert main(["compare-methods", str(tmp_path), "--top", "5"]) == 0
    assert "The 5 hardest examples" in capsys.readouterr().out
    assert main(["compare-methods", str(tmp_path), "--top", "0"]) == 1
    assert "--top must be 1 ... 50" in capsys.readouterr().err
