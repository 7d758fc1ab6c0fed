"""The budget of the images of a page."""

import pytest
import torch

from lightning_failures.report.html.images import ImageBudget
from lightning_failures.report.image_encoding import ImageEncoder, data_uri


@pytest.mark.parametrize("room", [0, 10, 500])
def test_image_budget__leaves_out_what_has_no_room(room):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    size = len(data_uri(image, lossless=False))
    budget = ImageBudget(room, ImageEncoder())
    texts = [budget.add(image) for _ in range(9)]
    fit = room // size
    assert [text is not None for text in texts] == [True] * fit + [False] * (9 - fit)
    assert budget.omitted == 9 - fit
