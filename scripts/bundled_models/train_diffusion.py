"""Train the diffusion model of digits: ``python -m scripts.bundled_models.train_diffusion --output DIR``.

The network learns to denoise rendered training digits, with every attribute uniform, conditioned on a unit vector of
the digits-CLIP. The kind of that vector is drawn for each example, so that prompts, images and directions all produce
digits:

* the embedding of the image itself;
* the embedding of a true caption of it, which names some of its attributes;
* a point on the arc between the two;
* a *push*: from the caption that names only the digit, along the arc towards the difference of two images of that
  digit, this one minus another. Decoding a failure direction needs such vectors (Jain et al., Distilling Model Failures
  as Directions in Latent Space, ICLR 2023, section 5.2), which differ from all embeddings of images;
* no condition, for classifier-free guidance.

All but the last get a little noise. The packaged model was trained in two runs: one with the defaults, and a shorter
one from there on other renderings, with ``--start DIR --steps 1500 --lr 6e-4 --seed 1``. The written folder loads with
``from_pretrained`` of diffusers and contains the fingerprint of the CLIP.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.bundled.digits.render import BACKGROUNDS, CLASSES, TINTS
from lightning_failures.bundled.models import DIFFUSION_FOLDER
from lightning_failures.bundled.models.digit_diffusion import load, predict, to_latents
from lightning_failures.directions.decoding import slerp
from lightning_failures.encoders import load_encoder
from lightning_failures.encoders.base import TextEncoder
from scripts.bundled_models.storage import round_figures, write_json, write_weights
from scripts.bundled_models.train_clip import UNNAMED, WORDS, draw_captions, draw_described, write_caption

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 13,
    "out_channels": 12,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("UpBlock2D", "UpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 96, 96),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "resnet_time_scale_shift": "scale_shift",
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 128,
}
SHIFT = 3.0
"""Times and sampling steps are denser near the noise, where the shape is determined."""
SAMPLING: dict[str, Any] = {"steps": 12, "guidance": 3.0}
KINDS = {"image": 0.25, "caption": 0.3, "between": 0.15, "push": 0.2, "nothing": 0.1}
"""Probability of each kind of condition."""
PUSH = 0.4
"""Largest fraction of the arc of a push."""
NOISE = 0.3
"""Largest length of the noise on a unit vector."""
EMA = 0.998


@dataclass(frozen=True)
class Pool:
    """N rendered images with their CLIP embeddings.

    Attributes:
        images: (N, 3, 32, 32) uint8.
        digits: (N,) int64, ascending, so that the images of a digit are neighbours.
        seen: (N, D) float32, embeddings of the images.
        described: (N, K, D) float32, embeddings of K true captions of each image.
        named: (10, D) float32, embeddings of the captions that name only a digit.
        ink: (N, 256) float32 in [0, 1], the amount of ink, at 16 x 16.
    """

    images: Tensor
    digits: Tensor
    seen: Tensor
    described: Tensor
    named: Tensor
    ink: Tensor


def draw_pool(encoder: TextEncoder, size: int, rng: np.random.Generator, *, captions: int = 2) -> Pool:
    """Render training digits, caption them, and embed both in advance: the CLIP costs more than a training step."""
    images, truth = draw_described("train", size, rng)
    order = torch.argsort(truth[:, 0], stable=True)
    images, truth = images[order], truth[order]
    texts = draw_captions(truth.repeat_interleave(captions, dim=0), rng)[0]
    distinct = sorted(set(texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    described = encoder.encode_texts(distinct)[[row_of[text] for text in texts]].view(size, captions, -1)
    seen = torch.cat([encoder.encode_images(part.float() / 255) for part in torch.split(images, 512)])
    named = encoder.encode_texts([write_caption([digit, *[UNNAMED] * 4]) for digit in range(len(CLASSES))])
    return Pool(images, truth[:, 0].contiguous(), seen, described, named, _ink(images, truth))


def _ink(images: Tensor, truth: Tensor) -> Tensor:
    """Return the position of each pixel between the colours of background and tint: (N, 256)."""
    tint = torch.tensor(list(TINTS.values()))[truth[:, 1], :, None, None]
    background = torch.tensor(list(BACKGROUNDS.values()))[truth[:, 2], :, None, None]
    contrast = tint - background
    ink = ((images / 255 - background) * contrast).sum(dim=1) / contrast.square().sum(dim=1)
    return F.avg_pool2d(ink, 2).flatten(1)


def draw_conditions(pool: Pool, rows: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw the condition of each image, as described at the top of this file.

    Args:
        pool: The training images.
        rows: (B,) int64, the images to denoise.
        rng: Random generator.

    Returns:
        (B, D) float32: unit vectors, or zeros for no condition.
    """
    size, dim = len(rows), pool.seen.shape[1]

    def uniform() -> Tensor:
        return torch.from_numpy(rng.random(size)).float()

    digits = pool.digits[rows]
    seen = pool.seen[rows]
    described = pool.described[rows, torch.from_numpy(rng.integers(pool.described.shape[1], size=size))]
    # another image of the same digit
    first = torch.searchsorted(pool.digits, digits)
    count = torch.bincount(pool.digits, minlength=len(CLASSES))[digits]
    other = pool.seen[first + (uniform() * count).long().clamp(max=count - 1)]
    away = torch.where((seen == other).all(dim=1, keepdim=True), seen, seen - other)
    choices = torch.stack(
        [
            seen,
            described,
            slerp(seen, described, uniform()),
            slerp(pool.named[digits], away, PUSH * uniform()),
            torch.zeros_like(seen),
        ]
    )
    kind = torch.from_numpy(rng.choice(len(KINDS), size=size, p=list(KINDS.values())))
    noise = F.normalize(torch.from_numpy(rng.standard_normal((size, dim))).float(), dim=1)
    chosen = choices[kind, torch.arange(size)]
    noisy = F.normalize(chosen + NOISE * uniform()[:, None] * noise, dim=1)
    return torch.where((kind == len(KINDS) - 1)[:, None], chosen, noisy)


