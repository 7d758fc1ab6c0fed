"""Sentences on how far to trust a finding: each path says what its numbers say, and no more."""

import dataclasses

import pytest

from lightning_failures.data.evidence import AttributeEvidence
from lightning_failures.data.records import CounterfactualReport, DiagnosisReport
from lightning_failures.data.report import ClassReport, CurvePoint
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.report.sentences import diagnosis_sentence, group_sentence, trust_sentence

FOUND = ClassReport(
    "cat",
    400,
    base_error_rate=0.3,
    cv_score=0.85,
    cv_score_stderr=0.02,
    p_value=0.001,
    pattern=True,
    flagged=150,
    strength="strong",
    effect=0.48,
    effect_interval=(0.384, 0.566),
    flagged_error_rate=0.6,
    unflagged_error_rate=0.12,
    failures_flagged=0.75,
    hardest_captions=("a photo of a red cat",),
    hardest_caption_scores=(-1.0,),
    hardest_caption_margins=(2.94,),
    caption_p_value=0.002,
    nearest=tuple(CurvePoint(k, accuracy) for k, accuracy in ((10, 0.1), (80, 0.3), (160, 0.4), (400, 0.7))),
    cv_null_mean=0.5,
    cv_null_interval=(0.44, 0.57),
    cv_null_permutations=20,
    agreement=0.71,
)


def of(**changes):
    return trust_sentence(dataclasses.replace(FOUND, **changes))


def test_trust_sentence__everything_at_hand():
    assert trust_sentence(FOUND) == (
        "Strong pattern: 60.0 % of the 150 flagged examples fail, 12.0 % of the others (a difference of 38.4"
        " to 56.6 points); "
        "the flagged hold 75.0 % of the 120 failures. Held-out examples are separated with a balanced accuracy of "
        "85.0 % +- 2.0 % (50.0 % is a coin toss, nine of ten shuffles give 44.0 % to 57.0 %; p <= 0.001). "
        'The caption "red cat" is a hypothesis: captions rarely fit this well by chance (p = 0.002, margin 2.9). '
        "Of the 80 examples nearest to it, 30.0 % are classified correctly; of all examples, 70.0 %. "
        "The most important leaf of the failure tree holds mostly the same examples (Cohen's kappa 0.71)."
    )


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"examples": 0}, "No examples."),
        ({"skipped": "4 failures; at least 10 are needed"}, "Skipped: 4 failures; at least 10 are needed."),
        ({"cv_score": None}, "Graded only: "),
        ({"p_value": None, "pattern": False}, "Not tested: it is unknown whether a CV score of 85.0 % is above chance"),
        ({"p_value": 0.4, "pattern": False}, "No pattern: the 120 failures are consistent with chance (p = 0.4)"),
        ({"p_value": 0.03, "pattern": False}, "No pattern: with this many classes, some look like this by chance (p = 0.03)"),  # noqa: E501
        ({"strength": "clear"}, "Clear pattern: 60.0 % of the 150"),
        ({"strength": "weak"}, "Weak pattern: 60.0 % of the 150"),
        ({"cv_null_interval": (0.5, 0.9)}, "Weak pattern"),
        ({"cv_null_interval": (0.5, 0.85)}, "Weak pattern"),
        ({"cv_null_interval": (0.5, 0.84)}, "Strong pattern"),
        ({"effect": None}, "Pattern. Held-out examples are separated with"),
    ],
)  # fmt: skip
def test_trust_sentence__what_comes_first(changes, start):
    assert of(**changes).startswith(start)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"examples": 90}, "With only 27 failures, the pattern may change with more data."),
        ({"caption_p_value": None}, 'The caption "red cat" is an untested hypothesis.'),
        ({"caption_p_value": 0.3}, "is a weak hypothesis: some caption fits this well by chance (p = 0.3)."),
        (
            {"hardest_caption_attributes": (AttributeEvidence("red", "tint", 9.5, 0.001, 0.81, 0.09),)},
            "margin 2.9). Its words: red: 81.0 % of the flagged, 9.0 % of the class, p <= 0.001. Of the 80",
        ),
        (
            {
                "caption_p_value": 0.3,
                "hardest_caption_attributes": (
                    AttributeEvidence("red", None, 2.5, 0.03, 0.4, 0.3), AttributeEvidence("thin", p_value=0.04),
                ),
            },
            "by chance (p = 0.3). Its words: red: read in 40.0 % of the flagged, 30.0 % of the class, p = 0.03; "
            "thin: p = 0.04.",
        ),
        (
            {"reference_caption": "a photo of a red cat"},
            'No caption holds: no word of the candidates improves on "red cat" beyond noise (p = 0.002).',
        ),
        ({"hardest_caption_margins": ()}, "fit this well by chance (p = 0.002). Of the"),
        ({"nearest": ()}, "(p = 0.002, margin 2.9). The most important leaf"),
        ({"nearest": (CurvePoint(30, 0.2), CurvePoint(100, 0.5))}, "Of the 30 examples nearest to it, 20.0 % are classified correctly; of all examples, 50.0 %."),  # noqa: E501
        ({"nearest": (CurvePoint(25, 0.55), CurvePoint(100, 0.7))}, "nearest to it, 55.0 % are classified correctly; of all examples, 70.0 %, a difference too small to be conclusive."),  # noqa: E501
        ({"nearest": (CurvePoint(25, 0.7), CurvePoint(100, 0.7))}, "nearest to it, 70.0 % are classified correctly; of all examples, 70.0 %, which contradicts it."),  # noqa: E501
        ({"agreement": 0.3}, "holds partly the same examples"),
        ({"agreement": -0.1}, "holds other examples (Cohen's kappa -0.10"),
        ({"cv_null_interval": None, "cv_score_stderr": None}, "of 85.0 % (50.0 % is a coin toss; p"),
        ({"flag_agreement": 0.83}, "Of the flagged examples, 83.0 % are flagged again if the folds are drawn differently (by chance 37.5 %)."),  # noqa: E501
        ({"flag_agreement": 0.4, "looked_at": 200, "failures_looked_at": 60}, "40.0 % are flagged again if the folds are drawn differently (by chance 75.0 %)."),  # noqa: E501
        ({"doubted": 7}, "The labels of 7 failures are in doubt and left out of the fit."),
        ({"doubted": 1}, "The label of 1 failure is in doubt and left out of the fit."),
    ],
)  # fmt: skip
def test_trust_sentence__what_could_be_wrong(changes, part):
    assert part in of(**changes)
    assert part not in trust_sentence(FOUND)


