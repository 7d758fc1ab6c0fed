"""Edge cases of the callback in a real Trainer: what unusual runs do."""

from __future__ import annotations

import gc
import random
import warnings
import weakref
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from lightning_failures import BatchRecord
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.dataset_attributes import dataset_attribute
from tests.helpers.toy import Classifier, ColourEncoder, Images, OracleClassifier, callback, loader, trainer
from tests.test_callback import Metrics, Stream, StreamClassifier

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
]


# -- nothing is kept -----------------------------------------------------------------------------------------


class ReturnsLogits(OracleClassifier):
    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch[0])}


@pytest.mark.parametrize("module", [ReturnsLogits, OracleClassifier])
def test_observer__keeps_nothing_after_the_step(tmp_path, module):
    failures = callback(pictures=False)

    held: list[int] = []

    class Watch(Callback):
        def on_train_batch_end(self, *args):
            held.append(len(failures._batch_grader._observer._own) + len(failures._batch_grader._observer._children))

    trainer(tmp_path, failures, Watch(), max_epochs=2).fit(module(), loader(), loader())
    assert set(held) == {0}


@pytest.mark.slow
def test_reloaded_loaders__are_let_go(tmp_path):
    made: list[weakref.ref] = []

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            made.append(weakref.ref(new := loader(shuffle=True)))
            return new

    alive: list[int] = []

    class Count(Callback):
        def on_train_epoch_start(self, *args):
            gc.collect()
            alive.append(sum(ref() is not None for ref in made))

    failures = callback(pictures=False)
    run = trainer(tmp_path, failures, Count(), max_epochs=4, reload_dataloaders_every_n_epochs=1)
    run.fit(OracleClassifier(), datamodule=Data())
    assert len(made) >= 4
    assert max(alive) == 1
    assert failures.last_report.examples == 160


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files")
def test_labels_of_workers__are_copied(tmp_path):
    """A tensor from a loader worker keeps a file open for its lifetime."""
    opened: list[int] = []

    class Count(Callback):
        def on_validation_batch_end(self, *args):
            opened.append(len(list(Path("/proc/self/fd").iterdir())))

    data = DataLoader(Images(200), batch_size=4, num_workers=1)
    trainer(tmp_path, callback(pictures=False), Count()).validate(OracleClassifier(), data, verbose=False)
    assert max(opened[10:]) <= opened[9] + 4


# -- random numbers ------------------------------------------------------------------------------------------


