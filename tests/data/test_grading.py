import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics import f1_score

from lightning_failures.data.grading import (
    Columns,
    assemble_grades,
    best_f1_threshold,
    expand_class_names,
    grade_batch,
    infer_task,
    read_default_batch,
)
from lightning_failures.errors import DataError

COLUMNS = st.integers(2, 6)
quickly = settings(deadline=None, max_examples=50)  # machines stall
X, Y = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


def scores(columns=COLUMNS, dtype=np.float64):
    """Generate (B, K) raw scores, some of them infinite."""
    return st.tuples(st.integers(1, 8), columns).flatmap(
        lambda shape: arrays(dtype, shape, elements=st.floats(allow_nan=False, width=8 * np.dtype(dtype).itemsize))
    )


# -- reading a batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["image", "images", "x", "pixel_values"])
@pytest.mark.parametrize("label", ["label", "labels", "target", "y"])
def test_read_default_batch__mappings(image, label):
    record = read_default_batch(None, {image: X, label: Y, "path": ["a"] * 4})
    assert record.images is X
    assert record.labels is Y


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], (X, Y, "more")])
def test_read_default_batch__sequences(batch):
    record = read_default_batch({"loss": torch.tensor(1.0)}, batch)
    assert record.images is X
    assert record.labels is Y
    assert record.logits is None
    assert record.ids is None


@pytest.mark.parametrize(
    ("keys", "columns", "image", "label"),
    [
        (["img", "fine_label", "coarse_label"], Columns(), "img", "fine_label"),
        (["__key__", "png", "cls"], Columns(), "png", "cls"),
        (["jpg", "cls"], Columns(), "jpg", "cls"),
        (["scan", "finding"], Columns(("scan",), ("finding",)), "scan", "finding"),
        (["x", "y", "photo", "species"], Columns(("photo",), ("species",)), "photo", "species"),
        (["image", "label", "split"], Columns(("image",), ("split",)), "image", "label"),
        (["image", "mask", "labels", "label"], Columns(("image", "mask"), ("label",)), "image", "label"),
        (["pixel_values", "labels"], Columns(("image",), ("label",)), "pixel_values", "labels"),
        (["left", "right"], Columns(("left", "right"), ()), None, None),
    ],
)
def test_read_default_batch__columns_by_name_and_type(keys, columns, image, label):
    batch = {key: X + n if key == image else Y + n for n, key in enumerate(keys)}
    record = read_default_batch(None, batch, columns)
    assert record.images is batch.get(image)
    assert record.labels is batch.get(label)


@pytest.mark.parametrize("views", [[X, X + 1], (X, X + 1, X + 2)])
def test_read_default_batch__the_first_of_several_views(views):
    assert read_default_batch(None, (views, Y, ["a"] * 4)).images is X
    assert read_default_batch(None, {"image": views, "label": Y}).images is X
    assert read_default_batch(None, ([X, X[:2]], Y)).images is None  # no views of the same images
    assert read_default_batch(None, ([*X], Y)).images is None  # images of different sizes


@pytest.mark.parametrize("batch", [X, (X,), "xy", {"z": X}, None, (["a"], ["b"])])
def test_read_default_batch__unreadable_fields_are_none(batch):
    record = read_default_batch(None, batch)
    assert record.images is None
    assert record.labels is None


@pytest.mark.parametrize("key", ["logits", "preds"])
@pytest.mark.parametrize("scores", [torch.eye(4, 3) * 9 - 4, torch.full((4, 4), 0.25), Y])
def test_read_default_batch__scores_of_the_step(key, scores):
    assert read_default_batch({key: scores}, (X, Y)).logits is scores
    assert read_default_batch({key: "text"}, (X, Y)).logits is None
    assert read_default_batch(scores, (X, Y)).logits is None  # could be one loss per example


@pytest.mark.parametrize("preds", [torch.tensor([0.0, 0.2, 0.8, 1.0]), torch.tensor([[0.9, 0.8], [0.1, 0.6]])])
def test_read_default_batch__one_batch_does_not_say_what_preds_are(preds):
    assert read_default_batch({"preds": preds}, (X, Y)).logits is preds
    named_as_logits = read_default_batch({"preds": preds, "logits": preds}, (X, Y)).logits
    assert named_as_logits is preds


