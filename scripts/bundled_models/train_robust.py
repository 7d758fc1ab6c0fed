"""Train the robust CNN and its plain twin: ``python -m scripts.bundled_models.train_robust --output DIR``.

Both learn to predict digit and tint, but not background or stroke, from rendered training digits with every attribute
uniform. The robust one sees each batch after an L2 attack (Madry et al., Towards Deep Learning Models Resistant to
Adversarial Attacks, ICLR 2018; radius 1.0 on [0, 1] at 32 px). Departure: the radius grows over the first third of the
training; otherwise such a small network learns nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.bundled.digits.render import DigitSplit, draw_images
from lightning_failures.bundled.models import ROBUST_FOLDER
from lightning_failures.bundled.models.robust_cnn import RobustCNN, Variant, load
from scripts.bundled_models.attack import pgd_l2, robust_correct
from scripts.bundled_models.storage import round_figures, write_json, write_weights

RADIUS = 1.0
WIDTHS = (32, 64, 128, 128)


def train(
    *, radius: float, steps: int, batch_size: int = 128, attack_steps: int = 3, lr: float = 3e-3, seed: int = 0
) -> RobustCNN:
    """Train from scratch against attacks of ``radius`` (0: without attacks) and print the progress.

    The global random state is unchanged.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = RobustCNN(WIDTHS).to(memory_format=torch.channels_last)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        pixels, digits, looks = draw_images("train", batch_size, rng)
        images = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)

        def loss(x: Tensor, digits: Tensor = digits, tints: Tensor = looks.tint) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                digit, tint = model(x)
            answers = ((digit.float(), digits), (tint.float(), tints))
            return torch.stack([F.cross_entropy(logits, y, reduction="none") for logits, y in answers]).sum(dim=0)

        if radius > 0:
            current_radius = radius * min(1.0, 3 * (step + 1) / steps)
            images = pgd_l2(
                loss,
                images,
                radius=current_radius,
                steps=attack_steps,
                step_size=1.5 * current_radius / attack_steps,
                generator=generator,
            )
        objective = loss(images).mean()
        optimizer.zero_grad()
        torch.autograd.backward(objective)
        optimizer.step()
        if step % 20 == 19:
            print(f"step {step + 1}/{steps}  loss {objective.item():.3f}  {time.monotonic() - start:.0f} s", flush=True)
    return model.eval()


def measure(
    folder: Path, variant: Variant, *, split: DigitSplit = "test", size: int = 500, restarts: int = 3, seed: int = 0
) -> dict[str, float]:
    """Measure clean accuracies and digit accuracy under PGD-50 of a stored model, on digits not used for training."""
    model = load(folder, variant).requires_grad_(False)
    pixels, digits, looks = draw_images(split, size, np.random.default_rng(seed))
    images = pixels.float() / 255
    with torch.no_grad():
        digit, tint = model(images)
    robust = robust_correct(lambda x: model(x)[0], images, digits, radius=RADIUS, restarts=restarts, seed=seed)
    return round_figures(
        {
            "clean_digit_accuracy": (digit.argmax(dim=1) == digits).float().mean().item(),
            "clean_tint_accuracy": (tint.argmax(dim=1) == looks.tint).float().mean().item(),
            "robust_digit_accuracy": robust.float().mean().item(),
        }
    )


def main() -> None:
    """Train both models, store them, and measure the stored ones."""
    parser = argparse.ArgumentParser(description="Train the robust CNN that the package carries, and its plain twin.")
    parser.add_argument(
        "--output", type=Path, default=ROBUST_FOLDER, help="folder to write (default: the packaged one)"
    )
    parser.add_argument("--steps", type=int, default=1100, help="steps of the robust CNN")
    parser.add_argument("--plain-steps", type=int, default=500, help="steps of the plain twin")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (default: torch's own choice)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    shared: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed}
    write_json(options.output / "config.json", {"widths": WIDTHS})
    for name, radius, steps in (("plain", 0.0, options.plain_steps), ("robust", RADIUS, options.steps)):
        model = train(radius=radius, steps=steps, **shared)
        write_weights(options.output / f"{name}.safetensors", model.state_dict())
    quality: dict[str, Any] = {
        "threat_model": "L2, radius 1.0 on [0, 1] at 32 x 32; PGD-50 on the margin, 3 starts",
        "robust_steps": options.steps,
        "plain_steps": options.plain_steps,
        **shared,
    }
    variants: tuple[Variant, ...] = ("robust", "plain")
    for variant in variants:
        quality[variant] = {split: measure(options.output, variant, split=split) for split in ("validation", "test")}
    write_json(options.output / "quality.json", quality)
    print(quality)


if __name__ == "__main__":
    main()
