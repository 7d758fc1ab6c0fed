"""Planted failures through the whole analysis: it finds what was planted, and nothing else."""

import importlib
import json
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.budget import SKIPPED_FOR_TIME
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import DataError

DIM = 16
NAMES = ("cat", "dog", "owl")
REPORT_KEYS = {
    "schema",
    "epoch",
    "global_step",
    "examples",
    "accuracy",
    "classes",
    "groups",
    "interventions",
    "timings",
}
CLASS_KEYS = {
    *("name", "examples", "accuracy", "cv_score", "p_value", "c", "skipped", "aler", "base_error_rate"),
    *("hardest_captions", "easiest_captions", "hardest_ids", "easiest_ids"),
}
GROUP_KEYS = {"grouping", "class", "size", "base_error_rate", "aler", "heldout_aler", "leaves"}
LEAF_KEYS = {"rule", "size", "error_rate", "interval", "error_coverage", "importance", "valid"}


def planted(n=450, *, strength=4.0, seed=0, dim=DIM):
    """Return three classes that fail at about 30 %: dogs where axis 5 is high, cats and owls at random."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator)
    labels = torch.arange(n) % 3
    chance = torch.where(labels == 1, torch.sigmoid(strength * (x[:, 5] - 0.6)), 0.3)
    return graded(labels, torch.rand(n, generator=generator) < chance), x


def graded(labels, failed, **options):
    predictions = torch.where(failed, (labels + 1) % len(NAMES), labels)
    return Grades(torch.arange(len(labels)) * 7 + 3, labels, predictions, torch.ones(len(labels)), NAMES, **options)


def shuffled(grades, seed=1):
    order = torch.randperm(len(grades), generator=torch.Generator().manual_seed(seed))
    rows = ("ids", "labels", "predictions", "confidence", "groups")
    picked = {name: getattr(grades, name)[order] for name in rows if getattr(grades, name) is not None}
    return replace(grades, **picked), order


def words(axes=range(DIM)):
    """Return artificial captions: caption a differs from the reference along axis a."""
    reference = torch.full((DIM,), DIM**-0.5)
    texts = torch.stack([reference + 0.5 * torch.eye(DIM)[a] for a in axes])
    texts /= texts.norm(dim=1, keepdim=True)
    return ClassCaptions(tuple(f"along axis {a}" for a in axes), texts, reference)


def content(report):
    return {key: value for key, value in report.to_dict().items() if key != "timings"}


@pytest.fixture(scope="module")
def full():
    """An analysis with directions, trees and captions."""
    grades, x = planted(900)
    return grades, x, analyse(grades, x, features=x, captions=lambda k: words())


# -- planted truth -------------------------------------------------------------------------------------------


def test_analyse__pattern_in_the_planted_class_only(full):
    _grades, _x, report = full
    assert [entry.name for entry in report.classes] == list(NAMES)
    assert [entry.pattern for entry in report.classes] == [False, True, False]
    assert [group.pattern for group in report.groups if group.grouping == "label"] == [False, True, False]
    assert report.classes[1].cv_score > 0.75
    assert report.classes[1].p_value < 0.01
    assert report.classes[1].caption_p_value < 0.01


def test_analyse__hardest_and_easiest_lie_along_the_planted_axis(full):
    grades, x, report = full
    axis = dict(zip(grades.ids.tolist(), x[:, 5].tolist(), strict=True))
    dog = report.classes[1]
    assert len(dog.hardest_ids) == len(dog.easiest_ids) == 8
    assert min(axis[i] for i in dog.hardest_ids) > 0.6 > -0.6 > max(axis[i] for i in dog.easiest_ids)
    values = dict(zip(grades.ids.tolist(), report.directions.out_of_fold.tolist(), strict=True))
    mine = sorted(values[i] for i in grades.ids[grades.labels == 1].tolist())
    assert [values[i] for i in dog.hardest_ids] == mine[:8]
    assert [values[i] for i in dog.easiest_ids] == mine[::-1][:8]
    assert dog.flagged == sum(value < 0 for value in mine)


def test_analyse__hardest_caption_names_the_planted_axis(full):
    _grades, _x, report = full
    dog = report.classes[1]
    assert dog.hardest_captions[0] == "along axis 5"
    assert list(dog.hardest_caption_scores) == sorted(dog.hardest_caption_scores)
    assert list(dog.easiest_caption_scores) == sorted(dog.easiest_caption_scores, reverse=True)
    assert len(dog.hardest_captions) == len(dog.easiest_captions) == 5


def test_analyse__best_leaf_splits_the_planted_axis(full):
    _grades, _x, report = full
    (dogs,) = (g for g in report.groups if (g.grouping, g.class_name) == ("label", "dog"))
    best = max(dogs.leaves, key=lambda leaf: leaf.importance)
    assert best.valid
    assert "feature 5 >" in best.rule
    assert best.error_rate > 0.7
    assert dogs.aler > dogs.heldout_aler > dogs.base_error_rate
    assert report.trees["label", "dog"].split_features[0] == 5
    # failed dogs are predicted as owls, so the failures among predicted owls lie along the same axis
    assert report.trees["prediction", "owl"].split_features[0] == 5
    assert [g.class_name for g in report.groups if g.grouping == "prediction" and g.pattern] == ["owl"]


def test_analyse__no_pattern_without_a_planted_one():
    """Each run may err at level 0.05, for classes and for groups: more than 3 times in 16 runs has a chance of 1 %."""
    claimed = {"classes": 0, "groups": 0}
    for seed in range(16):
        grades, x = planted(450, strength=0.0, seed=seed)
        report = analyse(grades, x, features=x, captions=lambda k: words(), permutations=499)
        claimed["classes"] += any(entry.pattern for entry in report.classes)
        claimed["groups"] += any(group.pattern for group in report.groups)
        assert report.summary["cv_score_mean"] == pytest.approx(0.5, abs=0.12)
    assert max(claimed.values()) <= 3


def test_analyse__counts(full):
    grades, _x, report = full
    assert report.examples == 900
    assert report.accuracy == pytest.approx(float(grades.correct.float().mean()))
    for k, entry in enumerate(report.classes):
        mine = grades.labels == k
        assert entry.examples == int(mine.sum())
        assert entry.accuracy == pytest.approx(float(grades.correct[mine].float().mean()))
        assert entry.base_error_rate == pytest.approx(1 - entry.accuracy)
    for k, name in enumerate(NAMES):
        sizes = {g.grouping: g.size for g in report.groups if g.class_name == name}
        assert sizes == {"label": int((grades.labels == k).sum()), "prediction": int((grades.predictions == k).sum())}


def test_analyse__summary_by_definition(full):
    _grades, _x, report = full
    summary = report.summary
    assert set(summary) == {
        *("accuracy", "coverage", "cv_score_mean", "flagged_fraction", "aler_minus_ber_mean"),
        *("heldout_aler_minus_ber_mean", "valid_leaf_fraction", "worst_slice_error_rate"),
        *("shared/p_value", "shared/effect"),
    }
    assert summary["cv_score_mean"] == pytest.approx(sum(c.cv_score for c in report.classes) / 3)
    assert summary["flagged_fraction"] == pytest.approx(sum(c.flagged for c in report.classes) / 900)
    gains = [g.aler - g.base_error_rate for g in report.groups]
    assert summary["aler_minus_ber_mean"] == pytest.approx(sum(gains) / len(gains))
    best = [max(g.leaves, key=lambda leaf: leaf.importance) for g in report.groups]
    assert summary["valid_leaf_fraction"] == pytest.approx(sum(leaf.heldout_valid for leaf in best) / len(best))
    slices = [one for g in report.groups for one in (g.leaves if g.pattern else g.nodes[:1])]
    worst = max(slices, key=lambda one: one.interval[0])
    assert summary["worst_slice_error_rate"] == worst.heldout_error_rate
    assert worst.heldout_error_rate > 0.6
    assert all(0 <= summary[key] <= 1 for key in summary if "minus" not in key and key != "shared/effect")


# -- the order of rows, sources, seeds -----------------------------------------------------------------------


@pytest.mark.parametrize("sources", [None, 60])
def test_analyse__order_of_the_rows_does_not_matter(sources):
    grades, x = planted(240)
    if sources is not None:
        grades = replace(grades, groups=torch.arange(240) % sources)
    options = {"captions": lambda k: words(), "permutations": 199}
    other, order = shuffled(grades)
    assert content(analyse(grades, x, features=x, **options)) == content(
        analyse(other, x[order], features=x[order], **options)
    )


def test_analyse__same_seed_same_report_and_no_global_randomness():
    grades, x = planted(240)
    state = torch.get_rng_state()
    first = content(analyse(grades, x, features=x, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert content(analyse(grades, x, features=x, seed=3)) == first


def test_analyse__inputs_are_not_written_to():
    grades, x = planted(240)
    before = x.clone(), grades.labels.clone(), grades.predictions.clone()
    analyse(grades, x, features=x, captions=lambda k: words(), permutations=49)
    assert all(map(torch.equal, (x, grades.labels, grades.predictions), before))


def test_analyse__groups_account_for_repeats_of_a_source():
    """20 copies of 15 sources per class: random failures of whole sources look like a pattern, unless grouped."""
    generator = torch.Generator().manual_seed(4)
    source = torch.arange(900) // 20
    labels = source % 3
    x = torch.randn(45, DIM, generator=generator)[source] + 0.01 * torch.randn(900, DIM, generator=generator)
    failed = (torch.rand(45, generator=generator) < 0.4)[source]
    naive = analyse(graded(labels, failed), x, features=x)
    assert all(entry.pattern for entry in naive.classes)
    grouped = analyse(graded(labels, failed, groups=source), x, features=x)
    assert not any(entry.pattern for entry in grouped.classes)
    assert not any(group.pattern for group in grouped.groups)


def test_analyse__reference_standardises():
    grades, x = planted(240)
    reference = torch.randn(500, DIM, generator=torch.Generator().manual_seed(8)) * 3 + 1
    report = analyse(grades, x, reference=reference, permutations=49)
    torch.testing.assert_close(report.directions.mean, reference.mean(0))
    torch.testing.assert_close(report.directions.std, reference.std(0))


# -- multilabel ----------------------------------------------------------------------------------------------


def multilabel(n=300):
    """Return two conditions; the second, where present, is missed along axis 2."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, DIM, generator=generator)
    truth = torch.rand(n, 2, generator=generator) < 0.5
    missed = torch.rand(n, 2, generator=generator) < 0.25
    missed[:, 1] = torch.where(truth[:, 1], x[:, 2] > 0.5, missed[:, 1])
    condition = torch.arange(2).repeat(n)
    labels = 2 * condition + truth.flatten().long()
    predictions = 2 * condition + (truth ^ missed).flatten().long()
    names = ("no edema", "edema", "no mass", "mass")
    ids = torch.arange(n).repeat_interleave(2) * 3
    return Grades(ids, labels, predictions, torch.ones(2 * n), names), x


