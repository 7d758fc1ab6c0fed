"""Does the packaged diffusion model follow its prompts? Two independent classifiers decide.

    python benchmarks/generator.py --output benchmarks/results/generator.json

The first classifier is the digits-CLIP on which the model is conditioned: it takes the nearest of the hundred captions
of tint and digit. The second is independent of it: a small CNN, trained here on the ink of rendered digits without
their colour, and a comparison of the mean colour of the ink with the table of tints. The first row of the table is the
result of both on real digits that neither has seen.

    prompts     "a photo of a red three", all hundred
    looks       captions that name stroke, posture, tint, digit and background
    images      embeddings of real images of the validation digits
    directions  per digit, from its caption a fifth of the arc towards (easy) or away from (hard) the difference
                between the mean embeddings of two of its tints, as a failure direction is decoded; "tint" is the
                target tint
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_failures.bundled.digits.captions import caption
from lightning_failures.bundled.digits.render import (
    BACKGROUNDS,
    CLASSES,
    POSTURES,
    STROKES,
    TINTS,
    Looks,
    draw_images,
    render,
    source_digits,
    source_split,
)
from lightning_failures.directions.decoding import decoding_targets
from lightning_failures.encoders import OpenCLIPEncoder, load_encoder
from lightning_failures.generators.digits import DigitsGenerator

TINT_NAMES, BACKGROUND_NAMES = list(TINTS), list(BACKGROUNDS)


@dataclass(frozen=True)
class Wanted:
    """What B images should show, (B,) int64 each; background -1 if unspecified."""

    digit: Tensor
    tint: Tensor
    background: Tensor


# --- the independent judge -----------------------------------------------------------------------------------------


def read_ink(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Separate images (B, 3, 32, 32) uint8 into ink and colours.

    Returns:
        Ink (B, 1, 32, 32) float in [0, 1], the distance from the background over its maximum; mean colour (B, 3) of
        the pixels that are nearly all ink; colour (B, 3) of the background, the median of the border.
    """
    x = images.float() / 255
    border = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]], dim=2)
    background = border.median(dim=2).values
    distance = (x - background[:, :, None, None]).norm(dim=1, keepdim=True)
    ink = distance / distance.amax(dim=(2, 3), keepdim=True).clamp(min=0.05)
    full = (ink > 0.85).float()
    return ink, (x * full).sum(dim=(2, 3)) / full.sum(dim=(2, 3)).clamp(min=1), background


def nearest(colours: Tensor, table: dict[str, tuple[float, float, float]]) -> Tensor:
    """Return the index of the nearest entry of a table of colours: (B, 3) -> (B,)."""
    return torch.cdist(colours, torch.tensor(list(table.values()))).argmin(dim=1)


