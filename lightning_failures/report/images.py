"""Thumbnails, image grids and heat maps as tensors.

Pure functions from small image tensors to uint8 tensors (3, H, W), without loggers, files or plotting libraries.

Images are (C, H, W) with C 1 or 3, uint8 or floats in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.core.text import clean
from lightning_failures.errors import DataError

TEXT, TITLE, GAP = 11, 13, 6  # px
SIZE = 96
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def most_activating(features: Tensor, k: int) -> Tensor:
    """Return the indices of the k highest values, the highest first; ties keep their order.

    Args:
        features: (n,) values of one feature. NaN counts as the lowest.
        k: Number of indices; fewer are returned if n < k.

    Returns:
        (min(k, n),) int64.

    Source: Singla et al., Barlow (CVPR 2021), section 4, "most activating images".

    >>> most_activating(torch.tensor([0.1, 0.9, 0.9, 0.5]), 3)
    tensor([1, 2, 3])
    """
    if features.ndim != 1:
        raise DataError(f"most_activating: features must have shape (n,), got {tuple(features.shape)}")
    values = torch.nan_to_num(features.detach().double(), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    return values.argsort(descending=True, stable=True)[: max(k, 0)].cpu()


def normalize_maps(maps: Tensor) -> Tensor:
    """Scale each map (..., h, w) to [0, 1], float32; a constant map becomes zeros.

    >>> normalize_maps(torch.tensor([[2.0, 4.0, 3.0]]))
    tensor([[0.0000, 1.0000, 0.5000]])
    """
    maps = torch.nan_to_num(maps.detach().float(), nan=0.0).double()
    low = maps.amin((-2, -1), keepdim=True)
    reach = maps.amax((-2, -1), keepdim=True) - low
    return torch.where(reach > 0, (maps - low) / torch.where(reach > 0, reach, 1.0), 0.0).float()


def heat_map(feature_map: Tensor, image: Tensor, *, opacity: float = 0.6) -> Tensor:
    """Overlay a gray image with the map of a feature: normalised, resized bilinearly, and coloured.

    Args:
        feature_map: (h, w), the channel of the feature before global average pooling.
        image: (C, H, W).
        opacity: Opacity of the colours over the image, in [0, 1].

    Returns:
        (3, H, W) uint8.

    Source: Singla et al., Barlow (CVPR 2021), section 4, "heat maps": a class activation map (Zhou et al., CVPR 2016)
    of one feature. Departures: a perceptually uniform colour map, and a gray image, so that no colour of the image
    looks like heat.
    """
    if feature_map.ndim != 2:
        raise DataError(f"heat_map: feature_map must have shape (h, w), got {tuple(feature_map.shape)}")
    below = to_uint8(image)
    heat = F.interpolate(
        normalize_maps(feature_map.cpu())[None, None], below.shape[1:], mode="bilinear", align_corners=False
    )[0, 0]
    # (H, W) indices into the table -> (H, W, 3) -> (3, H, W)
    colors = color_table()[(heat * 255).round().long()].permute(2, 0, 1).float()
    gray = torch.tensor(_LUMA) @ below.float().flatten(1)
    return (opacity * colors + (1 - opacity) * gray.view(heat.shape)).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=1)
def color_table() -> Tensor:
    """Return a perceptually uniform colour map, (256, 3) uint8, from dark violet over teal to light yellow.

    In OKLab (Ottosson, 2020) lightness and hue advance in equal steps at constant chroma. Lightness alone encodes the
    value, which helps in print and for colour-blind readers. In the spirit of viridis.
    """
    t = torch.linspace(0, 1, 256, dtype=torch.float64)
    lightness, hue = 0.30 + 0.62 * t, torch.deg2rad(305 - 200 * t)
    a, b = 0.1 * hue.cos(), 0.1 * hue.sin()
    # OKLab -> cube roots of cone responses -> linear sRGB -> gamma
    lms = torch.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    matrix = torch.tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ],
        dtype=torch.float64,
    )
    linear = (matrix @ lms**3).clamp(0, 1).T
    srgb = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (srgb * 255).round().to(torch.uint8)


def to_uint8(image: Tensor) -> Tensor:
    """Convert an image (C, H, W) to (3, H, W) uint8 on the CPU. Floats outside [0, 1] are clipped, gray becomes RGB.

    >>> to_uint8(torch.tensor([[[0.0, 0.5, 1.0]]]))[:, 0].tolist()
    [[0, 128, 255], [0, 128, 255], [0, 128, 255]]
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise DataError(f"an image must have shape (1 or 3, H, W), got {tuple(image.shape)}")
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = (torch.nan_to_num(image.float()).clamp(0, 1) * 255).round().to(torch.uint8)
    return image.expand(3, -1, -1).clone()