def test_analyse__multilabel_finds_the_condition():
    grades, x = multilabel()
    report = analyse(grades, x, features=x)
    assert report.examples == 300
    assert [entry.pattern for entry in report.classes] == [False, False, False, True]
    assert int(report.directions.weight[3].argmin()) == 2
    assert {g.class_name for g in report.groups if g.pattern and g.grouping == "label"} == {"mass"}


def test_analyse__multilabel_accepts_one_embedding_per_example_or_per_row():
    grades, x = multilabel(150)
    by_row = x.repeat_interleave(2, dim=0)
    assert content(analyse(grades, x, features=x, permutations=49)) == content(
        analyse(grades, by_row, features=by_row, permutations=49)
    )


@pytest.mark.parametrize("wrong", ["embeddings", "features"])
def test_analyse__rows_that_do_not_match_are_refused(wrong):
    grades, x = multilabel(60)
    rows = {"embeddings": x, "features": x} | {wrong: x[1:]}
    with pytest.raises(DataError, match=f"{wrong} has 59 rows; grades have 120 rows of 60 examples"):
        analyse(grades, **rows)


def test_analyse__metadata_is_counted_and_changes_nothing_else():
    grades, x = planted(900)
    metadata = {"axis 5": (x[:, 5] > 0.6).tolist(), "noise": torch.arange(900) % 4}
    report, without = analyse(grades, x, metadata=metadata, permutations=199), analyse(grades, x, permutations=199)
    assert [replace(entry, enrichment=(), slices=()) for entry in report.classes] == list(without.classes)
    dogs = {(row.attribute, row.value): row for row in report.classes[1].enrichment}
    assert len(dogs) == 6
    high = dogs["axis 5", "True"]
    assert high.flagged == int(((report.directions.out_of_fold < 0) & (grades.labels == 1) & (x[:, 5] > 0.6)).sum())
    assert high.share_of_flagged_interval[0] > 1.5 * high.share
    assert sum(row.flagged for (name, _), row in dogs.items() if name == "noise") == report.classes[1].flagged
    order = torch.randperm(900, generator=torch.Generator().manual_seed(3))
    moved, _ = shuffled(grades, seed=3)
    again = analyse(moved, x[order], metadata={"axis 5": (x[:, 5] > 0.6)[order]}, permutations=199)
    assert again.classes[1].enrichment[1].flagged == high.flagged