def train_classifier(*, steps: int, seed: int = 0) -> nn.Module:
    """Train a CNN that classifies digits by their ink alone: (B, 1, 32, 32) -> (B, 10) logits."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, len(CLASSES)))
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        images, digits, _ = draw_images("train", 128, rng)
        optimizer.zero_grad()
        F.cross_entropy(model(read_ink(images)[0]), digits).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


# --- both judges ---------------------------------------------------------------------------------------------------


def judge(images: Tensor, wanted: Wanted, classifier: nn.Module, encoder: OpenCLIPEncoder) -> dict[str, object]:
    """Return the shares of images that show what they should, by either classifier, and by both for each digit."""
    texts = [caption(noun, tint=tint) for noun in CLASSES for tint in TINT_NAMES]
    closest = (embed(images, encoder) @ encoder.encode_texts(texts).T).argmax(dim=1)
    ink, colour, background = read_ink(images)
    with torch.no_grad():
        seen = torch.cat([classifier(part).argmax(dim=1) for part in ink.split(500)])
    verdicts = {
        "clip": (closest // len(TINT_NAMES) == wanted.digit, closest % len(TINT_NAMES) == wanted.tint),
        "independent": (seen == wanted.digit, nearest(colour, TINTS) == wanted.tint),
    }
    figures: dict[str, object] = {"images": len(images)}
    for name, (digit, tint) in verdicts.items():
        both = digit & tint
        per_digit = {CLASSES[k]: share(both[wanted.digit == k]) for k in wanted.digit.unique().tolist()}
        figures[name] = {"digit": share(digit), "tint": share(tint), "both": share(both), "per_digit": per_digit}
    said = wanted.background >= 0
    if said.any():
        figures["background"] = share((nearest(background, BACKGROUNDS) == wanted.background)[said])
    return figures


def share(which: Tensor) -> float:
    """Return the mean of a bool tensor."""
    return round(which.float().mean().item(), 4)


def embed(images: Tensor, encoder: OpenCLIPEncoder) -> Tensor:
    """Return embeddings (B, D) of uint8 images."""
    return encoder.encode_images(images.float() / 255)


# --- what is asked for ---------------------------------------------------------------------------------------------


def ask_prompts(each: int) -> tuple[list[str], Wanted]:
    """Return all captions of tint and digit, ``each`` times."""
    pairs = torch.cartesian_prod(torch.arange(len(CLASSES)), torch.arange(len(TINTS))).repeat(each, 1)
    texts = [caption(CLASSES[digit], tint=TINT_NAMES[tint]) for digit, tint in pairs.tolist()]
    return texts, Wanted(pairs[:, 0], pairs[:, 1], torch.full((len(pairs),), -1))


def ask_looks(size: int, rng: np.random.Generator) -> tuple[list[str], Wanted]:
    """Return captions that name every attribute."""
    counts = (len(CLASSES), len(TINTS), len(BACKGROUNDS), len(STROKES), len(POSTURES))
    claims = torch.from_numpy(np.stack([rng.integers(count, size=size) for count in counts], axis=1))
    texts = [
        caption(
            CLASSES[digit],
            tint=TINT_NAMES[tint],
            background=BACKGROUND_NAMES[background],
            stroke=STROKES[stroke],
            posture=POSTURES[posture],
        )
        for digit, tint, background, stroke, posture in claims.tolist()
    ]
    return texts, Wanted(claims[:, 0], claims[:, 1], claims[:, 2])


def ask_directions(each: int, encoder: OpenCLIPEncoder, rng: np.random.Generator) -> dict[str, tuple[Tensor, Wanted]]:
    """Return targets of w and -w, ``each`` times, w the difference of the mean embeddings of two tints of a digit."""
    sources, labels = source_digits()
    embeddings: dict[str, list[Tensor]] = {"easy": [], "hard": []}
    tints: dict[str, list[int]] = {"easy": [], "hard": []}
    for digit, name in enumerate(CLASSES):
        pair = rng.choice(len(TINTS), size=2, replace=False)
        members = source_split("validation")
        members = members[labels[members] == digit]
        means = []
        for tint in pair:
            looks = Looks(
                torch.full((len(members),), int(tint)),
                *(torch.from_numpy(rng.integers(count, size=len(members))) for count in (3, 2, 2)),
            )
            means.append(embed(render(sources[members], looks, rng), encoder).mean(dim=0))
        targets = decoding_targets(encoder.encode_texts([caption(name)])[0], means[0] - means[1])
        for arm, target, tint in (("easy", targets.easy, pair[0]), ("hard", targets.hard, pair[1])):
            embeddings[arm] += [target] * each
            tints[arm] += [int(tint)] * each
    digits = torch.arange(len(CLASSES)).repeat_interleave(each)
    silent = torch.full_like(digits, -1)
    return {arm: (torch.stack(embeddings[arm]), Wanted(digits, torch.tensor(tints[arm]), silent)) for arm in embeddings}


def main() -> None:
    """Run, print the table, write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="the model (default: the packaged one)")
    parser.add_argument("--guidance", type=float, help="scale of guidance (default: the model's own)")
    parser.add_argument("--each", type=int, default=10, help="images for each of the hundred prompts")
    parser.add_argument("--judge-steps", type=int, default=1500, help="training steps of the independent classifier")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "generator.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_encoder("embedded:digits")
    assert isinstance(encoder, OpenCLIPEncoder)
    folder = {} if options.folder is None else {"folder": options.folder}
    generator = DigitsGenerator(**folder, guidance=options.guidance)
    classifier = train_classifier(steps=options.judge_steps)
    rng = np.random.default_rng(0)

    real, digits, looks = draw_images("test", 2000, rng)
    results = {"real": judge(real, Wanted(digits, looks.tint, looks.background), classifier, encoder)}
    start = time.process_time()
    embed(real[:500], encoder)
    clip_seconds = (time.process_time() - start) / 500

    texts, wanted = ask_prompts(options.each)
    generator.generate(texts[:1], [0])  # loads the model
    start = time.process_time()
    made = generator.generate(texts, range(len(texts)))
    seconds = (time.process_time() - start) / len(texts)
    results["prompts"] = judge(made, wanted, classifier, encoder)

    texts, wanted = ask_looks(50 * options.each, rng)
    results["looks"] = judge(generator.generate(texts, range(len(texts))), wanted, classifier, encoder)

    real, digits, looks = draw_images("validation", 50 * options.each, rng)
    made = generator.decode(embed(real, encoder), range(len(real)))
    results["images"] = judge(made, Wanted(digits, looks.tint, looks.background), classifier, encoder)

    for arm, (embeddings, wanted) in ask_directions(2 * options.each, encoder, rng).items():
        made = generator.decode(embeddings, range(len(embeddings)))
        results[f"directions, {arm}"] = judge(made, wanted, classifier, encoder)

    print(f"{'':<18} {'images':>6}  {'digits-CLIP':^19}  {'independent':^19}  worst digit  background")
    print(f"{'':<25}  {'digit  tint  both':>19}  {'digit  tint  both':>19}")
    for name, figures in results.items():
        cells = []
        for who in ("clip", "independent"):
            verdict = figures[who]
            cells.append("  ".join(f"{verdict[what]:5.3f}" for what in ("digit", "tint", "both")))
        worst = min(figures["independent"]["per_digit"].items(), key=lambda item: item[1])
        print(
            f"{name:<18} {figures['images']:>6}  {cells[0]}  {cells[1]}  {worst[0]:>5} {worst[1]:.2f}"
            f"  {figures.get('background', '')}"
        )
    print(f"\nan image takes {seconds:.3f} s of one core, {seconds / clip_seconds:.0f} times its embedding by the CLIP")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"guidance": generator.guidance, "seconds_per_image": seconds, "clip_seconds": clip_seconds, **results}
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
