"""The records of a report: the findings of one analysis, with the keys of ``report.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_failures.core.serialization import from_jsonable, json_lines, read_json
from lightning_failures.data.evidence import AttributeEvidence
from lightning_failures.data.findings import Finding
from lightning_failures.data.pin_check import PinCheck
from lightning_failures.data.records import (
    CounterfactualReport,
    DiagnosisReport,
    Readable,
    SharedPattern,
    ValueReport,
)
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.errors import DataError

SCHEMA = 1
"""Version of ``report.json``. It increases when a key changes its meaning, not when a key is added."""

MAX_REVIEW = 200
"""Maximum number of labels to check that a report lists for a class or an intervention, the most doubtful first."""


@dataclass(frozen=True)
class SliceReport(Readable):
    """The error rate of the examples with one value of an attribute, and of the others; rates are in [0, 1].

    Attributes:
        attribute: Name of the attribute.
        value: The value, as text.
        class_name: Class of the examples; its key is "class". None: all classes together.
        examples: Number of examples with the value.
        failures: Number of failures with the value.
        error_rate: Share of the examples with the value that failed.
        interval: 95 % interval of ``error_rate``.
        error_rate_outside: Share of the examples with any other value that failed.
        gap: ``error_rate - error_rate_outside``. Over all classes, it may only say that a value is frequent in a hard
            class: see ``adjusted_gap``.
        gap_interval: 95 % interval of ``gap``.
        p_value: p-value of the test that examples with the value fail no more often than the others of their class, not
            corrected.
        significant: Whether the p-value passes Benjamini-Hochberg at level 0.05, over the slices of all classes for a
            slice of one class, else over those of all classes together.
        adjusted_gap: Mean over classes of the gap within the class, weighted by the examples with the value. None where
            no class has examples with and without the value, and in reports of former versions.
        adjusted_gap_interval: 95 % interval of ``adjusted_gap``; slices are sorted by its lower end.
    """

    attribute: str
    value: str
    class_name: str | None = field(default=None, metadata={"key": "class"})
    examples: int = 0
    failures: int = 0
    error_rate: float | None = None
    interval: tuple[float, float] | None = None
    error_rate_outside: float | None = None
    gap: float | None = None
    gap_interval: tuple[float, float] | None = None
    p_value: float | None = None
    significant: bool = False
    adjusted_gap: float | None = None
    adjusted_gap_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ConfusionReport(Readable):
    """A label and the prediction that it is mistaken for.

    Attributes:
        label: Name of the true class.
        prediction: Name of the predicted class.
        count: Number of failures.
        share: Share of the failures of the label, in [0, 1].
    """

    label: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True)
class MistakenReport(Readable):
    """A class that the failures of another class are mistaken for.

    Attributes:
        class_name: Name of the predicted class; its key is "class".
        count: Number of failures.
        share: Share of the failures, in [0, 1].
    """

    class_name: str = field(metadata={"key": "class"})
    count: int
    share: float


@dataclass(frozen=True)
class FlaggedConfusionReport(Readable):
    """The class that the flagged failures of another class are mistaken for more often than its other failures.

    Attributes:
        class_name: Name of the predicted class; its key is "class".
        count: Number of flagged failures.
        share: Share of the flagged failures, in [0, 1].
        share_of_others: Share of the other failures, in [0, 1].
        p_value: p-value of the test that flagged and other failures have the same predictions.
    """

    class_name: str = field(metadata={"key": "class"})
    count: int
    share: float
    share_of_others: float
    p_value: float


@dataclass(frozen=True)
class ConfusionSplitReport(Readable):
    """The failures of a class that are mistaken for one other class, and whether they follow the pattern of the class.

    Attributes:
        class_name: Name of the predicted class; its key is "class".
        count: Number of failures, among the analysed examples.
        share: Share of the analysed failures, in [0, 1].
        flagged_share: Share of these failures that are flagged, in [0, 1].
        flagged_interval: 95 % interval of ``flagged_share``.
        flagged_share_of_correct: Share of the correctly classified examples that are flagged, in [0, 1].
        pattern: Whether clearly more of these failures are flagged than of the correctly classified examples: by at
            least 0.1, the threshold of a clear effect, at the lower end of the 95 % interval of the difference.
    """

    class_name: str = field(metadata={"key": "class"})
    count: int
    share: float
    flagged_share: float
    flagged_interval: tuple[float, float]
    flagged_share_of_correct: float
    pattern: bool


@dataclass(frozen=True)
class FeatureReport(Readable):
    """One feature of the robust encoder that appears in rules.

    Attributes:
        feature: Index of the feature.
        groups: Groups whose trees split on the feature, such as "label/cat".
        top_ids: Ids of the images that activate the feature most.
        caption: Caption that best separates these images from the others of their group in CLIP space: a hypothesis.
        caption_score: Score of the caption.
        caption_margin: Distance of the score from the mean of all candidates, in their standard deviations.
        name: Name that a user gave the feature.
        tag: "spurious" or "overemphasised", as a user judged the feature.
        action: Action that a user noted for the feature.
        counterfactual: Whether pasting the regions where the feature is active changes answers; None if not asked for.
    """

    feature: int
    groups: tuple[str, ...] = ()
    top_ids: tuple[int, ...] = ()
    caption: str | None = None
    caption_score: float | None = None
    caption_margin: float | None = None
    name: str | None = None
    tag: str | None = None
    action: str | None = None
    counterfactual: CounterfactualReport | None = None


@dataclass(frozen=True)
class ModeReport(Readable):
    """One failure mode in the diary: a direction that is tracked from analysis to analysis.

    Attributes:
        name: Name of the mode, which never changes.
        class_name: Class of the mode; its key is "class".
        status: "new" (detected fewer than three times in a row), "persisting", "growing", "shrinking", "missing"
            (not detected now, but not yet three times in a row), "cured", or "returned" (was cured, and has been
            detected again fewer than three times in a row).
        since: Epoch of the first detection.
        seen: Number of analyses that detected the mode.
        missed: Number of latest analyses in a row that did not detect the mode. A "missing" mode has 0 if its class
            was not analysed.
        size: Number of flagged failures now.
        gain: Number of failures that would vanish now if the flagged examples failed as the others do.
        examples: Number of analysed examples of the class.
        gained: Number of flagged failures that are new since the last detection, among examples in both analyses.
        lost: Number of flagged failures that are gone since the last detection, among examples in both analyses.
        unmatched: Number of examples of the last detection that this analysis does not hold: their images are not in
            it, whatever its ids. None for a first detection, or without a table of examples.
        left: If the mode is not detected now: how many of its failures at the last detection still fail.
        cosine: Cosine of the direction and that of the last detection.
        shared: Common flagged failures of this detection and the last, as a share of the smaller set.
        caption: Latest hardest caption.
    """

    name: str
    class_name: str = field(metadata={"key": "class"})
    status: str
    since: int | None = None
    seen: int = 1
    missed: int = 0
    size: int = 0
    gain: float | None = None
    examples: int = 0
    gained: int | None = None
    lost: int | None = None
    unmatched: int | None = field(default=None, metadata={"omit_none": True})
    left: int | None = None
    cosine: float | None = None
    shared: float | None = None
    caption: str | None = None

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key of the modes that it pays most to fix, by gain and then by size."""
        return -(self.gain or 0.0), -self.size