def test_analyse__slices_of_each_class_and_of_all_classes():
    grades, x = planted(900)
    metadata = {"axis 5": (x[:, 5] > 0.6).tolist(), "noise": torch.arange(900) % 4}
    report = analyse(grades, metadata=metadata)
    worst, *others = report.classes[1].slices
    failed, inside = grades.failed, x[:, 5] > 0.6
    mine = grades.labels == 1
    assert (worst.class_name, worst.attribute, worst.value, worst.significant) == ("dog", "axis 5", "True", True)
    assert (worst.examples, worst.failures) == (int((mine & inside).sum()), int((mine & inside & failed).sum()))
    assert worst.error_rate_outside == pytest.approx(float(failed[mine & ~inside].float().mean()))
    assert not any(row.significant for row in others)
    everything = report.slices[0]
    assert (everything.class_name, everything.attribute, everything.value) == (None, "axis 5", "True")
    assert everything.examples == int(inside.sum())
    assert everything.error_rate == pytest.approx(float(failed[inside].float().mean()))
    assert "slices" in report.timings
    assert FailureReport.from_json(report.report.to_json()).slices == report.slices


def test_analyse__the_rows_of_a_multilabel_example_are_one_source_of_a_slice():
    grades, _ = multilabel(60)
    site = torch.arange(60) % 3
    alone = analyse(grades, metadata={"site": site})
    groups = replace(grades, groups=grades.ids)
    assert analyse(groups, metadata={"site": site}).slices == alone.slices
    assert sum(row.examples for row in alone.slices) == 120


