"""Cards of the features of a trained model, in a real Trainer and with live models that cannot be asked."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from lightning_failures.data.grades import Grades
from lightning_failures.encoders import ModuleEncoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.gallery import pictures_by_id
from lightning_failures.report.run_folder import open_run
from lightning_failures.report.sparse import sparse_report
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.pictures.live_features import LiveFeatures
from lightning_failures.trainer.pictures.sources import PictureInputs
from lightning_failures.trainer.pictures.sparse_cards import NOT_ROBUST, draw_cards, is_robust
from tests.helpers.shortcut import Tinted, TwoLayers, tinted_loaders
from tests.helpers.toy import ColourEncoder, callback, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run with cards: its folder, the callback, the Trainer and the model."""
    folder = tmp_path_factory.mktemp("cards")
    L.seed_everything(1, verbose=False)
    failures = callback(
        encoder=ColourEncoder(), sparse=True, pictures=True, counterfactuals=True, cache_folder=folder / "cache"
    )
    run, module = trainer(folder, failures), TwoLayers()
    run.fit(module, *tinted_loaders())
    return folder, failures, run, module


def redrawn(fitted, live, **options):
    """Draw the cards of the last analysis again."""
    _, failures, _, module = fitted
    data = Tinted(600, agreeing=0.5, seed=1)
    with torch.no_grad():
        predictions = module(data.images).argmax(1)
    grades = Grades(torch.arange(600), data.labels, predictions, None, tuple(data.classes))
    none = torch.empty(0, dtype=torch.int64)

    def images(ids):
        return [data.images[i] for i in ids]

    inputs = PictureInputs(images, None, None, None, None, none, live=live, **options)
    return draw_cards(failures.last_report, grades, inputs)


@pytest.mark.slow
def test_run__has_cards_on_disk_with_maps_and_an_attack(fitted):
    folder, failures, _, module = fitted
    found = sparse_report(failures.last_report.report)
    card = found.cards[0]
    gallery = open_run(next(folder.rglob("report.json")).parent).gallery
    picture = next(one for one in gallery.pictures if one.tag == f"sparse/{card.feature}/card")
    titles = [row.title for row in picture.rows]
    name = f"feature {card.feature}"
    expected = [f"{name}: most active in {card.prediction}", "where it is active"]
    expected += [f"{name}: most active in {card.label}", "where it is active"]
    assert titles[:5] == [*expected, f"{card.label}, correct, nearest to {card.prediction}"]
    assert titles[5] == f"feature attack through the model itself: {NOT_ROBUST}"
    for tile in picture.rows[5].tiles:
        before, after = map(float, tile.text.split(" -> "))
        assert after > before
    # heat maps stand for no example
    assert {tile.id for row in picture.rows if row.title == "where it is active" for tile in row.tiles} == {None}
    assert set(card.nearest_ids[:4]) <= set(pictures_by_id(gallery))
    assert card.counterfactual.kind == "pasted"
    assert card.counterfactual.images > 20
    assert card.note is None
    assert not module.fc._forward_pre_hooks
    page = next(folder.rglob("report.html")).read_text()
    assert "What if a feature were stronger, or absent?" in page
    assert 'data-of="report/methods/sparse/cards/0/raised/rate"' in page


@pytest.mark.slow
def test_live_model__that_cannot_be_asked_costs_maps_and_attack_only(fitted):
    _, _, run, _ = fitted

    def refuses():
        raise ConfigurationError("the weights of the model have changed since the analysis")

    def other():
        return LiveFeatures(run, "fc", ImageSpace((5.0,), (0.1,)), torch.zeros(1, 3, 8, 8))

    for live, reason in ((refuses, "the weights of the model have changed"), (other, "other features of these images")):
        result, pictures = redrawn(fitted, live)
        entry = sparse_report(result.report).cards[0]
        assert reason in entry.note
        assert reason in pictures[0].note
        titles = [row.title for row in pictures[0].rows]
        assert len(titles) == 3
        assert not any("attack" in title or title.startswith("where") for title in titles)


@pytest.mark.slow
def test_attack__is_left_out_on_request_and_not_warned_about_if_the_model_is_robust(fitted):
    _, _, run, module = fitted

    def live():
        return LiveFeatures(run, "fc", ImageSpace(), torch.zeros(1, 3, 8, 8))

    _, pictures = redrawn(fitted, live, attacks=False)
    assert not any("attack" in row.title for row in pictures[0].rows)
    _, pictures = redrawn(fitted, live)
    assert NOT_ROBUST in pictures[0].rows[-1].title
    assert _is_robust_with(fitted, ModuleEncoder(module.body, "2", image_size=8))
    assert not _is_robust_with(fitted, None)


def _is_robust_with(fitted, robust) -> bool:
    _, _, run, _ = fitted
    none = torch.empty(0, dtype=torch.int64)
    inputs = PictureInputs(list, robust, None, None, None, none)
    return is_robust(inputs, LiveFeatures(run, "fc", ImageSpace(), torch.zeros(1, 3, 8, 8)))
