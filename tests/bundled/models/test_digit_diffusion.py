from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

diffusers = pytest.importorskip("diffusers")

from lightning_failures.bundled.digits.captions import caption  # noqa: E402
from lightning_failures.bundled.digits.render import CLASSES, TINTS, draw_images  # noqa: E402
from lightning_failures.bundled.models import DIFFUSION_FOLDER  # noqa: E402
from lightning_failures.bundled.models.digit_diffusion import (  # noqa: E402
    DigitDiffusion,
    from_latents,
    load,
    predict,
    read_config,
    to_latents,
)
from lightning_failures.encoders import load_encoder  # noqa: E402
from scripts.bundled_models import train_diffusion  # noqa: E402


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("embedded:digits")


@pytest.fixture(scope="module")
def stored():
    return load(DIFFUSION_FOLDER, guidance=1.0)  # half the work


def unit(size, seed=0):
    return nn.functional.normalize(torch.randn(size, 128, generator=torch.Generator().manual_seed(seed)), dim=1)


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_latents__round_trip_loses_nothing(seed, size, side):
    images = np.random.default_rng(seed).integers(0, 256, size=(size, 3, 2 * side, 2 * side), dtype=np.uint8)
    latents = to_latents(torch.from_numpy(images))
    assert latents.shape == (size, 12, side, side)
    assert latents.abs().max() <= 1
    assert np.array_equal(from_latents(latents).numpy(), images)


def test_from_latents__clips():
    assert from_latents(torch.full((1, 12, 1, 1), 3.0)).unique().tolist() == [255]
    assert from_latents(torch.full((1, 12, 1, 1), -3.0)).unique().tolist() == [0]


class Oracle(nn.Module):
    """Knows one image without a condition and one with, so that its velocity is exact: (x - x0) / t."""

    def __init__(self, images):
        super().__init__()
        self.x0 = to_latents(images)

    def forward(self, x, t, _, class_labels):
        x0 = self.x0[(class_labels[:, 0] != 0).long()]
        return SimpleNamespace(sample=(x[:, :12] - x0) / (t / 1000))


def oracle_model(images, guidance):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=train_diffusion.SHIFT)
    return DigitDiffusion(Oracle(images), torch.zeros(256, 128), scheduler, steps=12, guidance=guidance)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sample__exact_velocities_lead_to_the_image(guidance):
    image = draw_images("test", 1, np.random.default_rng(0))[0]
    same = image.expand(2, -1, -1, -1)  # with and without condition, so that guidance adds nothing
    made = oracle_model(same, guidance).sample(unit(3), [5, 6, 7])
    assert made.dtype == torch.uint8
    assert (made.int() - image.int()).abs().max() <= 1


def test_sample__guidance_extrapolates_from_no_condition():
    images = torch.tensor([130, 160], dtype=torch.uint8).view(2, 1, 1, 1).expand(-1, 3, 32, 32)
    levels = [
        oracle_model(images, guidance).sample(torch.eye(128)[:1], [0]).float().mean().item()
        for guidance in (0.0, 1.0, 2.0)
    ]
    assert levels == pytest.approx([130, 160, 190], abs=1)


def test_predict__the_sketch_is_linear_and_lies_beside_the_image():
    given = {}

    def network(x, t, _, class_labels):
        given.update(x=x, condition=class_labels)
        return SimpleNamespace(sample=x[:, :12])

    sketcher = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    x, embeddings = torch.rand(2, 12, 16, 16), torch.stack([torch.zeros(128), torch.eye(128)[3]])
    predict(network, sketcher, x, torch.tensor(500), embeddings)
    assert torch.equal(given["x"][:, :12], x)
    assert torch.equal(given["x"][0, 12], torch.zeros(16, 16))
    assert torch.equal(given["x"][1, 12].flatten(), sketcher[:, 3])
    assert given["condition"].square().mean(dim=1).tolist() == pytest.approx([0, 1])


@pytest.mark.slow
def test_sample__an_image_depends_on_its_embedding_and_seed_alone(stored):
    embeddings, model = unit(19), replace(stored, steps=3)
    together = model.sample(embeddings, range(19))
    assert torch.equal(model.sample(embeddings[17:18], [17]), together[17:18])
    assert torch.equal(model.sample(embeddings[[3, 17]], [3, 17]), together[[3, 17]])
    assert not torch.equal(model.sample(embeddings[17:18], [18]), together[17:18])
    assert not torch.equal(model.sample(embeddings[16:17], [17]), together[17:18])


def test_sample__nothing_and_no_trace(stored):
    state = torch.get_rng_state()
    made = stored.sample(unit(1).requires_grad_(), [2**40])
    assert not made.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert stored.sample(torch.empty(0, 128), []).shape == (0, 3, 32, 32)


def test_load__leaves_the_random_state():
    state = torch.get_rng_state()
    with torch.inference_mode():
        model = load(DIFFUSION_FOLDER, guidance=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.guidance == 1.0
    parameters = list(model.unet.parameters())
    assert not any(p.requires_grad or p.is_inference() for p in parameters)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert model.dim == 128


def test_stored_files__are_small_and_half_precision():
    files = [path for path in DIFFUSION_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    weights = load_file(DIFFUSION_FOLDER / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}


def test_stored_files__load_as_diffusers_loads_any_folder(stored):
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        DIFFUSION_FOLDER, subfolder="unet", low_cpu_mem_usage=False, local_files_only=True
    )
    for name, value in unet.state_dict().items():
        assert torch.equal(value, stored.unet.state_dict()[name]), name
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
        DIFFUSION_FOLDER, subfolder="scheduler", local_files_only=True
    )
    assert scheduler.config.shift == train_diffusion.SHIFT


def test_stored_config__names_the_packaged_clip(encoder):
    assert read_config(DIFFUSION_FOLDER)["encoder_fingerprint"] == encoder.fingerprint


def test_stored_quality__was_measured_and_meets_the_bars():
    quality = json.loads((DIFFUSION_FOLDER / "quality.json").read_text())
    assert quality["prompts"]["both"] >= 0.85
    assert quality["images"]["both"] >= 0.85


def test_stored_model__obeys_prompts(encoder):
    texts = [caption(noun, tint=tint) for noun in CLASSES for tint in TINTS]
    captions = encoder.encode_texts(texts)
    asked = torch.arange(0, 100, 11)
    made = load(DIFFUSION_FOLDER).sample(captions[asked], range(len(asked)))
    nearest = (encoder.encode_images(made.float() / 255) @ captions.T).argmax(dim=1)
    assert (nearest == asked).float().mean() >= 0.8
