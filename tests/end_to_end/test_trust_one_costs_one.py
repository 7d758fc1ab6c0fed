"""One example, one class or one encoder that fails costs itself, never the rest of an analysis."""

import json
import math
import re
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2 as T

from lightning_failures import FailureModes, Grades, analyse
from lightning_failures.captions import CaptionVocabulary
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions import Upweight
from lightning_failures.trees import fit_failure_tree
from tests.helpers.broken import Edited, Marked, Texts, far, mark, spoil
from tests.helpers.toy import Classifier, ColourEncoder, OracleClassifier, callback, trainer
from tests.processes.ddp_broken import CASES
from tests.processes.launch import fork, ranks

BAD = 37
"""The id of the example that is broken."""


def data(**options):
    return DataLoader(Edited(**options), batch_size=16)


class Sturdy(OracleClassifier):
    """A model whose logits are finite even where a pixel is not."""

    def forward(self, x):
        return super().forward(x.nan_to_num())


def caught(work, *args, **options):
    """Call, and return the texts of the warnings of the callback."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        work(*args, **options)
    return [str(warning.message) for warning in found if "FailureModes" in str(warning.message)]


def validated(tmp_path, loader, model=OracleClassifier, **options):
    """Return the report of a validation, with errors raised, and the warnings."""
    failures = callback(**options)
    texts = caught(trainer(tmp_path, failures).validate, model(), loader, verbose=False)
    return failures.last_report, texts


def names(texts, example=BAD):
    return any(re.search(rf"\b{example}\b", text) for text in texts)


# -- examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "encoder", "reason"),
    [
        (spoil, ColourEncoder, "NaN"),
        (far, ColourEncoder, r"far outside \[0, 1\]"),
        (mark, lambda: Marked("nan"), "no finite embedding"),
        (mark, lambda: Marked("inf"), "no finite embedding"),
        (mark, lambda: Marked("raise"), "broken image"),
    ],
)
def test_example__that_cannot_be_embedded_is_left_out_counted_and_named(tmp_path, edit, encoder, reason):
    whole, _ = validated(tmp_path, data(), robust_encoder=ColourEncoder("trees"))
    report, texts = validated(
        tmp_path, data(images={BAD: edit}), Sturdy, encoder=encoder(), robust_encoder=ColourEncoder("trees")
    )
    assert report.examples == 160
    assert report.coverage == 1.0
    assert torch.equal(report.table.values.isnan(), torch.arange(160) == BAD)  # all others have a direction
    assert any(names([note]) and re.search(reason, note) for note in report.notes)
    assert "leave out 1 of 160 examples" in " ".join(report.notes)
    assert names(texts)
    for entry, same in zip(report.classes, whole.classes, strict=True):
        assert entry.looked_at == 40 - (entry.name == f"class {BAD % 4}")
        assert not {BAD} & {*entry.hardest_ids, *entry.easiest_ids, *entry.least_confident_ids}
        assert (entry.cv_score is None) == (same.cv_score is None)
    trees = "trees leave out" in " ".join(report.notes)
    assert trees == (edit is not mark)  # the other encoder keeps the example
    assert len(report.trees) == len(whole.trees) > 0


def test_example__without_logits_is_left_out_of_the_grades(tmp_path):
    """A NaN pixel makes NaN logits in most models."""

    class Real(OracleClassifier):
        def forward(self, x):
            return super().forward(x) + x.sum((1, 2, 3))[:, None] * 0

    report, texts = validated(tmp_path, data(images={BAD: spoil}), Real)
    assert report.examples == 159
    assert report.coverage == 159 / 160
    assert names(texts)
    assert any("NaN logits" in note and names([note]) for note in report.notes)
    again, _ = validated(tmp_path, data(images={BAD: spoil, 3: spoil}), Real)
    assert again.examples == 158


def test_examples__of_a_diverged_model_are_an_error(tmp_path):
    class Diverged(OracleClassifier):
        def forward(self, x):
            return super().forward(x) * math.nan

    failures = callback(on_error="warn")
    texts = caught(trainer(tmp_path, failures).validate, Diverged(), data(), verbose=False)
    assert "the model diverged" in " ".join(texts)
    assert failures.last_report is None
    few = callback(on_error="warn")  # fewer than are judged at once
    texts = caught(trainer(tmp_path, few).validate, Diverged(), data(size=4), verbose=False)
    assert "the model diverged" in " ".join(texts)


@pytest.mark.parametrize("label", [-100, 4, -1, 255])
def test_example__whose_label_is_no_class_is_left_out(tmp_path, label):
    class Careless(OracleClassifier):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    report, _ = validated(tmp_path, data(labels={BAD: label}), Careless)
    whole, _ = validated(tmp_path, data(), Careless)
    assert report.examples == 159
    assert abs(report.accuracy - whole.accuracy) < 0.01
    if label != -100:  # what PyTorch ignores needs no note
        assert any("label outside 0 ... 3" in note and names([note]) for note in report.notes)


def test_fit__goes_by_the_grades_of_every_epoch(tmp_path):
    """Early stopping and checkpoints monitor an accuracy that no encoder is needed for."""

    class Learns(OracleClassifier):
        def _guess(self, pixels):
            labels = (pixels[:, 0, 0, 0] * 10).round().long()
            wrong = pixels[:, 1, 3, 3] * 1000 % 1 < 0.6 - 0.15 * self.current_epoch
            return 4.0 * F.one_hot((labels + wrong.long()) % 4, 4).float()

    best = ModelCheckpoint(tmp_path, monitor="failures/accuracy", mode="max")
    stop = EarlyStopping("failures/accuracy", mode="max", patience=1)
    failures = callback(encoder=Marked("nan"), on_error="warn")
    run = trainer(tmp_path, failures, best, stop, max_epochs=4, enable_checkpointing=True)
    texts = caught(run.fit, Learns(), data(), data(images={BAD: mark}))
    assert run.current_epoch == 4
    assert "epoch=3" in best.best_model_path
    assert len(texts) == 1  # once, not in every epoch
    assert names(texts)


def test_fit__an_image_far_outside_among_images_of_the_cache(tmp_path):
    """From the second epoch on only the broken images are not in the cache: the others speak for the normalisation."""
    failures = callback(on_error="warn")
    broken = dict.fromkeys(range(0, 160, 16), far)  # ten of them
    run = trainer(tmp_path, failures, max_epochs=2, num_sanity_val_steps=0)
    texts = caught(run.fit, OracleClassifier(), data(), data(images=broken))
    assert failures.last_report.directions is not None
    assert "leave out 10 of 160" in " ".join(failures.last_report.notes)
    assert not any("instead of 0 to 1" in text for text in texts)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_batches_of_one__a_single_bad_image_is_no_wrong_normalisation(tmp_path, batch_size):
    loader = DataLoader(Edited(images={0: far}), batch_size=batch_size)
    report, texts = validated(tmp_path, loader)
    assert "leave out 1 of 160" in " ".join(report.notes)
    assert names(texts, 0)


# -- encoders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("option", ["encoder", "robust_encoder"])
def test_encoder__that_fails_leaves_the_other_and_the_grades(tmp_path, option, how):
    broken = Marked(how, every=True)
    failures = callback(**{"robust_encoder": ColourEncoder("trees"), "on_error": "warn"} | {option: broken})
    texts = caught(trainer(tmp_path, failures).validate, OracleClassifier(), data(), verbose=False)
    report = failures.last_report
    assert report.examples == 160
    assert (report.directions is None) == (option == "encoder")
    assert bool(report.trees) == (option == "encoder")
    assert broken.name in " ".join(report.notes)
    assert texts
    if how == "raise":
        assert broken.calls < 80  # it is given up
        with pytest.raises(RuntimeError, match="broken image"):
            validated(tmp_path, data(), encoder=Marked("raise", every=True, name="again"))


def test_encoders__all_of_them_fail_and_grades_are_written(tmp_path):
    failures = callback(encoder=Marked("raise", every=True), robust_encoder=Marked("nan", every=True), on_error="warn")
    run = trainer(tmp_path, failures, max_epochs=2)
    caught(run.fit, OracleClassifier(), data(), data())
    report = failures.last_report
    assert report.epoch == 1
    assert report.directions is None
    assert not report.trees
    assert run.callback_metrics["failures/accuracy"] == pytest.approx(report.accuracy)
    assert list(tmp_path.rglob("report.json"))


def test_method__that_fails_in_its_fit_leaves_the_others(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise ArithmeticError("planted")

    for module, kept in (("fits.fit_failure_directions", "trees"), ("fits.grow_trees", "directions")):
        with monkeypatch.context() as patch:
            patch.setattr(f"lightning_failures.analysis.{module}", broken)
            failures = callback(robust_encoder=ColourEncoder("trees"), on_error="warn")
            texts = caught(trainer(tmp_path, failures).validate, OracleClassifier(), data(), verbose=False)
            assert "planted" in " ".join(texts)
            assert failures.last_report.examples == 160
            assert bool(failures.last_report.directions) == (kept == "directions")
            assert bool(failures.last_report.trees) == (kept == "trees")
            assert "planted" in " ".join(failures.last_report.notes)
            with pytest.raises(ArithmeticError):
                validated(tmp_path, data(), robust_encoder=ColourEncoder("trees"))


class Loud(ColourEncoder):
    """An encoder whose embeddings of marked images lie far beyond those of all others."""

    def encode_images(self, images):
        rows = super().encode_images(images)
        return torch.where(((images[:, 2, 5, 5] - 0.987).abs() < 1e-4)[:, None], rows * 3e38, rows)


def test_class__whose_direction_cannot_be_fitted_costs_itself(tmp_path):
    """Every image of one class is far from the images of the training set, by which embeddings are standardised."""
    marked = dict.fromkeys(range(2, 160, 4), mark)
    failures = callback(encoder=Loud("loud"), reference="train", on_error="warn", pictures=True)
    texts = caught(trainer(tmp_path, failures, max_epochs=2).fit, OracleClassifier(), data(), data(images=marked))
    report = failures.last_report
    assert report.epoch == 1
    assert [entry.cv_score is None for entry in report.classes] == [False, False, True, False]
    assert report.classes[2].skipped.startswith("its fit failed: DataError: 40 of its 40 embeddings")
    assert report.classes[2].accuracy is not None
    (note,) = [note for note in report.notes if note.startswith("No failure direction for class 'class 2': ")]
    assert [text for text in texts if note in text] == [f"FailureModes: {note}"]  # once, not in every epoch
    (page,) = tmp_path.rglob("report.html")
    assert "its fit failed: DataError" in page.read_text()
    raising = callback(encoder=Loud("loud"), reference="train")
    with pytest.raises(DataError, match="too far from the mean"):
        caught(trainer(tmp_path / "again", raising).fit, OracleClassifier(), data(), data(images=marked))


def test_group__whose_tree_cannot_be_grown_costs_itself(tmp_path, monkeypatch):
    def fit(features, failed, *, ids, **options):
        if set((ids % 4).tolist()) == {1}:
            raise ArithmeticError("planted")
        return fit_failure_tree(features, failed, ids=ids, **options)

    options = {"robust_encoder": ColourEncoder("trees"), "pictures": True}
    whole, _ = validated(tmp_path / "whole", data(), **options)
    monkeypatch.setattr("lightning_failures.trees.groups.fit_failure_tree", fit)
    report, texts = validated(tmp_path, data(), on_error="warn", **options)
    failed = [one for one in report.groups if one.skipped == "its fit failed: ArithmeticError: planted"]
    assert [(one.grouping, one.class_name) for one in failed] == [("label", "class 1")]
    assert [one for one in report.groups if one not in failed] == [
        one for one in whole.groups if (one.grouping, one.class_name) != ("label", "class 1")
    ]
    assert len(report.trees) == len(whole.trees) - 1
    (note,) = [note for note in report.notes if note.startswith("No failure tree for the label 'class 1': ")]
    assert f"FailureModes: {note}" in texts
    assert list(tmp_path.glob("**/report.html"))
    with pytest.raises(ArithmeticError, match="planted"):
        validated(tmp_path, data(), **options)


def test_reference__training_images_that_cannot_be_embedded_are_left_out(tmp_path):
    failures = callback(reference="train", encoder=Marked("nan"))
    run = trainer(tmp_path, failures, max_epochs=2)
    caught(run.fit, OracleClassifier(), data(images={BAD: mark, 5: far}), data())
    assert failures.last_report.directions is not None
    assert failures.last_report.epoch == 1


# -- the normalisation ---------------------------------------------------------------------------------------------


def test_wrong_normalisation__is_an_error_in_the_sanity_check_and_costs_no_grades_in_training(tmp_path):
    options = {"normalization": ((0.0,), (1.0,)), "on_error": "warn"}
    with pytest.raises(ConfigurationError, match=r"instead of 0 to 1.* Give the normalization="):
        trainer(tmp_path, callback(**options)).fit(OracleClassifier(), data(), data())
    failures = callback(**options)
    run = trainer(tmp_path, failures, num_sanity_val_steps=0)
    texts = caught(run.fit, OracleClassifier(), data(), data())
    assert "instead of 0 to 1" in " ".join(texts)
    assert failures.last_report.examples == 160
    assert failures.last_report.directions is None
    assert "instead of 0 to 1" in " ".join(failures.last_report.notes)


def test_ringing__of_a_bicubic_resize_is_clipped(tmp_path):
    resized = Edited()
    resized.transform = T.Compose([T.Resize(24, T.InterpolationMode.BICUBIC), resized.transform])
    values = torch.stack([resized[i][0] for i in range(160)]) * 0.25 + 0.5
    assert values.min() < -0.05

    class Larger(Classifier):
        def forward(self, x):
            return self.net(F.adaptive_avg_pool2d(x, 8))

    report, texts = validated(tmp_path, DataLoader(resized, batch_size=16), Larger)
    assert report.directions is not None
    assert not any("leave out" in note for note in report.notes)
    assert texts == []


class Normalize:
    """A transform of one's own that leaves images in [0, 1], whatever its attributes say."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __call__(self, image):
        return (image * 0.9).clamp(0, 1)