# -- the task ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "labels", "task"),
    [
        (torch.zeros(4), torch.zeros(4), "binary"),
        (torch.zeros(4, 1), torch.zeros(4, 1), "binary"),
        (torch.zeros(4, 2), torch.zeros(4), "multiclass"),
        (torch.zeros(4, 2), torch.zeros(4, 1), "multiclass"),
        (torch.zeros(4, 5), torch.zeros(4, 5), "multilabel"),
        (torch.zeros(4, dtype=torch.int64), torch.zeros(4), "multiclass"),
    ],
)
def test_infer_task__by_shape(logits, labels, task):
    assert infer_task(logits, labels) == task


def test_expand_class_names__two_per_condition():
    assert expand_class_names(["edema", "mass"], "multilabel") == ("no edema", "edema", "no mass", "mass")
    assert expand_class_names(["ill"], "binary") == ("no ill", "ill")
    assert expand_class_names(["well", "ill"], "binary") == ("well", "ill")


# -- multiclass ----------------------------------------------------------------------------------------------


@quickly
@given(scores())
def test_grade_batch__predictions_are_the_argmax(logits):
    grades = grade_batch(torch.from_numpy(logits), torch.zeros(len(logits)).long())
    assert (
        grades.predictions.tolist() == np.clip(logits, *(np.finfo(float).min, np.finfo(float).max)).argmax(1).tolist()
    )
    assert grades.position.tolist() == list(range(len(logits)))
    assert grades.confidence.dtype == torch.float32
    assert ((grades.confidence >= 0) & (grades.confidence <= 1)).all()


@quickly
@given(scores(dtype=np.float32), st.data())
def test_grade_batch__confidence_is_the_softmax(logits, data):
    labels = torch.tensor(
        data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=len(logits), max_size=len(logits)))
    )
    shifted = np.clip(logits, -50, 50).astype(np.float64)
    grades = grade_batch(torch.from_numpy(shifted - 100), labels)  # negative, so not probabilities
    expected = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    np.testing.assert_allclose(grades.confidence, expected[np.arange(len(labels)), labels], rtol=1e-5, atol=1e-30)


def test_grade_batch__probabilities_are_not_softmaxed_again():
    grades = grade_batch(torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]]), torch.tensor([1, 2]))
    assert grades.confidence.tolist() == pytest.approx([0.2, 1.0])
    raw = grade_batch(torch.tensor([[0.7, 0.2, 0.2]]), torch.tensor([1]))  # they do not sum to 1
    assert raw.confidence.item() == pytest.approx(np.exp(0.2) / (np.exp(0.7) + 2 * np.exp(0.2)))


def test_grade_batch__one_hot_labels():
    logits = torch.eye(3)[[0, 1, 1]] * 3
    with_indices = grade_batch(logits, torch.tensor([0, 1, 2]))
    with_one_hot = grade_batch(logits, torch.eye(3), task="multiclass")
    assert with_one_hot.labels.tolist() == with_indices.labels.tolist() == [0, 1, 2]
    assert with_one_hot.predictions.tolist() == [0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_grade_batch__any_float(dtype):
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=dtype, requires_grad=True)
    grades = grade_batch(logits, torch.tensor([1.0, 1.0], dtype=dtype))
    assert grades.predictions.tolist() == [1, 0]
    assert grades.confidence.dtype == torch.float32
    assert not grades.confidence.requires_grad
    assert grades.labels.dtype == torch.int64


def test_grade_batch__double_precision_decides():
    logits = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert grade_batch(logits, torch.tensor([1])).predictions.tolist() == [1]


def test_grade_batch__predicted_classes_instead_of_logits():
    grades = grade_batch(torch.tensor([2, 0, 1]), torch.tensor([2, 1, 1]))
    assert grades.predictions.tolist() == [2, 0, 1]
    assert grades.confidence.tolist() == [1.0, 0.0, 1.0]


