"""Class names in words, and encoders that match images with captions."""

from __future__ import annotations

import pytest

from lightning_failures.doctor.caption_checks import check_captions
from lightning_failures.doctor.reference_images import coloured_digits, coloured_shapes, zero_shot_accuracy
from lightning_failures.encoders import OpenCLIPEncoder
from tests.doctor.contexts import only, read, statuses


def test_captions__of_names_that_are_no_words(tmp_path):
    assert "from general, against 'a photo of a class 0'" in only(check_captions(read(tmp_path)), "ok").message
    nameless = read(tmp_path, class_names=["n01440764", "tench", "7", "cock"])
    assert "2 of 4 class names are not words, such as 'n01440764'" in only(check_captions(nameless), "warning").message
    assert statuses(check_captions(read(tmp_path, captions=None))) == ["skipped"]


@pytest.mark.slow
def test_known_pictures__the_packaged_clip_knows_them(clip):
    assert zero_shot_accuracy(clip, coloured_digits()) > 0.9
    assert zero_shot_accuracy(clip, coloured_shapes()) > 0.7


class Swapped:
    """Blue for red."""

    def __init__(self, encoder: OpenCLIPEncoder) -> None:
        self.encode_texts, self._inner = encoder.encode_texts, encoder

    def encode_images(self, images):
        return self._inner.encode_images(images.flip(1))


@pytest.mark.slow
def test_known_pictures__swapped_channels_fail(clip):
    assert all(
        zero_shot_accuracy(Swapped(clip), known) < known.needed for known in (coloured_digits(), coloured_shapes())
    )


def test_captions__of_a_captioner(tmp_path):
    context = read(tmp_path, captions=lambda images: ["a dark\nimage"] * len(images))
    message = only(check_captions(context), "ok").message
    assert "says 'a dark image' of the first image" in message
    assert "up to 100 images a class" in message
    broken = read(tmp_path, captions=lambda images: [])
    assert "returned 0 texts for 1 images" in only(check_captions(broken), "problem").message
