"""Tiny pipelines of diffusers with random weights, and a CLIP that shares their image encoder."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

SIDE = 16  # pixels of a generated image
CLIP_SIDE = 32
DIM = 24

CARD = """---
language: en
license: openrail
---
# A tiny pipeline
"""


def tokenizer():
    """Letters are tokens, in the middle and at the end of a word."""
    from transformers import CLIPTokenizer

    words = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:  # the one way that all releases of transformers have in common
        Path(folder, "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def text_config():
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=54, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53, projection_dim=DIM,
    )  # fmt: skip


def vision_config():
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=CLIP_SIDE,
        patch_size=8, projection_dim=DIM, initializer_range=1.0,
    )  # fmt: skip


def image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": CLIP_SIDE}, crop_size=CLIP_SIDE)


def unet(**options):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 2, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )  # fmt: skip


def scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(clip_sample=False, steps_offset=1)


def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def checker(*, flags: bool):
    """A safety checker that flags everything, or nothing."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    config = CLIPConfig(text_config=text_config().to_dict(), vision_config=vision_config().to_dict())
    config.projection_dim = DIM
    made = StableDiffusionSafetyChecker(config)
    threshold = -2.0 if flags else 2.0  # of a cosine
    for weights in (made.concept_embeds_weights, made.special_care_embeds_weights):
        weights.data.fill_(threshold)
    return made


def save_stable_diffusion(folder: Path, *, flags: bool | None = False, card: str | None = CARD) -> str:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config()), tokenizer=tokenizer(), unet=unet(),
        scheduler=scheduler(), safety_checker=None if flags is None else checker(flags=flags),
        feature_extractor=image_processor(), requires_safety_checker=flags is not None,
    ).save_pretrained(folder)  # fmt: skip
    if card is not None:
        (folder / "README.md").write_text(card)
    return str(folder)


def save_unclip(folder: Path, clip: TinyCLIP) -> str:
    """A decoder that shares the image encoder of ``clip``."""
    from diffusers import DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(), image_encoder=clip.vision,
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=DIM),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"), tokenizer=tokenizer(),
        text_encoder=CLIPTextModel(text_config()), scheduler=scheduler(), vae=vae(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * DIM),
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


class TinyCLIP:
    """An encoder on the classes of transformers."""

    def __init__(self, seed: int = 0) -> None:
        from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

        torch.manual_seed(seed)
        self.name = self.fingerprint = f"tiny clip {seed}"
        self.dim = DIM
        self.vision = CLIPVisionModelWithProjection(vision_config()).eval()
        self.text = CLIPTextModelWithProjection(text_config()).eval()
        self._processor, self._tokenizer = image_processor(), tokenizer()

    @torch.no_grad()
    def encode_images(self, images):
        pixels = self._processor(images=images, return_tensors="pt", do_rescale=False).pixel_values
        return F.normalize(self.vision(pixels).image_embeds, dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts):
        tokens = self._tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return F.normalize(self.text(tokens.input_ids).text_embeds, dim=-1)


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")
