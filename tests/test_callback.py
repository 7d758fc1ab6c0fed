"""The life cycle of the callback in a real Trainer."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lightning_failures import BatchRecord, FailureModes
from lightning_failures.callback import AdvancedOptions
from lightning_failures.errors import ConfigurationError, EncoderError
from lightning_failures.trainer.options import group_options
from tests.helpers.toy import NORMALIZE, Classifier, ColourEncoder, Images, OracleClassifier, callback, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
]


class Metrics(Callback):
    """Records the logged values at the end of each validation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("failures/")})


# -- what comes out ------------------------------------------------------------------------------------------


def test_fit__finds_the_dark_images(tmp_path):
    failures = callback(permutations=999)
    trainer(tmp_path, failures).fit(OracleClassifier(), loader(), loader(400))
    report = failures.last_report
    assert report.examples == 400
    assert [entry.pattern for entry in report.classes] == [True] * 4
    dark = Images(400).dark
    for entry in report.classes:
        assert dark[list(entry.hardest_ids)].all()
        assert not dark[list(entry.easiest_ids)].any()


def test_fit__report_on_disk_equals_last_report(tmp_path):
    failures = callback()
    trainer(tmp_path, failures).fit(OracleClassifier(), loader(), loader())
    (found,) = tmp_path.glob("failures/no_logger/*/report.json")
    assert json.loads(found.read_text()) == failures.last_report.to_dict()


def test_validate__alone_works_in_inference_mode(tmp_path):
    failures = callback(robust_encoder=ColourEncoder("robust"))
    metrics = trainer(tmp_path, failures).validate(OracleClassifier(), loader(400), verbose=False)
    assert metrics[0]["failures/cv_score_mean"] > 0.8
    assert metrics[0]["failures/aler_minus_ber_mean"] > 0.1
    assert failures.last_report.epoch == 0


def test_test__works(tmp_path):
    failures = callback()
    metrics = trainer(tmp_path, failures).test(OracleClassifier(), loader(400), verbose=False)
    assert metrics[0]["failures/cv_score_mean"] > 0.8


@pytest.mark.slow
def test_trees__leaves_and_pictures(tmp_path):
    failures = callback(pictures=True, robust_encoder=ColourEncoder("robust"))
    logger = TensorBoardLogger(tmp_path, name="run")
    trainer(tmp_path, failures, logger=logger).fit(OracleClassifier(), loader(), loader(400))
    groups = [g for g in failures.last_report.groups if g.grouping == "label"]
    assert all(g.pattern and len(g.leaves) > 1 for g in groups)
    assert list((tmp_path / "run" / "version_0" / "failures").glob("**/*.png"))


# -- which examples ------------------------------------------------------------------------------------------


def test_sanity_check__is_not_analysed(tmp_path):
    failures, metrics = callback(), Metrics()
    trainer(tmp_path, failures, metrics, num_sanity_val_steps=2).fit(OracleClassifier(), loader(), loader())
    assert len(metrics.seen) == 1
    assert failures.last_report.examples == 160