def test_trust_sentence__says_nothing_of_what_is_not_known():
    bare = of(hardest_captions=(), agreement=None)
    assert "caption" not in bare
    assert "tree" not in bare


@pytest.mark.parametrize("rate", [1e308, -1e308])
def test_trust_sentence__a_rate_that_is_none(rate):
    assert of(base_error_rate=rate)


def test_trust_sentence__of_a_sample_counts_what_was_looked_at():
    sample = {"looked_at": 40, "failures_looked_at": 11}
    assert "75.0 % of the 11 failures among the 40 analysed examples." in of(**sample)
    assert "With only 11 failures, the pattern may" in of(**sample)
    assert "the 11 failures among the 40 analysed examples are" in of(**sample, pattern=False, p_value=0.4)
    assert of(looked_at=400, failures_looked_at=120) == trust_sentence(FOUND)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {},
            "Counterfactual check: confirmed. Of 32 images that painter renders from it, the model gets 87.5"
            " % wrong, of"
            " those from the easiest caption 12.5 %, from the reference 3.0 % (+50.0 to +89.0 points).",
        ),
        (
            {"reference": None, "interval": (-0.05, 0.4), "verdict": "not confirmed"},
            "caption 12.5 % (-5.0 to +40.0 points).",
        ),
        ({"changed": None, "reason": "out of time", "verdict": "not measured"}, "check: not measured (out of time)."),
    ],
)
def test_trust_sentence__a_caption_that_was_rendered(changes, part):
    check = CounterfactualReport(
        "rendered", "confirmed", None, 32, 0.875, 0.125, 0.03, 0.75, (0.5, 0.89), generator="painter"
    )
    entry = dataclasses.replace(FOUND, counterfactual=dataclasses.replace(check, **changes))
    assert part in trust_sentence(entry)