def test_unknown_normalize__is_not_believed_and_told(tmp_path):
    images = Edited()
    images.transform = Normalize()
    report, _ = validated(tmp_path, DataLoader(images, batch_size=16), Classifier)
    assert report.directions is not None
    assert any("Normalize computes is not known" in note and "normalization=" in note for note in report.notes)


# -- classes and captions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_", "", "  ", "__"])
def test_class__whose_name_is_no_word_has_no_captions(tmp_path, name):
    classes = ["class 0", "class 1", name, "class 3"]
    report, _ = validated(tmp_path, data(names=classes), encoder=Texts())
    captioned = {entry.name: bool(entry.hardest_captions) for entry in report.classes}
    assert captioned == {"class 0": True, "class 1": True, name: False, "class 3": True}
    assert any(f"No captions for class {name.strip()!r}" in note for note in report.notes)


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_text_encoder__that_fails_for_one_class_or_for_all(tmp_path, how):
    for failing, captioned in (("class 2", 3), ("class", 0)):
        options = {"cache_folder": tmp_path / failing, "encoder": Texts(failing, how)}
        report, _ = validated(tmp_path, data(), on_error="warn", **options)
        with pytest.raises(RuntimeError, match=r"no such token|no finite embedding"):
            validated(tmp_path, data(), **options)
        assert sum(bool(entry.hardest_captions) for entry in report.classes) == captioned
        assert all(entry.cv_score is not None for entry in report.classes)
        assert any(note.startswith("No captions for class") and "class 2" in note for note in report.notes)


