"""Which pictures are drawn, from a real analysis of planted failures."""

import dataclasses
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_failures.analysis.analyse import analyse
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.budget import Deadline
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import GroupReport, LeafReport
from lightning_failures.encoders import ModuleEncoder
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.report.feature_names import FeatureName, FeatureNames
from lightning_failures.report.run_folder import open_run
from lightning_failures.trainer.pictures import feature_views
from lightning_failures.trainer.pictures.classes_and_leaves import LEAF_IMAGES, browsed_ids, draw_gallery
from lightning_failures.trainer.pictures.feature_views import LEVELS, FeatureViews, attack_features
from lightning_failures.trainer.pictures.features import FEATURE_IMAGES
from lightning_failures.trainer.pictures.sources import PictureInputs, Rows, pictured_groups, pictured_members
from tests.helpers.toy import ColourEncoder, OracleClassifier, callback, loader, trainer

N = 300


class Counting(ModuleEncoder):
    """Counts the forward passes of its module."""

    passes = 0

    def _run(self, prepared):
        self.passes += 1
        return super()._run(prepared)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Wide images, twice as wide as high; nearly all with a bright bar in the middle fail, and few others."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.rand(N, 3, 16, 32, generator=generator)
    bar = torch.rand(N, generator=generator) < 0.4
    images[bar, :, :, 12:16] = 1.0
    images[:, :, :, :4] = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)  # a green edge that the encoder crops away
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net[0].reset_parameters()
    encoder = Counting(net, "1", image_size=8, name="net")
    failed = bar ^ (torch.rand(N, generator=generator) < 0.1)
    confidence = torch.rand(N, generator=generator)
    grades = Grades(torch.arange(N), torch.zeros(N, dtype=torch.int64), failed.long(), confidence, ("wide", "other"))
    features = encoder.encode_images(images)
    report = analyse(grades, features, features=features, permutations=99)
    store = EmbeddingCache(tmp_path_factory.mktemp("cache")).store("attacks are made once")
    return images, bar, encoder, grades, features, store, report


def sources(planted, **options):
    images, _bar, encoder, _grades, features, store, report = planted
    members = pictured_members(report, 5)
    given = {
        "images": lambda ids: images[list(ids)],
        "robust": encoder,
        "features": Rows(members, features[members]),
        "embeddings": Rows(torch.arange(N), features),
        "captions": None,
        "browsed": browsed_ids(report.table, seed=0, limit=20),
        "store": store,
    }
    return PictureInputs(**(given | options))


def draw(planted, worst_k=5, **options):
    return draw_gallery(planted[-1], planted[3], sources(planted, **options), worst_k=worst_k)


def of_kind(gallery, kind):
    return [picture for picture in gallery.pictures if picture.tag.startswith(kind)]


def test_draw_gallery__classes_features_and_leaves_with_stable_tags(planted):
    report = planted[-1]
    assert report.classes[0].pattern
    (shown,) = pictured_groups(report, 5)
    gallery, features = draw(planted)
    assert [picture.tag for picture in gallery.pictures] == [
        "classes/wide",
        *(f"features/{n}" for n in dict.fromkeys([*shown.path, *shown.tree.split_features])),
        *(f"leaves/label/wide/{i}" for i in shown.leaves),
    ]
    assert shown.best in shown.leaves
    assert {i for i, leaf in enumerate(shown.group.leaves) if leaf.valid} <= set(shown.leaves)
    assert [(one.feature, one.groups) for one in features] == [
        (n, ("label/wide",)) for n in dict.fromkeys([*shown.path, *shown.tree.split_features])
    ]
    again, _ = draw(planted)
    for one, other in zip(gallery.pictures, again.pictures, strict=True):
        assert torch.equal(one.image, other.image)


def test_pictured_groups__label_and_prediction_groups_in_turn(planted):
    report = planted[-1]
    (tree,) = {id(tree): tree for tree in report.trees.values() if len(tree.leaves) > 1}.values()

    def group(grouping, name, importance, pattern=True):
        leaves = tuple(LeafReport("", 9, 0.5, 0.5, value, True) for value in (importance, 0.0))
        return GroupReport(grouping, name, 9, pattern=pattern, leaves=leaves)

    groups = (
        group("prediction", "a", 0.9),
        group("prediction", "b", 0.8),
        group("prediction", "c", 0.7),
        group("label", "a", 0.1),
        group("label", "b", 0.2),
        group("label", "c", 0.9, pattern=False),
    )
    found = dataclasses.replace(
        report.with_report(groups=groups), trees={(g.grouping, g.class_name): tree for g in groups}
    )
    names = ["label/b", "prediction/a", "label/a", "prediction/b", "prediction/c"]
    assert [one.name for one in pictured_groups(found, 9)] == names
    assert [one.name for one in pictured_groups(found, 3)] == names[:3]
    assert pictured_groups(found, 0) == []