def test_analyse__metadata_per_example_or_per_row():
    grades, _ = multilabel(60)
    site = torch.arange(60) % 3
    report = analyse(grades, metadata={"site": site})
    assert report.classes == analyse(grades, metadata={"site": site.repeat_interleave(2)}).classes
    assert sum(row.examples for entry in report.classes for row in entry.enrichment) == 120
    with pytest.raises(DataError, match=r"metadata\['site'\] has 59 rows; grades have 120 rows of 60 examples"):
        analyse(grades, metadata={"site": site[1:]})


# -- undefined values ---------------------------------------------------------------------------------------


def test_analyse__grades_alone():
    grades, _x = planted(90)
    report = analyse(grades)
    assert report.directions is None
    assert report.groups == ()
    assert set(report.summary) == {"accuracy", "coverage"}
    assert all(entry.cv_score is None and entry.skipped is None for entry in report.classes)


@pytest.mark.parametrize(("failed", "missing"), [(False, "0 failures"), (True, "0 successes")])
def test_analyse__all_correct_or_all_failed(failed, missing):
    _, x = planted(90)
    report = analyse(graded(torch.arange(90) % 3, torch.full((90,), failed)), x, features=x, captions=lambda k: words())
    assert report.accuracy == float(not failed)
    assert all(missing in entry.skipped for entry in report.classes)
    assert set(report.summary) == {"accuracy", "coverage"}
    assert not any(entry.pattern or entry.hardest_captions for entry in report.classes)
    assert all(group.skipped for group in report.groups)
    assert FailureReport.from_dict(report.to_dict()).to_dict() == report.to_dict()


@pytest.mark.parametrize("dim", [DIM, 0])
def test_analyse__empty_grades(dim):
    none = torch.empty(0, dtype=torch.int64)
    grades = Grades(none, none, none, torch.empty(0), NAMES, coverage=0.0)
    x = torch.empty(0, dim)
    report = analyse(grades, x, features=x, captions=lambda k: words()) if dim else analyse(grades)
    assert (report.examples, report.accuracy) == (0, None)
    assert report.summary == {"coverage": 0.0}
    assert [entry.examples for entry in report.classes] == [0, 0, 0]
    assert all(entry.accuracy is None and not entry.pattern for entry in report.classes)
    assert json.loads(report.to_json())["accuracy"] is None