def test_failing_analysis__gives_the_random_numbers_back(tmp_path, monkeypatch):
    from lightning_failures.trainer import epoch_end as explaining

    def analyse(*args, **kwargs):
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        raise RuntimeError("out of order")

    def states():
        return torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002

    monkeypatch.setattr(explaining, "analyse", analyse)
    run = trainer(tmp_path, callback(on_error="warn"))
    plain = trainer(tmp_path)
    seen = []
    for each in (plain, run):
        L.seed_everything(3, verbose=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            each.validate(OracleClassifier(), loader(), verbose=False)
        seen.append(states())
    assert torch.equal(seen[0][0], seen[1][0])
    assert (seen[0][1] == seen[1][1]).all()
    assert seen[0][2] == seen[1][2]


# -- which examples ------------------------------------------------------------------------------------------


class Batches:
    """A batch sampler that yields another kind of container."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        for start in range(144, -1, -16):
            yield self.make(range(start, start + 16))

    def __len__(self):
        return 10


@pytest.mark.parametrize(
    "make", [list, tuple, torch.tensor, np.array, lambda r: r], ids=["list", "tuple", "tensor", "array", "range"]
)
def test_batch_sampler__of_any_sequence(tmp_path, make):
    expected, failures = callback(), callback()
    trainer(tmp_path, expected).validate(OracleClassifier(), loader(), verbose=False)
    data = DataLoader(Images(), batch_sampler=Batches(make))
    trainer(tmp_path, failures).validate(OracleClassifier(), data, verbose=False)
    assert failures.last_report.classes == expected.last_report.classes


def test_sampler__of_keys_that_are_no_numbers_harms_no_training(tmp_path):
    class Named(Images):
        def __getitem__(self, key):
            return super().__getitem__(int(key[1:]))

    data = DataLoader(Named(), batch_size=16, sampler=[f"k{i}" for i in range(160)])
    failures = callback(on_error="warn")
    with pytest.warns(UserWarning, match="read_batch"):
        trainer(tmp_path, failures, num_sanity_val_steps=0).fit(OracleClassifier(), loader(), data)
    whole = DataLoader(_Whole(), batch_size=None, sampler=["a", "b"])
    with pytest.warns(UserWarning, match="read_batch"):
        trainer(tmp_path, failures, num_sanity_val_steps=0).fit(OracleClassifier(), loader(), whole)


class _Whole(Dataset):
    def __getitem__(self, key):
        return Images(16).images, Images(16).labels

    def __len__(self):
        return 2


def test_batch_size_none__lists_of_indices(tmp_path):
    class Several(Images):
        def __getitem__(self, indices):
            pairs = [super(Several, self).__getitem__(i) for i in indices]
            return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])

    expected, failures = callback(), callback(pictures=False)
    trainer(tmp_path, expected).validate(OracleClassifier(), loader(), verbose=False)
    data = DataLoader(Several(), batch_size=None, sampler=Batches(list))
    trainer(tmp_path, failures).validate(OracleClassifier(), data, verbose=False)
    assert failures.last_report.classes == expected.last_report.classes


def test_one_loader__fit_twice_then_validate_and_test(tmp_path):
    data, failures = loader(shuffle=True), callback()
    sampler = data.batch_sampler
    run = trainer(tmp_path, failures)
    for act in (
        lambda: run.fit(OracleClassifier(), loader(), data),
        lambda: run.validate(OracleClassifier(), data, verbose=False),
        lambda: run.test(OracleClassifier(), data, verbose=False),
        lambda: trainer(tmp_path, failures).fit(OracleClassifier(), data, data),
    ):
        failures.last_report = None
        act()
        assert failures.last_report.examples == 160
        assert data.batch_sampler is sampler


def test_one_callback__in_two_trainers_starts_anew(tmp_path):
    failures = callback()
    trainer(tmp_path, failures, max_epochs=3).fit(OracleClassifier(), loader(), loader())
    folders = set(tmp_path.glob("failures/no_logger/*"))
    failures.last_report, metrics = None, Metrics()
    trainer(tmp_path, failures, metrics, max_epochs=1).fit(OracleClassifier(), loader(), loader())
    assert failures.last_report.epoch == 0
    assert metrics.seen[0]["failures/analysis_age"] == 0
    assert len(set(tmp_path.glob("failures/no_logger/*")) - folders) == 1


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resume__writes_to_the_same_folder(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    trainer(tmp_path, callback(), checkpoint, enable_checkpointing=True).fit(OracleClassifier(), loader(), loader())
    checkpoint = ModelCheckpoint(tmp_path / "ckpt2")
    trainer(tmp_path, callback(), checkpoint, max_epochs=2, enable_checkpointing=True).fit(
        OracleClassifier(), loader(), loader(), ckpt_path=tmp_path / "ckpt" / "last.ckpt"
    )
    (folder,) = tmp_path.glob("failures/no_logger/*")
    assert len(list(folder.glob("epoch=*"))) == 2


def test_interrupted_validation__the_next_run_is_whole(tmp_path):
    class Stops(OracleClassifier):
        def validation_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("stop")
            self(batch[0])

    data, failures = loader(shuffle=True), callback()
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, failures, num_sanity_val_steps=0).fit(Stops(), loader(), data)
    trainer(tmp_path, failures).fit(OracleClassifier(), loader(), data)
    assert (failures.last_report.examples, failures.last_report.coverage) == (160, 1.0)


@pytest.mark.parametrize("sanity", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batch_size_finder__prepares_loaders_of_its_own(tmp_path, sanity):
    class Data(L.LightningDataModule):
        batch_size = 4

        def train_dataloader(self):
            return DataLoader(Images(), batch_size=self.batch_size)

        val_dataloader = train_dataloader

    failures, finder = callback(pictures=False), BatchSizeFinder(max_trials=2, steps_per_trial=1)
    run = trainer(tmp_path, failures, finder, enable_checkpointing=True, num_sanity_val_steps=sanity)
    run.fit(OracleClassifier(), datamodule=Data())
    assert failures.last_report.examples == 160


@pytest.mark.parametrize("sanity", [0, 2])
def test_iterable__of_unknown_length_in_fit(tmp_path, sanity):
    failures = callback(read_batch=lambda outputs, batch: BatchRecord(ids=batch[2]), pictures=False)
    data = DataLoader(Stream(), batch_size=16)
    trainer(tmp_path, failures, num_sanity_val_steps=sanity).fit(StreamClassifier(), loader(), data)
    assert failures.last_report.examples == 160


# -- modules that are built late -----------------------------------------------------------------------------


class BuiltLate(OracleClassifier):
    forward = L.LightningModule.forward

    def setup(self, stage):
        self.late = OracleClassifier()

    def training_step(self, batch, batch_idx):
        return self.late.training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.late(batch[0])


class BuiltInConfigureModel(BuiltLate):
    def setup(self, stage):
        pass

    def configure_model(self):
        if not hasattr(self, "late"):
            self.late = OracleClassifier()


@pytest.mark.parametrize("module", [BuiltLate, BuiltInConfigureModel])
@pytest.mark.parametrize("logits_from", [None, "late"])
@pytest.mark.parametrize("act", ["fit", "validate"])
def test_logits__of_a_submodule_that_setup_builds(tmp_path, module, logits_from, act):
    failures = callback(logits_from=logits_from, pictures=False)
    run = trainer(tmp_path, failures)
    if act == "fit":
        run.fit(module(), loader(), loader())
    else:
        run.validate(module(), loader(), verbose=False)
    assert failures.last_report.examples == 160


# -- monitored keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "worst"),
    [("failures/accuracy", 0.0), ("failures/coverage", 0.0), ("failures/cv_score_mean/dataloader_1", 1.0)],
)
def test_monitor__every_aggregate_has_a_value_before_the_first_analysis(tmp_path, monitor, worst):
    failures, metrics = callback(every_n_epochs=2, pictures=False), Metrics()
    stopping = EarlyStopping(monitor, mode="min", patience=10)
    trainer(tmp_path, failures, metrics, stopping, max_epochs=3).fit(
        OracleClassifier(), loader(), [loader(), loader(160, seed=1)]
    )
    values = [seen[monitor] for seen in metrics.seen]
    assert values[0] == worst
    assert values[1] == values[2] != worst


def test_monitor__reduce_on_plateau(tmp_path):
    class Plateau(OracleClassifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": "failures/flagged_fraction"},
            }

    metrics = Metrics()
    run = trainer(tmp_path, callback(every_n_epochs=2), metrics, max_epochs=3, check_val_every_n_epoch=1)
    run.fit(Plateau(), loader(), loader())
    assert metrics.seen[0]["failures/flagged_fraction"] == 1.0


# -- when ----------------------------------------------------------------------------------------------------


def test_epochs_of_unknown_length__every_validation_is_analysed(tmp_path):
    class Endless(OracleClassifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    failures, metrics = callback(pictures=False), Metrics()
    run = trainer(tmp_path, failures, metrics, val_check_interval=3, max_steps=7, max_epochs=-1)
    run.fit(Endless(), DataLoader(Stream(), batch_size=16), loader())
    assert [seen["failures/analysis_age"] for seen in metrics.seen] == [0, 0]


def test_check_val_every_n_epoch__with_every_n_epochs(tmp_path):
    failures, metrics = callback(every_n_epochs=2, pictures=False), Metrics()
    run = trainer(tmp_path, failures, metrics, check_val_every_n_epoch=3, max_epochs=6)
    run.fit(OracleClassifier(), loader(32), loader())
    assert [seen["failures/analysis_age"] for seen in metrics.seen] == [0, 0]


def test_pictures__of_a_run_by_steps_come_last(tmp_path):
    failures = callback(pictures=True)
    trainer(tmp_path, failures, max_steps=6, max_epochs=-1).fit(OracleClassifier(), loader(32), loader())
    drawn = {path.parts[-3][:10] for path in tmp_path.rglob("*.png")}
    assert drawn == {"epoch=0002"}


# -- data ----------------------------------------------------------------------------------------------------


def test_class_names__twice_the_same_are_told_apart(tmp_path):
    failures = callback(class_names=["crane", "crane", "cat", "dog"], robust_encoder=ColourEncoder("robust"))
    trainer(tmp_path, failures).validate(OracleClassifier(), loader(400), verbose=False)
    report = failures.last_report
    assert [entry.name for entry in report.classes] == ["crane (0)", "crane (1)", "cat", "dog"]
    assert len({(g.grouping, g.class_name) for g in report.groups}) == 8


def test_class_names__synonyms_of_a_dataset_give_the_first(tmp_path):
    data = Images()
    data.classes = [("tench", "Tinca tinca"), ("crane",), ("crane", "bird"), ("dog",)]
    failures = callback()
    trainer(tmp_path, failures).validate(OracleClassifier(), DataLoader(data, batch_size=16), verbose=False)
    assert [entry.name for entry in failures.last_report.classes] == ["tench", "crane (1)", "crane (2)", "dog"]


def test_groups__may_be_names(tmp_path):
    plain, named = Images(), Images()
    plain.groups = torch.arange(160) // 2
    named.groups = [f"patient {i:03d}" for i in range(80) for _ in range(2)]
    reports = []
    for data in (plain, named):
        failures = callback()
        trainer(tmp_path, failures).validate(OracleClassifier(), DataLoader(data, batch_size=16), verbose=False)
        reports.append(failures.last_report.classes)
    assert reports[0] == reports[1]


@pytest.mark.parametrize("groups", [["a"] * 3, lambda: None])
def test_groups__that_do_not_fit_name_the_argument(tmp_path, groups):
    data = Images()
    data.groups = groups
    with pytest.raises(ConfigurationError, match="groups_from"):
        trainer(tmp_path, callback()).validate(OracleClassifier(), DataLoader(data, batch_size=16), verbose=False)


@pytest.mark.parametrize("answer", [None, {"logits": 1}])
def test_read_batch__must_return_a_record(tmp_path, answer):
    failures = callback(read_batch=lambda outputs, batch: answer)
    with pytest.raises(ConfigurationError, match=r"read_batch.*BatchRecord"):
        trainer(tmp_path, failures).validate(OracleClassifier(), loader(), verbose=False)


def test_read_batch__may_give_lists_and_arrays(tmp_path):
    def read(outputs, batch):
        return BatchRecord(labels=batch[1].numpy(), ids=batch[2].tolist())

    failures, expected = callback(read_batch=read, pictures=False), callback()
    trainer(tmp_path, failures).validate(StreamClassifier(), DataLoader(Stream(), batch_size=16), verbose=False)
    trainer(tmp_path, expected).validate(OracleClassifier(), loader(), verbose=False)
    assert failures.last_report.classes == expected.last_report.classes


class Probabilities(OracleClassifier):
    """A binary classifier that returns the probability of the second class, as many do."""

    def validation_step(self, batch, batch_idx):
        return {"preds": (super().forward(batch[0])[:, 1] / 8 + 0.1)}


class Two(Images):
    def __init__(self):
        super().__init__()
        self.classes = ["other", "one"]

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, float(label == 1)


def test_preds__of_a_binary_task_are_probabilities(tmp_path):
    failures = callback()
    trainer(tmp_path, failures).validate(Probabilities(), DataLoader(Two(), batch_size=16), verbose=False)
    assert failures.last_report.accuracy > 0.6


class SigmoidInForward(OracleClassifier):
    def forward(self, x):
        return torch.sigmoid(super().forward(x)[:, 1] - 2)

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def test_scores__that_look_like_probabilities_are_told(tmp_path):
    run = trainer(tmp_path, callback(encoder=None))
    with pytest.warns(UserWarning, match=r"between 0 and 1.*preds"):
        run.validate(SigmoidInForward(), DataLoader(Two(), batch_size=16), verbose=False)


def test_hard_predictions__labels_out_of_range(tmp_path):
    class Hard(OracleClassifier):
        def validation_step(self, batch, batch_idx):
            return {"preds": self(batch[0]).argmax(1)}

    failures = callback(class_names=["a", "b"])
    with pytest.raises(DataError, match="run from 0 to 3, but the 2 classes"):
        trainer(tmp_path, failures).validate(Hard(), loader(), verbose=False)


def test_concatenated_dataset__classes_and_groups_are_read_through(tmp_path):
    parts = [Images(80), Images(48, seed=1)]
    for k, part in enumerate(parts):
        part.groups = [f"{k} {i // 2}" for i in range(len(part))]
    joined = ConcatDataset(parts)
    assert dataset_attribute(joined, "groups") == parts[0].groups + parts[1].groups
    failures = callback()
    trainer(tmp_path, failures).validate(OracleClassifier(), DataLoader(joined, batch_size=16), verbose=False)
    assert [entry.name for entry in failures.last_report.classes] == parts[0].classes
    parts[1].classes = ["other"]
    assert dataset_attribute(joined, "classes") is None


def test_class_keys__of_names_that_look_alike_are_told_apart(tmp_path):
    data, metrics = Images(), Metrics()
    data.classes = ["c", "c++", "d", "e"]
    run = trainer(tmp_path, callback(pictures=False), metrics)
    run.fit(OracleClassifier(), loader(), DataLoader(data, batch_size=16))
    keys = {key.split("/")[2] for key in metrics.seen[0] if key.startswith("failures/class/")}
    assert keys == {"c_0", "c_1", "d", "e"}


def test_ids__that_are_no_indices_give_kept_pictures_and_no_groups(tmp_path):
    def read(outputs, batch):
        return BatchRecord(ids=(batch[0].double().sum((1, 2, 3)) * 1e6).long().abs())

    failures, data = callback(pictures=True, read_batch=read), loader(400)
    trainer(tmp_path, failures).validate(OracleClassifier(), data, verbose=False)
    assert failures.last_report.examples == 400
    assert list(tmp_path.rglob("*.png"))
    data.dataset.groups = torch.arange(400)
    with pytest.raises(ConfigurationError, match="groups_from"):
        trainer(tmp_path, callback(read_batch=read)).validate(OracleClassifier(), data, verbose=False)


def test_dataset__whose_length_is_not_implemented(tmp_path):
    class Odd(Stream):
        def __len__(self):
            raise NotImplementedError

    failures = callback(read_batch=lambda outputs, batch: BatchRecord(ids=batch[2]), pictures=False)
    trainer(tmp_path, failures).validate(StreamClassifier(), DataLoader(Odd(), batch_size=16), verbose=False)
    assert failures.last_report.examples == 160


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision__of_the_training_does_not_matter(tmp_path, precision):
    class Plain(Classifier):
        def validation_step(self, batch, batch_idx):
            return {"logits": self(batch[0])}

    failures = callback(robust_encoder=ColourEncoder("robust"))
    trainer(tmp_path, failures, precision=precision).fit(Plain(), loader(), loader())
    assert failures.last_report.examples == 160
    assert failures.last_report.directions is not None


@pytest.mark.parametrize("kind", ["uint8", "float64", "gray"])
def test_images__of_other_kinds(tmp_path, kind):
    class Other(Images):
        def __init__(self):
            super().__init__()
            self.transform = nn.Identity()
            if kind == "uint8":
                self.images = (self.images * 255).to(torch.uint8)
            elif kind == "float64":
                self.images = self.images.double()
            else:
                self.images = self.images[:, :1]

    class Eats(Classifier):
        def validation_step(self, batch, batch_idx):
            return {"logits": self(batch[0].float().expand(-1, 3, -1, -1))}

    failures = callback()
    trainer(tmp_path, failures).validate(Eats(), DataLoader(Other(), batch_size=16), verbose=False)
    assert failures.last_report.directions is not None
