"""Triage and picks by confidence read the outputs of the model as the validation loader's grader does."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.steering.round import TrainingRound
from tests.helpers.toy import Classifier, Images, callback, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:All scores of this binary task lie between 0 and 1"),
]


class Answers(Classifier):
    """Errs on most dark images, with another confidence for each image; its outputs have one form or another."""

    classes = 4

    def answers(self, x):
        """Return the predicted class (B,), and a shade (B,) in 0 ... 1."""
        pixels = x * 0.25 + 0.5
        labels = (pixels[:, 0, 0, 0] * 10).round().long()
        dark = pixels.mean((1, 2, 3)) < 0.45
        wrong = dark & (pixels[:, 1, 3, 3] * 1000 % 1 < 0.8)
        return (labels + wrong.long()) % self.classes, pixels[:, 2].mean((1, 2))

    def raw(self, x):
        answers, shade = self.answers(x)
        return (2 + 2 * shade)[:, None] * F.one_hot(answers, self.classes) + self.net(x) * 0

    def forward(self, x):
        return self.raw(x)

    def training_step(self, batch, batch_idx):
        return self.raw(batch[0]).sum() * 0

    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch[0])}


class Softmax(Answers):
    def forward(self, x):
        return self.raw(x).softmax(1)

    def validation_step(self, batch, batch_idx):
        return {"preds": self(batch[0])}


class Predicts(Answers):
    def validation_step(self, batch, batch_idx):
        return {"preds": self(batch[0]).argmax(1)}


class Binary(Answers):
    classes = 2

    def __init__(self):
        super().__init__(classes=1)

    def raw(self, x):
        answers, shade = self.answers(x)
        return (0.5 + 0.5 * shade) * (2 * answers - 1) + self.net(x)[:, 0] * 0


class Sigmoid(Binary):
    def forward(self, x):
        return self.raw(x).sigmoid()

    def validation_step(self, batch, batch_idx):
        return {"preds": self(batch[0])}


class SigmoidUnnamed(Sigmoid):
    def validation_step(self, batch, batch_idx):
        self(batch[0])


class BinaryPredicts(Binary):
    def validation_step(self, batch, batch_idx):
        return {"preds": (self(batch[0]) > 0).long()}


class SumsToOne(Answers):
    """Its raw scores look like probabilities for most images, but not for all."""

    def raw(self, x):
        answers, shade = self.answers(x)
        scores = 0.15 + (0.2 + 0.2 * shade)[:, None] * F.one_hot(answers, 4)
        return scores / scores.sum(1, keepdim=True) * torch.where(shade > 0.5, 3, 1)[:, None] + self.net(x) * 0


class SumsToFive(SumsToOne):
    def raw(self, x):
        return super().raw(x) + 1


class Mislabelled(Images):
    """Images of which some have the label of another class."""

    def __init__(self, size, classes, seed):
        super().__init__(size, classes, seed)
        flipped = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.1
        self.labels = torch.where(flipped, (self.labels + 1) % classes, self.labels)


class Telling:
    """Embeddings that encode class and brightness."""

    name, fingerprint, dim = "telling", "tests-telling", 6

    def encode_images(self, images):
        label = (images[:, 0, 0, 0] * 10).round().long() % 4
        bright = images.mean((1, 2, 3))[:, None]
        return torch.cat([F.one_hot(label, 4).float(), 2 * bright, images[:, :1, 3, 3] * 0.05], dim=1)


def steered(tmp_path, monkeypatch, model, batch_size=16):
    """Return the confidences of all examples that the model was asked for, the picks, and the suspected labels."""
    confidences = []
    grade = TrainingRound._grade

    def recorded(self, view, ids):
        predictions, confidence = grade(self, view, ids)
        confidences.append(torch.stack([predictions.float(), confidence]))
        return predictions, confidence

    monkeypatch.setattr(TrainingRound, "_grade", recorded)
    pool = Mislabelled(160, model.classes, 9)
    failures = callback(
        encoder=Telling(),
        interventions=[AddFiltered(pool, 10, by="confidence", similarity=1.0), Upweight(2.0, max_flagged=1.0)],
    )
    data = DataLoader(Mislabelled(240, model.classes, 3), batch_size=batch_size)
    run = trainer(tmp_path, failures, max_epochs=2, num_sanity_val_steps=0)
    run.fit(model(), data, DataLoader(Images(320, model.classes), batch_size=16))
    picked, weighted = failures.last_report["interventions"]
    return confidences, [one["pool_ids"] for one in picked["classes"]], weighted["review"]


@pytest.mark.parametrize(
    ("model", "twin", "batch_size"),
    [
        (Softmax, Answers, 16),
        (Predicts, Answers, 16),
        (Sigmoid, Binary, 16),
        (SigmoidUnnamed, Binary, 16),
        (BinaryPredicts, Binary, 16),
        (SumsToOne, SumsToFive, 1),
    ],
)
def test_round__reads_outputs_as_the_validation_does(tmp_path, monkeypatch, model, twin, batch_size):
    confidences, picks, suspected = steered(tmp_path / "model", monkeypatch, model, batch_size)
    monkeypatch.undo()
    expected, expected_picks, expected_suspects = steered(tmp_path / "twin", monkeypatch, twin, batch_size)
    assert sum(len(ids) for ids in expected_picks) > 0
    assert len(expected_suspects) > 0
    assert picks == expected_picks
    assert suspected == expected_suspects
    torch.testing.assert_close(confidences, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", [Answers, Binary])
def test_round__confidence_is_the_probability_of_the_label(tmp_path, monkeypatch, model):
    confidences, *_ = steered(tmp_path, monkeypatch, model)
    values = torch.cat([one[1] for one in confidences])
    assert len(values.unique()) > 50
    assert ((values > 0) & (values < 1)).all()