def fit_sketcher(pool: Pool, rng: np.random.Generator, *, ridge: float = 1e-3) -> Tensor:
    """Fit the ridge regression of the ink on the conditions, without intercept: (256, D) float32."""
    embeddings = draw_conditions(pool, torch.arange(len(pool.images)), rng).double()
    gram = embeddings.T @ embeddings / len(embeddings) + ridge * torch.eye(embeddings.shape[1])
    sketcher: Tensor = torch.linalg.solve(gram, embeddings.T @ pool.ink.double() / len(embeddings)).T
    return sketcher.float().contiguous()


def train(
    pool: Pool,
    *,
    steps: int,
    batch_size: int,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    start: Path | None = None,
    keep: Callable[[UNet2DConditionModel, Tensor], None] = lambda unet, sketcher: None,
) -> tuple[UNet2DConditionModel, Tensor]:
    """Train the network and print the progress. The global random state is unchanged.

    Args:
        pool: Training images.
        steps: Steps of AdamW, with a cosine schedule of the learning rate.
        batch_size: Images in a step.
        lr: Highest learning rate.
        seed: Seed of initial weights, order, conditions, times and noise.
        device: Device of the training, which runs in bfloat16 autocast.
        start: A folder with weights and sketcher to continue from; None: train from scratch.
        keep: Called every 500 steps with the current return values.

    Returns:
        The exponential moving average of the weights, and the sketcher.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**UNET).to(device)
    sketcher = fit_sketcher(pool, np.random.default_rng(seed)).to(device)
    if start is not None:
        former = load(start, device=device)
        unet.load_state_dict(former.unet.state_dict())
        sketcher = former.sketcher
    average = copy.deepcopy(unet).requires_grad_(False)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=1e-2)
    began = time.monotonic()
    order = torch.empty(0, dtype=torch.int64)
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        if len(order) < batch_size:
            order = torch.randperm(len(pool.images), generator=generator)
        rows, order = order[:batch_size], order[batch_size:]
        x = to_latents(pool.images[rows]).to(device)
        embeddings = draw_conditions(pool, rows, rng).to(device)
        noise = torch.randn(x.shape, generator=generator).to(device)
        u = torch.rand(batch_size, generator=generator).to(device)
        t = SHIFT * u / (1 + (SHIFT - 1) * u)
        noisy = torch.lerp(x, noise, t.view(-1, 1, 1, 1))
        with torch.autocast(x.device.type, torch.bfloat16):
            velocity = predict(unet, sketcher, noisy, 1000 * t, embeddings)
        loss = F.mse_loss(velocity.float(), noise - x)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), unet.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
        losses.append(loss.item())
        if step % 100 == 99:
            recent = sum(losses[-100:]) / 100
            print(f"step {step + 1}/{steps}  loss {recent:.4f}  {time.monotonic() - began:.0f} s", flush=True)
        if step % 500 == 499:
            keep(average, sketcher)
    return average.eval(), sketcher


def measure(folder: Path, *, size: int = 500, seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure a stored folder with the digits-CLIP; ``benchmarks/generator.py`` does so with an independent classifier.

    Returns:
        Shares of images whose nearest of the hundred captions "a photo of a <tint> <digit>" has the right digit, tint,
        or both: of images generated from such captions (``prompts``) and decoded from test images (``images``).
    """
    encoder, model = load_encoder("embedded:digits"), load(folder)
    assert isinstance(encoder, TextEncoder)
    pairs = torch.full((len(CLASSES) * len(TINTS), len(WORDS)), UNNAMED)
    pairs[:, :2] = torch.cartesian_prod(torch.arange(len(CLASSES)), torch.arange(len(TINTS)))
    captions = encoder.encode_texts([write_caption(claim) for claim in pairs.tolist()])
    rows = torch.arange(size) % len(pairs)
    images, truth = draw_described("test", size, np.random.default_rng(seed))

    def judge(embeddings: Tensor, wanted: Tensor) -> dict[str, float]:
        made = model.sample(embeddings, range(seed, seed + size))
        nearest = (encoder.encode_images(made.float() / 255) @ captions.T).argmax(dim=1)
        right = (pairs[nearest] == wanted)[:, :2].float()
        digit, tint = right.mean(dim=0).tolist()
        return round_figures({"digit": digit, "tint": tint, "both": right.prod(dim=1).mean().item()})

    return {
        "prompts": judge(captions[rows], pairs[rows]),
        "images": judge(encoder.encode_images(images.float() / 255), truth),
    }


