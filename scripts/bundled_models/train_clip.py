"""Train the digits-CLIP: ``python -m scripts.bundled_models.train_clip --output DIR``.

A convolutional tower and a small text transformer, both of open_clip, learn from rendered training digits, with every
attribute uniform, and from captions that name some of the attributes. An image and a caption are a positive pair
whenever the caption is *true* of the image, not only if it was written for it. (Radford et al., Learning Transferable
Visual Models From Natural Language Supervision, ICML 2021, figure 3, use the diagonal alone; with such a small
vocabulary many of its negatives would be true.)

Two additional terms, both departures, let such a small model learn shapes within minutes and keep the space as simple
as the captions: *alignment* pulls an image to the caption that names all of its attributes, and a *probe*, a linear
layer that is discarded at the end, predicts every attribute from the unit vector of an image.

The written folder loads as ``open_clip.create_model_and_transforms("local-dir:DIR")``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from lightning_failures.bundled.digits.captions import caption
from lightning_failures.bundled.digits.render import (
    BACKGROUNDS,
    CLASSES,
    POSTURES,
    STROKES,
    TINTS,
    DigitSplit,
    draw_images,
)
from lightning_failures.bundled.models import CLIP_FOLDER
from scripts.bundled_models.storage import round_figures, write_json, write_weights

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "patch_size": None},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
PREPROCESS_CFG: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.4, 0.4, 0.4],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

WORDS: dict[str, tuple[str, ...]] = {
    "noun": CLASSES,
    "tint": tuple(TINTS),
    "background": tuple(BACKGROUNDS),
    "stroke": STROKES,
    "posture": POSTURES,
}
"""Attribute -> its values, in the column order of what :func:`draw_described` and :func:`draw_captions` return."""
MENTION = (0.9, 0.5, 0.3, 0.3, 0.3)
"""Probability that a caption names each attribute. An unnamed noun becomes "digit"."""
PREFIXES = ("a photo of", "a photo of", "a photo of", "a picture of", "")
UNNAMED = -1
CAPTIONS = 2
"""Captions written for each image of a batch."""
MAX_SCALE = 30
"""Upper bound on the scale of the similarities; a low bound enforces wide angles between different captions."""
PROBE_SCALE = 20
"""Factor on the logits of the probe, whose inputs are unit vectors."""


def draw_described(split: DigitSplit, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Render digits of one split: images (N, 3, 32, 32) uint8 and their attributes (N, 5) int64."""
    images, digits, looks = draw_images(split, size, rng)
    return images, torch.stack([digits, looks.tint, looks.background, looks.stroke, looks.posture], dim=1)