def test_analyse__classes_are_skipped_with_a_reason():
    grades, x = planted(300)
    few = torch.zeros(300, dtype=torch.bool)
    few[torch.nonzero(grades.labels == 2)[:4, 0]] = True
    failed = torch.where(grades.labels == 2, few, grades.failed)
    report = analyse(replace(graded(grades.labels, failed), class_names=(*NAMES, "emu")), x, captions=lambda k: words())
    assert [entry.skipped for entry in report.classes] == [
        None,
        None,
        "4 failures; at least 10 are needed",
        "no examples",
    ]
    for entry in report.classes[2:]:
        assert entry.cv_score is None
        assert entry.flagged is None
        assert entry.hardest_ids == entry.hardest_captions == ()
    assert report.classes[1].pattern


def test_analyse__without_permutations_nothing_is_a_pattern():
    grades, x = planted(240)
    report = analyse(grades, x, captions=lambda k: words(), permutations=0)
    assert [entry.p_value for entry in report.classes] == [None] * 3
    assert [entry.caption_p_value for entry in report.classes] == [None] * 3
    assert not any(entry.pattern for entry in report.classes)
    assert report.classes[1].hardest_captions[0] == "along axis 5"


# -- captions ------------------------------------------------------------------------------------------------


def test_captions__asked_only_for_classes_with_a_direction():
    grades, x = planted(240)
    labels = grades.labels.where(grades.labels < 2, 0)
    asked = []
    analyse(graded(labels, grades.failed), x, captions=asked.append, permutations=49)
    assert sorted(asked) == [0, 1]


def test_captions__classes_with_a_pattern_come_first():
    grades, x = planted(450)
    asked = []
    analyse(grades, x, captions=asked.append, captioned_classes=1)
    assert asked == [1]
    asked.clear()
    analyse(grades, x, captions=asked.append, captioned_classes=0, permutations=49)
    assert asked == []


def test_captions__number_of_captions():
    grades, x = planted(240)
    report = analyse(grades, x, captions=lambda k: words(range(4, 7)), top_captions=2, top_examples=3, permutations=49)
    dog = report.classes[1]
    assert (len(dog.hardest_captions), len(dog.easiest_captions)) == (2, 2)
    assert (len(dog.hardest_ids), len(dog.easiest_ids)) == (3, 3)
    few = analyse(grades, x, captions=lambda k: words([5]), permutations=49).classes[1]
    assert few.hardest_captions == few.easiest_captions == ("along axis 5",)


def test_captions__a_class_may_have_none():
    grades, x = planted(240)
    none = ClassCaptions((), torch.empty(0, DIM), torch.zeros(DIM))
    report = analyse(grades, x, captions=lambda k: [none, words(), None][k], permutations=49)
    assert [len(entry.hardest_captions) for entry in report.classes] == [0, 5, 0]


# -- the JSON form -------------------------------------------------------------------------------------------


def test_json__keys_that_readers_rely_on(full):
    *_, report = full
    data = json.loads(report.to_json())
    assert data.keys() >= REPORT_KEYS
    assert all(entry.keys() >= CLASS_KEYS for entry in data["classes"])
    assert all(group.keys() >= GROUP_KEYS for group in data["groups"])
    assert all(leaf.keys() >= LEAF_KEYS for group in data["groups"] for leaf in group["leaves"])
    assert data["timings"].keys() == {
        "directions",
        "trees",
        "captions",
        "shared",
        "confusions",
        "diagnosis",
        "findings",
    }
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in data["timings"].values())


def test_json__round_trip(full):
    *_, report = full
    again = FailureReport.from_dict(json.loads(report.to_json()))
    assert again == report.report
    assert again.to_json() == report.to_json()


# -- the form of the inputs ----------------------------------------------------------------------------------


def forms(x, folder):
    """Return the same numbers as tensors and arrays of every kind."""
    array = x.numpy()
    np.save(folder / "x.npy", array.astype(np.float16))
    read_only = array.copy()
    read_only.flags.writeable = False
    return {
        "float16": x.half(),
        "bfloat16": x.bfloat16(),
        "float64": x.double(),
        "needs_grad": x.clone().requires_grad_(),
        "transposed": x.T.contiguous().T,
        "float16_array": array.astype(np.float16),
        "strided": np.repeat(array, 2, axis=1)[:, ::2],
        "read_only": read_only,
        "memory_mapped": np.load(folder / "x.npy", mmap_mode="r"),
    }