@dataclass(frozen=True)
class CurvePoint(Readable):
    """Accuracy among the examples of a class that are nearest to its hardest and to its easiest caption.

    Source: Jain et al. (ICLR 2023), figure 7b.

    Attributes:
        k: Number of nearest examples.
        hardest: Accuracy among the k examples nearest to the hardest caption, in [0, 1].
        easiest: Accuracy among the k examples nearest to the easiest caption, in [0, 1].
    """

    k: int
    hardest: float | None = None
    easiest: float | None = None


@dataclass(frozen=True)
class ClassReport(Readable):
    """The findings about the failures of one class.

    Attributes:
        name: Name of the class.
        examples: Number of examples.
        accuracy: Share of the examples that are classified correctly, in [0, 1].
        cv_score: Cross-validated score of the direction.
        cv_score_stderr: Standard error of ``cv_score``.
        p_value: p-value of the screening test, not corrected for several classes.
        pattern: Whether the p-value passes Benjamini-Hochberg over classes at level 0.05; if not, the captions
            describe noise.
        c: Regularisation constant of the SVM.
        skipped: Reason why there is no direction; None if there is one, or if no directions were asked for.
        flagged: Number of analysed examples with a negative decision value.
        flag_agreement: Share of the flagged examples that are flagged again if the folds are drawn differently, in
            [0, 1]; None unless the p-value is at most 0.05.
        strength: Strength of the pattern by its effect: "none", "weak", "clear" or "strong"; None if it was not tested.
        effect: Error rate of the flagged examples minus that of the unflagged, by held-out decision values.
        effect_interval: 95 % interval of ``effect``.
        flagged_error_rate: Share of the flagged examples that failed, in [0, 1].
        unflagged_error_rate: Share of the unflagged examples that failed, in [0, 1].
        failures_flagged: Share of the failures that are flagged, in [0, 1].
        gain: What fixing the pattern gains: the number of failures that would vanish if the flagged examples failed as
            the others do. None without a pattern.
        gain_share: ``gain`` as a share of the analysed failures of all classes, in [0, 1].
        doubted: Number of examples that left the fit because a probe doubts their label; None without a probe.
        doubted_ids: Ids of the examples whose labels to check, the most doubtful first; at most 200.
        explained: Share of what decision values know of the failures that doubtful labels explain; see
            :attr:`~lightning_failures.directions.FailureDirections.explained`.
        aler: Average leaf error rate of the tree of the label group.
        base_error_rate: Share of the examples that failed, in [0, 1].
        reference_caption: Caption of the class that candidates are compared with.
        hardest_captions: Captions at the failure end of the direction: the shortest within noise of the most extreme
            one, which may be the reference, then the others, the most extreme first.
        hardest_caption_scores: Scores of ``hardest_captions``.
        easiest_captions: The same at the opposite end.
        easiest_caption_scores: Scores of ``easiest_captions``.
        caption_p_value: p-value of the captions.
        hardest_caption_margins: Distances of the hardest captions' scores from the mean of all candidates, in their
            standard deviations.
        easiest_caption_margins: The same distances for the easiest captions.
        hardest_caption_attributes: The evidence for each attribute that the first of the hardest captions names.
        easiest_caption_attributes: The same for the easiest captions.
        nearest: Accuracy of the examples nearest to the hardest and easiest captions.
        nearest_hardest_ids: Ids of the 50 examples nearest to the first of the hardest captions, the nearest first.
        nearest_easiest_ids: The same for the easiest captions.
        cv_null_mean: Mean CV score over permutations of correctness.
        cv_null_interval: 5 % and 95 % quantiles of the CV scores over permutations of correctness.
        cv_null_permutations: Number of these permutations.
        agreement: Cohen's kappa between being flagged and being in the most important leaf of the label group's tree.
        hardest_ids: Ids of the examples with the lowest decision values, the lowest first.
        easiest_ids: Ids of the examples with the highest decision values, the highest first.
        hardest_values: Decision values of ``hardest_ids``.
        easiest_values: Decision values of ``easiest_ids``.
        least_confident_ids: Ids of the examples with the least confidence in the true class, the least first.
        least_confident_values: Confidence of ``least_confident_ids``, in [0, 1].
        enrichment: Frequency of each value of known attributes.
        truth: Planted failure mode of a demo class, if known.
        looked_at: Number of analysed examples; fewer than ``examples`` if directions and trees use a sample.
        failures_looked_at: Number of failures among the analysed examples.
        slices: Error rates by values of known attributes, those that fail most beyond chance first.
        mistaken_for: Classes that the failures are mistaken for, the most frequent first; empty where there is only one
            wrong answer.
        flagged_mistaken_for: What the flagged failures are mistaken for more often than the others; None if there is
            no pattern, or flags do not explain it after Benjamini-Hochberg over classes at level 0.05.
        confusion_split: The failures by what they are mistaken for, and which of them follow the pattern; only where
            ``flagged_mistaken_for`` is known and there are several frequent wrong answers.
        error_rate_shrunk: Error rate shrunk towards the mean of all classes, in [0, 1]; classes are ranked by it.
        error_rate_interval: 95 % interval of the error rate, with what all classes say about it.
        diagnosis: The kind of the failures, and the remedy; None for a class without a pattern whose labels are not in
            doubt, and in reports of former versions.
        counterfactual: Whether images generated from the hardest caption fail more often than those from the reference
            caption; None without a generator.
    """

    name: str
    examples: int
    accuracy: float | None = None
    cv_score: float | None = None
    cv_score_stderr: float | None = None
    p_value: float | None = None
    pattern: bool = False
    c: float | None = None
    skipped: str | None = None
    flagged: int | None = None
    flag_agreement: float | None = None
    strength: str | None = None
    effect: float | None = None
    effect_interval: tuple[float, float] | None = None
    flagged_error_rate: float | None = None
    unflagged_error_rate: float | None = None
    failures_flagged: float | None = None
    gain: float | None = None
    gain_share: float | None = None
    doubted: int | None = None
    doubted_ids: tuple[int, ...] = ()
    explained: float | None = None
    aler: float | None = None
    base_error_rate: float | None = None
    reference_caption: str | None = None
    hardest_captions: tuple[str, ...] = ()
    hardest_caption_scores: tuple[float, ...] = ()
    easiest_captions: tuple[str, ...] = ()
    easiest_caption_scores: tuple[float, ...] = ()
    caption_p_value: float | None = None
    hardest_caption_margins: tuple[float, ...] = ()
    easiest_caption_margins: tuple[float, ...] = ()
    hardest_caption_attributes: tuple[AttributeEvidence, ...] = ()
    easiest_caption_attributes: tuple[AttributeEvidence, ...] = ()
    nearest: tuple[CurvePoint, ...] = ()
    nearest_hardest_ids: tuple[int, ...] = ()
    nearest_easiest_ids: tuple[int, ...] = ()
    cv_null_mean: float | None = None
    cv_null_interval: tuple[float, float] | None = None
    cv_null_permutations: int = 0
    agreement: float | None = None
    hardest_ids: tuple[int, ...] = ()
    easiest_ids: tuple[int, ...] = ()
    hardest_values: tuple[float, ...] = ()
    easiest_values: tuple[float, ...] = ()
    least_confident_ids: tuple[int, ...] = ()
    least_confident_values: tuple[float, ...] = ()
    enrichment: tuple[ValueReport, ...] = ()
    truth: dict[str, str] | None = None
    looked_at: int | None = None
    failures_looked_at: int | None = None
    slices: tuple[SliceReport, ...] = ()
    mistaken_for: tuple[MistakenReport, ...] = ()
    flagged_mistaken_for: FlaggedConfusionReport | None = None
    confusion_split: tuple[ConfusionSplitReport, ...] = ()
    error_rate_shrunk: float | None = None
    error_rate_interval: tuple[float, float] | None = None
    diagnosis: DiagnosisReport | None = None
    counterfactual: CounterfactualReport | None = None

    @property
    def error_rank(self) -> tuple[bool, float, int]:
        """Sort key of the highest error rates first: shrunken rates, then support; ungraded classes come last.

        Reports of before have no shrunken rates; the raw ones take their place.
        """
        rate = self.error_rate_shrunk if self.error_rate_shrunk is not None else 1 - (self.accuracy or 0.0)
        return self.accuracy is None, -rate, -self.examples

    @property
    def rank(self) -> tuple[bool, float, bool, float, int]:
        """Sort key of the classes whose failures it pays most to fix: patterns by their gain, the others by error rate.

        >>> few = ClassReport("cat", 9, accuracy=0.9, pattern=True, gain=0.5)
        >>> many = ClassReport("owl", 90, accuracy=0.8, pattern=True, gain=7.0)
        >>> classes = few, ClassReport("dog", 9, accuracy=0.5), many
        >>> [entry.name for entry in sorted(classes, key=lambda entry: entry.rank)]
        ['owl', 'cat', 'dog']
        """
        return not self.pattern, -(self.gain or 0.0), *self.error_rank