def test_draw_gallery__none_without_worst_classes_and_no_features_without_trees(planted):
    assert draw(planted, worst_k=0)[0].pictures == ()
    gallery, features = draw(planted, robust=None, features=None)
    assert [picture.tag for picture in gallery.pictures] == ["classes/wide"]
    assert features == ()


def test_feature_pictures__the_most_activating_images_of_the_group(planted):
    encoder, features = planted[2], planted[4]
    gallery, told = draw(planted)
    for one, picture in zip(told, of_kind(gallery, "features/"), strict=True):
        assert list(one.top_ids) == features[:, one.feature].argsort(descending=True)[:FEATURE_IMAGES].tolist()
        images, heat, attacks = picture.rows
        assert [tile.id for tile in images.tiles] == [tile.id for tile in heat.tiles] == list(one.top_ids)
        strengths = [tuple(map(float, tile.text.split(" -> "))) for tile in attacks.tiles]
        assert all(after > before for before, after in strengths)
        assert [f"{before:.2f}" for before, _ in strengths] == [tile.text.split("\n")[0] for tile in images.tiles]
        # what the tiles show is as strong as they say: the thumbnail repeats whole pixels
        small = torch.stack([tile.image[:, ::12, ::12] for tile in attacks.tiles])
        found = encoder.encode_images(small)[:, one.feature]
        assert torch.allclose(found, torch.tensor([after for _, after in strengths]), atol=0.02)


def test_feature_pictures__heat_maps_lie_on_what_the_model_saw(planted):
    """The encoder crops to the middle square: its maps belong on that square, not on the wide image."""
    gallery, _ = draw(planted)

    def shows_the_edge(picture):
        red, green, blue = picture.image.int()
        return bool(((green > 250) & (red < 5) & (blue < 5)).any())

    assert shows_the_edge(gallery.pictures[0])
    pictures = of_kind(gallery, "features/")
    assert all(tile.image.shape[1] == tile.image.shape[2] for one in pictures for row in one.rows for tile in row.tiles)
    assert not any(shows_the_edge(dataclasses.replace(one, rows=one.rows[:1])) for one in pictures)


def test_class_pictures__hardest_images_are_those_with_the_bar(planted):
    bar, report = planted[1], planted[-1]
    assert bar[list(report.classes[0].hardest_ids)].all()
    assert not bar[list(report.classes[0].easiest_ids)].any()


def test_class_pictures__least_confident_images_where_the_report_names_them(planted):
    grades, report = planted[3], planted[-1]
    least = tuple(grades.confidence.argsort()[:3].tolist())
    entries = (dataclasses.replace(report.classes[0], least_confident_ids=least), *report.classes[1:])
    gallery, _ = draw_gallery(report.with_report(classes=entries), grades, sources(planted), worst_k=1)
    row = gallery.pictures[0].rows[2]
    assert [tile.id for tile in row.tiles] == list(least)
    assert row.tiles[0].text.startswith(f"{float(grades.confidence[least[0]]):.2f}\n-> ")


def test_leaf_pictures__failures_of_the_leaf_and_correct_ones_of_it(planted):
    grades, report = planted[3], planted[-1]
    gallery, _ = draw(planted)
    (shown,) = pictured_groups(report, 5)
    for index, picture in zip(shown.leaves, of_kind(gallery, "leaves/"), strict=True):
        leaf = shown.tree.leaves[index]
        failures, successes = ([tile.id for tile in row.tiles] for row in picture.rows)
        assert len(failures) == min(LEAF_IMAGES, leaf.failures)
        assert set(failures) <= set(leaf.ids.tolist())
        assert grades.failed[failures].all()
        assert not grades.failed[successes].any()
        elsewhere = leaf.size == leaf.failures
        assert (set(successes) <= set(leaf.ids.tolist())) is not elsewhere
        assert ("rest of the group" in picture.rows[1].title) is elsewhere
        assert picture.rows[0].tiles[0].text == "-> other"
        assert leaf.rule in picture.caption
        assert failures != sorted(failures)  # a choice, not the first ones