def test_shuffled_validation__same_report(tmp_path):
    reports = []
    for shuffle in (False, True):
        failures = callback()
        trainer(tmp_path, failures).validate(OracleClassifier(), loader(shuffle=shuffle), verbose=False)
        reports.append([entry.to_dict() for entry in failures.last_report.classes])
    assert reports[0] == reports[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_ids__each_example_once_over_epochs_and_workers(tmp_path, workers):
    failures = callback()
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    trainer(tmp_path, failures, max_epochs=2).fit(OracleClassifier(), loader(), loader(shuffle=True, **options))
    assert failures.last_report.examples == 160
    assert failures.last_report.coverage == 1.0


def test_limit_val_batches__coverage(tmp_path):
    failures, metrics = callback(), Metrics()
    trainer(tmp_path, failures, metrics, limit_val_batches=3).fit(OracleClassifier(), loader(), loader())
    assert failures.last_report.coverage == pytest.approx(48 / 160)
    assert metrics.seen[0]["failures/coverage"] == pytest.approx(0.3)
    assert "failures/cv_score_mean" not in metrics.seen[0]


def test_fast_dev_run__leaves_no_files(tmp_path):
    failures = callback()
    trainer(tmp_path, failures, fast_dev_run=True).fit(OracleClassifier(), loader(), loader())
    assert failures.last_report.examples == 16
    assert not list(tmp_path.rglob("report.json"))


def test_two_loaders__own_keys(tmp_path):
    failures, metrics = callback(), Metrics()
    trainer(tmp_path, failures, metrics).fit(OracleClassifier(), loader(), [loader(160), loader(80, seed=1)])
    assert failures.last_report.examples == 160
    assert {"failures/cv_score_mean", "failures/accuracy/dataloader_1"} <= metrics.seen[0].keys()


def test_subset__groups_and_classes_are_read_through(tmp_path):
    data = Images(160)
    data.groups = torch.arange(160) // 2
    failures = callback()
    subset = DataLoader(Subset(data, range(100)), batch_size=16)
    trainer(tmp_path, failures).validate(OracleClassifier(), subset, verbose=False)
    assert [entry.name for entry in failures.last_report.classes] == data.classes
    assert failures.last_report.coverage == 1.0


# -- where logits come from ----------------------------------------------------------------------------------


class WithoutForward(OracleClassifier):
    forward = L.LightningModule.forward

    def __init__(self):
        super().__init__()
        self.inner = OracleClassifier()

    def training_step(self, batch, batch_idx):
        return self.inner.training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.inner(batch[0])


class TwoForwards(OracleClassifier):
    def validation_step(self, batch, batch_idx):
        self(batch[0])
        self(batch[0].flip(3))


class TupleForward(OracleClassifier):
    def forward(self, x):
        return super().forward(x), x.flatten(1)

    def training_step(self, batch, batch_idx):
        return self(batch[0])[0].sum() * 0 + self.net(batch[0]).sum()

    def validation_step(self, batch, batch_idx):
        self(batch[0])


class Returning(OracleClassifier):
    def validation_step(self, batch, batch_idx):
        wrong = self(batch[0]).flip(1)
        self(wrong.mean() + batch[0])
        return {"logits": self(batch[0])}


class Silent(OracleClassifier):
    def validation_step(self, batch, batch_idx):
        return None


@pytest.mark.parametrize("module", [OracleClassifier, WithoutForward, TupleForward, Returning, Silent])
def test_logits__found(tmp_path, module):
    expected, failures = callback(), callback()
    trainer(tmp_path, expected).validate(OracleClassifier(), loader(), verbose=False)
    trainer(tmp_path, failures).validate(module(), loader(), verbose=False)
    assert failures.last_report.accuracy == expected.last_report.accuracy


def test_logits__two_forwards_are_an_error_that_names_the_remedy(tmp_path):
    with pytest.raises(ConfigurationError, match=r"2 tensors .*logits_from"):
        trainer(tmp_path, callback()).fit(TwoForwards(), loader(), loader())


def test_logits_from__names_the_submodule(tmp_path):
    failures = callback(logits_from="inner")
    trainer(tmp_path, failures).validate(WithoutForward(), loader(), verbose=False)
    assert failures.last_report.examples == 160
    with pytest.raises(ConfigurationError, match="Did you mean inner"):
        trainer(tmp_path, callback(logits_from="iner")).validate(WithoutForward(), loader(), verbose=False)


# -- forms of batches ----------------------------------------------------------------------------------------


class AsMapping(Dataset):
    def __init__(self) -> None:
        self.inner = Images()
        self.classes, self.transform = self.inner.classes, self.inner.transform

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        image, label = self.inner[index]
        return {"pixel_values": image, "labels": label}


class MappingClassifier(OracleClassifier):
    def validation_step(self, batch, batch_idx):
        self(batch["pixel_values"])


def test_batches__mappings(tmp_path):
    failures = callback()
    trainer(tmp_path, failures).validate(MappingClassifier(), DataLoader(AsMapping(), batch_size=16), verbose=False)
    assert failures.last_report.accuracy < 1


class Stream(IterableDataset):
    classes = ("class 0", "class 1", "class 2", "class 3")
    transform = NORMALIZE

    def __iter__(self):
        data = Images()
        yield from ((*data[i], i) for i in range(len(data)))


class StreamClassifier(OracleClassifier):
    def validation_step(self, batch, batch_idx):
        self(batch[0])


def test_iterable__needs_ids(tmp_path):
    stream = DataLoader(Stream(), batch_size=16)
    with pytest.raises(ConfigurationError, match="read_batch"):
        trainer(tmp_path, callback()).validate(StreamClassifier(), stream, verbose=False)


def test_iterable__ids_from_read_batch(tmp_path):
    failures = callback(pictures=True, read_batch=lambda outputs, batch: BatchRecord(ids=batch[2]))
    trainer(tmp_path, failures).validate(StreamClassifier(), DataLoader(Stream(), batch_size=16), verbose=False)
    assert list(tmp_path.rglob("report.html"))
    assert list(tmp_path.rglob("*.png"))
    expected = callback(pictures=True)
    trainer(tmp_path, expected).validate(OracleClassifier(), loader(), verbose=False)
    assert failures.last_report.classes == expected.last_report.classes


# -- tasks ---------------------------------------------------------------------------------------------------


class Binary(Dataset):
    classes = ("bright", "dark")

    def __init__(self, columns: int = 0) -> None:
        self.inner, self.columns = Images(), columns

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        dark = float(self.inner.dark[index])
        return self.inner.images[index], torch.tensor([dark, 1 - dark]) if self.columns else torch.tensor(dark)


class BinaryClassifier(OracleClassifier):
    def forward(self, x):
        noise = x[:, 1, 3, 3] * 1000 % 1
        return 4 * (x.mean((1, 2, 3)) < 0.5).float() - 2 + 6 * (noise - 0.5)

    def validation_step(self, batch, batch_idx):
        self(batch[0])


class MultilabelClassifier(BinaryClassifier):
    def forward(self, x):
        dark = super().forward(x)
        return torch.stack([dark, -dark], 1)


def test_task__binary(tmp_path):
    failures = callback()
    trainer(tmp_path, failures).validate(BinaryClassifier(), DataLoader(Binary(), batch_size=16), verbose=False)
    assert [entry.name for entry in failures.last_report.classes] == ["bright", "dark"]
    assert 0.5 < failures.last_report.accuracy < 1


def test_task__multilabel(tmp_path):
    failures = callback()
    data = DataLoader(Binary(columns=2), batch_size=16)
    trainer(tmp_path, failures).validate(MultilabelClassifier(), data, verbose=False)
    report = failures.last_report
    assert [entry.name for entry in report.classes] == ["no bright", "bright", "no dark", "dark"]
    assert report.examples == 160
    assert sum(entry.examples for entry in report.classes) == 320


# -- when ----------------------------------------------------------------------------------------------------


def test_every_n_epochs__age_and_last_values(tmp_path):
    failures, metrics = callback(every_n_epochs=2), Metrics()
    trainer(tmp_path, failures, metrics, max_epochs=4).fit(OracleClassifier(), loader(), loader())
    assert [seen["failures/analysis_age"] for seen in metrics.seen] == [1, 0, 1, 0]
    assert failures.last_report.epoch == 3
    assert "failures/cv_score_mean" not in metrics.seen[0]
    assert metrics.seen[2]["failures/cv_score_mean"] == metrics.seen[1]["failures/cv_score_mean"]


def test_every_n_epochs__last_validation_of_the_epoch(tmp_path):
    failures, metrics = callback(), Metrics()
    trainer(tmp_path, failures, metrics, val_check_interval=0.25).fit(OracleClassifier(), loader(), loader())
    ages = [seen["failures/analysis_age"] for seen in metrics.seen]
    assert ages == [*range(1, len(ages)), 0]


def test_every_n_validations(tmp_path):
    failures, metrics = callback(every_n_validations=2), Metrics()
    trainer(tmp_path, failures, metrics, val_check_interval=0.2).fit(OracleClassifier(), loader(), loader())
    assert [seen["failures/analysis_age"] for seen in metrics.seen] == [1, 0, 1, 0, 1]


# -- monitored keys ------------------------------------------------------------------------------------------


def test_monitor__checkpoint_and_early_stopping_before_the_first_analysis(tmp_path):
    failures, metrics = callback(every_n_epochs=2, robust_encoder=ColourEncoder("robust")), Metrics()
    checkpoint = ModelCheckpoint(tmp_path, monitor="failures/aler_minus_ber_mean", mode="min")
    stopping = EarlyStopping("failures/cv_score_mean", mode="min", patience=10)
    trainer(tmp_path, failures, metrics, checkpoint, stopping, max_epochs=3, enable_checkpointing=True).fit(
        OracleClassifier(), loader(), loader()
    )
    assert metrics.seen[0]["failures/aler_minus_ber_mean"] == 1.0
    assert metrics.seen[1]["failures/aler_minus_ber_mean"] < 1
    assert checkpoint.best_model_path


def test_monitor__failing_first_analysis_logs_the_worst_value(tmp_path):
    class Broken(ColourEncoder):
        def encode_images(self, images):
            raise RuntimeError("out of order")

    failures, metrics = callback(encoder=Broken(), on_error="warn"), Metrics()
    stopping = EarlyStopping("failures/cv_score_mean", mode="min", patience=10)
    with pytest.warns(UserWarning, match="out of order"):
        trainer(tmp_path, failures, metrics, stopping, max_epochs=2).fit(OracleClassifier(), loader(), loader())
    assert [seen["failures/cv_score_mean"] for seen in metrics.seen] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("monitor", "message"),
    [("failures/aler_minus_ber_mean", "robust_encoder"), ("failures/cv_score", "Did you mean cv_score_mean")],
)
def test_monitor__impossible_keys_are_an_error_at_setup(tmp_path, monitor, message):
    stopping = EarlyStopping(monitor, mode="min")
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, callback(), stopping).fit(OracleClassifier(), loader(), loader())