def test_class_names__pictures_of_a_class_without_a_word(tmp_path):
    failures = callback(pictures=True, encoder=Texts(), robust_encoder=ColourEncoder("trees"))
    names = ["_", "", "class 2", "class 3"]
    texts = caught(trainer(tmp_path, failures).validate, OracleClassifier(), data(names=names), verbose=False)
    assert texts == []
    assert list(tmp_path.rglob("report.html"))


def test_pictures__of_a_validation_set_with_broken_examples(tmp_path):
    failures = callback(pictures=True, encoder=Marked("nan"), robust_encoder=ColourEncoder("trees"))
    loader = data(images={BAD: mark, 5: spoil, 8: far})
    texts = caught(trainer(tmp_path, failures).validate, Sturdy(), loader, verbose=False)
    assert not any("could not draw" in text for text in texts)
    assert list(tmp_path.rglob("report.html"))
    assert any(entry.cv_null_mean is not None for entry in failures.last_report.classes)


# -- interventions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edits", [{"labels": {BAD: -100}}, {"labels": {BAD: 9}}, {"images": {BAD: mark}}, {"images": {BAD: far}}]
)
def test_training_example__that_cannot_be_judged_keeps_its_weight(tmp_path, edits):
    class Careless(OracleClassifier):
        def training_step(self, batch, batch_idx):
            return self(batch[0]).sum()

    encoder = Marked("nan")
    failures = callback(encoder=encoder, interventions=[Upweight(factor=2.0, triage=False)], on_error="raise")
    run = trainer(tmp_path, failures, max_epochs=3, num_sanity_val_steps=0)
    texts = caught(run.fit, Careless(), data(size=200, seed=3, **edits), data(size=400))
    (entry,) = failures.last_report.report.interventions
    assert sum(one["examples"] for one in entry["classes"]) == 199
    assert sum(one["flagged"] for one in entry["classes"]) > 0
    notes = [note for note in failures.last_report.notes if "1 of 200 training examples take no part" in note]
    assert names(notes)
    assert names(texts)
    read_once = encoder.embedded
    assert read_once <= 600 + 3 * 32  # the training set is not embedded again for the one that fails


