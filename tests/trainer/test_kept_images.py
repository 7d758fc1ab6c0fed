"""Images of a stream are kept within bounds: the hash sample, the hardest, and the close calls."""

import numpy as np
import torch

from lightning_failures.core.budget import sampling_rank
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.kept_images import KEPT_EXTREMES, KEPT_SAMPLE, KEPT_SIDE, KeptImages
from lightning_failures.trainer.ranks import Communicator

N = 1500


def kept_of(order, confidence, *, batch_size=50, seed=0, side=4):
    kept = KeptImages(seed)
    for ids in torch.split(torch.as_tensor(order), batch_size):
        images = (ids % 256).float()[:, None, None, None].expand(-1, 3, side, side) / 255
        kept.add((images - 0.5) / 0.25, ImageSpace((0.5,), (0.25,)), ids, confidence[ids])
    return kept


def test_kept__the_sample_the_hardest_and_the_close_calls_whatever_the_order():
    confidence = torch.rand(N, generator=torch.Generator().manual_seed(0))
    sample = np.argsort(sampling_rank(np.arange(N), 0))[:KEPT_SAMPLE].tolist()
    hardest = confidence.argsort()[:KEPT_EXTREMES].tolist()
    close = (confidence - 0.5).abs().argsort()[:KEPT_EXTREMES].tolist()
    expected = {*sample, *hardest, *close}
    for order in (range(N), torch.randperm(N, generator=torch.Generator().manual_seed(1))):
        images = kept_of(order, confidence).gathered(Communicator())
        assert set(images) == expected
        assert all(image.dtype == torch.uint8 and image.unique().tolist() == [i % 256] for i, image in images.items())


def test_kept__memory_is_bounded():
    images = kept_of(range(N), torch.rand(N), side=200).gathered(Communicator())
    assert len(images) <= KEPT_SAMPLE + 2 * KEPT_EXTREMES
    for image in images.values():
        assert image.shape == (3, KEPT_SIDE, KEPT_SIDE)
        assert image.untyped_storage().nbytes() == image.numel()


def test_kept__repeated_ids_and_unknown_confidence():
    order = [*range(40), *range(40), 3, 3]
    kept = kept_of(order, torch.full((40,), float("nan")), batch_size=7)
    assert sorted(kept.gathered(Communicator())) == list(range(40))


def test_kept__images_that_do_not_fit_are_left_out():
    kept = KeptImages()
    images = torch.rand(4, 3, 8, 8)
    images[1] = float("nan")
    images[2] *= 900
    kept.add(images, ImageSpace(), torch.arange(4), torch.zeros(4))
    assert sorted(kept.gathered(Communicator())) == [0, 3]
    kept.add(torch.rand(2, 3, 8, 8) * 900, ImageSpace(), torch.tensor([7, 8]), torch.zeros(2))
    kept.add(torch.rand(2, 3), ImageSpace(), torch.tensor([9, 10]), torch.zeros(2))
    assert sorted(kept.gathered(Communicator())) == [0, 3]