# -- pictures ------------------------------------------------------------------------------------------------


def drawn(tmp_path) -> list[str]:
    """Return the analyses that have pictures."""
    return sorted({path.parts[-3] for path in tmp_path.rglob("images/*.png")})


def test_pictures__at_the_last_analysis_only(tmp_path):
    failures = callback(pictures=True)
    trainer(tmp_path, failures, max_epochs=3).fit(OracleClassifier(), loader(), loader(400))
    assert drawn(tmp_path) == ["epoch=0002-step=000030"]
    assert failures.last_report.timings["pictures"] > 0


def test_pictures__in_turn_or_never(tmp_path):
    trainer(tmp_path / "a", callback(pictures=True, pictures_every_n=2), max_epochs=3).fit(
        OracleClassifier(), loader(), loader()
    )
    assert [name[:10] for name in drawn(tmp_path / "a")] == ["epoch=0001", "epoch=0002"]
    trainer(tmp_path / "b", callback(pictures=False), max_epochs=2).fit(OracleClassifier(), loader(), loader())
    assert drawn(tmp_path / "b") == []


def test_pictures__training_that_ends_early_is_drawn_at_its_end(tmp_path):
    class Stop(Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1 and not trainer.sanity_checking

    failures = callback(pictures=True)
    trainer(tmp_path, Stop(), failures, max_epochs=9).fit(OracleClassifier(), loader(), loader(400))
    assert drawn(tmp_path) == ["epoch=0001-step=000020"]
    (found,) = tmp_path.glob("failures/no_logger/*/report.json")
    assert json.loads(found.read_text()) == failures.last_report.to_dict()


@pytest.mark.slow
def test_pictures__in_turn_for_every_loader(tmp_path):
    failures = callback(pictures=True, pictures_every_n=2)
    trainer(tmp_path, failures, max_epochs=3).fit(OracleClassifier(), loader(), [loader(), loader()])
    found = {(path.parts[-3][:10], "dataloader_1" in path.parts) for path in tmp_path.rglob("images/*.png")}
    assert found == {(epoch, second) for epoch in ("epoch=0001", "epoch=0002") for second in (False, True)}


@pytest.mark.slow
def test_pictures__an_error_leaves_the_analysis(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("boom")

    monkeypatch.setattr("lightning_failures.trainer.pictures.builder.add_null_cv_scores", broken)
    failures, metrics = callback(pictures=True, pictures_every_n=1), Metrics()
    with pytest.warns(UserWarning, match="could not draw pictures: RuntimeError: boom"):
        trainer(tmp_path, failures, metrics).fit(OracleClassifier(), loader(), loader())
    assert "failures/cv_score_mean" in metrics.seen[0]
    (found,) = tmp_path.glob("failures/no_logger/*/report.json")
    assert json.loads(found.read_text()) == failures.last_report.to_dict()


# -- nothing lost, nothing changed ---------------------------------------------------------------------------


class Raising(Classifier):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("bad step")
        return super().training_step(batch, batch_idx)


class Interrupted(Classifier):
    def training_step(self, batch, batch_idx):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("module", "error"), [(Raising, RuntimeError), (Interrupted, SystemExit), (Classifier, None)])
def test_detach__leaves_no_hook_and_no_wrapper(tmp_path, module, error):
    model, run, data = module(), trainer(tmp_path, callback(), max_epochs=2), loader()
    sampler = data.batch_sampler
    if error is None:
        run.fit(model, loader(), data)
    else:
        with pytest.raises(error):
            run.fit(model, loader(), data)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "process_dataloader" not in vars(run.strategy)
    assert data.batch_sampler is sampler


def _train(tmp_path, *callbacks):
    L.seed_everything(1, verbose=False)
    model = Classifier()
    trainer(tmp_path, *callbacks, max_epochs=2).fit(model, loader(shuffle=True), loader())
    return model, torch.get_rng_state()


def test_weights__identical_with_and_without_the_callback(tmp_path):
    plain, plain_rng = _train(tmp_path)
    watched, watched_rng = _train(tmp_path, callback(pictures=True, robust_encoder=ColourEncoder("robust")))
    assert torch.equal(plain_rng, watched_rng)
    assert watched.training == plain.training
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_second_epoch__embeds_nothing(tmp_path):
    encoder = ColourEncoder()
    trainer(tmp_path, callback(encoder=encoder, pictures=False), max_epochs=3).fit(
        OracleClassifier(), loader(), loader()
    )
    assert encoder.embedded == 160


def test_cache__serves_the_next_run_until_the_transform_changes(tmp_path):
    class Darker(Images):
        def __init__(self):
            super().__init__()
            self.images = self.images * 0.9

    first, second, third = ColourEncoder(), ColourEncoder(), ColourEncoder()
    for encoder, data in ((first, Images()), (second, Images()), (third, Darker())):
        failures = callback(encoder=encoder, pictures=False)
        trainer(tmp_path, failures).validate(Classifier(), DataLoader(data, batch_size=16), verbose=False)
    assert (first.embedded, second.embedded, third.embedded) == (160, 0, 160)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_state__plain_and_resumed(tmp_path):
    failures = callback(pictures=True)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, failures, checkpoint, enable_checkpointing=True).fit(OracleClassifier(), loader(), loader())
    path = tmp_path / "last.ckpt"
    assert failures.state_key in torch.load(path, weights_only=True)["callbacks"]
    resumed, metrics = callback(every_n_epochs=5), Metrics()
    callbacks = resumed, metrics, ModelCheckpoint(tmp_path / "again")
    again = trainer(tmp_path, *callbacks, max_epochs=3, enable_checkpointing=True)
    again.fit(OracleClassifier(), loader(), loader(), ckpt_path=path)
    assert resumed.state_dict()["run_id"] == failures.state_dict()["run_id"]
    assert [seen["failures/analysis_age"] for seen in metrics.seen] == [1, 2]
    assert metrics.seen[0]["failures/cv_score_mean"] == pytest.approx(failures.last_report.summary["cv_score_mean"])


