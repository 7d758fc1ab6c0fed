import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_failures.analysis.analyse import analyse
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.metric_keys import (
    aggregates,
    check_monitored,
    monitored_keys,
    promised_values,
    worst_class_values,
)
from tests.helpers.toy import Classifier, loader, trainer


class Plateau(Classifier):
    """Its scheduler monitors."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "failures/cv_score_mean", "strict": False},
        }


class AtFitStart(Callback):
    def on_train_start(self, trainer, pl_module):
        self.keys = monitored_keys(trainer)


def test_monitored_keys__of_callbacks_and_ours_alone(tmp_path):
    run = trainer(
        tmp_path,
        EarlyStopping("failures/flagged_fraction"),
        ModelCheckpoint(tmp_path, monitor="failures/aler_minus_ber_mean"),
        ModelCheckpoint(tmp_path, monitor="val_loss", filename="other"),
        enable_checkpointing=True,
    )
    assert monitored_keys(run) == {"failures/flagged_fraction", "failures/aler_minus_ber_mean"}
    assert monitored_keys(trainer(tmp_path)) == set()


@pytest.mark.filterwarnings("ignore")
def test_monitored_keys__of_schedulers(tmp_path):
    seen = AtFitStart()
    trainer(tmp_path, seen, limit_train_batches=1, limit_val_batches=0).fit(Plateau(), loader(16))
    assert seen.keys == {"failures/cv_score_mean"}


@pytest.mark.parametrize("name", [*aggregates(), "accuracy", "coverage", "analysis_age", "class/cat/cv_score"])
def test_check_monitored__all_that_can_be_logged(name):
    check_monitored([f"failures/{name}", f"failures/{name}/dataloader_1"], ["directions", "trees", "sparse"])


@pytest.mark.parametrize(
    ("key", "methods", "message"),
    [
        ("failures/cv_score_maen", ["directions", "trees"], "Did you mean cv_score_mean"),
        ("failures/cv_score_mean", ["trees"], r"FailureModes\(encoder=\.\.\.\)"),
        ("failures/flagged_fraction/dataloader_2", ["trees"], "failure directions"),
        (
            "failures/valid_leaf_fraction",
            ["directions"],
            r"FailureModes\(robust_encoder=\.\.\.\)",
        ),
    ],
)
def test_check_monitored__refused(key, methods, message):
    with pytest.raises(ConfigurationError, match=message):
        check_monitored([key], methods)


def test_check_monitored__grades_need_no_lens():
    check_monitored(["failures/accuracy", "failures/coverage"], [])


def test_promised_values__last_else_worst():
    monitored = {"failures/cv_score_mean", "failures/flagged_fraction", "failures/class/cat/aler"}
    assert promised_values(monitored, {}) == {"cv_score_mean": 1.0, "flagged_fraction": 1.0}
    last = {"cv_score_mean": 0.6}
    promised = promised_values(monitored, last)
    assert promised == {"cv_score_mean": 0.6, "flagged_fraction": 1.0}
    promised["cv_score_mean"] = 0.0
    assert last == {"cv_score_mean": 0.6}


def test_aggregates__are_what_the_analysis_says_and_no_value_is_worse():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator)
    failed = x[:, 0] > 0.5
    labels = torch.arange(300) % 2
    grades = Grades(torch.arange(300), labels, (labels + failed) % 2, torch.ones(300), ("cat", "dog"))
    summary = analyse(grades, x, features=x, penultimate=x, permutations=49).summary
    assert aggregates().keys() - {"accuracy", "coverage"} == summary.keys() - {"accuracy", "coverage"}
    higher_is_better = {"accuracy", "coverage", "shared/p_value", "sparse/accuracy", "sparse/fixed_by_one_feature"}
    assert all(summary[name] <= aggregates()[name] for name in summary.keys() - higher_is_better)
    assert all(summary[name] >= aggregates()[name] for name in higher_is_better & aggregates().keys())


def test_worst_class_values__lowest_accuracy_first_and_nothing_undefined():
    classes = (
        ClassReport("fine", 9, accuracy=0.9, cv_score=0.5),
        ClassReport("no examples", 0),
        ClassReport("../bad", 9, accuracy=0.1, cv_score=0.8, p_value=0.01, aler=0.95),
        ClassReport("poor", 9, accuracy=0.4),
    )
    report = FailureReport(27, 0.5, classes)
    assert worst_class_values(report, 2) == {
        "class/bad/accuracy": 0.1,
        "class/bad/cv_score": 0.8,
        "class/bad/p_value": 0.01,
        "class/bad/aler": 0.95,
        "class/poor/accuracy": 0.4,
    }
    assert worst_class_values(report, 0) == {}
    assert len(worst_class_values(report, 99)) == 7


def test_worst_class_values__ranked_by_shrunken_rates_with_raw_values():
    few = ClassReport("few", 5, accuracy=0.0, error_rate_shrunk=0.35)
    many = ClassReport("many", 100, accuracy=0.4, error_rate_shrunk=0.58)
    assert worst_class_values(FailureReport(105, 0.4, (few, many)), 1) == {"class/many/accuracy": 0.4}


def test_worst_class_values__never_nan():
    """NaN would stop a training that monitors it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    labels = torch.arange(200) % 2
    failed = (labels == 0) & (x[:, 0] > 0)
    grades = Grades(torch.arange(200), labels, (labels + failed) % 2, torch.ones(200), ("cat", "dog"))
    values = worst_class_values(analyse(grades, x, features=x, permutations=0), 2)
    assert {"class/cat/cv_score", "class/dog/accuracy"} <= values.keys()
    assert not any(key.startswith("class/") and value != value for key, value in values.items())
    assert "class/cat/p_value" not in values
    assert "class/dog/aler" not in values


def test_monitored_keys__of_a_callback_that_monitors_several(tmp_path):
    class Several(Callback):
        monitor = ("failures/cv_score_mean", "val_loss")

    assert monitored_keys(trainer(tmp_path, Several())) == set()