def test_feature_pictures__captions_and_what_people_wrote(planted):
    features, report = planted[4], planted[-1]
    first = pictured_groups(report, 5)[0].path[0]
    top = features[:, first].argsort(descending=True)[:FEATURE_IMAGES]
    along = features[top].mean(0) - features.mean(0)
    # one candidate lies along what the most activating images have, the other against it
    candidates = ClassCaptions(("a photo of a bar", "a photo of none"), torch.stack([along, -along]), torch.zeros(4))
    names = FeatureNames({first: FeatureName("bright bar", "spurious", "add images without")})
    gallery, told = draw(planted, captions=lambda _k: candidates, names=names)
    assert (told[0].caption, told[0].name, told[0].tag) == ("a photo of a bar", "bright bar", "spurious")
    assert told[0].caption_score > 0.9
    assert told[0].caption_margin == pytest.approx(1.0, abs=1e-3)  # of two candidates
    text = of_kind(gallery, "features/")[0].caption
    assert text.startswith(f'feature {first} "bright bar" (spurious); looks like "bar" (hypothesis)')
    _, _, rule = text.partition("its most important leaf has ")
    assert f'feature {first} "bright bar"' in rule
    assert f'feature {first} "bright bar"' in of_kind(gallery, "leaves/")[0].caption


@pytest.mark.parametrize("worst", [None, lambda _k: None])
def test_feature_pictures__no_captions(planted, worst):
    assert {one.caption for one in draw(planted, captions=worst)[1]} == {None}


def test_thumbnails__in_order_with_embeddings_or_nan(planted):
    features, report = planted[4], planted[-1]
    browsed = browsed_ids(report.table, seed=0, limit=20)
    failed = report.table.failed[torch.isin(report.table.ids, browsed)]
    assert len(browsed) == 20
    assert int(failed.sum()) == 12  # of the many that there are
    known = browsed[:12]
    thumbnails = draw(planted, embeddings=Rows(known, features[known]))[0].thumbnails
    assert torch.equal(thumbnails.ids, browsed)
    assert thumbnails.images.shape == (20, 3, 48, 48)
    assert torch.equal(thumbnails.embeddings[:12], features[known])
    assert thumbnails.embeddings[12:].isnan().all()
    assert draw(planted, embeddings=None)[0].thumbnails.embeddings is None
    assert draw(planted, browsed=browsed[:0])[0].thumbnails is None


def test_deadline__attacks_are_left_out_and_the_caption_says_so(planted):
    gallery, told = draw(planted, deadline=Deadline.after(-1), store=None)
    assert gallery.thumbnails is not None  # however short an epoch is
    assert len(told) == len(of_kind(gallery, "features/")) > 0
    for picture in of_kind(gallery, "features/"):
        assert len(picture.rows) == 2
        assert picture.caption.endswith("feature attack left out: out of time")


def test_attack_features__without_gradients_and_after_an_error(planted):
    seen = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (plain,) = attack_features(FeatureViews(ColourEncoder()), [(0, seen)])
    assert (plain.images, plain.note) == (None, "no feature attack: the encoder gives no gradients")

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
    again, told = draw(planted, store=EmbeddingCache(tmp_path).store(encoder.fingerprint))  # another process
    assert encoder.passes - before == len(told)  # how strong each is after its attack
    for one, other in zip(first.pictures, again.pictures, strict=True):
        assert torch.equal(one.image, other.image)
    # no deadline can take them away
    late, _ = draw(planted, store=cache.store(encoder.fingerprint), deadline=Deadline.after(-1))
    assert all(len(picture.rows) == 3 for picture in of_kind(late, "features/"))
    # another encoder has none of them
    before = encoder.passes
    draw(planted, store=cache.store("another"))
    assert encoder.passes - before > len(told) * LEVELS[-1]


class Slow(TensorDataset):
    """So that an epoch lasts long enough for attacks."""

    def __getitem__(self, index):
        time.sleep(0.025)
        return super().__getitem__(index)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*")
@pytest.mark.parametrize("door", ["fit", "validate"])
def test_feature_attacks__behind_both_doors_without_a_trace(tmp_path, door):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net[0].reset_parameters()
    modes = callback(pictures=True, robust_encoder=ModuleEncoder(net, "2", copy=False), cache_folder=tmp_path / "cache")
    run = trainer(tmp_path, modes, num_sanity_val_steps=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module = OracleClassifier()
    if door == "fit":
        slow = Slow(
            *(torch.stack(column) for column in zip(*((x, torch.tensor(y)) for x, y in loader().dataset), strict=True))
        )
        run.fit(module, DataLoader(slow, batch_size=16), loader(200))
    else:
        state = torch.random.get_rng_state()
        run.validate(module, loader(200), verbose=False)
        assert torch.equal(torch.random.get_rng_state(), state)
    drawn = open_run(next(tmp_path.rglob("gallery.json")).parent).gallery
    features = of_kind(drawn, "features/")
    assert len(features) == len(modes.last_report.features) > 0
    attacked = [picture.rows[2] for picture in features if len(picture.rows) == 3]
    assert len(attacked) > 0  # in fit, as many as time allows
    assert all("->" in tile.text for row in attacked for tile in row.tiles)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())