@pytest.mark.parametrize("last", [[256], range(256, 300)])
def test_training_examples__that_are_most_of_a_batch_cost_only_themselves(tmp_path, last):
    """Training images are read 256 at a time, and the last ones are judged without the others."""
    training = data(size=max(last) + 1, seed=3, images=dict.fromkeys(last, far))
    failures = callback(interventions=[Upweight(factor=2.0, triage=False)])
    run = trainer(tmp_path, failures, max_epochs=2, num_sanity_val_steps=0)
    caught(run.fit, OracleClassifier(), training, data(size=400))
    (entry,) = failures.last_report.report.interventions
    assert sum(one["examples"] for one in entry["classes"]) == 256
    assert any(f"{len(last)} of {max(last) + 1} training examples" in note for note in failures.last_report.notes)


def test_training_labels__most_of_them_no_class(tmp_path):
    class Careless(OracleClassifier):
        def training_step(self, batch, batch_idx):
            return self(batch[0]).sum()

    failures = callback(interventions=[Upweight(factor=2.0)], on_error="warn")
    run = trainer(tmp_path, failures, max_epochs=2, num_sanity_val_steps=0)
    texts = caught(run.fit, Careless(), data(labels=dict.fromkeys(range(100), 7)), data(size=400))
    assert any("range from 0 to 7" in text for text in texts)


