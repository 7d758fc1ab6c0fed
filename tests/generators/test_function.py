"""A user's function as a generator: every form of image, and what is no image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_failures.errors import GeneratorError
from lightning_failures.generators import FunctionGenerator, ImageGenerator

LEVELS = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(torch.uint8)
ARRAY = LEVELS.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "images",
    [
        LEVELS,
        LEVELS.float() / 255,
        (LEVELS.double() / 255).requires_grad_(),
        list(LEVELS),
        ARRAY,
        (ARRAY / 255).astype(np.float32),
        list(ARRAY),
        [Image.fromarray(image) for image in ARRAY],
        [Image.fromarray(image).convert("RGBA") for image in ARRAY],
    ],
    ids=["uint8", "float", "double", "tensors", "array", "float array", "arrays", "PIL", "RGBA"],
)
def test_generate__all_forms_are_the_same_image(images):
    made = FunctionGenerator(lambda prompts, seeds: images).generate(["a", "b"], [0, 1])
    assert made.dtype == torch.uint8
    assert torch.equal(made, LEVELS)


def test_generate__gray_becomes_colour():
    made = FunctionGenerator(lambda prompts, seeds: LEVELS[:, :1]).generate(["a", "b"], [0, 1])
    assert torch.equal(made, LEVELS[:, :1].expand(-1, 3, -1, -1))
    made = FunctionGenerator(lambda prompts, seeds: [Image.new("L", (5, 4), 7)]).generate(["a"], [0])
    assert torch.equal(made, torch.full((1, 3, 4, 5), 7, dtype=torch.uint8))


def test_generate__the_caller_s_images_stay():
    array = (ARRAY / 255).astype(np.float32)
    before = array.copy()
    made = FunctionGenerator(lambda prompts, seeds: array).generate(["a", "b"], [0, 1])
    made.zero_()
    assert (array == before).all()


def test_generate__values_that_are_not_finite_are_black():
    images = torch.full((2, 3, 4, 4), 0.5)
    images[1, 0, 0, 0] = float("nan")
    made = FunctionGenerator(lambda prompts, seeds: images).generate(["a", "b"], [0, 1])
    assert made[0].unique().tolist() == [128]
    assert made[1].max() == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "NoneType"),
        ([], "of one size; got no images"),
        (torch.zeros(2, 4, 8, 8), r"\(2, 4, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.full((2, 3, 8, 8), 255.0), "from 255 to 255"),
        (torch.full((2, 3, 8, 8), -1.0), "from -1 to -1"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], r"of one size; got \(8, 8, 3\), \(8, 9, 3\)"),
        (torch.zeros(1, 3, 8, 8), "1 images for 2 prompts"),
    ],
)
def test_generate__what_is_no_image(images, message):
    with pytest.raises(GeneratorError, match=message):
        FunctionGenerator(lambda prompts, seeds: images, name="mine").generate(["a", "b"], [0, 1])


def test_function__name_licence_and_close():
    class Closing:
        closed = False

        def __call__(self, prompts, seeds):
            return torch.zeros(len(seeds), 3, 4, 4)

        def close(self):
            self.closed = True

    function = Closing()
    generator = FunctionGenerator(function, licence="MIT")
    assert isinstance(generator, ImageGenerator)
    assert (generator.name, generator.licence) == ("Closing", "MIT")
    generator.close()
    assert function.closed
    FunctionGenerator(len).close()  # has none


def test_generate__the_function_s_own_error_comes_as_it_is():
    def out_of_paint(prompts, seeds):
        raise ZeroDivisionError("paint")

    with pytest.raises(ZeroDivisionError, match="paint"):
        FunctionGenerator(out_of_paint).generate(["a"], [0])
