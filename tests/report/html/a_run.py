# ruff: noqa: E501 - records read best a row each
"""A run with everything a report can show, made of records alone; every number is drawn, none is rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lightning_failures.core.text import tag_part
from lightning_failures.data.evidence import AttributeEvidence
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.findings import Finding, FindingPart, Mistake
from lightning_failures.data.records import ClassHold, SharedPattern, ValueReport
from lightning_failures.data.report import (
    ClassReport,
    ConfusionReport,
    ConfusionSplitReport,
    CurvePoint,
    FailureReport,
    FeatureReport,
    FlaggedConfusionReport,
    MistakenReport,
    ModeReport,
    SliceReport,
)
from lightning_failures.data.tree_report import GroupReport, LeafReport, NodeReport
from lightning_failures.report.gallery import Gallery, Picture, Row, Thumbnails, Tile
from lightning_failures.report.run_folder import Run

NAMES = ("cat", "dog", "fire truck", "owl", "quilt")
STATUSES = ("new", "growing", "persisting", "shrinking", "missing", "cured")
WORDS = ("red", "small", "at night", "from above", "in snow")


def a_run(
    names: tuple[str, ...] = NAMES,
    *,
    folder: Path = Path("logs/pets/version_3/failures"),
    size: int = 40,
    analyses: int = 4,
    pictured: int = 5,
    thumbnails: int = 120,
    text: str | None = None,
) -> Run:
    """Make a run.

    Args:
        names: Of the classes.
        folder: Where it is said to lie.
        size: Examples of a class.
        analyses: In the history.
        pictured: How many classes, trees and features have pictures.
        thumbnails: How many examples can be browsed.
        text: Stands for every text that users write, if given.
    """
    rng = np.random.default_rng(0)
    table = a_table(names, size, rng)
    history = tuple(a_report(names, table, epoch, rng, text) for epoch in range(analyses))
    report = history[-1]
    return Run(folder, report, history, table, a_gallery(report, table, pictured, thumbnails, rng, text))


def a_table(names, size, rng) -> ExampleTable:
    n = len(names) * size
    labels = np.repeat(np.arange(len(names)), size)
    failed = rng.random(n) < np.repeat(rng.uniform(0.05, 0.6, len(names)), size)
    predictions = np.where(failed, (labels + rng.integers(1, max(len(names), 2), n)) % len(names), labels)
    values = rng.normal(np.where(predictions != labels, -0.6, 0.7), 0.6).astype(np.float32)
    values[:: max(n // 7, 1)] = np.nan
    return ExampleTable(
        ids=torch.arange(n) * 3,
        labels=torch.from_numpy(labels),
        predictions=torch.from_numpy(predictions),
        confidence=torch.from_numpy(rng.random(n).astype(np.float32)),
        values=torch.from_numpy(values),
        label_leaf=torch.from_numpy(rng.integers(-1, 3, n)),
        prediction_leaf=torch.from_numpy(rng.integers(-1, 3, n)),
        class_names=tuple(names),
    )


def a_report(names, table, epoch, rng, text) -> FailureReport:
    classes = tuple(a_class(name, k, table, epoch, rng, text) for k, name in enumerate(names))
    groups = tuple(
        a_group(grouping, name, place, rng) for grouping in ("label", "prediction") for place, name in enumerate(names)
    )
    features = tuple(
        FeatureReport(
            17 + i, tuple(f"label/{name}" for name in names[:2]), (3, 9), text or f"a photo of a {WORDS[i]} thing",
            rng.random(), 2 + rng.random(), *((text or "red stroke", text or "spurious", text or "more red ones") if i == 0 else ()),
        )
        for i in range(3)
    )  # fmt: skip
    modes = tuple(
        ModeReport(
            f"{name}-{'AB'[place % 2]}", name, STATUSES[(place + epoch) % 6] if epoch else "new", place % 2, epoch + 1, missed=1,
            size=int(rng.integers(3, 60)), examples=40, gained=int(rng.integers(9)), lost=int(rng.integers(9)),
            cosine=rng.random(), shared=rng.random(), caption=text or f"a photo of a {WORDS[place % 5]} {name}",
        )
        for place, name in enumerate(names[:20])
    )  # fmt: skip
    verdict = {
        "outcome": "helped",
        "sentence": text
        or "Helped: of 40 examples held apart 0.725 are right with it, 0.600 without (0.041 to 0.209).",
    }
    acted = [{"class": name, "flagged": 3, "reason": None} for name in names[:2]]
    act = {
        "kind": "Upweight",
        "epoch": 2,
        "flagged": 6,
        "changes_training": True,
        "classes": acted,
        "verdict": verdict,
    }
    return FailureReport(
        examples=len(table),
        accuracy=float((~table.failed).float().mean()) - 0.01 * (3 - epoch),
        classes=classes,
        slices=a_slices(None, rng, text),
        confusions=tuple(ConfusionReport(text or name, text or "wolf", 3, rng.random()) for name in names[:20]),
        shared=a_shared_pattern(names, text),
        groups=groups,
        features=features,
        modes=modes,
        interventions=(act, act | {"verdict": "not measured", "kind": "Filtered"}),
        epoch=epoch,
        global_step=63 * (epoch + 1),
        stage="fit",
        sampled=0.8,
        encoder="ViT-B-32 (laion2b)",
        robust_encoder="resnet50 l2 eps 3",
        notes=(text or "The captions are of 40 words each.",),
        findings=a_verdict(names, table, text),
    )


def a_verdict(names, table, text) -> tuple[Finding, ...]:
    """Two findings: a value that two classes share, and a look of one class."""
    parts = tuple(
        FindingPart(text or name, text or "night", 20, 9 + k, 0.4512 + 0.1 * k, 0.0813, text or "wolf", 0.812)
        for k, name in enumerate(names[:2])
    )
    of_class = table.labels == 0
    wrong, right = (tuple(table.ids[of_class & outcome][:4].tolist()) for outcome in (table.failed, ~table.failed))
    first = Finding(
        "attribute",
        text or "light",
        text or "night",
        parts,
        False,
        40,
        19,
        0.3125,
        0.4731,
        (0.33, 0.62),
        0.0813,
        (0.05, 0.12),
        (0.24, 0.55),
        15.67,
        0.001,
        None,
        "moderate",
        (Mistake(text or names[0], text or "wolf", 7, 0.77),),
        "shortcut",
        0.823,
        text or "interventions=[RetrainHead()]",
        wrong,
        right,
    )
    look = Finding(
        "look",
        None,
        None,
        parts[:1],
        False,
        20,
        9,
        0.15,
        0.4512,
        (0.25, 0.66),
        0.0813,
        (0.05, 0.12),
        (0.16, 0.59),
        7.4,
        0.02,
        confidence="low",
    )
    return first, look


def a_shared_pattern(names, text) -> SharedPattern:
    shares = [
        ValueReport("light", text or value, 9, 4, 5, 3, 0.2, 0.5, 0.6 - 0.2 * i, (0.35 - 0.2 * i, 0.7), 0.3)
        for i, value in enumerate(("night", "day"))
    ]
    classes = [ClassHold(text or name, 0.8 - 0.01 * k, 0.001 + 0.01 * k, k < 3) for k, name in enumerate(names)]
    words = tuple(text or word for word in WORDS)
    return SharedPattern(
        examples=500, failures=120, p_value=0.001, pattern=True, cv_score=0.61, cv_score_stderr=0.02, strength="clear",
        effect=0.21, effect_interval=(0.13, 0.29), flagged=140, flagged_error_rate=0.41, unflagged_error_rate=0.2,
        failures_flagged=0.43, gain=27.5, classes=tuple(classes), too_few=2, hardest_captions=words,
        hardest_caption_scores=(-0.5, -0.4, -0.3, -0.2, -0.1), hardest_caption_margins=(2.5, 2.0, 1.5, 1.2, 1.1),
        easiest_captions=words[::-1], easiest_caption_scores=(0.5, 0.4, 0.3, 0.2, 0.1), caption_p_value=0.004,
        hardest_ids=(3, 9), values=tuple(shares),
    )  # fmt: skip


def a_class(name, k, table, epoch, rng, text) -> ClassReport:
    mine = (table.labels == k).nonzero().flatten()
    if k % 5 == 4:
        return ClassReport(
            name, len(mine), accuracy=1.0, skipped=text or "0 failures, fewer than 5", base_error_rate=0.0
        )
    order = mine[table.values[mine].nan_to_num(0).argsort()]
    unsure = mine[table.confidence[mine].argsort()][:8]
    pattern = k % 5 != 3
    shares = [
        ValueReport("light", text or value, 9, 4, 5, 3, 0.2 + 0.1 * i, 0.5, 0.6, (0.35, 0.8 + rng.random() / 10), 0.3)
        for i, value in enumerate(("night", "day", "dusk"))
    ]
    captions = tuple(text or f"a photo of a {word} {name}" for word in WORDS)
    wrong = float(table.failed[mine].float().mean()) + 0.02 * (3 - epoch) * (-1) ** k
    return ClassReport(
        name, len(mine),
        accuracy=1 - wrong,
        cv_score=0.55 + 0.4 * rng.random(), cv_score_stderr=0.05 * rng.random(),
        p_value=0.001 if pattern else 0.4, pattern=pattern, gain=20 * rng.random() if pattern else None, gain_share=rng.random() if pattern else None, c=0.1, flagged=int(rng.integers(3, 20)),
        aler=0.6 + 0.3 * rng.random(), base_error_rate=float(table.failed[mine].float().mean()),
        hardest_captions=captions, hardest_caption_scores=tuple(-rng.random(5)),
        easiest_captions=captions[::-1], easiest_caption_scores=tuple(rng.random(5)),
        hardest_caption_margins=tuple(-2 - rng.random(5)), easiest_caption_margins=tuple(2 + rng.random(5)),
        hardest_caption_attributes=(
            AttributeEvidence(text or WORDS[0], "tint", 4.25, 0.001, 0.81, 0.093),
            AttributeEvidence(WORDS[1], None, 2.75, 0.02, 0.625, 0.5), AttributeEvidence(WORDS[2]),
        ),
        caption_p_value=0.02, nearest=tuple(CurvePoint(n, rng.random() / 2, 0.5 + rng.random() / 2) for n in (5, 10, 20, 40)),
        cv_null_mean=0.5, cv_null_interval=(0.4 + rng.random() / 20, 0.6), cv_null_permutations=200,
        agreement=rng.random(), hardest_ids=tuple(table.ids[order[:8]].tolist()),
        easiest_ids=tuple(table.ids[order[-8:].flip(0)].tolist()), hardest_values=tuple(table.values[order[:8]].tolist()),
        easiest_values=tuple(table.values[order[-8:].flip(0)].tolist()), least_confident_ids=tuple(table.ids[unsure].tolist()),
        least_confident_values=tuple(table.confidence[unsure].tolist()), enrichment=tuple(shares),
        error_rate_shrunk=0.1 + 0.7 * wrong, error_rate_interval=(0.6 * wrong, 0.2 + 0.7 * wrong),
        slices=a_slices(name, rng, text),
        mistaken_for=tuple(MistakenReport(text or other, 3, rng.random()) for other in ("wolf", "fox")),
        flagged_mistaken_for=FlaggedConfusionReport(text or "wolf", 3, rng.random(), rng.random(), rng.random()) if k % 2 else None,
        confusion_split=tuple(ConfusionSplitReport(text or other, 12, rng.random(), rng.random(), (0.1, 0.9), rng.random(), other == "fox") for other in ("wolf", "fox")) if k % 2 else (),
    )  # fmt: skip


def a_slices(class_name, rng, text) -> tuple[SliceReport, ...]:
    rates = (0.8 * rng.random(3)).tolist()
    return tuple(
        SliceReport("light", text or value, text or class_name if class_name else None, 9, 4, rate, (rate / 2, rate + 0.1), 0.3, rate - 0.3, (rate - 0.5, rate), rng.random(), place == 0)
        for place, (value, rate) in enumerate(zip(("night", "day", "dusk"), rates, strict=True))
    )  # fmt: skip


def a_group(grouping, name, place, rng) -> GroupReport:
    if place % 5 == 4:
        return GroupReport(grouping, name, 12, skipped="12 examples; a split needs at least 40")
    if place % 5 == 3:
        return GroupReport(grouping, name, 40, 0.2, 0.3, 0.21, 0.01, 0.05)
    rates = sorted((0.1 + 0.8 * rng.random(3)).tolist())
    rules = (
        "feature 17 <= 0.363",
        "feature 17 > 0.363 and feature 18 <= 1.5",
        "feature 17 > 0.363 and feature 18 > 1.5",
    )
    leaves = tuple(
        LeafReport(
            rule,
            size,
            rate,
            0.3,
            0.3 * rate,
            rate > 0.5,
            (max(rate - 0.12, 0), min(rate + 0.1, 1)),
            rate - 0.02,
            0.28,
            rate > 0.52,
        )
        for rule, size, rate in zip(rules, (12, 8, 20), rates, strict=True)
    )

    def node(size, rate, **more):
        held_out = {"heldout_error_rate": rate - 0.02, "heldout_error_coverage": rate / 2 - 0.02}
        interval = (max(rate - 0.15, 0), min(rate + 0.13, 1))
        return NodeReport(size, round(size * rate), rate, rate / 2, interval, **held_out, **more)

    nodes = (
        node(40, 0.37, feature=17, threshold=0.36312),
        node(12, rates[0], parent=0, above=False, leaf=0),
        node(28, 0.52, parent=0, above=True, feature=18, threshold=1.5 + rng.random()),
        node(8, rates[1], parent=2, above=False, leaf=1),
        node(20, rates[2], parent=2, above=True, leaf=2),
    )
    gain = 0.1 + 0.4 * rng.random()
    return GroupReport(grouping, name, 40, 0.1 + 0.4 * rng.random(), 0.8, 0.7, gain, 0.04, True, None, leaves, nodes)


def a_gallery(report, table, pictured, thumbnails, rng, text) -> Gallery:
    def image(size=96):
        y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
        r, g, b, cx, cy = rng.random(5)
        disc = ((x - cx) ** 2 + (y - cy) ** 2 < 0.06).float()
        return torch.stack([255 * (0.2 + 0.6 * c * x + 0.2 * disc).clamp(0, 1) for c in (r, g, b)]).to(torch.uint8)

    def row(title, ids=(None,) * 6, words="x"):
        return Row(text or title, tuple(Tile(image(), text or words, i) for i in ids))

    findings = [
        Picture(f"findings/{i}", (row("wrong", found.failing_ids), row("right", found.right_ids)), text or "a finding")
        for i, found in enumerate(report.findings)
    ]
    classes = [
        Picture(
            f"classes/{tag_part(entry.name)}",
            (
                row("hardest", entry.hardest_ids),
                row("easiest", entry.easiest_ids),
                row("least confident", entry.least_confident_ids),
            ),
            text or f"{entry.name}: hardest and easiest images",
        )
        for entry in report.classes[:pictured]
    ]
    leaves = [
        Picture(
            f"leaves/{group.grouping}/{tag_part(group.class_name)}/{leaf}",
            (row("failures in the leaf", (3, 6, 9)), row("correct ones beside them", (12, 15))),
            text or "random examples of the leaf",
        )
        for group in report.groups[:pictured]
        for leaf in range(len(group.leaves))
    ]
    features = [
        Picture(
            f"features/{feature.feature}",
            (
                row("most activating", (3, 6, 9)),
                row("where it is active", (3, 6, 9), ""),
                row("attacks", (None,) * 3, ""),
            ),
            text or "images that activate it most",
        )
        for feature in report.features[:pictured]
    ]
    ids = table.ids[:: max(len(table) // thumbnails, 1)][:thumbnails]
    small = torch.stack([image(32) for _ in ids])
    places = torch.rand(len(ids), 2, generator=torch.Generator().manual_seed(0))
    places[:3] = float("nan")  # not embedded
    shown = Thumbnails(ids, small, places=places)
    return Gallery((*findings, *classes, *leaves, *features), shown, report.epoch, report.global_step)
