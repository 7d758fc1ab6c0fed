"""Versions, monitored keys, the schedule, and loggers with their limits."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader

from lightning_failures.doctor.data import check_batches
from lightning_failures.doctor.environment import (
    check_loggers,
    check_monitors,
    check_schedule,
    check_versions,
    judge_versions,
)
from lightning_failures.doctor.findings import run_check
from tests.doctor.contexts import context, only, read, statuses
from tests.helpers.toy import Classifier, ColourEncoder, Images, callback


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_versions__malicious_releases_are_problems(name, version):
    found = only(judge_versions({name: version}, []), "problem")
    assert f"{name} {version}" in found.message
    assert statuses(judge_versions({name: "2.6.1"}, [])) == ["ok"]


def test_versions__requirements_of_extras_do_not_count():
    required = ['timm>=1.0; extra == "timm"', "torch>=2.4", "not-there>=1"]
    found = only(judge_versions({"torch": "2.3.1"}, required), "problem")
    assert "torch>=2.4 (here: 2.3.1)" in found.message
    assert "not-there>=1 (here: not installed)" in found.message
    assert "timm" not in found.message


def test_versions__classes_of_the_other_namespace_are_problems(tmp_path):
    import pytorch_lightning

    class Stranger(pytorch_lightning.Callback):
        pass

    made = context(tmp_path)
    assert statuses(check_versions(made)) == ["ok"]
    made.trainer.callbacks.append(Stranger())
    assert "Stranger" in only(check_versions(made), "problem").message


@pytest.mark.parametrize(
    ("key", "mode", "status"),
    [
        ("failures/cv_score_mean", "min", "ok"),
        ("failures/cv_score_mean", "max", "warning"),
        ("failures/accuracy", "min", "warning"),
        ("failures/class/cat/accuracy", "min", "ok"),
        ("failures/cv_score_meen", "min", "problem"),
        ("failures/valid_leaf_fraction", "min", "problem"),
        ("val_loss", "max", "ok"),
    ],
)
def test_monitors__wrong_keys_and_wrong_directions(tmp_path, key, mode, status):
    stopping = EarlyStopping(monitor=key, mode=mode)
    found = list(run_check("monitors", check_monitors, context(tmp_path, callbacks=[stopping])))
    assert found[0].status == status
    assert status == "ok" or key in found[0].message


def test_monitors__two_callbacks_would_log_the_same_keys(tmp_path):
    found = run_check(
        "monitors", check_monitors, context(tmp_path, callbacks=[callback(encoder=ColourEncoder("others"))])
    )
    assert "Only one FailureModes" in only(found, "problem").message


def test_schedule__never_and_too_little(tmp_path):
    never = context(tmp_path, every_n_epochs=5, around={"max_epochs": 4})
    assert "No analysis in 4 epochs" in only(check_schedule(never), "warning").message
    some = read(tmp_path, around={"limit_val_batches": 2})
    assert "20%" in only(check_schedule(some), "warning").message
    none = context(tmp_path, around={"limit_val_batches": 0})
    assert statuses(check_schedule(none)) == ["problem"]
    every_second = context(tmp_path, every_n_epochs=2, around={"max_epochs": 9})
    assert only(check_schedule(every_second), "ok").facts == {"analyses": 4}


def test_loggers__each_says_what_it_holds(tmp_path):
    class Unknown(Logger):
        name, version = "unknown", 0

        def log_metrics(self, metrics, step=None):
            raise AssertionError("nothing may be logged")

        log_hyperparams = log_metrics

    loggers = [
        TensorBoardLogger(tmp_path),
        CSVLogger(tmp_path),
        WandbLogger(offline=True, save_dir=tmp_path),
        Unknown(),
    ]
    made = read(tmp_path, around={"logger": loggers, "max_epochs": 200}, pictures=True, pictures_every_n=5)
    texts = [one.message for one in check_loggers(made)]
    assert "TensorBoard: at most 27 scalars and 4 pictures" in texts[1]
    assert "about 10 of the 41 drawings" in texts[1]
    assert "up to 1,000 examples in the projector" in texts[1]
    assert texts[2].startswith("CSV")
    assert "no pictures" in texts[2]
    assert texts[3].startswith("W&B (offline")
    assert "up to 500 examples in a table" in texts[3]
    assert only(check_loggers(made), "warning").message.startswith("Unknown gets up to 27 scalars")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thrown away"]  # not even a folder of a logger


def test_loggers__too_many_pictures_for_wandb(tmp_path):
    classes = [str(k) for k in range(60)]
    many = context(
        tmp_path,
        DataLoader(Images(classes=60), batch_size=80),
        model=Classifier(classes=60),
        class_names=classes,
        worst_k=60,
        pictures=True,
        robust_encoder=ColourEncoder("robust"),
        around={"logger": WandbLogger(offline=True, save_dir=tmp_path)},
    )
    list(check_batches(many))
    drawn = 60 + 60 * (5 + 7)  # of each class; of each tree the rules that count and all features
    assert f"{drawn} pictures" in only(check_loggers(many), "warning").message


def test_loggers__a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    made = context(tmp_path, around={"logger": CSVLogger(tmp_path / "file")})
    assert "cannot be written" in only(check_loggers(made), "problem").message
