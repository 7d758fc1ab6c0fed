"""A Trainer on fifty classes of five images, none of which can be judged alone: what they share is reported."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.report.run_folder import HTML_FILE
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, trainer

CLASSES, IMAGES = 50, 5


class FewOfMany(Images):
    """Images of many classes, a few of each, half of them dark."""

    def __init__(self, size: int = CLASSES * IMAGES) -> None:
        super().__init__(size, classes=CLASSES)
        self.images[:, :, 0, 0] = self.labels[:, None] / 100
        self.classes = [f"animal {k}" for k in range(CLASSES)]
        self.brightness = ["dark" if dark else "bright" for dark in self.dark]


class ErrsInTheDark(OracleClassifier):
    """A classifier of many classes that errs on most dark images."""

    def __init__(self) -> None:
        super().__init__(CLASSES)

    def _guess(self, pixels):
        labels = (pixels[:, 0, 0, 0] * 100).round().long()
        dark = pixels.mean((1, 2, 3)) < 0.45
        wrong = dark & (pixels[:, 1, 3, 3] * 1000 % 1 < 0.8)
        return 4.0 * F.one_hot((labels + wrong.long()) % CLASSES, CLASSES).float()


class WordedEncoder(ColourEncoder):
    """An encoder of colours that reads the words "dark" and "bright" as uniform images."""

    def encode_texts(self, texts):
        level = {"dark": 0.2, "bright": 0.8}
        shades = [next((level[word] for word in level if word in text), 0.5) for text in texts]
        vectors = self.encode_maps(torch.tensor(shades)[:, None, None, None].expand(-1, 3, 8, 8)).mean((2, 3))
        return F.normalize(vectors + torch.tensor([1e-3 * ("striped" in text) for text in texts])[:, None])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    modes = callback(
        encoder=WordedEncoder(),
        captions=CaptionVocabulary(adjectives=("dark", "bright", "striped")),
        metadata=("brightness",),
        pictures=True,
    )
    fit = trainer(place, modes)
    fit.fit(ErrsInTheDark(), DataLoader(FewOfMany(50), batch_size=25), DataLoader(FewOfMany(), batch_size=25))
    return fit, modes, next(place.rglob(HTML_FILE)).parent


def test_fit__reports_what_classes_share(run):
    fit, modes, folder = run
    report = json.loads((folder / "report.json").read_text())
    assert all("at least 10 are needed" in entry["skipped"] for entry in report["classes"])
    shared = report["shared"]
    assert (shared["pattern"], shared["p_value"], shared["strength"]) == (True, 0.01, "strong")
    assert shared["hardest_captions"][0] == "dark"
    assert shared["easiest_captions"][0] == "bright"
    assert (shared["values"][0]["attribute"], shared["values"][0]["value"]) == ("brightness", "dark")
    assert shared["flagged_error_rate"] > 0.5 > 0.2 > shared["unflagged_error_rate"]
    assert shared["too_few"] == CLASSES
    assert float(fit.callback_metrics["failures/shared/p_value"]) == pytest.approx(0.01)
    assert float(fit.callback_metrics["failures/shared/effect"]) == pytest.approx(shared["effect"])
    assert modes.last_report.shared.out_of_fold.shape == (CLASSES * IMAGES,)


def test_fit__shows_it_on_the_page_and_in_markdown(run):
    *_, folder = run
    page = (folder / HTML_FILE).read_text()
    assert 'id="shared"' in page
    assert "Strong pattern: " in page
    assert 'data-of="report/shared/effect"' in page
    text = next(folder.rglob("report.md")).read_text()
    assert "### Pattern shared by classes" in text
    assert "Captions of failures: dark" in text
