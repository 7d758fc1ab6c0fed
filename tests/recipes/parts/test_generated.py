"""Synthetic and decoded images, by the packaged models of the digits; notes where nothing was given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_failures.encoders import load_encoder
from lightning_failures.recipes.base import Materials
from lightning_failures.recipes.parts import generated
from lightning_failures.recipes.parts.generated import decoding, synthetic


@pytest.mark.slow
def test_synthetic__a_head_for_each_kind_of_prompt(trained, monkeypatch):
    monkeypatch.setattr(generated, "SYNTHETIC_QUICK", 2)
    found = synthetic(trained)
    for arm in ("no images", "hardest captions", "reference captions"):
        assert 0.3 < found.figures[f"accuracy, head with {arm}"] <= 1
        assert 0 <= found.figures[f"accuracy on the hard group, head with {arm}"] <= 1


@pytest.mark.slow
def test_decoding__to_both_ends_of_each_direction(trained, monkeypatch):
    monkeypatch.setattr(generated, "DECODED_QUICK", 1)
    found = decoding(trained)
    assert set(found.figures) == {f"accuracy on decoded {end} images" for end in ("hard", "reference", "easy")}
    (name,) = found.files.values()
    assert (trained.output / name).is_file()


def test_generated__what_was_not_given_or_does_not_fit(trained):
    without = replace(trained, materials=Materials())
    assert "--generator" in synthetic(without).notes[0]
    assert "--decoder" in decoding(without).notes[0]
    other = replace(trained, encoder=load_encoder("efficientnet-lite0"))
    assert "--decoder" in decoding(other).notes[0]
