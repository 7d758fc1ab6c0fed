"""What names an example beside its index: the digest of its image, and the name of its file."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from lightning_failures.data.digests import UNKNOWN_DIGEST, file_name_hash, image_digests
from lightning_failures.errors import DataError
from lightning_failures.trainer.dataset_attributes import dataset_attribute, dataset_length
from lightning_failures.trainer.image_space import ImageSpace


def digests_in(images: Tensor, space: ImageSpace) -> Tensor:
    """Return the digest of each image of a batch, normalisation undone: (B,) int64 on the CPU.

    An image that cannot be brought to [0, 1] has an unknown digest, -1; the others of its batch keep theirs. Pixels are
    rounded to 256 levels on the device of the images, and hashed on the CPU.

    Args:
        images: (B, C, H, W), as the model saw them.
        space: How to bring the images to [0, 1].
    """
    if images.dtype == torch.uint8 and images.ndim == 4:
        return image_digests(images)
    try:
        return image_digests(space.to_unit(images))
    except DataError:
        if len(images) == 1:
            return torch.tensor([UNKNOWN_DIGEST])
    if images.ndim != 4:
        return torch.full((len(images),), UNKNOWN_DIGEST)
    return torch.cat([digests_in(image, space) for image in torch.split(images, 1)])


def hashed_file_names(dataset: Any, ids: Tensor) -> Tensor | None:
    """Return a hash of the file name of some examples, (n,) int64; None if the dataset does not list its files.

    Files are listed in ``samples`` or ``imgs``, as in torchvision's ``ImageFolder``: paths, or tuples that begin with
    one. Names are relative to ``root``, so that a copy of the data elsewhere has the same ones.

    Args:
        dataset: The dataset, or None.
        ids: (n,) int64, indices of the dataset.

    >>> class Folder:
    ...     root, samples = "/data", [("/data/cat/1.png", 0), ("/data/dog/1.png", 1)]
    ...     def __len__(self):
    ...         return 2
    >>> class Copy(Folder):
    ...     root, samples = "/copy", [("/copy/cat/1.png", 0), ("/copy/dog/2.png", 1)]
    >>> (hashed_file_names(Folder(), torch.arange(2)) == hashed_file_names(Copy(), torch.arange(2))).tolist()
    [True, False]
    """
    root = dataset_attribute(dataset, "root")
    prefix = str(root).rstrip("/\\") if isinstance(root, str | PurePath) else ""
    for name in ("samples", "imgs"):
        listed = dataset_attribute(dataset, name)
        if not isinstance(listed, list | tuple) or len(listed) != dataset_length(dataset):
            continue
        entries = [listed[index] for index in ids.tolist()]
        paths = [entry[0] if isinstance(entry, list | tuple) and entry else entry for entry in entries]
        if all(isinstance(path, str | PurePath) for path in paths):
            return torch.tensor([file_name_hash(str(path).removeprefix(prefix)) for path in paths], dtype=torch.int64)
    return None