def thumbnail(image: Tensor, size: int = SIZE) -> Tensor:
    """Scale an image so that its longer side is in [size, 2 size]: (C, H, W) -> (3, H', W') uint8.

    Small images are enlarged by an integer factor without smoothing; large ones are reduced with antialiasing.

    >>> thumbnail(torch.zeros(3, 32, 20)).shape
    torch.Size([3, 96, 60])
    """
    image = reduced(image, size)
    factor = math.ceil(size / max(image.shape[1:]))
    return image if factor == 1 else image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def reduced(image: Tensor, size: int = SIZE) -> Tensor:
    """Reduce an image with antialiasing so that its longer side is at most 2 size: (C, H, W) -> (3, H', W') uint8.

    >>> reduced(torch.zeros(1, 400, 200)).shape, reduced(torch.zeros(3, 32, 20)).shape
    (torch.Size([3, 192, 96]), torch.Size([3, 32, 20]))
    """
    image = to_uint8(image)
    longer = max(image.shape[1:])
    if longer <= 2 * size:
        return image
    height, width = (max(1, round(side * 2 * size / longer)) for side in image.shape[1:])
    smaller = F.interpolate(image[None].float(), (height, width), mode="bilinear", antialias=True, align_corners=False)
    return smaller[0].round().clamp(0, 255).to(torch.uint8)


def square_side(images: Sequence[Tensor], most: int) -> int:
    """Return the side of squares that hold images (C, H, W) without enlarging them all, at most ``most`` pixels.

    >>> square_side([torch.zeros(3, 28, 20), torch.zeros(3, 32, 32)], 48), square_side([torch.zeros(3, 500, 400)], 48)
    (32, 48)
    """
    return min(most, max(max(image.shape[1:]) for image in images))


def fit_square(image: Tensor, side: int) -> Tensor:
    """Scale an image to fit a square and centre it on mid-gray: (C, H, W) -> (3, side, side) uint8.

    Small images are enlarged without smoothing; large ones are reduced with antialiasing.

    >>> fit_square(torch.zeros(1, 2, 4), 4)[0, :, 0].tolist()
    [128, 0, 0, 128]
    """
    image = to_uint8(image)
    height, width = image.shape[1:]
    scale = side / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    smooth = {"mode": "bilinear", "antialias": True, "align_corners": False} if scale < 1 else {"mode": "nearest-exact"}
    scaled = F.interpolate(image[None].float(), size, **smooth)[0].round().clamp(0, 255).to(torch.uint8)
    square = torch.full((3, side, side), 128, dtype=torch.uint8)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    square[:, top : top + size[0], left : left + size[1]] = scaled
    return square


def image_strip(
    images: Sequence[Tensor] | Tensor, texts: Sequence[str] = (), *, title: str = "", size: int = SIZE
) -> Tensor:
    """Return an :func:`image_grid` of one row."""
    return image_grid(images, texts, columns=max(1, len(images)), title=title, size=size)


def image_grid(
    images: Sequence[Tensor] | Tensor, texts: Sequence[str] = (), *, columns: int = 8, title: str = "", size: int = SIZE
) -> Tensor:
    r"""Arrange thumbnails in rows on white, each with its text below, and a title above all.

    Args:
        images: n images (C, H, W), of any sizes; n may be 0.
        texts: n texts, or none; ``"\n"`` starts a new line, long lines are cut.
        columns: Images a row.
        title: One line, cut if it is too long; empty: no title.
        size: Least longer side of a thumbnail in pixels, see :func:`thumbnail`.

    Returns:
        (3, H, W) uint8.

    Raises:
        DataError: The numbers of texts and images differ, or an image has an invalid shape.

    >>> image_grid(torch.zeros(3, 3, 32, 32), columns=2).shape
    torch.Size([3, 210, 210])
    """
    if len(texts) not in (0, len(images)):
        raise DataError(
            f"image_grid: texts must have as many items as images, {len(images)}, or none; got {len(texts)}"
        )
    thumbs = [thumbnail(image, size) for image in images]
    lines = [list(map(clean, text.split("\n"))) for text in texts]

    # the size of a cell, and of the canvas
    side = max((max(t.shape[1:]) for t in thumbs), default=size)
    cell = side + GAP + max(map(len, lines), default=0) * (TEXT + 4)
    rows = math.ceil(len(thumbs) / columns)
    top = GAP + (TITLE + GAP if title else 0)
    width = GAP + columns * (side + GAP)
    if title:
        width = max(width, min(6 * size, 2 * GAP + math.ceil(_font(TITLE).getlength(clean(title)))))

    # the title, then each thumbnail centred in its cell, with its text below
    canvas = Image.new("RGB", (width, top + rows * cell), "white")
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((GAP, GAP), _fit(clean(title), TITLE, width - 2 * GAP), fill="black", font=_font(TITLE))
    for i, thumb in enumerate(thumbs):
        x, y = GAP + i % columns * (side + GAP), top + i // columns * cell
        offset = x + (side - thumb.shape[2]) // 2, y + (side - thumb.shape[1]) // 2
        canvas.paste(Image.fromarray(thumb.permute(1, 2, 0).numpy()), offset)
        for row, line in enumerate(lines[i] if lines else ()):
            at = (x, y + side + 1 + row * (TEXT + 4))
            draw.text(at, _fit(line, TEXT, side), fill="black", font=_font(TEXT))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()


def stack(images: Sequence[Tensor]) -> Tensor:
    """Stack uint8 images (3, h, w) vertically, left-aligned on white: (3, sum of h, max of w)."""
    width = max(image.shape[2] for image in images)
    return torch.cat([F.pad(image, (0, width - image.shape[2]), value=255) for image in images], dim=1)


def _fit(text: str, height: int, width: int) -> str:
    """Return the text cut to at most ``width`` pixels."""
    if _font(height).getlength(text) <= width:
        return text
    while text and _font(height).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache(maxsize=4)
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)