@dataclass(frozen=True)
class FailureReport(Readable):
    """The findings of one analysis; ``report.json`` is its JSON form.

    Attributes:
        examples: Number of graded examples.
        accuracy: Share of the graded rows that are correct, in [0, 1].
        classes: Findings about each class, K records.
        groups: Failure trees.
        features: Features that appear in rules and are shown in pictures.
        modes: The diary of failure modes.
        summary: Aggregates by the names in which they are logged, without the ``failures/`` prefix.
        interventions: Records of the interventions.
        timings: Seconds that each step of the analysis took.
        epoch: Epoch of the training.
        global_step: Step of the training.
        stage: "fit", "validate" or "test".
        dataloader: Index of the dataloader.
        coverage: Share of the dataloader's examples that were graded, in [0, 1].
        sampled: Share of the graded rows that directions and trees analysed, in [0, 1].
        reference: Embeddings that directions were standardised with, as text.
        encoder: Name of the encoder of directions.
        robust_encoder: Name of the encoder of trees.
        encoder_fingerprint: Fingerprint of the encoder of directions.
        robust_encoder_fingerprint: Fingerprint of the encoder of trees.
        notes: Remarks about the analysis, such as what the time budget left out.
        schema: Version of the format.
        run_id: Id of the run, the same in all reports of a training, also of one that was resumed; None in reports of
            former versions, and outside of a Trainer.
        methods: Sections of additional methods, by name; "columns" in a section are columns of the table of classes.
        copies: Number of analysed examples that are exact copies of another one, with which they share a source.
        explained: Share of what decision values know of the failures that doubtful labels explain, over all classes;
            above 0.7 most failures look like doubtful labels, if a third of them is in doubt. None where it is
            undefined, or without a probe.
        doubtful: Whether most failures look like doubtful labels. Interventions then act only on training examples
            whose labels a probe supports.
        slices: Error rates by values of known attributes over all classes, those that fail most beyond chance first.
        confusions: The most frequent pairs of a label and another prediction; empty where there is only one wrong
            answer.
        shared: The pattern that all classes share; None with fewer than two classes or without directions.
        pins: Checks of pinned slices.
        findings: What is wrong with the model, at most three, what it pays most to fix first; empty where nothing was
            found, and in reports of former versions.
    """

    examples: int
    accuracy: float | None
    classes: tuple[ClassReport, ...]
    groups: tuple[GroupReport, ...] = ()
    features: tuple[FeatureReport, ...] = ()
    modes: tuple[ModeReport, ...] = ()
    summary: dict[str, float] = field(default_factory=dict)
    interventions: tuple[dict[str, Any], ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    epoch: int | None = None
    global_step: int | None = None
    stage: str | None = None
    dataloader: int = 0
    coverage: float = 1.0
    sampled: float = 1.0
    reference: str | None = None
    encoder: str | None = None
    robust_encoder: str | None = None
    encoder_fingerprint: str | None = None
    robust_encoder_fingerprint: str | None = None
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA
    run_id: str | None = None
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    copies: int = 0
    explained: float | None = None
    doubtful: bool = False
    slices: tuple[SliceReport, ...] = ()
    confusions: tuple[ConfusionReport, ...] = ()
    shared: SharedPattern | None = None
    pins: tuple[PinCheck, ...] = ()
    findings: tuple[Finding, ...] = ()

    def method_columns(self) -> dict[str, tuple[Any, ...]]:
        """Return the columns that additional methods add to the table of classes: K values by title.

        >>> classes = (ClassReport("cat", 2), ClassReport("dog", 2))
        >>> FailureReport(4, None, classes, methods={"age": {"columns": {"mean age": [3, None]}}}).method_columns()
        {'mean age': (3, None)}
        """
        columns: dict[str, tuple[Any, ...]] = {}
        for section in self.methods.values():
            section_columns = section.get("columns")
            if not isinstance(section_columns, dict):
                continue
            for title, values in section_columns.items():
                if isinstance(values, list | tuple) and len(values) == len(self.classes):
                    columns[str(title)] = tuple(values)
        return columns

    def to_json(self) -> str:
        """Return the text of ``report.json``: a line for each key, and in lists of records for each record."""
        return json_lines(self.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FailureReport:
        """Read a report from the output of :meth:`to_dict`; keys of later versions are ignored.

        Raises:
            DataError: The data are not a report, or have a later schema, in which a key means something else.

        >>> report = FailureReport(examples=2, accuracy=0.5, classes=(ClassReport("cat", 2, accuracy=0.5),))
        >>> FailureReport.from_dict(report.to_dict() | {"of a later version": 1}) == report
        True
        """
        report = from_jsonable(cls, data)
        if report.schema > SCHEMA:
            raise DataError(
                f"the report has schema {report.schema}, of a later version; this version reads schema {SCHEMA}"
            )
        return report

    @classmethod
    def from_json(cls, text: str | bytes) -> FailureReport:
        """Read a report from the output of :meth:`to_json`.

        Raises:
            DataError: The text is not JSON, or not a report that :meth:`from_dict` reads.
        """
        return cls.from_dict(read_json(text))


def analysis_name(report: FailureReport, step: int) -> str:
    """Return the name of an analysis's folder, inside the folder of its run.

    >>> analysis_name(FailureReport(0, None, (), epoch=3), 250)
    'epoch=0003-step=000250'
    >>> analysis_name(FailureReport(0, None, (), epoch=3, stage="test"), 250)
    'test-epoch=0003-step=000250'
    """
    name = f"epoch={report.epoch or 0:04d}-step={step:06d}"
    return f"test-{name}" if report.stage == "test" else name
