"""Feature attacks within a time limit, and their store."""

import pytest
import torch
from torch import nn

from lightning_failures.core.budget import Deadline
from lightning_failures.encoders import ModuleEncoder
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.trainer.pictures import feature_views
from lightning_failures.trainer.pictures.feature_views import LEVELS, FeatureViews, attack_features
from tests.helpers.toy import ColourEncoder
from tests.trainer.pictures.planted import draw, of_kind


def test_attack_features__without_gradients_and_after_an_error(planted):
    seen = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (without,) = attack_features(FeatureViews(ColourEncoder()), [(0, seen)])
    assert (without.images, without.note) == (None, "no feature attack: the encoder gives no gradients")

    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Identity()

        def forward(self, x):
            return self.last(x.flatten(1).detach())

    views = FeatureViews(ModuleEncoder(Rounds(), "last"))
    found = attack_features(views, [(0, seen), (1, seen)])
    assert [one.images for one in found] == [None, None]
    assert all(one.note.startswith("feature attack left out: RuntimeError") for one in found)


def test_attack_features__fewer_steps_where_time_is_short(planted, monkeypatch):
    """On a clock on which a step takes a second."""
    encoder, seen = planted[2], planted[2].view(planted[0][:2])
    clock = [0.0]
    attack = feature_views.feature_attack

    def timed(*args, iterations, **options):
        clock[0] += iterations
        return attack(*args, iterations=1, **options)

    monkeypatch.setattr(feature_views, "feature_attack", timed)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("lightning_failures.core.budget.perf_counter", lambda: clock[0])
    wanted = [(n, seen) for n in range(4)]

    def steps(seconds):
        return [one.iterations for one in attack_features(FeatureViews(encoder), wanted, Deadline(clock[0] + seconds))]

    assert steps(3000.0) == [500, 500, 500, 500]
    assert steps(4 * 210.0) == [200, 200, 200, 200]
    assert steps(70.0) == [25, 25, 0, 0]  # the most important ones
    assert steps(20.0) == [0, 0, 0, 0]


@pytest.mark.slow
def test_cache__the_same_images_are_not_attacked_again(planted, tmp_path):
    encoder = planted[2]
    cache = EmbeddingCache(tmp_path)
    first, _ = draw(planted, store=cache.store(encoder.fingerprint))
    before = encoder.passes
    again, reported = draw(planted, store=EmbeddingCache(tmp_path).store(encoder.fingerprint))  # another process
    assert encoder.passes - before == len(reported)  # how strong each is after its attack
    for one, other in zip(first.pictures, again.pictures, strict=True):
        assert torch.equal(one.image, other.image)
    # no deadline can take them away
    late, _ = draw(planted, store=cache.store(encoder.fingerprint), deadline=Deadline.after(-1))
    assert all(len(picture.rows) == 3 for picture in of_kind(late, "features/"))
    # another encoder has none of them
    before = encoder.passes
    draw(planted, store=cache.store("another"))
    assert encoder.passes - before > len(reported) * LEVELS[-1]
