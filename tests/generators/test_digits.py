from __future__ import annotations

import json
import pickle
import shutil
import sys

import pytest
import torch

pytest.importorskip("diffusers")

from lightning_failures.bundled.models import DIFFUSION_FOLDER
from lightning_failures.encoders import load_encoder
from lightning_failures.errors import DataError, GeneratorError
from lightning_failures.generators import takes_embeddings
from lightning_failures.generators.digits import DigitsGenerator

PROMPTS = ["a photo of a red three", "a photo of a blue seven", "a photo of a green eight on a white background"]


@pytest.fixture(scope="module")
def generator():
    return DigitsGenerator(guidance=1.0)  # half the work


def test_digits_generator__is_a_decoder_of_the_packaged_clip(generator):
    assert takes_embeddings(generator)
    assert generator.encoder_fingerprint == load_encoder("embedded:digits").fingerprint
    assert (generator.name, generator.licence) == ("embedded:digits", "Apache-2.0")


@pytest.mark.slow
def test_generate__is_decoding_of_the_captions_embedding(generator):
    state = torch.get_rng_state()
    made = generator.generate(PROMPTS, [1, 2, 3])
    assert torch.equal(torch.get_rng_state(), state)
    assert made.shape == (3, 3, 32, 32)
    assert made.dtype == torch.uint8
    assert made.device.type == "cpu"
    embeddings = load_encoder("embedded:digits").encode_texts(PROMPTS)
    assert torch.equal(generator.decode(embeddings, [1, 2, 3]), made)
    assert torch.equal(generator.decode(5 * embeddings[1:2].double(), [2]), made[1:2]), "length and dtype do not matter"


def test_generate__shows_what_was_asked_for():
    red, blue, on_white = DigitsGenerator().generate(PROMPTS, [1, 2, 3]).float()
    assert red[0].max() > red[2].mean() + 50
    assert (blue[2] - blue[0]).max() > 100
    assert on_white[:, 0].mean() > 230


@pytest.mark.slow
def test_generate__inside_a_training_loop_that_is_in_inference_mode_and_autocast(generator):
    expected = generator.generate(PROMPTS[:1], [4])
    generator.close()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        made = generator.generate(PROMPTS[:1], [4])
    assert torch.equal(made, expected)
    assert not made.is_inference()


@pytest.mark.slow
def test_close__loads_again_when_needed(generator):
    expected = generator.generate(PROMPTS[:1], [9])
    generator.close()
    generator.close()
    assert torch.equal(generator.generate(PROMPTS[:1], [9]), expected)


@pytest.mark.slow
def test_guidance__changes_the_image(generator):
    assert not torch.equal(
        generator.generate(PROMPTS[:1], [0]), DigitsGenerator(guidance=3.0).generate(PROMPTS[:1], [0])
    )


@pytest.mark.parametrize(
    ("embeddings", "seeds"),
    [(torch.eye(64)[:2], [0, 1]), (torch.eye(128)[:2], [0]), (torch.eye(128)[0], [0])],
)
def test_decode__refuses_what_does_not_fit(generator, embeddings, seeds):
    with pytest.raises(DataError, match=r"embeddings \(B, 128\)"):
        generator.decode(embeddings, seeds)


def test_generate__one_string(generator):
    with pytest.raises(DataError, match="a sequence of prompts"):
        generator.generate("a photo of a three", [0])


def test_generate__no_prompts(generator):
    assert generator.generate([], []).shape == (0, 3, 32, 32)


def test_digits_generator__no_such_folder(tmp_path):
    with pytest.raises(GeneratorError, match="contains no diffusion model of digits"):
        DigitsGenerator(tmp_path)


def test_digits_generator__another_clip(tmp_path):
    folder = tmp_path / "diffusion"
    shutil.copytree(DIFFUSION_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "encoder_fingerprint": "0" * 32}))
    generator = DigitsGenerator(folder)
    assert generator.name == str(folder)
    assert generator.licence == "unknown"
    with pytest.raises(GeneratorError, match=r"0{32}.*Train it again"):
        generator.generate(PROMPTS[:1], [0])


def test_digits_generator__broken_files(tmp_path):
    folder = tmp_path / "diffusion"
    shutil.copytree(DIFFUSION_FOLDER, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(pickle.dumps({}))
    with pytest.raises(GeneratorError, match="cannot be loaded"):
        DigitsGenerator(folder).generate(PROMPTS[:1], [0])


def test_digits_generator__without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(GeneratorError, match=r"lightning-failures\[diffusion\]"):
        DigitsGenerator().generate(PROMPTS[:1], [0])
