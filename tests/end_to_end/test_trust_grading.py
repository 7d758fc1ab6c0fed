"""What is guessed of logits and labels is decided once for a loader, and said in report.json with its doubts."""

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_failures.data.report import FailureReport
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.trainer.options import DataOptions
from tests.helpers.toy import Images, OracleClassifier, callback, trainer

N, K = 240, 4
G = np.random.default_rng(0)
LABELS = torch.arange(N) % K
WRONG = torch.from_numpy(G.random(N) < 0.35)
PREDS = torch.where(WRONG, (LABELS + 1) % K, LABELS)
ACCURACY = float((PREDS == LABELS).float().mean())


class Data(Dataset):
    """Images whose first pixels hold what the model answers."""

    def __init__(self, labels=LABELS, answers=PREDS, classes=("a", "b", "c", "d"), size=N):
        self.labels, self.size = labels[:size], size
        self.images = torch.from_numpy(G.random((size, 3, 8, 8)).astype("float32")) * 0.5 + 0.2
        answers = answers.float().reshape(len(answers), -1)[:size]
        self.images[:, 0, 0, : answers.shape[1]] = answers / 10
        if classes is not None:
            self.classes = list(classes)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Model(L.LightningModule):
    """Answers what the image holds."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def answer(self, x):
        return (x[:, 0, 0, 0] * 10).round().long().clamp(0, K - 1)

    def forward(self, x):
        return 4.0 * F.one_hot(self.answer(x), K).float() - 1 + self.w * 0

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def training_step(self, batch, batch_idx):
        return self.w.sum() ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def validated(tmp_path, model, dataset, batch_size=16, warns=None, **options):
    """Return the report of a validation; ``warns`` is what a warning must say."""
    failures = callback(encoder=None, **options)
    run = trainer(tmp_path, failures)
    loader = DataLoader(dataset, batch_size=batch_size)
    if warns is None:
        run.validate(model, loader, verbose=False)
    else:
        with pytest.warns(UserWarning, match=warns):
            run.validate(model, loader, verbose=False)
    return failures.last_report.report


def says(report, *words):
    return any(all(word in note for word in words) for note in report.notes)


# -- logits ----------------------------------------------------------------------------------------------------------


def test_notes__what_was_taken_for_what(tmp_path):
    report = validated(tmp_path, Model(), Data())
    assert report.accuracy == pytest.approx(ACCURACY)
    assert report.notes == ("Graded as a multiclass task from 4 raw scores per example, observed during the step.",)


Q = torch.linalg.qr(torch.randn(32, K, generator=torch.Generator().manual_seed(0)))[0].T.contiguous()


class Embeds(Model):
    def forward(self, x):
        return super().forward(x) @ Q

    def validation_step(self, batch, batch_idx):
        return {"own": self(batch[0]) @ Q.T}


class ArcFace(Model):
    def __init__(self):
        super().__init__()
        self.backbone = Embeds()

    forward = L.LightningModule.forward

    def validation_step(self, batch, batch_idx):
        F.linear(F.normalize(self.backbone(batch[0])), Q)


@pytest.mark.parametrize("model", [Embeds, ArcFace])
def test_embedding_from_forward__is_doubted(tmp_path, model):
    report = validated(tmp_path, model(), Data(classes=None), warns="may be an embedding")
    assert says(report, "32 columns", "labels run only up to 3", "logits_from", "read_batch")
    with pytest.raises(ConfigurationError, match="logits_from"):  # with names, nothing has four columns
        validated(tmp_path, model() if model is ArcFace else Embeds(), Data(), logits_from="nothing")


def test_more_columns_than_labels__is_a_note_where_accuracy_is_high(tmp_path):
    class Wide(Model):
        def forward(self, x):
            return F.pad(super().forward(x), (0, 5), value=-3.0)

    report = validated(tmp_path, Wide(), Data(classes=None))  # no warning
    assert report.accuracy == pytest.approx(ACCURACY)
    assert says(report, "9 columns", "up to 3", "give class_names")


def test_accuracy_below_chance__is_doubted(tmp_path):
    class Reordered(Model):
        def forward(self, x):
            return super().forward(x).roll(2, 1)

    report = validated(tmp_path, Reordered(), Data(), warns="below the 0.2")
    assert says(report, "another order")


def test_accuracy_of_one_predicted_class__is_no_doubt(tmp_path):
    class Collapsed(Model):
        def forward(self, x):
            return torch.tensor([[0.0, 0.0, 0.0, 1.0]]).repeat(len(x), 1) + self.w * 0

    labels = torch.where(torch.arange(N) < 4, 3, torch.arange(N) % 3)
    report = validated(tmp_path, Collapsed(), Data(labels))
    assert report.accuracy == pytest.approx(4 / N)
    assert len(report.notes) == 1


class Binary(Model):
    """Raw scores of both signs, some between 0 and 1; ``given`` is what the step returns."""

    probabilities = False
    key = "preds"

    def forward(self, x):
        scores = (x[:, 0, 0, 0] * 10 - 5) * (1 + 0 * self.w)
        return torch.sigmoid(scores) if self.probabilities else scores

    def validation_step(self, batch, batch_idx):
        return {self.key: self(batch[0])}


SCORES = torch.from_numpy(np.random.default_rng(3).normal(0.2, 0.8, N)).float()
TRUTH = torch.from_numpy((np.random.default_rng(4).random(N) < torch.sigmoid(2 * SCORES).numpy()).astype("int64"))
BINARY = float(((SCORES > 0).long() == TRUTH).float().mean())


@pytest.mark.parametrize("batch_size", [1, 2, 7, 240])
@pytest.mark.parametrize("probabilities", [False, True])
def test_preds__are_read_alike_in_all_batches(tmp_path, batch_size, probabilities):
    model = Binary()
    model.probabilities = probabilities
    report = validated(tmp_path, model, Data(TRUTH, SCORES + 5, ["no", "yes"]), batch_size)
    assert report.accuracy == pytest.approx(BINARY, abs=0.01)
    assert says(report, "binary", "probability" if probabilities else "raw score", "as preds")


@pytest.mark.parametrize("batch_size", [1, 16])
def test_multilabel_preds__are_read_alike_in_all_batches(tmp_path, batch_size):
    class Two(Binary):
        def forward(self, x):
            return (x[:, 0, 0, :2] * 10 - 5) * (1 + 0 * self.w)

    scores = torch.stack([SCORES, -SCORES.flip(0)], 1)
    data = Data(torch.stack([TRUTH, 1 - TRUTH.flip(0)], 1).float(), scores + 5, ["edema", "mass"])
    report = validated(tmp_path, Two(), data, batch_size)
    assert report.accuracy == pytest.approx(validated(tmp_path, Two(), data, 240).accuracy)
    assert report.accuracy > 0.7


def test_confidence__of_raw_scores_that_sum_to_one_in_a_batch(tmp_path):
    class Small(Model):
        def forward(self, x):
            scores = super().forward(x) * 0.25 + 0.25  # of the answer 1, of the others 0
            return torch.where((x[:, 1, 1, 1:2] > 0.45), scores * 2, scores)

    data = Data()
    one, whole = (validated(tmp_path, Small(), data, size).classes for size in (1, 240))
    values = [[entry.least_confident_values for entry in classes] for classes in (one, whole)]
    assert np.allclose(values[0], values[1], atol=1e-5)


class Sigmoid(Binary):
    probabilities = True

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def test_sigmoid_in_forward__is_recognised_and_doubted(tmp_path):
    data = Data(TRUTH, SCORES + 5, ["no", "yes"])
    report = validated(tmp_path, Sigmoid(), data, warns=r"between 0 and 1.*taken for probabilities")
    assert report.accuracy == pytest.approx(BINARY, abs=0.01)
    assert says(report, "binary", "1 probability per example")
    assert says(report, "between 0 and 1", "preds")


def test_sigmoid_named_logits__stays_and_is_doubted(tmp_path):
    model = Binary()
    model.key, model.probabilities = "logits", True
    report = validated(tmp_path, model, Data(TRUTH, SCORES + 5, ["no", "yes"]), warns="counts as positive")
    assert report.accuracy == pytest.approx(float(TRUTH.float().mean()))
    assert says(report, "counts as positive", "preds")


def test_small_raw_scores__are_no_false_alarm(tmp_path):
    class Small(Sigmoid):
        def forward(self, x):
            return 0.2 + 0.02 * (x[:, 0, 0, 0] * 10 - 5) + 0 * self.w

    report = validated(tmp_path, Small(), Data(TRUTH, SCORES + 5, ["no", "yes"]))  # a warning would be an error
    assert not says(report, "between 0 and 1")
    assert says(report, "raw score")


class Hard(Model):
    """Returns predicted classes beside the logits that it computes."""

    agree = True

    def validation_step(self, batch, batch_idx):
        found = self(batch[0]).argmax(1)
        return {"preds": found if self.agree else (found + (batch_idx > 3)) % K}


def test_integer_preds__confidence_comes_from_the_logits_that_agree(tmp_path):
    report = validated(tmp_path, Hard(), Data())
    assert report.accuracy == pytest.approx(ACCURACY)
    expected = validated(tmp_path, Model(), Data()).classes
    assert [e.least_confident_values for e in report.classes] == [e.least_confident_values for e in expected]
    assert all(0 < value < 1 for entry in report.classes for value in entry.least_confident_values)
    without_names = validated(tmp_path, Hard(), Data(classes=None))  # the logits have as many columns as classes
    assert without_names.accuracy == pytest.approx(ACCURACY)


def test_integer_preds__win_over_logits_that_disagree(tmp_path):
    model = Hard()
    model.agree = False
    report = validated(tmp_path, model, Data())
    shifted = torch.where(torch.arange(N) >= 64, (PREDS + 1) % K, PREDS)
    assert report.accuracy == pytest.approx(float((shifted == LABELS).float().mean()))
    assert {value for entry in report.classes for value in entry.least_confident_values} <= {0.0, 1.0}
    assert says(report, "another class for 176 examples", "confidence is 1 or 0")


def test_integer_preds__of_several_conditions(tmp_path):
    class Conditions(Model):
        def validation_step(self, batch, batch_idx):
            return {"preds": (batch[0][:, 0, 0, :3] * 10).round().long()}

    truth = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (N, 3)))
    answers = torch.where(torch.from_numpy(np.random.default_rng(2).random((N, 3)) < 0.2), 1 - truth, truth)
    report = validated(tmp_path, Conditions(), Data(truth, answers, ["x", "y", "z"]))
    assert report.accuracy == pytest.approx(float((truth == answers).float().mean()))
    assert says(report, "multilabel", "predicted classes")


def test_forward_that_the_step_did_not_make__is_noted(tmp_path):
    class Augmented(Model):
        def validation_step(self, batch, batch_idx):
            self(torch.cat([batch[0], batch[0].flip(-1)]))

    report = validated(tmp_path, Augmented(), Data())
    assert says(report, "another forward", "on 32 rows for a batch of 16", "Return {'logits': ...}")


# -- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_one_hot_labels__are_one_class_each(tmp_path, smoothing, batch_size):
    labels = F.one_hot(LABELS, K) * (1 - smoothing) + smoothing / K
    report = validated(tmp_path, Model(), Data(labels), batch_size)
    assert report.accuracy == pytest.approx(ACCURACY)
    assert len(report.classes) == K
    assert says(report, "one-hot", "multiclass", "DataOptions(task='multilabel')")
    assert says(report, "no integers but fractions from 0.025 to 0.925") == (smoothing > 0)


def test_one_hot_labels__of_the_first_batches_only_are_conditions(tmp_path):
    labels = F.one_hot(LABELS, K)
    labels[-1] = 1
    report = validated(tmp_path, Model(), Data(labels), data=DataOptions())
    assert len(report.classes) == 2 * K
    assert report.examples == N
    assert not says(report, "one-hot")


def test_one_hot_labels__task_given(tmp_path):
    report = validated(tmp_path, Model(), Data(F.one_hot(LABELS, K)), data=DataOptions(task="multilabel"))
    assert len(report.classes) == 2 * K


@pytest.mark.parametrize("low", [0.0, 0.05, 0.3])
def test_smoothed_multilabel_labels__are_cut_at_half(tmp_path, low):
    class Conditions(Model):
        def forward(self, x):
            return 6 * (x[:, 0, 0, :3] * 10 - 0.5) + 0 * self.w

    truth = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (N, 3))).float()
    flip = torch.from_numpy(np.random.default_rng(2).random((N, 3)) < 0.1)
    data = Data(truth * (1 - 2 * low) + low, torch.where(flip, 1 - truth, truth), ["x", "y", "z"])
    report = validated(tmp_path, Conditions(), data)
    assert report.accuracy == pytest.approx(1 - float(flip.float().mean()))
    assert says(report, "those above 0.5 count as 1") == (low > 0)


@pytest.mark.parametrize("unknown", [0, 3])
def test_smoothed_binary_labels(tmp_path, unknown):
    labels = torch.where(torch.arange(len(TRUTH)) < unknown, -100.0, TRUTH * 0.9 + 0.05)
    report = validated(tmp_path, Binary(), Data(labels, SCORES + 5, ["no", "yes"]))
    assert report.examples == N - unknown
    assert report.accuracy == pytest.approx(BINARY, abs=0.01 + unknown / N)
    assert says(report, "fractions from 0.05 to 0.95")


@pytest.mark.parametrize("mark", [-1, 255])
def test_labels_of_no_class__the_message_says_how_to_skip_them(tmp_path, mark):
    labels = torch.where(torch.arange(N) == 5, mark, LABELS)
    with pytest.warns(UserWarning, match=r"label outside 0 \.\.\. 3\): id 5\. .*-100.*masked_fill.*read_batch"):
        validated(tmp_path, Model(), Data(labels))
    with pytest.raises(DataError, match=r"-100.*masked_fill.*read_batch"):
        validated(tmp_path, Model(), Data(torch.full_like(labels, mark)))


@pytest.mark.parametrize(
    "labels", [torch.linspace(20, 80, N), torch.linspace(0, 1, N), torch.rand(N, 4) * 32, (LABELS + 20).float()]
)
def test_numbers_as_labels__are_told_as_regression(tmp_path, labels):
    class Number(Model):
        def forward(self, x):
            return x[:, 0, 0, :1] + 0 * self.w if labels.ndim == 1 else super().forward(x)

    with pytest.raises(ConfigurationError, match=r"regression.*BatchRecord\(correct.*failed_below"):
        validated(tmp_path, Number(), Data(labels, classes=None))


# -- the module's own accuracy -----------------------------------------------------------------------------------------


class Logs(Model):
    key, offset, average = "val_acc", 0.0, "micro"

    def __init__(self):
        super().__init__()
        self.metric = MulticlassAccuracy(K, average=self.average)

    def validation_step(self, batch, batch_idx):
        self.metric((self(batch[0]) + self.offset * F.one_hot(batch[1], K)).argmax(1), batch[1])
        self.log(self.key, self.metric)


@pytest.mark.parametrize("key", ["val_acc", "val/acc", "accuracy", "valid_accuracy"])
@pytest.mark.parametrize("average", ["micro", "macro"])
def test_own_accuracy__agrees(tmp_path, key, average):
    report = validated(tmp_path, type("Own", (Logs,), {"key": key, "average": average})(), Data())
    assert not says(report, "the module logged")


def test_own_accuracy__differs(tmp_path):
    report = validated(tmp_path, type("Own", (Logs,), {"offset": 9.0})(), Data(), warns="the module logged val_acc = 1")
    assert says(report, "the module logged val_acc = 1.0000", "logits_from")
    other = validated(tmp_path, type("Own", (Logs,), {"offset": 9.0, "key": "val_acc_top5"})(), Data())
    assert not says(other, "the module logged")


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
def test_own_accuracy__of_the_training_or_of_an_earlier_epoch_is_not_compared(tmp_path):
    class Late(Model):
        def training_step(self, batch, batch_idx):
            self.log("acc", 0.01, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def on_validation_epoch_end(self):
            if self.trainer.sanity_checking:
                self.log("val_acc", 0.02)

    failures, data = callback(encoder=None), DataLoader(Data(), batch_size=16)
    trainer(tmp_path, failures, max_epochs=2).fit(Late(), data, data)
    assert failures.last_report.report.epoch == 1
    assert len(failures.last_report.report.notes) == 1


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.parametrize("pictures", [False, True])
def test_own_accuracy__logged_in_the_epoch_end_of_the_module(tmp_path, pictures):
    class Late(Logs):
        def validation_step(self, batch, batch_idx):
            self.metric(self(batch[0]).argmax(1), batch[1])

        def on_validation_epoch_end(self):  # Lightning calls it after that of the callback
            right = float(self.metric.compute())
            is_right = self.trainer.state.fn == "fit" and self.trainer.current_epoch == 0
            self.log("val_acc", right if is_right else 0.02)
            self.metric.reset()

    failures, data = callback(encoder=None, pictures=pictures), DataLoader(Data(), batch_size=16)
    run = trainer(tmp_path, failures, max_epochs=2)
    with pytest.warns(UserWarning, match="the module logged val_acc = 0.0200"):
        run.fit(Late(), data, data)
    assert says(failures.last_report, "the module logged val_acc = 0.0200", "logits_from")
    folder = next(tmp_path.glob("failures/no_logger/*"))
    saved = [FailureReport.from_json(path.read_text()) for path in sorted(folder.glob("epoch=*/report.json"))]
    assert [any("val_acc" in note for note in report.notes) for report in saved] == [False, True]
    if pictures:
        assert "val_acc = 0.0200" in (folder / "report.html").read_text()
    with pytest.warns(UserWarning, match="the module logged val_acc = 0.0200"):
        trainer(tmp_path / "alone", alone := callback(encoder=None, pictures=pictures)).validate(Late(), data)
    assert says(alone.last_report, "the module logged val_acc = 0.0200")


# -- class lists -------------------------------------------------------------------------------------------------------


def named(classes, size=80):
    data = Images(size)
    data.classes = classes
    return data


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.parametrize(
    ("where", "classes", "problem"),
    [
        ("training", ["class 1", "class 0", "class 2", "class 3"], "label 0 is 'class 0' there and 'class 1' here"),
        ("training", {"class 0": 0, "class 1": 1, "class 2": 2, "class X": 3}, "'class 3' there and 'class X' here"),
        ("training", ["class 0", "class 1"], "4 classes there and 2 here"),
        ("pool", {"class 0": 0, "class 1": 1, "class 2": 2, "class X": 3}, "class X cannot be matched"),
    ],
)
def test_class_lists__that_differ_are_an_error_for_interventions(tmp_path, where, classes, problem):
    same, other = named([f"class {k}" for k in range(4)]), named(classes)
    pool = [AddFiltered(other, per_class=2)] if where == "pool" else []
    failures = callback(interventions=[*pool, Upweight()])
    train = DataLoader(other if where == "training" else same, batch_size=16)
    with pytest.raises(ConfigurationError, match=problem):
        trainer(tmp_path, failures).fit(OracleClassifier(), train, DataLoader(same, batch_size=16))
