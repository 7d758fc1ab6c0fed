"""An example is its image, not its index: nothing changes for reasons of data, in one run and between runs."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_failures.callback import BatchRecord, DataOptions, FailureModes
from lightning_failures.cli import main
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.interventions import Upweight
from lightning_failures.report.run_folder import open_run
from tests.helpers.toy import Images, OracleClassifier, callback, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Still(OracleClassifier):
    """A model that is the same in every epoch, for images of any size."""

    def forward(self, x):
        return self._guess(x * 0.25 + 0.5) + self.net[1].bias * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


POOL = Images(1200, seed=5)


class Drawn(L.LightningDataModule):
    """Another 400 of 1,200 images for validation in each epoch, in another order; from epoch 1 on more are dark."""

    def train_dataloader(self):
        return loader(160, seed=3, shuffle=True)

    def val_dataloader(self):
        epoch = self.trainer.current_epoch
        rng, dark = np.random.default_rng(epoch), POOL.dark.numpy()
        n_dark = 150 if epoch == 0 else 250
        chosen = [rng.choice(np.flatnonzero(dark == kind), n) for kind, n in ((True, n_dark), (False, 400 - n_dark))]
        return DataLoader(Subset(POOL, rng.permutation(np.unique(np.concatenate(chosen))).tolist()), batch_size=50)


def reports(folder: Path) -> list[dict]:
    paths = sorted(folder.glob("failures/**/epoch=*/report.json"))
    return [json.loads(path.read_text()) for path in paths]


def last_run(folder: Path) -> Path:
    (report,) = folder.glob("failures/**/examples.safetensors")
    return report.parent


def diff(capsys, *arguments: object) -> dict:
    assert main(["diff", *map(str, arguments), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


# -- one run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["same", "multilabel"])
def test_diary__nothing_changes_where_only_the_validation_set_does(tmp_path, encoder):
    options = {} if encoder == "same" else {"data": DataOptions(task="multilabel")}
    module = Still() if encoder == "same" else Multilabel()
    run = trainer(tmp_path, callback(**options), max_epochs=5, reload_dataloaders_every_n_epochs=1)
    run.fit(module, datamodule=Drawn() if encoder == "same" else DrawnMultilabel())
    found = reports(tmp_path)
    modes = [mode for report in found for mode in report["modes"]]
    assert len(found) == 5
    assert any(mode["status"] == "persisting" for mode in modes)
    assert not any(mode["status"] in ("shrinking", "growing", "cured") for mode in modes)
    assert any(mode.get("unmatched") for mode in modes)
    assert any("are not in this analysis: it holds other images" in note for note in found[-1]["notes"])


def test_interventions__nothing_is_undone_where_only_the_validation_set_changes(tmp_path):
    failures = callback(interventions=[Upweight(triage=False)], auto_rollback=True)
    run = trainer(tmp_path, failures, max_epochs=4, reload_dataloaders_every_n_epochs=1)
    run.fit(Still(), datamodule=Drawn())
    found = reports(tmp_path)
    assert all(entry["rolled_back"] is None for report in found for entry in report["interventions"])
    for part in ("report", "decision"):
        rates = {report["summary"].get(f"{part}/flagged_error_rate") for report in found} - {None}
        assert max(rates) - min(rates) < 1e-9, rates
    accuracies = [report["summary"]["report/accuracy"] for report in found]
    assert max(accuracies) - min(accuracies) > 0.05  # which the set did change
    assert any("examples that were flagged when the interventions began are not in" in n for n in found[-1]["notes"])


def test_digests__are_there_without_an_encoder_and_for_every_loader(tmp_path):
    data = [Images(60), Images(40, seed=1)]
    run = trainer(tmp_path, callback(encoder=None))
    run.validate(Still(), [DataLoader(one, batch_size=16) for one in data], verbose=False)
    (first,) = tmp_path.glob("failures/*/*/examples.safetensors")
    for path, length in ((first, 60), (first.parent / "dataloader_1" / first.name, 40)):
        table = ExampleTable.load(path)
        assert len(table) == length
        assert len(set(table.digests.tolist())) == length
        assert (table.digests >= 0).all()
        assert (table.names, table.indexed) == (None, True)


def test_digests__images_that_cannot_be_read_are_unknown_without_an_encoder(tmp_path):
    class Odd(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return (image * float("nan") if index == 3 else image), label

    class Reads(Still):
        def forward(self, x):
            return super().forward(x.nan_to_num())

    trainer(tmp_path, callback(encoder=None)).validate(Reads(), DataLoader(Odd(40), batch_size=16), verbose=False)
    digests = open_run(last_run(tmp_path)).table.digests
    assert (digests == -1).nonzero().flatten().tolist() == [3]


# -- two runs ------------------------------------------------------------------------------------------------


class Listed(Dataset):
    """A folder of images, in sizes that a model asks for."""

    def __init__(self, data: Images, order, size: int = 8) -> None:
        self.data, self.order, self.size = data, list(order), size
        self.classes, self.transform, self.root = data.classes, data.transform, f"/data/{size}"
        self.samples = [(f"{self.root}/{int(data.labels[i])}/{i}.png", int(data.labels[i])) for i in self.order]

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        image, label = self.data[self.order[index]]
        return F.interpolate(image[None], self.size)[0], label


def validate(folder: Path, data: Dataset, **options) -> Path:
    run = trainer(folder, callback(**options))
    run.validate(Still(), DataLoader(data, batch_size=32), verbose=False)
    return last_run(folder)


def test_diff__after_one_file_was_added(tmp_path, capsys):
    data = Images(321)
    by_class = sorted(range(320), key=lambda i: int(data.labels[i]))
    before = validate(tmp_path / "a", Listed(data, by_class))
    after = validate(tmp_path / "b", Listed(data, [320, *by_class]))
    found = diff(capsys, before, after)
    assert (found["examples"], found["only_a"], found["only_b"]) == (320, 0, 1)
    assert (found["fixed"], found["new"], found["moved"]) == ([], [], 320)
    assert found["modes"]
    assert {mode["fate"] for mode in found["modes"]} == {"persistent"}
    assert main(["diff", str(before), str(after)]) == 0
    assert "320 examples are in both runs with the same label; 0 only in a, 1 only in b" in capsys.readouterr().out


def test_diff__of_two_models_that_see_other_preprocessing(tmp_path, capsys):
    data = Images(120)
    small = validate(tmp_path / "a", Listed(data, range(120)), encoder=None)
    large = validate(tmp_path / "b", Listed(data, reversed(range(120)), 16), encoder=None)
    assert main(["diff", str(small), str(large)]) != 0
    said = capsys.readouterr()
    assert "0 examples are in both" in said.out + said.err
    assert "--join name" in said.out + said.err
    found = diff(capsys, small, large, "--join", "name")
    assert (found["examples"], found["only_a"], found["only_b"]) == (120, 0, 0)
    assert main(["diff", str(small), str(large), "--join", "id"]) != 0


def test_diff__by_the_ids_of_the_user(tmp_path, capsys):
    class Named(Listed):
        def __getitem__(self, index):
            return *super().__getitem__(index), self.order[index] + 1000

    def read(outputs, batch):
        return BatchRecord(ids=batch[2] if len(batch) > 2 else None)

    class Reads(Still):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch[:2], batch_idx)

    places = []
    for name, size, order in (("a", 8, range(80)), ("b", 16, range(79, -1, -1))):
        data = Named(Images(80), order, size)
        run = trainer(tmp_path / name, callback(encoder=None, read_batch=read))
        run.validate(Reads(), DataLoader(data, batch_size=32), verbose=False)
        places.append(last_run(tmp_path / name))
    assert main(["diff", *map(str, places)]) != 0
    assert "--join id" in "".join(capsys.readouterr())
    found = diff(capsys, *places, "--join", "id")
    assert (found["examples"], found["only_a"], found["moved"]) == (80, 0, 0)


# -- runs in one folder --------------------------------------------------------------------------------------


def fit(folder: Path, failures: FailureModes, epochs: int, train: int = 160, ckpt_path=None, **options) -> None:
    """Train in one log folder, ``folder / "x"``."""
    callbacks = [failures, *options.pop("callbacks", [])]
    run = trainer(folder, *callbacks, max_epochs=epochs, logger=CSVLogger(folder, name="", version="x"), **options)
    run.fit(Still(), loader(train), loader(320), ckpt_path=ckpt_path)


def test_run_id__two_fresh_runs_in_one_log_folder_are_two_diaries(tmp_path):
    """The second run takes more steps for an epoch, so that its analyses come after those of the first."""
    fit(tmp_path, callback(), 3, train=32)
    first = reports(tmp_path / "x")
    assert {mode["status"] for mode in first[-1]["modes"]} == {"persisting"}
    assert len({report["run_id"] for report in first}) == 1
    fit(tmp_path, callback(), 1, train=320)
    second = json.loads((tmp_path / "x" / "failures" / "report.json").read_text())
    assert second["run_id"] not in (None, first[0]["run_id"])
    assert {(mode["status"], mode["seen"]) for mode in second["modes"]} == {("new", 1)}
    assert len(open_run(tmp_path / "x").history) == 1


def test_run_id__a_resumed_run_goes_on_with_its_diary(tmp_path):
    saves = ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(tmp_path, callback(), 2, callbacks=[saves], enable_checkpointing=True)
    more = {"callbacks": [ModelCheckpoint(tmp_path / "more")], "enable_checkpointing": True}
    fit(tmp_path, callback(), 3, ckpt_path=tmp_path / "saved" / "last.ckpt", **more)
    found = reports(tmp_path / "x")
    assert len(found) == 3
    assert len({report["run_id"] for report in found}) == 1
    assert {(mode["status"], mode["seen"]) for mode in found[-1]["modes"]} == {("persisting", 3)}


def test_run_id__does_not_touch_the_random_streams(tmp_path):
    L.seed_everything(3, verbose=False)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, other = callback(), callback()
    assert one.state_dict()["id"] != other.state_dict()["id"]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


# -- a multilabel task ---------------------------------------------------------------------------------------


class TwoConditions(Dataset):
    """Each of the images with two conditions: its class is 0 or 1, its class is even."""

    classes = ("low", "even")

    def __init__(self, indices) -> None:
        self.indices, self.transform = list(indices), POOL.transform

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        image, label = POOL[self.indices[index]]
        return image, torch.tensor([label < 2, label % 2 == 0]).long()


class Multilabel(Still):
    """A model with a fixed score for each condition: wrong on most dark images."""

    def forward(self, x):
        scores = super().forward(x)
        return torch.stack([scores[:, :2].sum(1), scores[:, ::2].sum(1)], 1) * 4 - 8

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float()))


class DrawnMultilabel(Drawn):
    def train_dataloader(self):
        return DataLoader(TwoConditions(range(160)), batch_size=16)

    def val_dataloader(self):
        chosen = super().val_dataloader().dataset.indices
        return DataLoader(TwoConditions(chosen), batch_size=50)