def save_folder(unet: UNet2DConditionModel, sketcher: Tensor, folder: Path, *, encoder_fingerprint: str) -> None:
    """Write ``unet/`` and ``scheduler/`` as diffusers reads them (float16), the sketcher and ``config.json``."""
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"encoder_fingerprint": encoder_fingerprint, **SAMPLING})
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": SHIFT},
    )
    write_json(folder / "unet" / "config.json", json.loads(unet.to_json_string()))
    write_weights(folder / "unet" / "diffusion_pytorch_model.safetensors", unet.state_dict())
    write_weights(folder / "sketcher.safetensors", {"weight": sketcher})


def main() -> None:
    """Train, store, and measure the stored model."""
    parser = argparse.ArgumentParser(description="Train the diffusion model of digits that the package carries.")
    parser.add_argument(
        "--output", type=Path, default=DIFFUSION_FOLDER, help="folder to write (default: the packaged one)"
    )
    parser.add_argument("--start", type=Path, help="folder to continue from (default: train from scratch)")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pool", type=int, default=20_000, help="images rendered and embedded before training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (default: torch's own choice)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    encoder = load_encoder("embedded:digits", device=options.device)
    assert isinstance(encoder, TextEncoder)
    pool = draw_pool(encoder, options.pool, np.random.default_rng(options.seed))
    names = ("steps", "batch_size", "lr", "seed")
    shared: dict[str, Any] = {name: getattr(options, name) for name in names}

    def keep(unet: UNet2DConditionModel, sketcher: Tensor) -> None:
        save_folder(unet, sketcher, options.output, encoder_fingerprint=encoder.fingerprint)

    keep(*train(pool, **shared, device=options.device, start=options.start, keep=keep))
    quality: dict[str, Any] = {**shared, "pool": options.pool}
    if options.start is not None:
        former = json.loads((options.start / "quality.json").read_text())
        quality["start"] = {name: value for name, value in former.items() if name in (*names, "pool", "start")}
    quality |= measure(options.output)
    write_json(options.output / "quality.json", quality)
    print(quality)


if __name__ == "__main__":
    main()
