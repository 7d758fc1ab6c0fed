"""The command ``compare-methods``, on a run that a real Trainer left."""

from __future__ import annotations

import json

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_failures.cli import main
from tests.end_to_end.test_interventions import fit
from tests.helpers.toy import OracleClassifier, callback, loader
from tests.steering.test_early_answers import Turns


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
    assert list(rows) == ["directions", "confidence", "margin", "domino", "clusters"]
    assert all(row["shares"]["dark=yes"] > 0.9 for row in rows.values())
    assert main(["compare-methods", str(tmp_path), "--top", "5"]) == 0
    assert "The 5 hardest examples" in capsys.readouterr().out
    assert main(["compare-methods", str(tmp_path), "--top", "0"]) == 1
    assert "--top must be 1 ... 50" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
def test_compare__a_training_knows_its_first_analysis(tmp_path, capsys):
    logger = CSVLogger(tmp_path, name="", version="")
    watching = callback(compare_methods=True)
    fit(tmp_path, watching, module=Turns(), val=loader(400, seed=1), logger=logger)  # at first dark images are wrong
    assert main(["compare-methods", str(tmp_path), "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    dark = loader(400, seed=1).dataset.dark
    shares = {
        name: dark[[i for ids in row["hardest"].values() for i in ids]].float().mean() for name, row in rows.items()
    }
    assert list(rows)[:5] == ["directions", "confidence", "margin", "early stopping", "disagreement"]
    assert shares["directions"] < 0.1
    assert shares["early stopping"] > 0.9