def test_grade_batch__empty_batch():
    grades = grade_batch(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert len(grades.labels) == len(grades.predictions) == len(grades.confidence) == 0


@pytest.mark.parametrize(
    "logits", [torch.eye(4), torch.tensor([0, 1, 2, 3]), torch.tensor([-1.0, 1.0, -1.0, 1.0])], ids=["K", "hard", "one"]
)
def test_grade_batch__unlabelled_examples_are_skipped(logits):
    labels = torch.tensor([-100, 1, -100, 0])
    some, whole = grade_batch(logits, labels), grade_batch(logits, labels.clamp(min=0))
    assert some.position.tolist() == [1, 3]
    for name in ("condition", "labels", "predictions", "confidence"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[[1, 3]])
    assert len(grade_batch(logits, torch.full((4,), -100)).labels) == 0


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (torch.zeros(3, 2), Y, {}, "4 labels but 3 rows"),
        (torch.full((4, 3), torch.nan), Y, {}, "NaN for 4 of 4"),
        (torch.tensor([[torch.nan, 1.0, 1.0], [0.0, 0.0, 0.0]]), Y[:2], {}, "NaN for 1 of 2"),
        (torch.zeros(4, 2), Y, {}, "from 0 to 2, but the 2 classes allow 0 to 1"),
        (torch.zeros(4, 3), Y - 1, {}, "from -1 to 1"),
        (torch.zeros(4, 3), Y + 0.5, {}, r"must be class indices, got 0\.5"),
        (torch.zeros(4, 3), Y * torch.nan, {}, "must be class indices, got nan"),
        (torch.zeros(4, 3), torch.zeros(4, 1, 1), {}, r"\(4, 1, 1\)"),
        (torch.zeros(4, 3, 2), Y, {}, r"multiclass task must have the shape \(B, K\), got \(4, 3, 2\)"),
        (torch.zeros(4), Y, {"task": "multiclass"}, r"multiclass task must have the shape \(B, K\), got \(4,\)"),
        (torch.zeros(4, 3), Y, {"task": "binary"}, "one value for each of the 4"),
        (torch.zeros(4, 2), torch.zeros(4, 3), {"task": "multilabel"}, "must have the shape of the logits"),
        (torch.zeros(4, 2), torch.full((4, 2), 2), {"task": "multilabel"}, "from 2 to 2"),
        (torch.zeros(4, 3, dtype=torch.int64), Y, {}, r"Predicted classes must have the shape \(B,\), got \(4, 3\)"),
        (
            torch.zeros(1, 3, dtype=torch.int64),
            Y[:1],
            {},
            r"Predicted classes must have the shape \(B,\), got \(1, 3\)",
        ),
    ],
)
def test_grade_batch__refused(logits, labels, options, message):
    with pytest.raises(DataError, match=message):
        grade_batch(logits, labels, **options)


# -- binary --------------------------------------------------------------------------------------------------


@quickly
@given(scores(columns=st.just(1)))
def test_grade_batch__binary_threshold_is_half(logits):
    logits = torch.from_numpy(np.where(np.abs(logits) < 1e-6, 1.0, logits))
    labels = torch.arange(len(logits)) % 2
    for form in (logits, logits[:, 0]):
        grades = grade_batch(form, labels)
        assert grades.predictions.tolist() == (logits[:, 0] > 0).long().tolist()
        positive = torch.where(labels == 1, grades.confidence, 1 - grades.confidence)
        torch.testing.assert_close(positive, torch.sigmoid(logits[:, 0]).float())
        assert grade_batch(form, labels[:, None]).labels.tolist() == labels.tolist()


def test_grade_batch__squeezed_binary_batch_of_one():
    grades = grade_batch(torch.tensor([[2.0]]).squeeze(), torch.tensor([1]))
    assert grades.predictions.tolist() == [1]
    assert grade_batch(torch.tensor([2.0]), torch.tensor(1)).labels.tolist() == [1]


# -- multilabel ----------------------------------------------------------------------------------------------


def assembled(logits, labels, **options):
    rows = grade_batch(logits, labels)
    conditions = logits.shape[1]
    names = expand_class_names([f"c{k}" for k in range(conditions)], "multilabel")
    keys = rows.position * conditions + rows.condition
    return assemble_grades(
        keys, rows.labels, rows.predictions, rows.confidence, class_names=names, conditions=conditions, **options
    )


