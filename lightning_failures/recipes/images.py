"""A data set of image files with labels, for the layouts that torchvision does not read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from lightning_failures.core.types import IntArray


class ImageFiles(Dataset[Any]):
    """Image files with labels, and further attributes with one value for each file.

    Args:
        files: n paths.
        labels: n labels: int, or tensors.
        classes: Names of the classes.
        transform: From a PIL image in RGB to a tensor.
        change: ``(image, index) -> image``, before the transform; None: no change.
        **attributes: n values each, such as sources and metadata; attributes of the data set.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        labels: Sequence[Any],
        classes: Sequence[str],
        transform: Callable[[Any], Any],
        *,
        change: Callable[[Image.Image, int], Image.Image] | None = None,
        **attributes: Sequence[Any],
    ) -> None:
        self.files, self.labels, self.classes = [str(file) for file in files], list(labels), list(classes)
        self.transform, self.change = transform, change
        self.names = list(attributes)
        for name, values in attributes.items():
            setattr(self, name, list(values))

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return the image and the label of a file."""
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        if self.change is not None:
            image = self.change(image, index)
        return self.transform(image), self.labels[index]

    def chosen(self, rows: IntArray, transform: Callable[[Any], Any] | None = None) -> ImageFiles:
        """Return a data set of some of the files, with another transform if one is given."""
        places = rows.tolist()
        return ImageFiles(
            [self.files[k] for k in places],
            [self.labels[k] for k in places],
            self.classes,
            transform or self.transform,
            change=self.change,
            **{name: [getattr(self, name)[k] for k in places] for name in self.names},
        )