def test_interventions__of_a_discovery_part_with_a_broken_example(tmp_path):
    failures = callback(encoder=Marked("nan"), interventions=[Upweight(factor=2.0, triage=False)])
    broken = dict.fromkeys(range(20, 40), mark)
    run = trainer(tmp_path, failures, max_epochs=2, num_sanity_val_steps=0)
    caught(run.fit, OracleClassifier(), data(), data(size=400, images=broken))
    table = failures.last_report.table
    assert torch.equal(table.values.isnan().nonzero().flatten(), torch.arange(20, 40))


# -- without a Trainer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "array", "float16"])
def test_analyse__rows_that_are_not_finite_leave_the_fit_alone(kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=generator)
    failed = x[:, 0] + 0.5 * torch.randn(300, generator=generator) < -0.5
    grades = Grades(torch.arange(300), torch.zeros(300).long(), failed.long(), torch.ones(300), ("cat", "dog"))
    broken = x.clone()
    broken[[7, 12]] = torch.tensor([[math.nan], [math.inf]])
    values = {"tensor": broken, "array": broken.numpy(), "float16": broken.numpy().astype(np.float16)}[kind]
    result = analyse(grades, values, features=x, reference=values)
    assert result.accuracy == pytest.approx(float((~failed).float().mean()))
    assert result.directions.out_of_fold.isnan().nonzero().flatten().tolist() == [7, 12]
    assert result["classes"][0]["pattern"]
    assert result["classes"][0]["looked_at"] == 298
    assert [note for note in result.notes if "ids 7, 12" in note and "directions" in note]
    assert not any("trees" in note for note in result.notes)
    kept = np.ones(300, dtype=bool)
    kept[[7, 12]] = False
    same = analyse(grades, values[kept], sampled=kept)
    np.testing.assert_allclose(same.directions.weight, result.directions.weight, atol=1e-5)