def test_two_instances__are_refused_before_the_first_batch(tmp_path):
    one, two = callback(encoder=ColourEncoder("a")), callback(encoder=ColourEncoder("b"))
    assert one.state_key != two.state_key
    data = loader()
    sampler = data.batch_sampler
    for door in ("fit", "validate"):
        run = trainer(tmp_path, one, two)
        with pytest.raises(ConfigurationError, match=r"Only one FailureModes .* trainer\.validate"):
            getattr(run, door)(OracleClassifier(), *([loader(), data] if door == "fit" else [data]))
    assert data.batch_sampler is sampler


# -- loggers -------------------------------------------------------------------------------------------------


def test_loggers__several(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    trainer(tmp_path, callback(pictures=True), logger=loggers).fit(OracleClassifier(), loader(), loader())
    assert (tmp_path / "tb" / "version_0" / "failures" / "report.json").is_file()
    rows = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert "failures/cv_score_mean" in rows


@pytest.mark.slow
def test_loggers__wandb_offline(tmp_path):
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True, settings=wandb.Settings(silent=True, disable_git=True))
    failures = callback(pictures=True, robust_encoder=ColourEncoder("robust"))
    try:
        trainer(tmp_path, failures, logger=logger, max_epochs=2).fit(OracleClassifier(), loader(), loader())
        summary = dict(logger.experiment.summary)
        media = Path(logger.experiment.dir) / "media"
    finally:
        wandb.finish()
    assert summary["failures/cv_score_mean"] == pytest.approx(failures.last_report.summary["cv_score_mean"])
    assert len(list((media / "table").rglob("table_*.table.json"))) == 2
    assert list((media / "images").rglob("*.png"))
    # runs share the folder of W&B, so each has a report folder of its own
    assert (tmp_path / "failures" / logger.name / logger.version / "report.json").is_file()


