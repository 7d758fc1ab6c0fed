"""Counterfactual checks in a run: a planted truth both ways, captions that are rendered, and faults."""

import json

import pytest
import torch

from lightning_failures.data.grades import Grades
from lightning_failures.data.report import ClassReport
from lightning_failures.generators import load_generator
from lightning_failures.report import open_run
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.changed_images import ChangedImages
from lightning_failures.trainer.example_reader import ExampleReader
from lightning_failures.trainer.pictures import counterfactuals
from lightning_failures.trainer.pictures.counterfactuals import SEEDS, FeatureRegions, render_captions
from lightning_failures.trainer.readings import Reading
from tests.helpers.toy import callback, trainer
from tests.trainer.pictures.patched import SIDE, Grayness, Patched, Redness, Seeing

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


def checked(tmp_path, model, encoder, data=None, **options):
    """Validate a model and return the features of its report that are checked."""
    data = Patched() if data is None else data
    modes = callback(encoder=None, robust_encoder=encoder, captions=None, pictures=True, **options)
    before = data.images.clone()
    trainer(tmp_path, modes).validate(model, data.loader(), verbose=False)
    assert torch.equal(data.images, before)
    return modes.last_report.features


def test_paste__a_model_that_sees_the_patch_flips(tmp_path):
    (feature,) = checked(tmp_path, Seeing(), Redness())
    found = feature.counterfactual
    assert (found.kind, found.verdict, found.changed, found.control) == ("pasted", "confirmed", 1.0, 0.0)
    assert (found.repairs, found.images) == (False, counterfactuals.TARGETS)


def test_paste__a_model_that_errs_by_something_else_does_not(tmp_path):
    """The patch and the failures are the same images; only the image that is changed tells the difference."""
    (feature,) = checked(tmp_path, Seeing(by_mark=True), Redness())
    found = feature.counterfactual
    assert (found.verdict, found.changed, found.control) == ("not confirmed", 0.0, 0.0)


def test_paste__less_of_a_feature_means_failure(tmp_path):
    (feature,) = checked(tmp_path / "sees", Seeing(), Grayness())
    found = feature.counterfactual
    assert (found.verdict, found.repairs, found.changed, found.control) == ("confirmed", True, 1.0, 0.0)
    (feature,) = checked(tmp_path / "marks", Seeing(by_mark=True), Grayness())
    assert (feature.counterfactual.verdict, feature.counterfactual.repairs) == ("not confirmed", True)


def test_paste__one_image_of_each_source(tmp_path):
    data = Patched()
    data.groups = torch.arange(len(data)) // 24  # ten sources
    (feature,) = checked(tmp_path, Seeing(), Redness(), data)
    assert 8 <= feature.counterfactual.images <= 10


def test_paste__a_fit_shows_its_checks_everywhere(tmp_path):
    """At the end of a training, however short: in report.json, report.md and the page."""
    data = Patched()
    modes = callback(encoder=None, robust_encoder=Redness(), captions=None, pictures=True)
    model = Seeing()
    model.automatic_optimization = False
    model.training_step = lambda batch, batch_idx: None
    trainer(tmp_path, modes).fit(model, data.loader(), data.loader())
    (feature,) = modes.last_report.features
    assert feature.counterfactual.verdict == "confirmed"
    (page,) = tmp_path.rglob("report.html")
    stored = json.loads((page.parent / "report.json").read_text())
    assert stored["features"][0]["counterfactual"]["verdict"] == "confirmed"
    sentence = "Counterfactual check: confirmed. Its region flips 100.0 % of 40 correct images, an ordinary patch 0.0 %"
    assert sentence in page.read_text().replace("&nbsp;", " ").replace("\u00a0", " ")
    (markdown,) = tmp_path.rglob("report.md")
    assert f"* **feature 0**: {sentence}" in markdown.read_text()
    assert open_run(page.parent).report.features[0] == feature


def test_paste__off(tmp_path):
    (feature,) = checked(tmp_path, Seeing(), Redness(), counterfactuals=False)
    assert feature.counterfactual is None


def test_paste__an_error_of_the_step_leaves_the_pictures(tmp_path):
    class Once(Seeing):
        graded = 0

        def forward(self, x):
            type(self).graded += len(x)
            if self.graded > len(Patched()):
                raise RuntimeError("out of memory")
            return super().forward(x)

    (feature,) = checked(tmp_path, Once(), Redness())
    assert feature.counterfactual.verdict == "not measured"
    assert "out of memory" in feature.counterfactual.reason
    assert list(tmp_path.rglob("report.html"))


