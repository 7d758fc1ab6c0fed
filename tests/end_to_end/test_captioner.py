"""Runs whose candidate captions are what a captioner says of the images."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_failures.bundled.digits import ColouredDigits
from lightning_failures.report.markdown import report_markdown
from tests.helpers.captioners import save_captioner
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, trainer

NORM = ([0.5], [0.25])


class FoursAndEights(Dataset):
    """Coloured digits of two classes, which the model mistakes on black."""

    classes = ("four", "eight")

    def __init__(self, size=1000):
        digits = ColouredDigits("validation", size=size)
        self.rows = torch.isin(digits.labels, torch.tensor([4, 8])).nonzero().flatten()
        self.labels = (digits.labels[self.rows] == 8).long()
        self.digits, self.transform, self.groups = digits, digits.transform, digits.groups[self.rows]
        on_black = torch.tensor([digits.background[row] == "black" for row in self.rows])
        chance = torch.rand(len(self.rows), generator=torch.Generator().manual_seed(0))
        self.wrong = torch.where(on_black, chance < 0.8, chance < 0.1)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"image": self.digits[self.rows[i]][0], "label": self.labels[i], "wrong": self.wrong[i]}


class Mistaken(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def validation_step(self, batch, batch_idx):
        return {"logits": 4.0 * F.one_hot(batch["label"] ^ batch["wrong"].long(), 2)}


class Reader:
    """A captioner that recognises the images and says what was planted."""

    def __init__(self, digits):
        self.digits, self.seen = digits, []
        self.row = {image.permute(1, 2, 0).numpy().tobytes(): row for row, image in enumerate(digits.images)}

    def __call__(self, images):
        rows = [self.row[image.tobytes()] for image in images]
        self.seen += rows
        d = self.digits
        return [f"A {d.stroke[row]} {d.tint[row]} digit on a {d.background[row]} background." for row in rows]


def test_captioner__its_words_become_the_captions(tmp_path):
    data = FoursAndEights()
    reader = Reader(data.digits)
    failures = callback(encoder="embedded:digits", captions=reader)
    run = trainer(tmp_path, failures)
    run.validate(Mistaken(), DataLoader(data, batch_size=64), verbose=False)
    report = failures.last_report.report
    for entry in report.classes:
        assert entry.pattern
        assert entry.reference_caption.endswith(f" {entry.name}")
        assert entry.hardest_captions[0].startswith(f"{entry.reference_caption}, ")
        assert "black" in entry.hardest_captions[0]
        assert entry.caption_p_value <= 0.05
    assert len(reader.seen) == len(set(reader.seen)) <= len(data)
    assert 'The caption "four, black' in report_markdown(report) or 'The caption "eight, black' in report_markdown(
        report
    )


class ToyTexts(ColourEncoder):
    """The colours of the toy images, and texts at random."""

    def encode_texts(self, texts):
        vectors = [
            torch.randn(self.dim, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts
        ]
        return F.normalize(torch.stack(vectors), dim=1)


@pytest.mark.slow
def test_captioner__a_transformers_model_in_fit(tmp_path):
    (tmp_path / "model").mkdir()
    folder = save_captioner(tmp_path / "model")
    failures = callback(encoder=ToyTexts(), captions=f"captioner:{folder}", pictures=True)
    loader = DataLoader(Images(160), batch_size=16)
    trainer(tmp_path, failures, max_epochs=2).fit(OracleClassifier(), loader, loader)
    report = failures.last_report.report
    captions = [caption for entry in report.classes for caption in entry.hardest_captions]
    assert any(caption.startswith("a photo of a class ") and ", " in caption for caption in captions)
    assert "captions" in report.timings


def broken(images):
    raise OSError("no connection to the captioner")


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_captioner__an_error_leaves_the_rest_of_the_analysis(tmp_path, on_error):
    failures = callback(encoder=ToyTexts(), captions=broken, on_error=on_error)
    validate = lambda: trainer(tmp_path, failures).validate(  # noqa: E731
        OracleClassifier(), DataLoader(Images(160), batch_size=16), verbose=False
    )
    if on_error == "raise":
        with pytest.raises(OSError, match="no connection"):
            validate()
        return
    validate()
    report = failures.last_report.report
    assert any(entry.cv_score is not None for entry in report.classes)
    assert all(entry.hardest_captions == () for entry in report.classes)
    assert any("OSError: no connection to the captioner" in note for note in report.notes)


class Stream(IterableDataset):
    classes = Images().classes

    def __iter__(self):
        images = Images(160)
        return ({"image": images[i][0], "label": images[i][1], "id": 1000 + i} for i in range(len(images)))


class OfStream(OracleClassifier):
    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch["image"])}


def test_captioner__images_of_a_stream_cannot_be_read_again(tmp_path):
    failures = callback(encoder=ToyTexts(), captions=lambda images: ["a dark image"] * len(images), normalization=NORM)
    with pytest.warns(UserWarning, match=r"cannot be read again for a captioner; captions are disabled"):
        trainer(tmp_path, failures).validate(OfStream(), DataLoader(Stream(), batch_size=16), verbose=False)
    classes = failures.last_report.report.classes
    assert any(entry.cv_score is not None for entry in classes)
    assert all(entry.hardest_captions == () for entry in classes)


def test_captioner__a_missing_folder_is_an_error_at_set_up(tmp_path):
    failures = callback(encoder=ToyTexts(), captions=f"captioner:{tmp_path}/none", on_error="warn")
    loader = DataLoader(Images(40), batch_size=16)
    with pytest.raises(ValueError, match="is not a model of transformers"):
        trainer(tmp_path, failures).validate(OracleClassifier(), loader, verbose=False)
