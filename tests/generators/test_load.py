"""What users name, and what becomes of it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from lightning_failures.errors import GeneratorError
from lightning_failures.generators import FunctionGenerator, load_generator, takes_embeddings


def noise(prompts, seeds):
    return torch.rand(len(seeds), 3, 4, 4)


def test_load_generator__function_and_generator():
    made = load_generator(noise)
    assert isinstance(made, FunctionGenerator)
    assert made.name == "noise"
    assert not takes_embeddings(made)
    assert load_generator(made) is made


def test_load_generator__embedded_digits_decode():
    pytest.importorskip("diffusers")
    generator = load_generator("embedded:digits")
    assert generator.name == "embedded:digits"
    assert takes_embeddings(generator)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embedded:digit", r"not packaged. Did you mean embedded:digits\?"),
        ("embeded:digits", r"unknown. Did you mean embedded:digits\?"),
        ("no such thing", r"neither a folder nor the id of a hub pipeline.*save_pretrained"),
        ("a/b/c", "neither a folder nor the id"),
        (7, "got int"),
        (None, "got NoneType"),
    ],
)
def test_load_generator__unknown_names_say_what_there_is(spec, message):
    with pytest.raises(GeneratorError, match=message):
        load_generator(spec)


def test_load_generator__missing_extra_is_named(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else found(name))
    with pytest.raises(GeneratorError, match=r"pip install 'lightning-failures\[diffusion\]'"):
        load_generator(str(tmp_path))