def test_paste__a_model_that_has_changed_since_is_not_measured(tmp_path):
    class Moved(Seeing):
        graded = 0

        def forward(self, x):
            type(self).graded += len(x)
            return super().forward(x) * (1 if self.graded <= len(Patched()) else -1)

    (feature,) = checked(tmp_path, Moved(), Redness())
    assert (feature.counterfactual.verdict, feature.counterfactual.images) == ("not measured", 0)


def test_feature_regions__on_the_whole_image_of_a_cropping_encoder():
    """The encoder sees the middle half, enlarged; heat in its lower left quarter lies there on the whole image."""
    maps = torch.zeros(1, 8, 8)
    maps[0, 6:, :2] = 1

    def view(images):
        middle = images[..., :, SIDE // 2 : -SIDE // 2]
        return torch.nn.functional.interpolate(middle, (2 * SIDE, 2 * SIDE), mode="bilinear")

    images = torch.rand(1, 3, SIDE, 2 * SIDE)
    (box,) = FeatureRegions.of(torch.tensor([0]), images, maps, view).boxes
    assert box == pytest.approx((0.75, 0.25, 1.0, 0.375), abs=0.03)


# -- captions ------------------------------------------------------------------------------------------------


CAPTIONS = {"hardest_captions": ("a red cat",), "easiest_captions": ("a gray cat",), "reference_caption": "a cat"}
ENTRY = ClassReport("cat", 120, accuracy=0.6, pattern=True, gain=9.0, **CAPTIONS)


def paint(prompts, seeds):
    """Paint cats: gray noise by the seed, with a red patch where the prompt says so; seed by seed the same noise."""
    data = Patched()
    cats = torch.nonzero((data.labels == 0) & ~data.patched).flatten()
    images = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        image = data.images[cats[seed % len(cats)]].clone()
        if "red" in prompt:
            image[:, 12:, 12:] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
        images.append(image)
    return torch.stack(images)


@pytest.fixture
def asked(tmp_path):
    """Return a function that renders the captions of an entry and asks a model."""

    def ask(model, generator=paint, entry=ENTRY, limit=5):
        data = Patched()
        modes = callback(encoder=None)
        run = trainer(tmp_path, modes)
        loader = data.loader()
        run.validate(model, loader, verbose=False)
        examples = ExampleReader.of_loader(run, loader, 0, BatchReader())
        images = ChangedImages(run, examples, Reading("multiclass", "logits"), 2)
        table = modes.last_report.table
        grades = Grades(table.ids, data.labels, table.predictions, table.confidence, tuple(data.classes))
        entries = (ClassReport("dog", 120), entry)
        found = render_captions(entries, grades, images, load_generator(generator), limit=limit, seed=0)
        assert found[0].counterfactual is None
        return found[1].counterfactual

    return ask


def test_render__a_caption_that_names_what_the_model_sees(asked):
    found = asked(Seeing())
    assert (found.kind, found.verdict, found.images, found.generator) == ("rendered", "confirmed", SEEDS, "paint")
    assert (found.changed, found.control, found.reference) == (1.0, 0.0, 0.0)


def test_render__a_caption_that_names_something_else(asked):
    found = asked(Seeing(by_mark=True))
    assert (found.verdict, found.changed, found.control) == ("not confirmed", 0.0, 0.0)


def test_render__seeds_with_a_blank_image_do_not_count(asked):
    def censored(prompts, seeds):
        images = paint(prompts, seeds)
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            if "red" in prompt and seed % 2:
                image.zero_()
        return images

    assert 8 <= asked(Seeing(), censored).images < SEEDS


def test_render__faults_are_reasons(asked):
    def broken(prompts, seeds):
        raise RuntimeError("no memory\nlines of a trace")

    found = asked(Seeing(), broken)
    assert (found.verdict, found.reason) == ("not measured", "RuntimeError: no memory")
    found = asked(Seeing(), lambda prompts, seeds: torch.zeros(len(seeds), 3, 4, 4))
    assert found.reason == "only 0 pairs of images"
    captions = CAPTIONS | {"hardest_captions": ("a cat",)}
    found = asked(Seeing(), entry=ClassReport("cat", 120, pattern=True, **captions))
    assert found.reason == "no caption holds"


def test_render__out_of_time(asked, monkeypatch):
    monkeypatch.setattr(counterfactuals, "RENDER_SECONDS", -1.0)
    found = asked(Seeing())
    assert (found.verdict, found.reason) == ("not measured", "out of time")


def test_render__only_classes_with_a_pattern_within_the_limit(asked):
    assert asked(Seeing(), limit=0) is None
    assert asked(Seeing(), entry=ClassReport("cat", 120, pattern=False, **CAPTIONS)) is None