def test_pytorch_lightning__the_other_namespace(tmp_path):
    pl = pytest.importorskip("pytorch_lightning")
    from lightning_failures.pytorch_lightning import FailureModes as Other

    class Twin(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = OracleClassifier()

        def forward(self, x):
            return self.inner(x)

        def training_step(self, batch, batch_idx):
            return self.inner.net(batch[0]).sum()

        def validation_step(self, batch, batch_idx):
            self(batch[0])

        configure_optimizers = OracleClassifier.configure_optimizers

    failures = Other(encoder=ColourEncoder(), on_error="raise", advanced=AdvancedOptions(permutations=99))
    assert isinstance(failures, pl.Callback)
    assert isinstance(failures, FailureModes)
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[failures],
        logger=pl.loggers.TensorBoardLogger(tmp_path, name="pl"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(Twin(), loader(), loader())
    assert failures.last_report.examples == 160
    assert (tmp_path / "pl" / "version_0" / "failures" / "report.json").is_file()


# -- bad input -----------------------------------------------------------------------------------------------


def _warned(tmp_path, failures, module, data) -> str:
    """Fit one epoch and return the warnings of the callback; the training must complete."""
    model = module()
    before = [p.clone() for p in model.parameters()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, failures, num_sanity_val_steps=0).fit(model, loader(), data)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return "\n".join(str(w.message) for w in caught if "FailureModes" in str(w.message))


class Diverged(Classifier):
    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch[0]) * math.nan}


