"""The frozen encoders: can they be had, without a network too, and are they steady?"""

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

TOLERANCE = 1e-3  # of the length of an embedding
_SIZE = 64


def check_encoder(case: CheckContext) -> Iterator[Finding]:
    """The encoder of the failure directions."""
    yield from _opened(case, "directions")


def check_robust_encoder(case: CheckContext) -> Iterator[Finding]:
    """The encoder of the failure trees."""
    if case.modes.robust_encoder is None:
        yield skipped("robust_encoder=None: no failure trees")
        return
    yield from _opened(case, "trees")
    if cached := case.cached_encoders.get("trees"):
        yield from _maps(cached.encoder)


def _opened(case: CheckContext, role: str) -> Iterator[Finding]:
    """Load as the callback does; what it says when the default cannot be had is a warning here too."""
    robust = role == "trees"
    spec = case.modes.robust_encoder if robust else case.modes.encoder
    if spec is None:
        yield skipped("encoder=None: no failure directions")
        return
    device = case.trainer.strategy.root_device if case.modes.device is None else torch.device(case.modes.device)
    try:
        encoder, fetched = _load(spec, device, robust=robust)
    except EncoderError as error:
        if isinstance(spec, type(DEFAULT_ENCODER)):
            yield warning(
                f"The default encoder cannot be had, so there would be grades but no failure directions. {error}",
                "Name one that is there, encoder='...'.",
            )
        else:
            yield problem(str(error))
        return
    case.cached_encoders[role] = CachedEncoder(encoder, EmbeddingCache(case.folder / "cache"))
    yield from examine_encoder(encoder, device=device)
    if fetched:
        yield warning(
            "Its weights were not on this machine; they have just been downloaded.",
            "A machine without a network needs a copy of the Hugging Face cache (HF_HOME).",
        )
    else:
        yield ok("needs no network: all of it is on this machine")


def _load(spec: str | Path | Encoder, device: torch.device, *, robust: bool) -> tuple[Encoder, bool]:
    """The encoder, and whether the network was needed for it."""
    with isolated_rng():
        try:
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
    """Check that equal images have equal embeddings, alone and among others, and that these are what they should be."""
    images = torch.rand(8, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
    images[4:] = images[4:].mean((2, 3), keepdim=True)  # plain colours beside noise
    first, second = encoder.encode_images(images), encoder.encode_images(images)
    alone = torch.cat([encoder.encode_images(image[None]) for image in images])
    remedy = "Put it into eval mode (dropout, batch statistics), or give another encoder: the cache would hold chance."
    size = float(first.norm(dim=1).mean()) or 1.0
    if first.shape != (8, encoder.dim) or first.dtype != torch.float32 or first.device.type != "cpu":
        yield problem(
            f"{encoder.name}: 8 images give {tuple(first.shape)} {first.dtype} on {first.device}, not"
            f" (8, {encoder.dim}) torch.float32 on cpu."
        )
    elif not torch.isfinite(first).all():
        yield problem(
            f"{encoder.name}: embeddings are not finite.", "The weights are damaged, or half precision overflows."
        )
    elif _apart(first, second, size) > TOLERANCE:
        yield problem(f"{encoder.name}: the same images have other embeddings the second time.", remedy)
    elif _apart(first, alone, size) > 10 * TOLERANCE:
        yield problem(f"{encoder.name}: an image alone has another embedding than in a batch.", remedy)
    elif _alike(first):
        yield problem(f"{encoder.name}: all images have the same embedding.", "The weights are damaged.")
    elif gives_texts(encoder) and float((first.norm(dim=1) - 1).abs().max()) > 10 * TOLERANCE:
        yield problem(f"{encoder.name}: embeddings of images are no unit vectors, so captions cannot be compared.")
    else:
        where = getattr(encoder, "device", device)
        yield ok(
            f"{encoder.name}: {encoder.dim} numbers an image, on {where}, {bytes_text(weight_bytes(encoder))},"
            f" fingerprint {encoder.fingerprint[:12]}; equal images have equal embeddings",
            name=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
            device=str(where),
            weight_bytes=weight_bytes(encoder),
        )


def _apart(one: Tensor, other: Tensor, size: float) -> float:
    return float((one - other).norm(dim=1).max()) / size


def _alike(rows: Tensor) -> bool:
    return float((rows - rows.mean(0)).norm(dim=1).max()) <= TOLERANCE * float(rows.norm(dim=1).mean())


def weight_bytes(encoder: Encoder) -> int:
    """Of the modules that an encoder holds."""
    modules = [part for part in vars(encoder).values() if isinstance(part, nn.Module)]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _maps(encoder: Encoder) -> Iterator[Finding]:
    """Features must be the means of maps, or heat maps show something else than the rules."""
    if not gives_maps(encoder):
        yield warning(f"{encoder.name} has no feature maps: rules have no heat maps.", "ModuleEncoder(module, layer)")
        return
    images = torch.rand(4, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(1))
    maps, features = encoder.encode_maps(images), encoder.encode_images(images)
    if maps.ndim != 4 or maps.shape[:2] != features.shape:
        yield problem(f"{encoder.name}: maps have the shape {tuple(maps.shape)}, features {tuple(features.shape)}.")
    elif _apart(maps.mean((2, 3)), features, float(features.norm(dim=1).mean()) or 1.0) > 10 * TOLERANCE:
        yield problem(f"{encoder.name}: features are not the means of the feature maps.", "encode_maps must fit.")
    else:
        yield ok(f"heat maps of {maps.shape[2]} x {maps.shape[3]}, whose means are the features")