def test_grade_batch__multilabel_has_one_row_per_condition():
    rows = grade_batch(torch.tensor([[2.0, -2.0], [2.0, 2.0]]), torch.tensor([[1, 1], [0, 1]]))
    assert rows.position.tolist() == [0, 0, 1, 1]
    assert rows.condition.tolist() == [0, 1, 0, 1]
    assert rows.labels.tolist() == [1, 3, 0, 3]
    assert rows.predictions.tolist() == [1, 2, 1, 3]
    assert rows.confidence.tolist() == pytest.approx([0.881, 0.119, 0.119, 0.881], abs=1e-3)


def test_assemble_grades__multilabel_uses_the_best_f1_of_each_condition():
    labels = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])
    logits = torch.tensor([[-4.0, 7.0], [-3.0, 8.0], [-2.0, 6.0], [-1.0, 5.0]])  # all on one side of 0.5
    grades = assembled(logits, labels)
    assert grades.correct.all()
    assert grades.ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert grades.class_names == ("no c0", "c0", "no c1", "c1")


@pytest.mark.parametrize("logit", [-40.0, -17.0, -2.2, -1e-3, 0.0, 0.3, 5.5, 17.0])
def test_assemble_grades__equal_logits_are_predicted_alike(logit):
    """Confidence is the probability of the truth; rounding must not leak the truth to the threshold."""
    labels = torch.stack([torch.arange(40) % 2, torch.arange(40) % 3 == 0], dim=1).long()
    grades = assembled(torch.full((40, 2), logit), labels)
    for condition in range(2):
        assert len(grades.predictions[condition::2].unique()) == 1


def test_assemble_grades__multiclass_keeps_predictions():
    grades = assemble_grades(
        torch.tensor([3, 9]),
        torch.tensor([0, 1]),
        torch.tensor([1, 1]),
        torch.tensor([0.2, 0.9]),
        class_names=["a", "b"],
        groups=torch.tensor([5, 6]),
        coverage=0.5,
    )
    assert grades.ids.tolist() == [3, 9]
    assert grades.failed.tolist() == [True, False]
    assert grades.correct.tolist() == [False, True]
    assert grades.class_names == ("a", "b")
    assert (grades.groups.tolist(), grades.coverage, len(grades)) == ([5, 6], 0.5, 2)


@quickly
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_best_f1_threshold__equals_brute_force(examples):
    positive = torch.tensor([p / 6 for p, _ in examples])
    labels = torch.tensor([int(truth) for _, truth in examples])
    threshold = best_f1_threshold(positive, labels)
    if labels.unique().numel() == 1:
        assert threshold == 0.5
    else:
        best = max(f1_score(labels, positive >= t) for t in positive)
        assert f1_score(labels, positive >= threshold) == pytest.approx(best)


@quickly
@given(
    arrays(np.float32, array_shapes(min_dims=1, max_dims=1, min_side=0, max_side=5), elements=st.floats(0, 1, width=32))
)
def test_best_f1_threshold__half_if_all_labels_are_equal(positive):
    for truth in (0, 1):
        assert best_f1_threshold(torch.from_numpy(positive), torch.full((len(positive),), truth)) == 0.5


def test_grade_batch__half_precision_probabilities_stay_probabilities():
    preds = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).half()
    grades = grade_batch(preds, torch.tensor([0, 1]))
    assert grades.confidence.tolist() == pytest.approx([0.7, 0.1], abs=2e-3)


@pytest.mark.parametrize(
    ("logits", "labels", "margins"),
    [
        (torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]]).log(), torch.tensor([0, 0]), [0.5, -0.3]),
        (torch.tensor([0.8, 0.3]).logit(), torch.tensor([1, 1]), [0.6, -0.4]),
        (torch.tensor([2, 1]), torch.tensor([2, 2]), [1.0, -1.0]),
        (torch.tensor([[0.8, 0.3]]).logit(), torch.tensor([[1, 0]]), [0.6, 0.4]),
    ],
    ids=["multiclass", "binary", "predicted classes", "multilabel"],
)
def test_margin__is_the_probability_of_the_label_minus_the_best_other(logits, labels, margins):
    torch.testing.assert_close(grade_batch(logits, labels).margin, torch.tensor(margins))
