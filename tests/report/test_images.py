"""Pictures: exact values on maps small enough to work out by hand."""

import math

import pytest
import torch

from lightning_failures.errors import DataError
from lightning_failures.report.images import (
    color_table,
    fit_square,
    heat_map,
    image_grid,
    image_strip,
    most_activating,
    normalize_maps,
    stack,
    thumbnail,
    to_uint8,
)

BLACK = torch.zeros(3, 32, 32)


def test_most_activating__highest_first_ties_in_order_nan_last():
    features = torch.tensor([0.5, math.nan, 2.0, 2.0, -1.0])
    assert most_activating(features, 3).tolist() == [2, 3, 0]
    assert most_activating(features, 9).tolist() == [2, 3, 0, 4, 1]
    assert most_activating(features, 0).tolist() == []


def test_most_activating__keeps_double_precision():
    assert most_activating(torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64), 1).tolist() == [1]


def test_normalize_maps__each_map_by_itself_and_constant_ones_are_zero():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 1.0]], [[7.0, 7.0], [7.0, 7.0]]])
    assert normalize_maps(maps).tolist() == [[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_normalize_maps__not_finite_stays_in_range():
    maps = normalize_maps(torch.tensor([[math.nan, math.inf, -math.inf, 1.0]]))
    assert maps.isfinite().all()
    assert maps.min() == 0
    assert maps.max() == 1


def test_heat_map__resizes_bilinearly():
    # [0, 1] on two pixels has its centres at 0.5 and 1.5; four pixels sample 0, 0.25, 0.75, 1
    heat = heat_map(torch.tensor([[0.0, 1.0]]), torch.zeros(3, 1, 4), opacity=1.0)
    expected = color_table()[torch.tensor([0, 64, 191, 255])].T[:, None]
    assert torch.equal(heat, expected)


def test_heat_map__blends_with_the_image():
    white = torch.full((1, 1, 1), 255, dtype=torch.uint8)
    heat = heat_map(torch.zeros(1, 1), white, opacity=0.25)
    assert heat.flatten().tolist() == (0.25 * color_table()[0].float() + 0.75 * 255).round().int().tolist()
    assert heat_map(torch.zeros(1, 1), white, opacity=0.0).flatten().tolist() == [255, 255, 255]


def test_heat_map__the_image_is_gray_so_that_no_colour_but_heat_is_left():
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    assert heat_map(torch.zeros(1, 1), red, opacity=0.0).flatten().tolist() == [76, 76, 76]  # 0.299 * 255


def test_heat_map__leaves_the_callers_tensors_alone():
    feature_map, image = torch.rand(4, 4), torch.rand(3, 8, 8)
    before = feature_map.clone(), image.clone()
    heat_map(feature_map, image)
    assert torch.equal(feature_map, before[0])
    assert torch.equal(image, before[1])


def test_color_table__neighbours_are_equally_far_apart_and_lighter_is_more():
    linear = color_table().double() / 255
    linear = torch.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    # linear sRGB -> OKLab, the published forward matrices: independent of the inverse in the package
    to_lms = torch.tensor(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ],
        dtype=torch.float64,
    )
    to_lab = torch.tensor(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ],
        dtype=torch.float64,
    )
    lab = (linear @ to_lms.T).pow(1 / 3) @ to_lab.T
    assert torch.allclose(lab[:, 0], torch.linspace(0.30, 0.92, 256, dtype=torch.float64), atol=0.01)
    far = (lab[16::16] - lab[:-16:16]).norm(dim=1)
    assert far.max() / far.min() < 1.25


def test_to_uint8__gray_clipped_and_uint8_untouched():
    assert to_uint8(torch.tensor([[[-0.5, 2.0, math.nan]]])).tolist() == [[[0, 255, 0]]] * 3
    image = torch.randint(0, 256, (3, 2, 2), dtype=torch.uint8)
    assert torch.equal(to_uint8(image), image)


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (3, 0, 4), (4, 4, 3)])
def test_to_uint8__wrong_shape(shape):
    with pytest.raises(DataError, match="shape"):
        to_uint8(torch.zeros(shape))


def test_thumbnail__small_images_grow_by_whole_pixels():
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    large = thumbnail(image, 96)
    assert large.shape == (3, 96, 96)
    assert torch.equal(large[:, 1::3, 1::3], image)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (28, 28), (96, 50), (97, 3), (192, 192), (500, 10), (224, 300)])
def test_thumbnail__longer_side_is_bounded(height, width):
    shape = thumbnail(torch.zeros(1, height, width), 96).shape
    assert shape[0] == 3
    assert 96 <= max(shape[1:]) <= 192


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 48), (48, 48), (49, 48), (300, 3), (1000, 700)])
def test_fit_square__always_that_size_and_centred(height, width):
    square = fit_square(torch.zeros(1, height, width), 48)
    assert (square.dtype, square.shape) == (torch.uint8, (3, 48, 48))
    black = (square[0] == 0).nonzero()
    assert len(black) == max(1, round(48 * height / max(height, width))) * max(
        1, round(48 * width / max(height, width))
    )
    margins = black.amin(0), 47 - black.amax(0)
    assert int((margins[0] - margins[1]).abs().max()) <= 1
    assert set(square.unique().tolist()) <= {0, 128}


def test_fit_square__small_pixels_stay_sharp():
    image = torch.tensor([[[0, 255], [255, 0]]], dtype=torch.uint8)
    assert torch.equal(fit_square(image, 4)[0], image[0].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_image_grid__puts_images_where_they_belong():
    images = torch.stack([torch.full((3, 96, 96), v, dtype=torch.uint8) for v in (10, 20, 30)])
    grid = image_grid(images, columns=2)
    assert grid.shape == (3, 210, 210)
    assert [int(grid[0, y, x]) for y, x in ((50, 50), (50, 150), (150, 50), (150, 150))] == [10, 20, 30, 255]


def test_image_strip__texts_and_title_take_room_and_ink():
    bare = image_strip([torch.ones(3, 32, 32)] * 2)
    with_text = image_strip([torch.ones(3, 32, 32)] * 2, ["-1.20 says 5", "a\nb"], title="three")
    assert bare.min() == 255
    assert with_text.shape[1] > bare.shape[1]
    assert with_text.min() < 64


@pytest.mark.parametrize("title", ["", "x" * 10_000, "猫 🐈 \x1b[31m \ud800"])
def test_image_strip__no_images_and_any_title(title):
    strip = image_strip([], title=title)
    assert strip.dtype == torch.uint8
    assert strip.shape[0] == 3
    assert strip.shape[2] < 1000


def test_image_grid__texts_must_match():
    with pytest.raises(DataError, match="as many items as images, 2, or none; got 1"):
        image_grid([BLACK, BLACK], ["one"])


def test_stack__pads_with_white():
    image = stack([torch.zeros(3, 1, 2, dtype=torch.uint8), torch.zeros(3, 1, 1, dtype=torch.uint8)])
    assert image[0].tolist() == [[0, 0], [0, 255]]