def test_bad_input__nan_logits(tmp_path):
    failures = callback(on_error="warn")
    assert "NaN" in _warned(tmp_path, failures, Diverged, loader())
    assert failures.last_report is None


def test_bad_input__wrong_class_names(tmp_path):
    with pytest.raises(ConfigurationError, match="has 3 names, but the model has 4 logits"):
        trainer(tmp_path, callback(class_names=["a", "b", "c"], logits_from="net")).fit(
            Classifier(), loader(), loader()
        )
    failures = callback(class_names=["a", "b", "c"], on_error="warn", logits_from="net")
    assert "has 3 names" in _warned(tmp_path, failures, Classifier, loader())


def test_bad_input__outside_of_fit_a_wrong_configuration_is_an_error(tmp_path):
    failures = callback(class_names=["a", "b", "c"], on_error="warn", logits_from="net")
    with pytest.raises(ConfigurationError, match="has 3 names"):
        trainer(tmp_path, failures).validate(Classifier(), loader(), verbose=False)


def test_bad_input__labels_out_of_range(tmp_path):
    class Shifted(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label + 2

    class Careless(Classifier):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    failures = callback(on_error="warn")
    assert "Labels run from 2 to 5" in _warned(tmp_path, failures, Careless, DataLoader(Shifted(), batch_size=16))


def test_bad_input__images_out_of_range(tmp_path):
    failures = callback(on_error="warn", normalization=((0.0,), (1.0,)))
    assert "instead of 0 to 1" in _warned(tmp_path, failures, Classifier, loader())


def test_bad_input__class_without_failures_and_one_image(tmp_path):
    failures = callback()
    trainer(tmp_path, failures).validate(OracleClassifier(), loader(1), verbose=False)
    assert all(entry.skipped for entry in failures.last_report.classes)


def test_bad_input__unwritable_cache_folder(tmp_path):
    (tmp_path / "file").write_text("")
    failures = callback(cache_folder=tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match="cannot be written"):
        trainer(tmp_path, failures).validate(OracleClassifier(), loader(), verbose=False)
    assert failures.last_report.examples == 160


def test_bad_input__unreadable_cache_file(tmp_path):
    for _ in range(2):
        failures = callback(cache_folder=tmp_path / "cache")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(tmp_path, failures).validate(OracleClassifier(), loader(), verbose=False)
        for path in (tmp_path / "cache").rglob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:-7] + b"garbage")
    assert any("embedded again" in str(w.message) for w in caught)
    assert failures.last_report.examples == 160


def test_encoder__named_but_unknown_is_an_error_default_is_a_warning(tmp_path):
    with pytest.raises(EncoderError, match="ViT-B-32"):
        trainer(tmp_path, callback(encoder="ViT-B-23/openai")).validate(Classifier(), loader(), verbose=False)
    failures = FailureModes()
    with pytest.warns(UserWarning, match="only grades"):
        trainer(tmp_path, failures).validate(OracleClassifier(), loader(), verbose=False)
    assert failures.last_report.accuracy is not None
    assert failures.last_report.classes[0].cv_score is None


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_epochs": 0},
        {"min_coverage": 2.0},
        {"reference": "test"},
        {"task": "x"},
        {"every_n_validations": 0},
        {"n_directions": 0},
    ],
)
def test_options__refused_with_name_and_value(options):
    ((name, value),) = options.items()
    with pytest.raises(ConfigurationError, match=f"(FailureModes|Options)\\({name}=.*{value}"):
        FailureModes(**group_options(options))


def test_reference__train(tmp_path):
    failures = callback(reference="train")
    trainer(tmp_path, failures).fit(OracleClassifier(), loader(128, seed=3), loader())
    assert failures.last_report.reference == "train (128 of 128 examples)"