def test_vocabulary__nouns_of_its_own_give_a_nameless_class_captions(tmp_path):
    vocabulary = CaptionVocabulary(adjectives=("dark", "bright"), classes={"_": {"nouns": ("letter",)}})
    report, _ = validated(
        tmp_path, data(names=["_", "class 1", "class 2", "class 3"]), encoder=Texts(), captions=vocabulary
    )
    assert report.classes[0].hardest_captions


def test_encoder_none__is_untouched(tmp_path):
    failures = FailureModes(encoder=None, pictures=False)
    caught(trainer(tmp_path, failures).validate, OracleClassifier(), data(), verbose=False)
    (note,) = failures.last_report.notes
    assert note.startswith("Graded as a multiclass task")


# -- two processes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for ended in fork("ddp_broken", folder, environments=ranks(2), timeout=240):
        assert ended.status == 0, ended.said[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ranks__agree_on_what_is_left_out(on_two_ranks, case):
    """The broken example, or encoder, is one of the second process."""
    first, second = (json.loads((on_two_ranks / f"{case} {rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["analyses"] == 2
    report = first["report"]
    assert report["examples"] == (159 if case == "NaN logits" else 160)
    fitted = [entry["name"] for entry in report["classes"] if entry["cv_score"] is not None]
    assert len(fitted) == {"encoder on one rank": 0, "fit of one class": 3}.get(case, 4)
    notes = " ".join(report["notes"])
    assert {
        "NaN embedding": "leave out 1 of 160 examples",
        "NaN pixel": "NaN or infinite pixels",
        "NaN logits": "NaN logits",
        "encoder on one rank": "Nothing was fitted on the encoder",
        "captions on one rank": "No captions for class",
        "fit of one class": "No failure direction for class 'class 1': its fit failed: ArithmeticError: planted",
    }[case] in notes
    if case.startswith("NaN"):
        assert names([notes], 37)
    if case == "captions on one rank":
        captioned = sum(bool(entry["hardest_captions"]) for entry in report["classes"])
        assert 0 < captioned < 4
    if case == "fit of one class":
        assert "No failure tree for the label 'class 1': its fit failed" in notes
        assert sum(group["aler"] is not None for group in report["groups"]) >= 6
