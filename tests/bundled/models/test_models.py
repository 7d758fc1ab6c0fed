from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lightning_failures.bundled import models as embedded
from lightning_failures.bundled.digits.captions import caption
from lightning_failures.bundled.digits.render import CLASSES, TINTS, draw_images
from lightning_failures.bundled.models import CLIP_FOLDER, ROBUST_FOLDER
from scripts.bundled_models import train_clip, train_robust

UNNAMED = train_clip.UNNAMED


def megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def test_stored_files__are_small_and_half_precision():
    assert megabytes(CLIP_FOLDER) <= 14
    assert megabytes(ROBUST_FOLDER) <= 2
    for path in [*CLIP_FOLDER.glob("*.safetensors"), *ROBUST_FOLDER.glob("*.safetensors")]:
        dtypes = {value.dtype for value in load_file(path).values()}
        assert dtypes <= {torch.float16, torch.int64}


@pytest.fixture(scope="module")
def clip():
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{CLIP_FOLDER}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{CLIP_FOLDER}")


def test_stored_clip__unused_token_rows_are_zero(clip):
    model, _, tokenizer = clip
    empty = (model.token_embedding.weight == 0).all(dim=1)
    assert empty.float().mean() > 0.99
    texts = [caption(name, tint=tint, stroke="thin", posture="upright") for name in CLASSES for tint in TINTS]
    assert not empty[tokenizer(texts).unique()].any()


def test_stored_clip__preprocessing_of_training_is_open_clips_own(clip):
    _, preprocess, _ = clip
    images, _, _ = draw_images("test", 4, np.random.default_rng(0))
    ours = train_clip.preprocess(images)
    theirs = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    assert ours.shape == theirs.shape
    # PIL rounds and clips to 8 bits after each of its two passes
    assert (ours - theirs).abs().mean() < 0.005
    assert (ours - theirs).abs().max() < 0.15


def test_stored_clip__meets_its_bars_on_unseen_digits():
    figures = train_clip.measure(CLIP_FOLDER, split="test", size=600, seed=1)
    assert figures["digit_accuracy"] >= 0.90
    assert figures["tint_accuracy"] >= 0.97
    assert figures["background_accuracy"] >= 0.95
    assert figures["stroke_accuracy"] >= 0.85
    assert figures["posture_accuracy"] >= 0.85


def test_stored_clip__through_open_clips_own_doors(clip):
    model, preprocess, tokenizer = clip
    images, digits, _ = draw_images("validation", 100, np.random.default_rng(2))
    batch = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([caption(name) for name in CLASSES]), normalize=True)
        nearest = (model.encode_image(batch, normalize=True) @ texts.T).argmax(dim=1)
    assert (nearest == digits).float().mean() >= 0.85


@pytest.mark.slow
def test_stored_robust__meets_its_bars_on_unseen_digits():
    robust = train_robust.measure(ROBUST_FOLDER, "robust", size=50, restarts=1, seed=1)
    plain = train_robust.measure(ROBUST_FOLDER, "plain", size=20, restarts=1, seed=1)
    assert robust["robust_digit_accuracy"] >= 0.50
    assert robust["clean_digit_accuracy"] >= 0.85
    assert plain["robust_digit_accuracy"] <= 0.25
    assert plain["clean_digit_accuracy"] >= 0.85


def test_stored_quality__was_measured_and_meets_the_bars():
    clip = json.loads((CLIP_FOLDER / "quality.json").read_text())
    robust = json.loads((ROBUST_FOLDER / "quality.json").read_text())
    for split in ("validation", "test"):
        assert clip[split]["digit_accuracy"] >= 0.90
        assert clip[split]["tint_accuracy"] >= 0.97
        assert clip[split]["joint_accuracy"] >= 0.80
        assert robust["robust"][split]["robust_digit_accuracy"] >= 0.50
        assert robust["robust"][split]["clean_digit_accuracy"] >= 0.85
        assert robust["plain"][split]["robust_digit_accuracy"] <= 0.25


def test_embedded__imports_nothing_heavy():
    code = f"import runpy, sys; runpy.run_path({embedded.__file__!r}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