def draw_captions(truth: Tensor, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Write one true caption for each image, naming some of its attributes.

    Args:
        truth: (N, 5) int64, the attributes of N images.
        rng: Random generator.

    Returns:
        N captions, and the attributes that they name, (N, 5) int64 with ``UNNAMED`` for the others.
    """
    named = torch.from_numpy(rng.random(truth.shape) < np.array(MENTION))
    claims = torch.where(named, truth, UNNAMED)
    return [write_caption(claim, PREFIXES[rng.integers(len(PREFIXES))]) for claim in claims.tolist()], claims


def write_caption(claim: Sequence[int], prefix: str = PREFIXES[0]) -> str:
    """Write the caption that names the attributes of a claim (5 indices, or ``UNNAMED``).

    >>> write_caption([UNNAMED, 0, 1, UNNAMED, UNNAMED])
    'a photo of a red digit on a white background'
    """
    words = {key: values[i] for (key, values), i in zip(WORDS.items(), claim, strict=True) if i != UNNAMED}
    return caption(words.pop("noun", "digit"), **words, prefix=prefix)


def is_true_of(claims: Tensor, truth: Tensor) -> Tensor:
    """Return whether each caption is true of each image: claims (M, 5), truth (N, 5) -> (N, M) bool."""
    return ((claims == UNNAMED) | (claims == truth[:, None])).all(dim=2)


def multi_positive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Return the cross entropy against the uniform distribution over the positives, mean of both directions.

    Args:
        logits: (N, M) float, scaled similarities of images and captions.
        positive: (N, M) bool, at least one true in every row and column.

    Returns:
        A scalar; the loss of CLIP if ``positive`` is the identity.
    """
    target = positive.to(logits.dtype)
    rows = -(F.log_softmax(logits, dim=1) * target).sum(dim=1) / target.sum(dim=1)
    columns = -(F.log_softmax(logits, dim=0) * target).sum(dim=0) / target.sum(dim=0)
    return (rows.mean() + columns.mean()) / 2


def preprocess(images: Tensor) -> Tensor:
    """Apply the equivalent of open_clip's transform to a batch (N, 3, h, w) uint8."""
    size = MODEL_CFG["vision_cfg"]["image_size"]
    resized = TF.resize(images.float() / 255, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    normalised: Tensor = TF.normalize(resized, PREPROCESS_CFG["mean"], PREPROCESS_CFG["std"])
    return normalised


def train(*, steps: int, batch_size: int, lr: float = 2e-3, seed: int = 0) -> open_clip.CLIP:
    """Train from scratch and print the progress. The global random state is unchanged."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**MODEL_CFG)
        probe = nn.Linear(MODEL_CFG["embed_dim"], sum(map(len, WORDS.values())), bias=False)
    model.visual.to(memory_format=torch.channels_last)
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CFG["text_cfg"]["context_length"])
    rng = np.random.default_rng(seed)
    parameters = [*model.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    )
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        images, truth = draw_described("train", batch_size, rng)
        loss = _objective(model, probe, tokenizer, images, truth, rng)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_SCALE))
        if step % 20 == 19:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.monotonic() - start:.0f} s", flush=True)
    _forget_unused_tokens(model, tokenizer)
    model.eval()
    return model


def _objective(
    model: open_clip.CLIP, probe: nn.Linear, tokenizer: Any, images: Tensor, truth: Tensor, rng: np.random.Generator
) -> Tensor:
    """Return the loss: contrast, alignment and probe, as described at the top of this file."""
    texts, claims = draw_captions(truth.repeat(CAPTIONS, 1), rng)
    with torch.autocast("cpu", torch.bfloat16):
        image_features = model.encode_image(preprocess(images).contiguous(memory_format=torch.channels_last))
    image_features = F.normalize(image_features.float(), dim=1)
    text_features = model.encode_text(tokenizer(texts), normalize=True)
    complete = model.encode_text(tokenizer([write_caption(claim) for claim in truth.tolist()]), normalize=True)

    similarities = model.logit_scale.exp() * image_features @ text_features.T
    contrast = multi_positive_loss(similarities, is_true_of(claims, truth))
    alignment = (image_features - complete).square().sum(dim=1).mean()
    answers = (PROBE_SCALE * probe(image_features)).split([len(values) for values in WORDS.values()], dim=1)
    probed = torch.stack([F.cross_entropy(answer, truth[:, i]) for i, answer in enumerate(answers)]).sum()
    total: Tensor = contrast + alignment + probed
    return total


def _forget_unused_tokens(model: open_clip.CLIP, tokenizer: Any) -> None:
    """Zero the rows of the token table that no caption uses: they were not trained, and zeros compress."""
    texts = [write_caption([UNNAMED] * len(WORDS), prefix) for prefix in PREFIXES]
    texts += [" ".join(["an", *values]) for values in WORDS.values()]
    texts += [write_caption([UNNAMED, UNNAMED, 0, UNNAMED, UNNAMED])]
    used = torch.unique(torch.cat([tokenizer(texts).flatten(), torch.tensor([0])]))
    with torch.no_grad():
        table = model.token_embedding.weight
        kept = table[used].clone()
        table.zero_()
        table[used] = kept


@torch.inference_mode()
def measure(folder: Path, *, split: DigitSplit = "test", size: int = 4000, seed: int = 0) -> dict[str, float]:
    """Measure the zero-shot accuracy of a stored folder on digits that were not used for training.

    For each attribute the candidates are one caption for each value, and the nearest is the prediction;
    ``joint_accuracy`` is that of the hundred captions of tint and digit.
    """
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    images, truth = draw_described(split, size, np.random.default_rng(seed))
    features = torch.cat([model.encode_image(preprocess(part), normalize=True) for part in torch.split(images, 500)])

    def predict(claims: Tensor) -> Tensor:
        texts = tokenizer([write_caption(claim) for claim in claims.tolist()])
        nearest = (features @ model.encode_text(texts, normalize=True).T).argmax(dim=1)
        return claims[nearest]

    figures = {}
    for column, (name, values) in enumerate(WORDS.items()):
        claims = torch.full((len(values), len(WORDS)), UNNAMED)
        claims[:, column] = torch.arange(len(values))
        right = predict(claims)[:, column] == truth[:, column]
        figures[f"{'digit' if name == 'noun' else name}_accuracy"] = right.float().mean().item()
    pairs = torch.full((len(CLASSES) * len(TINTS), len(WORDS)), UNNAMED)
    pairs[:, :2] = torch.cartesian_prod(torch.arange(len(CLASSES)), torch.arange(len(TINTS)))
    figures["joint_accuracy"] = (predict(pairs)[:, :2] == truth[:, :2]).all(dim=1).float().mean().item()
    return round_figures(figures)


def save_folder(model: nn.Module, folder: Path) -> None:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors`` (float16)."""
    write_weights(folder / "open_clip_model.safetensors", model.state_dict())
    write_json(folder / "open_clip_config.json", {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG})


def main() -> None:
    """Train, store, and measure the stored model."""
    parser = argparse.ArgumentParser(description="Train the digits-CLIP that the package carries.")
    parser.add_argument("--output", type=Path, default=CLIP_FOLDER, help="folder to write (default: the packaged one)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (default: torch's own choice)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    model = train(steps=options.steps, batch_size=options.batch_size, seed=options.seed)
    save_folder(model, options.output)
    quality: dict[str, Any] = {"steps": options.steps, "batch_size": options.batch_size, "seed": options.seed}
    quality |= {split: measure(options.output, split=split) for split in ("validation", "test")}
    write_json(options.output / "quality.json", quality)
    print(quality)


if __name__ == "__main__":
    main()
