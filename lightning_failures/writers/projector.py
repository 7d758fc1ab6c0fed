"""Points for TensorBoard's projector: embeddings, thumbnails and metadata of some examples.

The files are not written by ``SummaryWriter.add_embedding``, which adds points at every step and never removes any,
breaks on names with a tab or a line break, and prints a message if the folder exists.

``SummaryWriter`` keeps the projector's configuration in ``_projector_config`` and writes the whole file from it when
the user calls ``add_embedding``. No public method adds an entry, so this file sets that attribute: without it, our
points would vanish at the user's next call. A test of this file notices when TensorBoard's internals change.
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import clean
from lightning_failures.report.example_rows import ExampleRow
from lightning_failures.report.gallery import Thumbnails
from lightning_failures.report.image_encoding import to_png

FOLDER = "failures_projector"
CONFIG_FILE = "projector_config.pbtxt"
TENSORS_FILE, METADATA_FILE, SPRITE_FILE = "tensors.tsv", "metadata.tsv", "sprite.png"
_RIGHT, _WRONG = (61, 154, 95), (217, 77, 38)  # as on the page
KEPT_ANALYSES = 2
"""Analyses whose points are kept: a running TensorBoard goes on reading the files that it found at its start."""

COLUMNS = ("label", "id", "prediction", "right", "confidence", "decision value", "flagged", "leaf")
"""Metadata columns; TensorBoard labels a point with the first one."""


def write_projector(writer: Any, tag: str, step: int, rows: Sequence[ExampleRow], thumbnails: Thumbnails) -> None:
    """Write the points of one analysis in place of earlier points with the same tag; other tags are kept.

    Nothing is written without embeddings, or if the log folder is not on a local disk.

    Args:
        writer: A ``SummaryWriter``.
        tag: Name of the points.
        step: The global step of the training.
        rows: n rows, one a thumbnail.
        thumbnails: n thumbnails with embeddings (n, D). Examples whose embedding is not finite are left out.
    """
    if thumbnails.embeddings is None or "://" in str(writer.log_dir):
        return
    embedded = torch.isfinite(thumbnails.embeddings).all(1)
    if not embedded.any():
        return
    embeddings, images = thumbnails.embeddings[embedded], thumbnails.images[embedded]
    log_dir = Path(writer.log_dir)
    here = log_dir / FOLDER / tag.replace("/", "-") / f"{step:08d}"

    write_atomically(here / TENSORS_FILE, _tensors_tsv(embeddings))
    write_atomically(here / METADATA_FILE, metadata_tsv(list(compress(rows, embedded.tolist()))))
    right = [row.right for row in compress(rows, embedded.tolist())]
    write_atomically(here / SPRITE_FILE, sprite(framed(images, right)))
    _register(writer, tag, step, here.relative_to(log_dir).as_posix(), (*embeddings.shape, *images.shape[2:]))

    earlier = sorted((path for path in here.parent.iterdir() if path != here), key=lambda path: path.stat().st_mtime)
    for old in earlier[: -(KEPT_ANALYSES - 1)]:
        shutil.rmtree(old, ignore_errors=True)


def _register(writer: Any, tag: str, step: int, folder: str, sizes: tuple[int, ...]) -> None:
    """Add the files to the projector configuration of the run; ``sizes`` are (n, D, height, width)."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

    n, dim, height, width = sizes
    info = EmbeddingInfo(
        tensor_name=f"{tag}:{step:05d}",  # a new name at every step, because TensorBoard caches points by name
        tensor_path=f"{folder}/{TENSORS_FILE}",
        tensor_shape=[n, dim],
        metadata_path=f"{folder}/{METADATA_FILE}",
    )
    info.sprite.image_path = f"{folder}/{SPRITE_FILE}"
    info.sprite.single_image_dim.extend([width, height])
    path = Path(writer.log_dir) / CONFIG_FILE
    config = _read_config(path, ProjectorConfig)
    others = [entry for entry in config.embeddings if not entry.tensor_name.startswith(f"{tag}:")]
    del config.embeddings[:]
    config.embeddings.extend([*others, info])
    write_atomically(path, text_format.MessageToString(config).encode())
    writer._projector_config = config  # see the module's docstring


def _read_config(path: Path, kind: Any) -> Any:
    """Return the projector configuration of a run; an empty one if there is no valid file."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), kind())
    except (FileNotFoundError, UnicodeDecodeError, text_format.ParseError):
        return kind()


def _tensors_tsv(embeddings: Tensor) -> bytes:
    """Return (n, D) float32 as n lines of numbers separated by tabs."""
    text = io.BytesIO()
    np.savetxt(text, embeddings.numpy(), fmt="%.6g", delimiter="\t")
    return text.getvalue()


def metadata_tsv(rows: Sequence[ExampleRow]) -> bytes:
    r"""Return a header and one line a point; tabs and line breaks in texts become spaces.

    >>> metadata_tsv([ExampleRow(7, "a\tb", "c\nd", False, 0.25, None, None, None)]).splitlines()[1]
    b'a b\t7\tc d\tno\t0.25\t\t\t'
    """
    return "".join("\t".join(cells) + "\n" for cells in (COLUMNS, *map(_cells, rows))).encode()


def _cells(row: ExampleRow) -> tuple[str, ...]:
    """Return the cells of one line; TensorBoard shows empty cells as unknown."""
    return (
        clean(row.label),
        str(row.id),
        clean(row.prediction),
        "yes" if row.right else "no",
        "" if row.confidence is None else f"{row.confidence:.4g}",
        "" if row.decision_value is None else f"{row.decision_value:.4g}",
        "" if row.flagged is None else "yes" if row.flagged else "no",
        "" if row.leaf is None else clean(f"{row.label}: {row.leaf}"),
    )


def framed(images: Tensor, right: Sequence[bool]) -> Tensor:
    """Return thumbnails (n, 3, s, s) with a frame each: broad and red where the model is wrong, thin and green else.

    The projector opens with the pictures and without a colour map, and nothing in its files can choose one.

    >>> framed(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), [False])[0, :, 8, 0].tolist()
    [217, 77, 38]
    """
    found = images.clone()
    side = images.shape[-1]
    for image, is_right in zip(found, right, strict=True):
        width = max(side // (24 if is_right else 10), 1)
        colour = torch.tensor(_RIGHT if is_right else _WRONG, dtype=torch.uint8)[:, None, None]
        image[:, :width] = image[:, -width:] = colour
        image[:, :, :width] = image[:, :, -width:] = colour
    return found


def sprite(images: Tensor) -> bytes:
    """Return one square PNG with all thumbnails, (n, 3, s, s) uint8, row by row.

    >>> from PIL import Image
    >>> Image.open(io.BytesIO(sprite(torch.zeros(5, 3, 8, 8, dtype=torch.uint8)))).size
    (24, 24)
    """
    n, _, height, width = images.shape
    side = math.isqrt(n - 1) + 1
    grid = torch.zeros(side * side, 3, height, width, dtype=torch.uint8)
    grid[:n] = images
    # (side, side, 3, h, w) -> (3, side, h, side, w) -> (3, H, W)
    grid = grid.view(side, side, 3, height, width).permute(2, 0, 3, 1, 4)
    return to_png(grid.reshape(3, side * height, side * width))
