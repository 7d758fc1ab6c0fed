"""Tasks with a verdict per example, segmentation and regression: graded, analysed, drawn, written and acted upon."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_failures import BatchRecord
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from lightning_failures.report import compare, open_run
from tests.helpers.toy import NORMALIZE, Images, callback, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")


class Masks(Images):
    """The label is a mask of the left half."""

    def __getitem__(self, index):
        mask = torch.zeros(8, 8, dtype=torch.int64)
        mask[:, :4] = 1
        return self.transform(self.images[index]), mask


class Ages(Images):
    """The label is a number that no class could be."""

    def __getitem__(self, index):
        return self.transform(self.images[index]), float(self.labels[index]) * 10.5


class Task(L.LightningModule):
    """Errs on dark images; training changes nothing."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.w.sum() ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fails(x):
    pixels = x * 0.25 + 0.5
    return (pixels.mean((1, 2, 3)) < 0.45) & (pixels[:, 1, 3, 3] * 1000 % 1 < 0.8)


class Segmentation(Task):
    def forward(self, x):
        logits = torch.zeros(len(x), 8, 8)
        logits[:, :, :4] = 4.0
        logits[fails(x), :, :3] = -4.0
        return logits - 2 + self.w * 0

    def validation_step(self, batch, batch_idx):
        predicted, mask = self(batch[0]) > 0, batch[1].bool()
        iou = (predicted & mask).sum((1, 2)) / (predicted | mask).sum((1, 2))
        self.log("val_iou", iou.mean())
        return {"iou": iou}


class Regression(Task):
    def forward(self, x):
        return (x[:, 0, 0, 0] * 2.5 + 5) * 10.5 + 20.0 * fails(x) + self.w * 0

    def validation_step(self, batch, batch_idx):
        error = (self(batch[0]) - batch[1]).abs()
        self.log("val_error", error.mean())
        return error


def read_iou(outputs, batch):
    return BatchRecord(images=batch[0], score=None if outputs is None else outputs["iou"])


def read_error(outputs, batch):
    return BatchRecord(images=batch[0], score=None if outputs is None else -outputs)


def read_correct(outputs, batch):
    return BatchRecord(images=batch[0], correct=None if outputs is None else outputs["iou"] > 0.5)


SEGMENTATION = (Segmentation, Masks, {"read_batch": read_iou, "failed_below": 0.5})
REGRESSION = (Regression, Ages, {"read_batch": read_error, "failed_below": -5.0})
WITH_CORRECT = (Segmentation, Masks, {"read_batch": read_correct})


def wrong_of(data):
    return fails(torch.stack([NORMALIZE(image) for image in data.images]))


@pytest.mark.parametrize("task", [SEGMENTATION, REGRESSION, WITH_CORRECT], ids=["iou", "error", "correct"])
def test_verdicts__validate(tmp_path, task):
    model, dataset, options = task
    data = dataset(160)
    failures = callback(pictures=True, robust_encoder=callback().encoder, **options)
    logger = TensorBoardLogger(tmp_path, name="run")
    run = trainer(tmp_path, failures, logger=logger)
    run.validate(model(), DataLoader(data, batch_size=16), verbose=False)

    # the verdicts are those of the step, the only group is "all", with a pattern and a tree
    result = failures.last_report
    report, wrong = result.report, wrong_of(data)
    assert report.accuracy == pytest.approx(1 - float(wrong.float().mean()))
    assert torch.equal(result.table.failed, wrong)
    assert result.table.predictions is None
    assert result.table.confidence is None
    (only,) = report.classes
    assert (only.name, only.examples, only.pattern) == ("all", 160, True)
    assert only.least_confident_ids == ()
    assert [(group.grouping, group.class_name) for group in report.groups] == [("label", "all")]
    assert report.groups[0].leaves
    assert "verdict" in report.notes[0]

    # files: the table, the report, the page
    folder = tmp_path / "run" / "version_0" / "failures"
    table = ExampleTable.load(folder / "examples.safetensors")
    assert table.predictions is None
    assert torch.equal(table.failed, wrong)
    page = (folder / "report.html").read_text()
    assert "examples/values/" in page
    assert "examples/confidence/0" not in page
    assert '"failed"' in page
    assert "predicted None" not in page
    events = EventAccumulator(str(folder.parent)).Reload()
    assert events.Scalars("failures/accuracy")[0].value == pytest.approx(report.accuracy)
    assert any(tag.startswith("failures/") for tag in events.Tags()["images"])

    # the commands read it
    found = compare(open_run(folder), open_run(folder))
    assert (found.examples, len(found.persistent), found.same_predictions) == (160, int(wrong.sum()), None)
    assert {(change.a, change.b) for change in found.persistent} == {("wrong", "wrong")}


def test_verdicts__labels_divide_the_examples(tmp_path):
    def read(outputs, batch):
        return BatchRecord(correct=~fails(batch[0]))

    data = Images(160)
    failures = callback(read_batch=read)
    trainer(tmp_path, failures).validate(Silent(), DataLoader(data, batch_size=16), verbose=False)
    report = failures.last_report.report
    assert [entry.name for entry in report.classes] == data.classes
    wrong = wrong_of(data)
    assert [entry.accuracy for entry in report.classes] == [
        pytest.approx(1 - float(wrong[data.labels == k].float().mean())) for k in range(4)
    ]
    del data.classes
    failures = callback(read_batch=read)
    trainer(tmp_path, failures).validate(Silent(), DataLoader(data, batch_size=16), verbose=False)
    assert [entry.name for entry in failures.last_report.report.classes] == ["0", "1", "2", "3"]