def test_trust_sentence__words_and_agreement_only_with_a_pattern():
    assert "red cat" not in of(pattern=False, p_value=0.5)
    assert "tree" not in of(pattern=False, p_value=0.5)


LEAVES = (
    LeafReport("feature 5 <= 0.6", 300, 0.1, 0.3, 0.03, False, (0.07, 0.15), 0.11, 0.33, False),
    LeafReport("feature 5 > 0.6", 100, 0.7, 0.7, 0.49, True, (0.55, 0.8), 0.68, 0.67, True),
)
TREE = GroupReport(
    "label",
    "cat",
    400,
    base_error_rate=0.25,
    heldout_aler_minus_ber=0.13,
    heldout_stderr=0.02,
    pattern=True,
    leaves=LEAVES,
)


def of_tree(**changes):
    return group_sentence(dataclasses.replace(TREE, **changes))


def test_group_sentence__everything_at_hand():
    assert group_sentence(TREE) == (
        "The rules hold on held-out examples: their failures are in leaves whose error rate exceeds the base error "
        "rate of 25.0 % by +13.0 +- 2.0 points on average. Worst leaf: feature 5 > 0.6; 100 examples,"
        " error rate 68.0 % "
        "(55.0 to 80.0 %) and error coverage 67.0 % on held-out examples; in sample 70.0 % and 70.0 %."
    )


def test_group_sentence__of_a_former_version_names_what_is_in_sample():
    former = tuple(LeafReport(*dataclasses.astuple(leaf)[:7]) for leaf in LEAVES)
    assert of_tree(leaves=former).endswith(
        "100 examples, error rate 70.0 % and error coverage 70.0 % in sample, error rate 55.0 to 80.0 % on held-out"
        " examples."
    )


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"size": 0}, "No examples."),
        ({"skipped": "no failures", "leaves": LEAVES[:1], "pattern": False}, "No tree: no failures."),
        ({"skipped": "nothing can be held out", "pattern": False}, "Not tested: nothing can be held out."),
        ({"pattern": False}, "No pattern: on held-out examples the tree predicts failures no better than chance (held-out ALER - BER +13.0 +- 2.0 points, base error rate 25.0 %)."),  # noqa: E501
    ],
)  # fmt: skip
def test_group_sentence__what_comes_first(changes, start):
    assert of_tree(**changes).startswith(start)


def test_group_sentence__what_could_be_wrong():
    wide = dataclasses.replace(LEAVES[1], interval=(0.2, 0.9))
    assert "It is not certain that this leaf fails more often than the rest." in of_tree(leaves=(LEAVES[0], wide))
    small = dataclasses.replace(LEAVES[1], size=29)
    assert of_tree(leaves=(LEAVES[0], small)).endswith("The leaf is small and may change with more data.")


def test_trust__says_what_the_failures_of_a_condition_are():
    names = ("no edema", "edema", "no entry")
    absent = trust_sentence(dataclasses.replace(FOUND, name="no edema"), names)
    assert "fail" in absent.split(". ")[0]  # the pattern comes first
    assert " The failures are images without edema that the model takes for edema. " in absent
    present = trust_sentence(dataclasses.replace(FOUND, name="edema"), names)
    assert " The failures are images of edema that the model misses. " in present
    for other in ("no entry", "cat"):
        assert "The failures are" not in trust_sentence(dataclasses.replace(FOUND, name=other), names)


def test_diagnosis_sentence__of_text_from_a_file_stays_one_line():
    found = DiagnosisReport("label\nnoise", 0.9, {"label noise": 0.9}, ("Odd\nlabels.",), "x\ny")
    assert diagnosis_sentence(found) == "Kind of failure: label noise (90.0 %). Odd labels."
    assert diagnosis_sentence(DiagnosisReport("unsure", 0.3)) == "Kind of failure: unsure."
