"""The frozen encoders: whether they can be loaded, offline too, and are deterministic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_failures.core.rng import isolated_rng
from lightning_failures.doctor.disk import bytes_text
from lightning_failures.doctor.dry_run import CheckContext
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.encoders import Encoder, gives_maps, gives_texts, load_encoder
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.cached import DEFAULT_ENCODER, CachedEncoder
from lightning_failures.errors import EncoderError

TOLERANCE = 1e-3
"""Largest difference of two equal embeddings, relative to their length."""

_IMAGE_SIZE = 64


def check_encoder(context: CheckContext) -> Iterator[Finding]:
    """Check the encoder of the failure directions."""
    yield from _load_and_examine(context, "directions")


def check_robust_encoder(context: CheckContext) -> Iterator[Finding]:
    """Check the robust encoder of the failure trees, and its feature maps."""
    if context.callback.robust_encoder is None:
        yield skipped("robust_encoder=None: no failure trees")
        return
    yield from _load_and_examine(context, "trees")
    if cached := context.cached_encoders.get("trees"):
        yield from _maps(cached.encoder)


def _load_and_examine(context: CheckContext, role: str) -> Iterator[Finding]:
    """Load an encoder as the callback does, and examine it; a missing default encoder is only a warning."""
    robust = role == "trees"
    spec = context.callback.robust_encoder if robust else context.callback.encoder
    if spec is None:
        yield skipped("encoder=None: no failure directions")
        return
    device = (
        context.trainer.strategy.root_device
        if context.callback.device is None
        else torch.device(context.callback.device)
    )
    try:
        encoder, fetched = _load(spec, device, robust=robust)
    except EncoderError as error:
        if isinstance(spec, type(DEFAULT_ENCODER)):
            yield warning(
                f"The default encoder could not be loaded, so examples would only be graded. {error}",
                "Name an encoder that is available: encoder='...'.",
            )
        else:
            yield problem(str(error))
        return
    context.cached_encoders[role] = CachedEncoder(encoder, EmbeddingCache(context.folder / "cache"))
    yield from examine_encoder(encoder, device=device)
    if fetched:
        yield warning(
            "Its weights were not on this machine and have just been downloaded.",
            "A machine without network access needs a copy of the Hugging Face cache (HF_HOME).",
        )
    else:
        yield ok("needs no network: its weights are on this machine")


def _load(spec: str | Path | Encoder, device: torch.device, *, robust: bool) -> tuple[Encoder, bool]:
    """Return the encoder, and whether loading it needed the network."""
    with isolated_rng():
        try:  # offline first, to learn whether the network is needed
            with _without_hub():
                return load_encoder(spec, device=device, robust=robust), False
        except EncoderError:
            return load_encoder(spec, device=device, robust=robust), True


@contextmanager
def _without_hub() -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def examine_encoder(encoder: Encoder, *, device: torch.device | None = None) -> Iterator[Finding]:
    """Check that equal images have equal embeddings, alone and in a batch, with the declared shape and type."""
    images = torch.rand(8, 3, _IMAGE_SIZE, _IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    images[4:] = images[4:].mean((2, 3), keepdim=True)  # uniform colours besides noise
    # the same images twice in a batch, and one by one
    first, second = encoder.encode_images(images), encoder.encode_images(images)
    alone = torch.cat([encoder.encode_images(image[None]) for image in images])
    remedy = "Put it into eval mode (dropout, batch statistics), or use another encoder: the cache would hold noise."
    length = float(first.double().norm(dim=1).mean()) or 1.0
    if first.shape != (8, encoder.dim) or first.dtype != torch.float32 or first.device.type != "cpu":
        yield problem(
            f"{encoder.name}: 8 images give {tuple(first.shape)} {first.dtype} on {first.device}, not"
            f" (8, {encoder.dim}) torch.float32 on cpu."
        )
    elif not torch.isfinite(first).all():
        yield problem(
            f"{encoder.name}: embeddings are not finite.", "The weights are damaged, or half precision overflows."
        )
    elif _distance(first, second, length) > TOLERANCE:
        yield problem(f"{encoder.name}: the same images have different embeddings the second time.", remedy)
    elif _distance(first, alone, length) > 10 * TOLERANCE:
        yield problem(f"{encoder.name}: an image alone has a different embedding than in a batch.", remedy)
    elif _all_equal(first):
        yield problem(f"{encoder.name}: all images have the same embedding.", "The weights are damaged.")
    elif gives_texts(encoder) and float((first.norm(dim=1) - 1).abs().max()) > 10 * TOLERANCE:
        yield problem(
            f"{encoder.name}: image embeddings are not unit vectors, so captions cannot be compared with them."
        )
    else:
        where = getattr(encoder, "device", device)
        yield ok(
            f"{encoder.name}: embeddings of {encoder.dim} numbers, on {where}, {bytes_text(weight_bytes(encoder))},"
            f" fingerprint {encoder.fingerprint[:12]}; equal images have equal embeddings",
            name=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
            device=str(where),
            weight_bytes=weight_bytes(encoder),
        )


def _distance(one: Tensor, other: Tensor, length: float) -> float:
    """Return the largest distance of two rows, relative to a length."""
    return float((one.double() - other.double()).norm(dim=1).max()) / length


def _all_equal(rows: Tensor) -> bool:
    rows = rows.double()  # squares of float32 may exceed its range
    return float((rows - rows.mean(0)).norm(dim=1).max()) <= TOLERANCE * float(rows.norm(dim=1).mean())


def weight_bytes(encoder: Encoder) -> int:
    """Return the bytes of the weights of an encoder."""
    modules = [part for part in vars(encoder).values() if isinstance(part, nn.Module)]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _maps(encoder: Encoder) -> Iterator[Finding]:
    """Check that features are the means of the feature maps; otherwise heat maps do not match the rules."""
    if not gives_maps(encoder):
        yield warning(
            f"{encoder.name} has no feature maps, so rules have no heat maps.", "Use ModuleEncoder(module, layer)."
        )
        return
    images = torch.rand(4, 3, _IMAGE_SIZE, _IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    maps, features = encoder.encode_maps(images), encoder.encode_images(images)
    if maps.ndim != 4 or maps.shape[:2] != features.shape:
        yield problem(f"{encoder.name}: maps have the shape {tuple(maps.shape)}, features {tuple(features.shape)}.")
    elif _distance(maps.mean((2, 3)), features, float(features.double().norm(dim=1).mean()) or 1.0) > 10 * TOLERANCE:
        yield problem(
            f"{encoder.name}: features are not the means of the feature maps.",
            "Make encode_maps return the maps whose means are the features.",
        )
    else:
        yield ok(f"heat maps of {maps.shape[2]} x {maps.shape[3]}, whose means are the features")