class Silent(Task):
    def validation_step(self, batch, batch_idx):
        return None


def test_verdicts__examples_without_a_score_are_skipped(tmp_path):
    def read(outputs, batch):
        score = torch.ones(len(batch[0]))
        score[0] = torch.nan
        return BatchRecord(score=score)

    failures = callback(read_batch=read, failed_below=0.5)
    trainer(tmp_path, failures).validate(Silent(), DataLoader(Ages(64), batch_size=16), verbose=False)
    assert failures.last_report.report.examples == 60
    assert failures.last_report.report.coverage == 1.0


@pytest.mark.parametrize(
    ("read", "options", "message"),
    [
        (lambda o, b: BatchRecord(score=torch.ones(len(b[0]))), {}, "give failed_below"),
        (lambda o, b: BatchRecord(correct=torch.ones(len(b[0]))), {"failed_below": 0.5}, r"needs BatchRecord\(score"),
        (lambda o, b: BatchRecord(images=b[0]), {"failed_below": 0.5}, r"needs BatchRecord\(score"),
        (lambda o, b: BatchRecord(correct=torch.ones(len(b[0]), 2)), {}, r"must be \(B,\) booleans"),
        (lambda o, b: BatchRecord(correct=torch.full((len(b[0]),), 0.5)), {}, r"must be \(B,\) booleans"),
        (lambda o, b: BatchRecord(correct=torch.ones(3)), {}, "3 verdicts but 16 ids"),
        (lambda o, b: BatchRecord(correct=torch.ones(len(b[0])), labels=b[1]), {}, r"must be \(B,\) integers"),
        (lambda o, b: BatchRecord(correct=torch.ones(len(b[0])), labels=torch.zeros(2).long()), {}, r"\(B,\) integers"),
    ],
)
def test_verdicts__what_does_not_go_together_is_an_error(tmp_path, read, options, message):
    failures = callback(read_batch=read, on_error="warn", **options)
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, failures).validate(Silent(), DataLoader(Masks(32), batch_size=16), verbose=False)


def test_failed_below__is_a_number_beside_read_batch():
    for value, read in ((0.5, None), (True, read_iou), (float("nan"), read_iou), ("0.5", read_iou)):
        with pytest.raises(ConfigurationError, match="failed_below"):
            callback(failed_below=value, read_batch=read)


@pytest.mark.parametrize("dataset", [Masks, Ages])
def test_no_verdict__one_clear_error(tmp_path, dataset):
    model = Segmentation if dataset is Masks else Regression
    run, data = trainer(tmp_path, callback(on_error="warn")), DataLoader(dataset(32), batch_size=16)
    with pytest.raises(ConfigurationError, match=r"read_batch.*BatchRecord\(correct.*failed_below"):
        run.validate(model(), data, verbose=False)
    run = trainer(tmp_path, callback(on_error="warn"))
    with pytest.raises(ConfigurationError, match=r"read_batch.*BatchRecord\(correct.*failed_below"):
        run.fit(model(), data, data)


class Boxes(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.zeros(3, 8, 8), {"boxes": torch.zeros(2, 4)}


def test_no_verdict__detection(tmp_path):
    with pytest.raises(ConfigurationError, match=r"(?s)No labels.*BatchRecord\(correct.*failed_below"):
        trainer(tmp_path, callback(on_error="warn")).validate(
            Silent(), DataLoader(Boxes(), batch_size=4), verbose=False
        )


@pytest.mark.parametrize("task", [SEGMENTATION, REGRESSION], ids=["iou", "error"])
def test_verdicts__fit_with_an_intervention(tmp_path, task):
    model, dataset, options = task
    failures = callback(interventions=[Upweight(factor=3.0, triage=False)], **options)
    run = trainer(tmp_path, failures, max_epochs=3, logger=TensorBoardLogger(tmp_path, name="run"))
    run.fit(
        model(), DataLoader(dataset(160, seed=1), batch_size=16, shuffle=True), DataLoader(dataset(160), batch_size=16)
    )
    report = failures.last_report.report
    (record,) = report.interventions
    (entry,) = record["classes"]
    assert entry["class"] == "all"
    assert entry["flagged"] > 20
    page = tmp_path / "run" / "version_0" / "failures" / "report.json"
    assert json.loads(page.read_text())["accuracy"] == report.accuracy


def test_verdicts__triage_is_off(tmp_path):
    model, dataset, options = SEGMENTATION
    failures = callback(interventions=[Upweight(factor=3.0)], **options)
    with pytest.warns(UserWarning, match="label errors are not sought"):
        trainer(tmp_path, failures, max_epochs=2).fit(
            model(), DataLoader(dataset(160, seed=1), batch_size=16), DataLoader(dataset(160), batch_size=16)
        )
    assert failures.last_report.report.interventions[0]["classes"][0]["flagged"] > 20


def test_verdicts__captions_of_a_scene(tmp_path):
    model, dataset, options = SEGMENTATION
    failures = callback(encoder="embedded:digits", **options)
    trainer(tmp_path, failures).validate(model(), DataLoader(dataset(160), batch_size=16), verbose=False)
    (only,) = failures.last_report.report.classes
    assert only.reference_caption is None or "scene" in only.reference_caption
