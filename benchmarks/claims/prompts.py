"""Hard prompts beat neutral prompts, easy ones do not (Fig. 9).

Of every class with a pattern the same number of images is generated and joins the training set: from its hardest
caption, from the reference caption, or from its easiest one. None is dropped. ``plain`` adds nothing. ``hard,
published`` takes directions and caption scores of the paper's procedure.
"""

from __future__ import annotations

from typing import Any

import torch

from claims.common import MORE_EPOCHS, World, all_captions, columns, embed, fit
from claims.comparing import Comparison
from claims.generating import judge, make, seeds_of
from lightning_failures.captions import score_captions
from lightning_failures.captions.grammar import CaptionVocabulary

__all__ = ["COMPARISONS", "run"]

PER_CLASS = 12
LOSS = 0.01
PUBLISHED = "hard, published"
NAMES = ("hard", "reference", "easy", PUBLISHED)

COMPARISONS = tuple(
    comparison
    for way in ("retrained", "continued")
    for comparison in (
        Comparison(f"minority accuracy, hard > reference prompts, {way}", (way, "minority"), "hard", "reference"),
        Comparison(
            f"minority accuracy, reference prompts not below easy by {LOSS}, {way}",
            (way, "minority"),
            "reference",
            "easy",
            margin=LOSS,
        ),
        Comparison(
            f"minority accuracy, hard prompts not below published by {LOSS}, {way}",
            (way, "minority"),
            "hard",
            PUBLISHED,
            margin=LOSS,
        ),
        Comparison(f"minority accuracy, hard prompts > nothing added, {way}", (way, "minority"), "hard", "plain"),
    )
)


def run(world: World) -> dict[str, Any]:
    """Generate for every arm, train both ways."""
    train, base, directions = world.data("train"), world.base(), world.directions()
    prompts: dict[str, dict[int, str]] = {name: {} for name in NAMES}
    for k in world.patterns():
        captions = all_captions()[k]
        scores = score_captions(directions, k, captions.embeddings, captions.reference)
        prompts["hard"][k] = captions.texts[int(scores.argmin())]
        prompts["reference"][k] = str(CaptionVocabulary.load("digits").grammar(train.classes[k]).reference)
        prompts["easy"][k] = captions.texts[int(scores.argmax())]
        by_paper = score_captions(world.published(), k, captions.embeddings, captions.reference, method="published")
        prompts[PUBLISHED][k] = captions.texts[int(by_paper.argmin())]
    labels = torch.tensor([k for k in world.patterns() for _ in range(PER_CLASS)], dtype=torch.int64)
    seeds = [s for k in world.patterns() for s in seeds_of(world.seed, k, PER_CLASS)]
    images = {arm: make([of[k] for k in labels.tolist()], seeds) for arm, of in prompts.items()}
    tables: dict[str, Any] = {
        "prompts": {arm: {train.classes[k]: text for k, text in of.items()} for arm, of in prompts.items()},
        "images": {
            arm: {
                "images": len(made),
                "of the class, by the judge": float((judge().logits(made).argmax(dim=1) == labels).float().mean()),
                "flagged": float(directions.flag(embed(made), labels).float().mean()),
                "plain model right": float((base.logits(made).argmax(dim=1) == labels).float().mean()),
            }
            for arm, made in images.items()
        },
    }
    for way, start, epochs in (("retrained", None, base.epochs), ("continued", base, MORE_EPOCHS)):
        arms = {
            arm: fit(
                torch.cat([train.images, made]),
                torch.cat([train.labels, labels]),
                seed=world.seed,
                epochs=epochs,
                start=start,
            )
            for arm, made in images.items()
        }
        arms["plain"] = base if start is None else world.continued()
        tables[way] = columns({arm: world.judge(model) for arm, model in arms.items()})
    return tables
