"""Pipelines of diffusers are found and checked without loading them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lightning_failures.errors import GeneratorError
from lightning_failures.generators import DiffusersGenerator, load_generator
from tests.generators.tiny import CARD, SIDE, copied

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")  # of what the tests build


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (CARD, "openrail"),
        ("---\nlicense: other\nlicense_name: stability-ai\n---\ntext", "stability-ai"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit\n---\n", "unknown"),
        ("---\ntags: [a]\n---\n", "unknown"),
        ("license: mit", "unknown"),
        (None, "unknown"),
    ],
)
def test_licence__from_the_model_card(folder, tmp_path, card, licence):
    copy = copied(folder, tmp_path)
    (copy / "README.md").unlink()
    if card is not None:
        (copy / "README.md").write_text(card)
    assert DiffusersGenerator(str(copy)).licence == licence


def test_folder__code_beside_the_weights_is_never_run(folder, tmp_path):
    copy = copied(folder, tmp_path)
    (copy / "unet" / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(GeneratorError, match=r"contains its own code \(evil.py\)"):
        DiffusersGenerator(str(copy))


def test_folder__custom_class_is_refused(folder, tmp_path):
    copy = copied(folder, tmp_path)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": ["evil", "Pipeline"]}))
    with pytest.raises(GeneratorError, match="never run"):
        DiffusersGenerator(str(copy))
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "NoSuchPipeline"}))
    with pytest.raises(GeneratorError, match=r"NoSuchPipeline, which diffusers .* does not have"):
        DiffusersGenerator(str(copy))


def test_folder__pickled_weights_are_refused(folder, tmp_path):
    copy = copied(folder, tmp_path)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    generator = DiffusersGenerator(str(copy))
    with pytest.raises(GeneratorError, match="cannot be loaded"):
        generator.generate(["a"], [0])


def test_folder__no_pipeline(tmp_path):
    with pytest.raises(GeneratorError, match=r"not a diffusers pipeline.*save_pretrained"):
        load_generator(str(tmp_path))


def test_folder__pipeline_that_takes_no_prompts(folder, tmp_path):
    copy = copied(folder, tmp_path)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "DDPMPipeline"}))
    with pytest.raises(GeneratorError, match=r"a DDPMPipeline, which takes .*, but no prompt"):
        DiffusersGenerator(str(copy))


@pytest.mark.parametrize("local_files_only", [True, False])
def test_hub__cached_pipeline_needs_no_network(folder, tmp_path, monkeypatch, no_network, local_files_only):
    from huggingface_hub import constants

    commit = "0" * 40
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    generator = load_generator("org/tiny", local_files_only=local_files_only, steps=1)
    assert (generator.name, generator.licence) == ("org/tiny", "openrail")
    assert generator.generate(["a"], [0]).shape == (1, 3, SIDE, SIDE)


@pytest.mark.parametrize("local_files_only", [True, False])
def test_hub__what_cannot_be_had_names_the_ways(local_files_only):
    with pytest.raises(GeneratorError, match=r"'org/no-such-pipeline' is unavailable: .*embedded:digits.*save_pre"):
        load_generator("org/no-such-pipeline", local_files_only=local_files_only)