def close(a, b):
    """Return whether two values are equal except for the rounding of floats."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, rel=1e-4, abs=1e-6) if isinstance(a, float) else a == b


@pytest.fixture(scope="module")
def exact():
    """Numbers that every floating dtype represents exactly."""
    grades, x = planted(240)
    x = torch.where(x.abs() < 0.01, 0.0, x).bfloat16().float()
    assert torch.equal(x.half().float(), x)
    return grades, x, content(analyse(grades, x, features=x, captions=lambda k: words(), permutations=99))


@pytest.mark.parametrize(
    "form",
    [
        *("float16", "bfloat16", "float64", "needs_grad", "transposed"),
        *("float16_array", "strided", "read_only", "memory_mapped"),
    ],
)
def test_analyse__any_form_of_the_same_numbers_gives_the_same_report(exact, form, tmp_path):
    grades, x, expected = exact
    values = forms(x, tmp_path)[form]
    before = values.detach().clone() if isinstance(values, torch.Tensor) else values.copy()
    report = analyse(grades, values, features=values, captions=lambda k: words(), permutations=99)
    assert close(content(report), expected)
    assert bool((values == before).all())


@pytest.mark.slow
def test_analyse__memory_is_bounded_by_one_class(monkeypatch):
    """The inputs are neither copied nor widened as a whole: memory grows by a fraction of the added inputs."""
    for name in ("core.arrays", "directions.standardize"):
        module = importlib.import_module(f"lightning_failures.{name}")  # a face may have a function of this name
        monkeypatch.setattr(module, "_CELLS_AT_ONCE", 2**16)
    monkeypatch.setattr("lightning_failures.directions.probe._ROWS_AT_ONCE", 100)
    peaks, inputs = [], []
    for classes in (1, 5, 10):  # the first run imports and compiles
        rng = np.random.default_rng(0)
        n = 100 * classes
        x = rng.standard_normal((n, 1024), dtype=np.float32).astype(np.float16)
        labels = torch.arange(n) % classes
        predictions = torch.where(torch.from_numpy(rng.random(n) < 0.3), (labels + 1) % classes, labels)
        grades = Grades(torch.arange(n), labels, predictions, torch.ones(n), tuple(map(str, range(classes))))
        tracemalloc.start()
        try:
            analyse(grades, x, features=x, permutations=0)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        inputs.append(x.nbytes)
    assert peaks[2] - peaks[1] < 0.5 * (inputs[2] - inputs[1])


# -- budgets -------------------------------------------------------------------------------------------------


def test_time_budget__notes_name_what_was_skipped():
    grades, x = planted()
    options = {"features": x, "captions": lambda k: words(), "permutations": 49}
    report = analyse(grades, x, time_budget=1e-9, **options)
    assert (
        {entry.skipped for entry in report.classes} == {group.skipped for group in report.groups} == {SKIPPED_FOR_TIME}
    )
    assert report.notes == (
        "Skipped to keep the time budget: 3 failure directions, 6 failure trees, those with the fewest failures.",
    )
    assert report.accuracy == grades.correct.double().mean().item()
    report = analyse(grades, x, time_budget=1e9, **options)
    assert content(report) == content(analyse(grades, x, **options))
    assert report.notes == ()


def test_sampled__counts_cover_all_rows_and_fits_the_sample():
    grades, x = planted()
    sampled = np.arange(450) % 3 != 1  # class 1 is not in it
    report = analyse(grades, x[sampled], features=x[sampled], sampled=sampled, permutations=49)
    assert [entry.examples for entry in report.classes] == [150, 150, 150]
    assert [entry.skipped for entry in report.classes] == [None, "none of its examples was analysed", None]
    assert report.directions.out_of_fold.isnan()[~sampled].all()
    assert not report.directions.out_of_fold.isnan()[sampled].any()
    by_hand = analyse(take(grades, sampled), x[sampled], features=x[sampled], permutations=49)
    for one, other in zip(report.classes, by_hand.classes, strict=True):
        assert (one.cv_score, one.hardest_ids, one.easiest_ids) == (
            other.cv_score,
            other.hardest_ids,
            other.easiest_ids,
        )
    assert content(report)["groups"] == content(by_hand)["groups"]
    assert "66.7% of the examples" in report.notes[0]


def take(grades, rows):
    rows = torch.from_numpy(rows)
    parts = ("ids", "labels", "predictions", "confidence")
    return replace(grades, **{name: getattr(grades, name)[rows] for name in parts})


def test_sampled__another_number_of_embeddings_is_an_error():
    grades, x = planted()
    with pytest.raises(DataError, match="450 rows; grades have 300 rows"):
        analyse(grades, x, sampled=np.arange(450) % 3 != 1)
