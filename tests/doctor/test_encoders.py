"""Encoders that are missing, random or wrong."""

from __future__ import annotations

import pytest
import torch

from lightning_failures import FailureModes
from lightning_failures.doctor.dry_run import options_of
from lightning_failures.doctor.encoders import check_encoder, check_robust_encoder, examine_encoder
from lightning_failures.trainer.options import group_options
from tests.doctor.contexts import context, only, statuses
from tests.helpers.toy import ColourEncoder, callback


class Moody(ColourEncoder):
    """Never gives the same twice, as dropout in train mode does."""

    def encode_images(self, images):
        return super().encode_images(images) + torch.randn(len(images), self.dim)


class Social(ColourEncoder):
    """Looks at the whole batch, as batch statistics in train mode do."""

    def encode_images(self, images):
        rows = super().encode_images(images)
        return rows - rows.mean(0)


class Broken(ColourEncoder):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def encode_images(self, images):
        return torch.full((len(images), self.dim), self.value)


class Narrow(ColourEncoder):
    def encode_images(self, images):
        return super().encode_images(images)[:, :5]


class Long(ColourEncoder):
    def encode_texts(self, texts):
        return torch.ones(len(texts), self.dim)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Moody(), "the second time"),
        (Social(), "alone"),
        (Broken(float("nan")), "not finite"),
        (Broken(1.0), "the same embedding"),
        (Narrow(), "(8, 12)"),
        (Long(), "unit vectors"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_encoder__that_cannot_be_trusted(encoder, message):
    assert message in only(examine_encoder(encoder), "problem").message


def test_encoder__in_order():
    assert only(examine_encoder(ColourEncoder()), "ok").facts["dim"] == 12


def test_encoder__that_is_not_there_tells_what_is(tmp_path):
    found = list(check_encoder(context(tmp_path, encoder="embedded:digit")))
    assert "embedded:digits" in only(found, "problem").message


@pytest.mark.slow
def test_encoder__the_default_may_be_missing(tmp_path):
    options = {name: value for name, value in options_of(callback()).items() if name != "encoder"}
    made = context(tmp_path)
    made.callback = FailureModes(**group_options(options))
    assert "would only be graded" in only(check_encoder(made), "warning").message


def test_robust_encoder__features_must_be_means_of_maps(tmp_path):
    class Crooked(ColourEncoder):
        def encode_images(self, images):
            return 1 - super().encode_images(images)

    crooked = list(check_robust_encoder(context(tmp_path, robust_encoder=Crooked())))
    assert "not the means" in only(crooked, "problem").message
    assert set(statuses(check_robust_encoder(context(tmp_path, robust_encoder=ColourEncoder())))) == {"ok"}
    assert statuses(check_robust_encoder(context(tmp_path))) == ["skipped"]
