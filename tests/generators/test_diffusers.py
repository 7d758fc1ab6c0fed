"""Real pipelines of diffusers with tiny random weights: from a folder, from the hub's cache, and as decoders."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_failures.errors import GeneratorError
from lightning_failures.generators import DiffusersDecoder, DiffusersGenerator, load_generator, takes_embeddings
from tests.generators.tiny import DIM, SIDE, TinyCLIP, copied, save_stable_diffusion, save_unclip

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")  # of what the tests build


@pytest.fixture(scope="module")
def clip():
    return TinyCLIP()


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory, clip):
    return save_unclip(tmp_path_factory.mktemp("unclip"), clip)


def test_generate__an_image_for_each_prompt_that_its_seed_decides(folder, no_network):
    generator = DiffusersGenerator(folder, steps=2)
    before = torch.get_rng_state()
    images = generator.generate(["a cat", "a dog", "a cat"], [1, 2, 2**32 - 1])
    assert torch.equal(torch.get_rng_state(), before)
    assert images.shape == (3, 3, SIDE, SIDE)
    assert images.dtype == torch.uint8
    assert not torch.equal(images[0], images[2])
    alone = generator.generate(["a dog"], [2])[0]
    assert (images[1].int() - alone.int()).abs().max() <= 1  # up to rounding
    assert generator.flagged == 0


def test_generate__says_nothing_on_a_console(folder, capfd):
    DiffusersGenerator(folder, steps=2).generate(["a cat"], [1])
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    assert ours.is_progress_bar_enabled()
    assert theirs.is_progress_bar_enabled()
    printed = capfd.readouterr()
    assert "it/s" not in printed.out + printed.err


def test_close__frees_the_pipeline_and_the_next_call_loads_it(folder):
    generator = DiffusersGenerator(folder, steps=1)
    first = generator.generate(["a"], [0])
    generator.close()
    assert generator._pipeline is None
    assert torch.equal(generator.generate(["a"], [0]), first)


def test_generate__options_reach_the_pipeline(folder):
    images = [
        DiffusersGenerator(folder, steps=steps, guidance=guidance).generate(["a"], [0])
        for steps, guidance in ((1, 7.5), (2, 7.5), (2, 1.0))
    ]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_safety_checker__stays_on_and_is_counted(tmp_path):
    generator = DiffusersGenerator(save_stable_diffusion(tmp_path, flags=True), steps=1)
    images = generator.generate(["a", "b"], [0, 1])
    assert generator.flagged == 2
    assert images.max() == 0


def test_dtype__half_precision_on_the_cpu(folder):
    generator = DiffusersGenerator(folder, steps=1, dtype="bfloat16")
    assert generator.generate(["a"], [0]).shape == (1, 3, SIDE, SIDE)
    assert generator._pipeline.unet.dtype == torch.bfloat16
    with pytest.raises(GeneratorError, match="device='cuda:99' cannot be used here"):
        DiffusersGenerator(folder, device="cuda:99")
    with pytest.raises(GeneratorError, match="dtype must be one of float32, float16, bfloat16; got 'half'"):
        DiffusersGenerator(folder, dtype="half")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_generate__half_precision_on_an_accelerator(folder):
    generator = DiffusersGenerator(folder, steps=2)
    before = torch.cuda.get_rng_state()
    images = generator.generate(["a cat", "a dog"], [1, 2])
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert generator._pipeline.unet.dtype == torch.float16
    on_cpu = DiffusersGenerator(folder, steps=2, device="cpu").generate(["a cat", "a dog"], [1, 2])
    assert (images.int() - on_cpu.int()).abs().float().mean() < 3
    generator.close()


# -- decoders --------------------------------------------------------------------------------------------------


def test_decode__images_follow_the_embedding_and_the_seed(decoder_folder, clip, no_network):
    generator = DiffusersDecoder(decoder_folder, encoder=clip, steps=2)
    assert takes_embeddings(generator)
    assert generator.encoder_fingerprint == clip.fingerprint
    cat, dog = clip.encode_texts(["cat", "dog"])
    images = generator.decode(torch.stack([cat, dog, cat, cat * 7]), [0, 0, 1, 0])
    assert images.shape == (4, 3, SIDE, SIDE)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert (images[0].int() - images[3].int()).abs().max() <= 1  # only the direction counts
    assert generator._length == pytest.approx(DIM**0.5)  # of the image normaliser: mean 0, spread 1


def test_generate__decoder_embeds_prompts(decoder_folder, clip):
    generator = DiffusersDecoder(decoder_folder, encoder=clip, steps=1)
    images = generator.generate(["cat", "dog"], [0, 0])
    assert not torch.equal(images[0], images[1])
    clip_without_texts = type("Images", (), {"name": "x", "fingerprint": "y", "dim": DIM, "encode_images": None})()
    with pytest.raises(GeneratorError, match="x has no text tower to embed prompts"):
        DiffusersDecoder(decoder_folder, encoder=clip_without_texts).generate(["cat"], [0])


def test_decode__another_encoder_is_found_out(decoder_folder):
    generator = DiffusersDecoder(decoder_folder, encoder=TinyCLIP(seed=1), steps=1)
    for _ in range(2):  # and not forgotten
        with pytest.raises(GeneratorError, match="does not decode embeddings of tiny clip 1: the same picture"):
            generator.decode(torch.ones(1, DIM), [0])
    assert generator._pipeline is None


def test_decoder__another_dimension_needs_no_loading(decoder_folder, clip):
    wide = type("Wide", (), {"name": "wide", "fingerprint": "w", "dim": 512})()
    with pytest.raises(GeneratorError, match="24 dimensions, not 512"):
        load_generator(decoder_folder, encoder=wide)


def test_decoder__pipeline_without_its_image_encoder(decoder_folder, clip, tmp_path):
    copy = copied(decoder_folder, tmp_path)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"image_encoder": [None, None]}))
    with pytest.raises(GeneratorError, match="no image_encoder, so its CLIP cannot be compared"):
        DiffusersDecoder(str(copy), encoder=clip)


def test_decoder__pipeline_of_prompts_only(folder, clip):
    with pytest.raises(GeneratorError, match="but no image_embeds or image_embeddings"):
        DiffusersDecoder(folder, encoder=clip)
