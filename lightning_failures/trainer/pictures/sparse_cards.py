"""Cards of the features behind errors of a sparse layer: images of two classes, heat maps, attack, caption, check.

Heat maps and attacks go through the live model itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.counterfactuals import PASTED, not_measured
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.serialization import to_jsonable
from lightning_failures.core.text import clean, number
from lightning_failures.data.grades import Grades
from lightning_failures.encoders.module import ModuleEncoder
from lightning_failures.report.gallery import Picture, Row, make_row
from lightning_failures.report.images import SIZE, heat_map, thumbnail
from lightning_failures.report.sentences import counterfactual_sentence
from lightning_failures.report.sparse import SECTION, ActiveEntry, CardEntry, SparseReport, sparse_report
from lightning_failures.trainer.pictures.counterfactuals import FeaturePaster, FeatureRegions, reason_of
from lightning_failures.trainer.pictures.feature_views import AttackResult, FeatureViews, attack_features
from lightning_failures.trainer.pictures.live_features import LiveFeatures
from lightning_failures.trainer.pictures.sources import PictureInputs, distinctive_caption, of_one_size

CARDS = 6
"""Number of features, those most often behind errors, that have a card."""

IMAGES = 4
"""Number of images in a row."""

ATTACK_STEPS = (50, 25)
"""Numbers of steps that an attack may have, all of the same total length."""

NOT_ROBUST = "the model was not trained to be robust, so an attack may show what people cannot see"

MIN_SECONDS = 3.0
"""Time for all heat maps and attacks, however short an epoch is."""

_MEMBERS = 2000
_SALT = 0x5CA4D


@dataclass(frozen=True)
class _Drawn:
    """The images of a card.

    Attributes:
        entry: What is reported of the feature.
        rows: The rows of images.
        attacked: (n, C, H, W) in [0, 1], the images that are attacked.
        regions: Images of the true class (n, C, H, W) and their heat maps (n, h, w), or None.
        attack: The images after the attack.
    """

    entry: CardEntry
    rows: tuple[Row, ...]
    attacked: Tensor
    regions: tuple[Tensor, Tensor] | None
    attack: AttackResult = AttackResult()  # noqa: RUF009 - frozen


def card_members(result: AnalysisResult, grades: Grades, sampled: Any) -> Tensor:
    """Return the ids (U,) int64, ascending, of the examples that captions of cards are compared on.

    Args:
        result: The analysis.
        grades: N rows.
        sampled: (N,) bool, the rows that have embeddings.
    """
    found = sparse_report(result.report)
    ids = torch.empty(0, dtype=torch.int64)
    for entry in () if found is None else found.cards[:CARDS]:
        rows = np.flatnonzero(sampled & (grades.labels.numpy() == _class_index(grades, entry.prediction)))
        members = grades.ids.numpy()[rows]
        order = np.argsort(stable_hash(members, _SALT), kind="stable")[:_MEMBERS]
        of_top = torch.tensor([i for one in entry.top for i in one.ids], dtype=torch.int64)
        of_top = of_top[torch.isin(of_top, grades.ids[torch.from_numpy(sampled)])]
        ids = torch.cat([ids, torch.from_numpy(members[order]), of_top])
    return torch.from_numpy(np.unique(ids.numpy()))


def draw_cards(result: AnalysisResult, grades: Grades, inputs: PictureInputs) -> tuple[AnalysisResult, list[Picture]]:
    """Draw the cards of the features most often behind errors, and return the result with what was found.

    Without a sparse layer there are none. What cannot be done with the live model is left out, and said.

    Args:
        result: The analysis.
        grades: Its N rows.
        inputs: The inputs of the pictures.
    """
    found = sparse_report(result.report)
    if found is None or not found.cards:
        return result, []
    if inputs.deadline is not None:
        inputs = replace(inputs, deadline=Deadline.after(max(inputs.deadline.left, MIN_SECONDS)))
    live, problem = _live(inputs)
    drawn = [_draw(entry, found, live, problem, result, grades, inputs) for entry in found.cards[:CARDS]]
    usable = [one for one in drawn if one.entry.note is None]
    if live is not None and inputs.attacks and usable:
        wanted = [(one.entry.feature, one.attacked) for one in usable]
        attacks = attack_features(FeatureViews(live), wanted, inputs.deadline, levels=ATTACK_STEPS)
        made = {one.entry.feature: attack for one, attack in zip(usable, attacks, strict=True)}
        drawn = [replace(one, attack=made.get(one.entry.feature, AttackResult())) for one in drawn]
    if inputs.model is not None and any(one.regions is not None for one in drawn):
        drawn = _checked(drawn, FeaturePaster.open(inputs.model, inputs.images, grades, inputs.deadline), grades)
    warning = NOT_ROBUST if live is not None and not is_robust(inputs, live) else ""
    pictures = [_picture(one, found, warning) for one in drawn]
    entries = [to_jsonable(one) for one in (*(one.entry for one in drawn), *found.cards[CARDS:])]
    section = result.report.methods[SECTION] | {"cards": entries}
    return result.with_report(methods=result.report.methods | {SECTION: section}), pictures


def _live(inputs: PictureInputs) -> tuple[LiveFeatures | None, str]:
    """Return the features of the live model, or None and why there are none."""
    if inputs.live is None:
        return None, ""
    try:
        return inputs.live(), ""
    except Exception as error:
        return None, f"no heat maps: {str(error)[:200]}"


def _over(inputs: PictureInputs) -> bool:
    return inputs.deadline is not None and inputs.deadline.passed


def is_robust(inputs: PictureInputs, live: LiveFeatures) -> bool:
    """Return whether the live model holds the network that the user named as robust."""
    return isinstance(inputs.robust, ModuleEncoder) and inputs.robust.is_part_of(live.trainer.lightning_module)


def _draw(
    entry: CardEntry,
    found: SparseReport,
    live: LiveFeatures | None,
    problem: str,
    result: AnalysisResult,
    grades: Grades,
    inputs: PictureInputs,
) -> _Drawn:
    """Return the most active images of each class, with heat maps, and the correct images nearest to flipping."""
    name, rows, seen, maps = found.label(entry.feature), [], {}, {}
    note = problem or None
    for top in entry.top:
        if not top.ids:
            continue
        images = of_one_size(inputs.images(top.ids[:IMAGES]))
        seen[top.class_name] = images
        texts = [number(value, ".2f") for value in top.values[:IMAGES]]
        title = f"{name}: most active in {clean(top.class_name, 60)}"
        rows.append(make_row(title, images, texts, top.ids[:IMAGES]))
        if live is None or note is not None:
            continue
        note = _problem(live, images, entry.feature, top, inputs)
        if note is None:
            maps[top.class_name] = live.heat_maps(images, entry.feature)
            heat = [heat_map(m, thumbnail(image, SIZE)) for m, image in zip(maps[top.class_name], images, strict=True)]
            rows.append(make_row("where it is active", heat))
    if entry.nearest_ids:
        texts = [
            f"margin {number(margin, '.2f')}\n{'flips when raised' if flips else 'stays when raised'}"
            for margin, flips in zip(entry.nearest_margins[:IMAGES], entry.nearest_flip[:IMAGES], strict=True)
        ]
        title = f"{clean(entry.label, 60)}, correct, nearest to {clean(entry.prediction, 60)}"
        rows.append(make_row(title, inputs.images(entry.nearest_ids[:IMAGES]), texts, entry.nearest_ids[:IMAGES]))
    entry = replace(_with_caption(entry, result, grades, inputs), note=note)
    attacked = seen.get(entry.prediction, seen.get(entry.label, torch.empty(0)))
    regions = (seen[entry.label], maps[entry.label]) if entry.label in maps else None
    return _Drawn(entry, tuple(rows), attacked, regions)


def _problem(live: LiveFeatures, images: Tensor, feature: int, top: ActiveEntry, inputs: PictureInputs) -> str | None:
    """Return why a feature has no heat maps on some images, or None."""
    if _over(inputs):
        return "no heat maps and no feature attack: out of time"
    try:
        problem = live.problem(images, feature, top.values[: len(images)])
        if problem is None:
            live.heat_maps(images[:1], feature)
    except Exception as error:  # an operation without gradient, images of integers
        problem = f"{type(error).__name__}: {str(error)[:100]}"
    return None if problem is None else f"no heat maps and no feature attack: {problem}"


def _checked(drawn: list[_Drawn], opened: AbstractContextManager[FeaturePaster], grades: Grades) -> list[_Drawn]:
    """Add the counterfactual check of each feature; a model that cannot be asked is the reason of none."""
    try:
        with opened as paster:
            return [replace(one, entry=_pasted(one, paster, grades)) for one in drawn]
    except Exception as error:  # of the user's step
        check = not_measured(PASTED, reason_of(error))
        return [replace(one, entry=replace(one.entry, counterfactual=check)) for one in drawn]


def _pasted(drawn: _Drawn, paster: FeaturePaster, grades: Grades) -> CardEntry:
    """Add whether the region of the feature, pasted onto correct images of the true class, makes them wrong."""
    entry = drawn.entry
    if drawn.regions is None:
        return entry
    images, maps = drawn.regions
    top = next(one for one in entry.top if one.class_name == entry.label)
    rows = torch.nonzero(grades.correct & (grades.labels == _class_index(grades, entry.label)))[:, 0]
    ids = torch.tensor(top.ids[: len(images)], dtype=torch.int64)
    check = paster.check_rows(rows, False, partial(FeatureRegions.of, ids, images, maps, lambda seen: seen))
    return replace(entry, counterfactual=check)


def _with_caption(entry: CardEntry, result: AnalysisResult, grades: Grades, inputs: PictureInputs) -> CardEntry:
    """Add the caption that best separates the most active examples of the predicted class from its others."""
    name = entry.prediction
    of_top = torch.tensor([i for one in entry.top if one.class_name == name for i in one.ids])
    members = torch.unique(grades.ids[grades.labels == _class_index(grades, name)])
    return replace(entry, **distinctive_caption(inputs, result.directions, grades, name, members, of_top))


def _picture(drawn: _Drawn, found: SparseReport, warning: str) -> Picture:
    """Return the picture of a card, with the images after the attack if there are any."""
    entry, attack, rows = drawn.entry, drawn.attack, list(drawn.rows)
    name = found.label(entry.feature)
    if attack.images is not None and attack.strength is not None:
        before = next((one.values for one in entry.top if one.class_name == entry.prediction), ())
        texts = [f"{old:.2f} -> {new:.2f}" for old, new in zip(before, attack.strength.tolist(), strict=False)]
        title = "feature attack through the model itself" + (f": {warning}" if warning else "")
        rows.append(make_row(title, attack.images, texts if len(texts) == len(attack.images) else ()))
    looks = f'looks like "{clean(entry.caption, 120)}" (hypothesis)' if entry.caption else ""
    pasted = "" if entry.counterfactual is None else counterfactual_sentence(entry.counterfactual).removesuffix(".")
    said = next((one for one in found.names if one.feature == entry.feature), None)
    parts = [
        name + (f" ({clean(said.tag)})" if said is not None and said.tag else ""),
        looks,
        f"takes {clean(entry.label, 60)} for {clean(entry.prediction, 60)}",
        pasted,
        entry.note or attack.note,
    ]
    caption = clean("; ".join(filter(None, parts)), 1000)
    return Picture(f"sparse/{entry.feature}/card", tuple(rows), caption, (entry.note or attack.note) or None)


def _class_index(grades: Grades, name: str) -> int:
    return grades.class_names.index(name)
