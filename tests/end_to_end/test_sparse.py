"""Sparse decision layers in a real Trainer: when they run, on which images, where they appear, and when they cannot."""

from __future__ import annotations

import dataclasses
import json

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_failures.bundled.digits import DigitClassifier
from lightning_failures.bundled.digits.data import ColouredDigits
from lightning_failures.bundled.digits.render import Looks, render, source_digits
from lightning_failures.data.grades import BatchRecord
from lightning_failures.report import save_html
from lightning_failures.report.sparse import sparse_report, sparse_sentence
from lightning_failures.trainer.model_features import model_fingerprint
from tests.helpers.shortcut import Multilabel, Tinted, TwoLayers, condition_loaders, tinted_loaders
from tests.helpers.toy import callback, trainer
from tests.processes.launch import fork, ranks

pytest_plugins = ["tests.helpers.browser"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
]

KEYS = ("accuracy", "features_per_class", "fixed_by_one_feature", "broken_by_one_feature")


def fit(tmp_path, module=None, *callbacks, epochs=1, loaders=None, sparse=True, logger=False, **options):
    """Fit the toy task without encoders; return the callback, the module and the Trainer."""
    L.seed_everything(1, verbose=False)
    known = {name: options.pop(name) for name in list(options) if name in TRAINER_OPTIONS}
    failures = callback(encoder=None, sparse=sparse, cache_folder=str(tmp_path / "cache"), **options)
    module = module or TwoLayers()
    run = trainer(tmp_path, failures, *callbacks, max_epochs=epochs, logger=logger, **known)
    run.fit(module, *(loaders or tinted_loaders()))
    return failures, module, run


TRAINER_OPTIONS = {"enable_checkpointing", "check_val_every_n_epoch"}


def section(failures):
    return failures.last_report.report.methods.get("sparse")


def said(failures) -> str:
    """The note on why there is no sparse layer."""
    (note,) = [note for note in failures.last_report.notes if "sparse" in note]
    return note


# -- the planted tint ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A training on coloured digits with everything that is written: the folder, the callback, the model, the data."""
    folder = tmp_path_factory.mktemp("digits")
    L.seed_everything(0, verbose=False)
    training, validation = (ColouredDigits(split, size=1500) for split in ("train", "validation"))
    failures = callback(encoder=None, sparse=True, pictures=True, cache_folder=str(folder / "cache"), worst_k=2)
    logger = TensorBoardLogger(folder, name="run")
    run = trainer(folder, failures, max_epochs=5, logger=logger)
    model = DigitClassifier(width=8, lr=1e-3)
    run.fit(model, DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, batch_size=128))
    return folder, failures, model.eval(), validation, run


def rendered(model, data, sources):
    """Features (n, 10, D) of n images of validation, each drawn again in every tint."""
    rows = torch.from_numpy(sources).repeat_interleave(10)
    looks = Looks(*(getattr(data.attributes, one.name)[rows] for one in dataclasses.fields(Looks)))
    looks = dataclasses.replace(looks, tint=torch.arange(10).repeat(len(sources)))
    images = render(source_digits()[0][data.groups[rows]], looks, np.random.default_rng(0))
    with torch.no_grad():
        x = model.net[:-1](torch.stack([data.transform(image) for image in images]))
    return x.reshape(len(sources), 10, -1).numpy()


@pytest.mark.slow
def test_planted_tint__is_behind_the_errors_on_unusual_tints(digits):
    _, failures, model, data, _ = digits
    found = failures.last_report.fitted["sparse"].problematic
    labels = np.asarray(data.labels)
    planted = [None if one is None else one["unusual_tint"] for one in data.truth]
    unusual = np.array([planted[k] is not None and t == planted[k] for k, t in zip(labels, data.tint, strict=True)])
    errors = unusual[found.ids] & (found.feature >= 0)
    assert errors.mean() > 0.5
    sources = np.concatenate([np.flatnonzero(labels == k)[:8] for k in range(10)])
    x = rendered(model, data, sources)  # every digit in every tint
    between_tints = x.mean(0).var(0)
    between_digits = x.mean(1).reshape(10, 8, -1).mean(1).var(0)
    driven = (between_tints > between_digits)[found.feature[errors]]
    assert driven.mean() > 0.7


@pytest.mark.slow
def test_files__hold_the_section_the_page_and_the_names(digits):
    folder, failures, model, _, run = digits
    (path,) = folder.glob("run/version_0/failures/report.json")
    written = json.loads(path.read_text())["methods"]["sparse"]
    assert written == failures.last_report.report.to_dict()["methods"]["sparse"]
    assert written["fitted_on"] == {"source": "train", "examples": 1500, "of": 1500}
    assert written["head"] == "net.4"
    assert written["fingerprint"] == model_fingerprint(model, "net.4")
    assert written["curve"][written["chosen"]]["accuracy"] == written["accuracy"]
    assert len(written["classes"]) == 10
    for rate in ("fixed", "random_used", "random_any", "broken"):
        low, high = written[rate]["interval"]
        assert low <= written[rate]["rate"] <= high
    errors = sum(entry["errors"] for entry in written["problematic"])
    assert errors <= written["errors_examined"] == round((1 - written["accuracy"]) * 1500)

    names = (path.parent / "features.yaml").read_text()
    assert names.count(written["fingerprint"]) == min(len(written["problematic"]), 12)
    markdown = next(path.parent.glob("epoch=0004-*/report.md")).read_text()
    assert "### Sparse decision layer" in markdown
    assert "| problematic feature |" in markdown

    events = EventAccumulator(str(path.parents[1]), size_guidance={"images": 0, "tensors": 0}).Reload()
    for key in KEYS:
        (event,) = events.Scalars(f"failures/sparse/{key}")
        assert event.value == pytest.approx(run.callback_metrics[f"failures/sparse/{key}"].item())
    assert "failures/sparse/text_summary" in events.Tags()["tensors"]
    first = written["problematic"][0]["feature"]
    assert f"failures/sparse/{first}" in events.Tags()["images"]


@pytest.mark.slow
def test_page__shows_features_classes_and_errors(digits, visit):
    folder, failures, *_ = digits
    found = sparse_report(failures.last_report.report)
    seen = visit(next(folder.glob("run/version_0/failures/report.html")))
    page = seen.page
    page.get_by_role("link", name="Sparse layer").click()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelector('[data-chart=sparsity]')?.querySelector('svg') != null")
    cards = page.locator("#sparse article.card")
    assert cards.count() == min(len(found.problematic), 12)
    first = cards.first.inner_text()
    entry = found.problematic[0]
    assert f"feature {entry.feature}" in first
    assert f"{entry.pairs[0].label} taken for {entry.pairs[0].prediction}: {entry.pairs[0].count}" in first
    assert cards.first.locator("img").count() >= 6
    assert page.locator("#sparse details.card").count() == 10
    page.locator("#sparse details.card").first.locator("summary").click()
    bars = page.locator("#sparse details.card").first.locator("tbody tr")
    assert bars.count() == min(found.classes[0].features, 8)
    assert bars.first.locator("img").count() > 0
    assert (seen.errors, seen.refused) == ([], [])


# -- when ------------------------------------------------------------------------------------------------------------


def test_fit__at_the_last_analysis_alone_and_monitored(tmp_path):
    seen = {}

    class Sees(L.Callback):
        def on_validation_end(self, trainer, module):
            seen[trainer.current_epoch] = {key for key in trainer.callback_metrics if "sparse" in key}

    keep = ModelCheckpoint(tmp_path / "best", monitor="failures/sparse/accuracy", mode="max")
    failures, module, run = fit(tmp_path, None, Sees(), keep, epochs=2, enable_checkpointing=True)
    assert seen == {0: {"failures/sparse/accuracy"}, 1: {f"failures/sparse/{key}" for key in KEYS}}  # the worst value
    assert keep.best_model_score == run.callback_metrics["failures/sparse/accuracy"] > 0.6
    assert {f"sparse/{key}" for key in KEYS} <= failures.last_report.summary.keys()
    assert section(failures)["head"] == "fc"
    # nothing remains: weights as without, no features on disk
    plain = fit(tmp_path / "plain", epochs=2, sparse=False)[1]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert not module.fc._forward_hooks


def test_early_stopping__the_last_analysis_gets_it_afterwards(tmp_path):
    stop = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    logger = TensorBoardLogger(tmp_path, name="run")
    failures, _, run = fit(tmp_path, None, stop, epochs=9, logger=logger)
    assert run.current_epoch < 9
    assert section(failures)["fitted_on"]["source"] == "train"
    assert run.callback_metrics["failures/sparse/accuracy"] == pytest.approx(section(failures)["accuracy"])
    (path,) = tmp_path.glob("run/version_0/failures/report.json")
    assert json.loads(path.read_text())["methods"]["sparse"]["accuracy"] == section(failures)["accuracy"]
    events = EventAccumulator(str(path.parents[1])).Reload()
    assert len(events.Scalars("failures/sparse/accuracy")) == 1


def test_training_that_went_on_after_the_last_analysis__is_said(tmp_path):
    failures, _, _ = fit(tmp_path, epochs=3, check_val_every_n_epoch=2)
    assert failures.last_report.report.epoch == 1
    assert section(failures) is None
    assert "the training went on after the last analysis. Call trainer.validate." in said(failures)
    (path,) = tmp_path.glob("failures/no_logger/*/report.json")
    assert said(failures) in json.loads(path.read_text())["notes"]


@pytest.mark.parametrize("has_training_set", [True, False])
def test_validate__says_which_images_it_was_fitted_to(tmp_path, has_training_set):
    training, validation = tinted_loaders()

    class WithData(TwoLayers):
        def train_dataloader(self):
            return training

    failures = callback(encoder=None, sparse=True, cache_folder=str(tmp_path / "cache"))
    L.seed_everything(1, verbose=False)
    module = WithData() if has_training_set else TwoLayers()
    trainer(tmp_path, failures).validate(module, validation, verbose=False)
    found = section(failures)
    if has_training_set:
        assert found["fitted_on"] == {"source": "train", "examples": 600, "of": 600}
        assert found["held_out"] == 600
        return
    assert found["fitted_on"]["source"] == "validation"
    assert found["fitted_on"]["examples"] + found["held_out"] == 600
    assert "no training loader" in said(failures)


def test_time_budget__skips_it_and_says_so(tmp_path):
    failures, _, _ = fit(tmp_path, time_budget=1e-6)
    assert section(failures) is None or len(section(failures)["curve"]) < 60
    assert "time" in said(failures)


# -- heads and tasks -------------------------------------------------------------------------------------------------


class Functional(TwoLayers):
    """The last layer is no module."""

    def forward(self, x):
        return F.linear(self.body(x), self.fc.weight, self.fc.bias)


class Tied(TwoLayers):
    """The last layer shares its weights with another module."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(16, 2)
        self.again.weight = self.fc.weight


class Cosine(nn.Module):
    """A head of its own kind, with a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1)
        self.weight = nn.Parameter(torch.randn(2, 16))

    def forward(self, features):
        return 5 * F.linear(F.normalize(features), F.normalize(self.weight)) + 0 * self.scale.weight.sum()


class OwnHead(TwoLayers):
    """The last layer is a module with submodules, which only a name finds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = Cosine()


@pytest.mark.parametrize(
    ("kind", "options", "head"),
    [(Functional, {}, None), (Tied, {}, "fc"), (OwnHead, {"logits_from": "fc"}, "fc"), (TwoLayers, {}, "fc")],
)
def test_heads(tmp_path, kind, options, head):
    module = kind(1) if kind is TwoLayers else kind()  # one logit: a binary task
    failures, _, _ = fit(tmp_path, module, **options)
    if head is None:
        assert section(failures) is None
        assert "No sparse decision layers: No submodule of Functional computes the logits" in said(failures)
        assert failures.last_report.accuracy is not None
    else:
        assert section(failures)["head"] == head
        assert section(failures)["features"] == 16


def test_verdicts_without_classes__are_said(tmp_path):
    def read_batch(outputs, batch):
        x, y = batch
        return BatchRecord(labels=y, images=x, correct=x[:, 1].mean((1, 2)) > 0.4)

    failures, _, _ = fit(tmp_path, read_batch=read_batch)
    assert section(failures) is None


def test_stream__is_fitted_to_evaluated_images(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            data = Tinted(200)
            return (data[i] for i in range(len(data)))

    loaders = (DataLoader(Stream(), batch_size=50), tinted_loaders()[1])
    failures, _, _ = fit(tmp_path, loaders=loaders)
    assert section(failures)["fitted_on"]["source"] == "validation"
    assert "not fitted to training images" in said(failures)


def test_off__nothing_is_observed(tmp_path):
    failures, _, _ = fit(tmp_path, sparse=False)
    assert failures.last_report.report.methods == {}
    assert not any("sparse" in key for key in failures.last_report.summary)


def test_multilabel__binary_layers_of_conditions(tmp_path):
    # the tint agrees with the mark in training, so that features of the tint cause errors about the mark
    failures, _, run = fit(tmp_path, Multilabel(), loaders=condition_loaders())
    found = sparse_report(failures.last_report.report)
    assert not [note for note in failures.last_report.notes if "sparse" in note.lower()]
    assert dataclasses.astuple(found.fitted_on) == ("train", 400, 400)
    assert (found.head, found.features) == ("fc", 16)
    mark, tint = found.conditions
    assert [(one.name, one.held_out, one.balanced) for one in found.conditions] == [
        ("mark", 400 - 58, False),
        ("tint", 400, False),
    ]
    assert tint.accuracy > 0.95 > mark.accuracy
    assert mark.fixed.rate > mark.random_used.rate
    assert {pair.label for one in found.problematic for pair in one.pairs} <= {"mark", "no mark", "tint", "no tint"}
    for key in KEYS:
        value = failures.last_report.summary[f"sparse/{key}"]
        assert run.callback_metrics[f"failures/sparse/{key}"] == pytest.approx(value)
    assert failures.last_report.summary["sparse/accuracy"] == pytest.approx((mark.accuracy + tint.accuracy) / 2)
    save_html(failures.last_report, tmp_path / "page.html")
    assert 'data-of="report/methods/sparse/conditions/1/accuracy"' in (tmp_path / "page.html").read_text()
    (markdown,) = tmp_path.glob("failures/**/report.md")
    assert "| condition" in markdown.read_text()


# -- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ddp__features_by_rank_and_one_fit(tmp_path):
    for ended in fork("ddp_sparse", tmp_path, environments=ranks(2), timeout=400):
        assert ended.status == 0, ended.said[-3000:]
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["section"]["fitted_on"] == {"source": "train", "examples": 600, "of": 600}
    assert first["section"]["held_out"] == 600
    assert first["logged"]["failures/sparse/accuracy"] == pytest.approx(first["section"]["accuracy"])


# -- accuracy for the right reasons ----------------------------------------------------------------------------------


def test_spurious_tag__accuracy_without_the_feature_in_the_next_analysis(tmp_path):
    failures, module, run = fit(tmp_path)
    found = section(failures)
    assert "right_reasons" not in found
    feature = found["classes"][0]["weights"][0]["feature"]
    entry = f"- encoder: '{found['fingerprint']}'\n  feature: {feature}\n  tag: spurious\n"
    folder = min(tmp_path.rglob("report.json"), key=lambda path: len(path.parts)).parent
    (folder / "features.yaml").write_text(entry)
    run.validate(module, tinted_loaders()[1], verbose=False)
    masked = section(failures)["right_reasons"]
    assert masked["model"]["features"] == masked["sparse"]["features"] == [feature]
    # features are stored in half precision, and the logits of a network of one epoch are close to each other
    assert masked["model"]["accuracy"] == pytest.approx(failures.last_report.report.accuracy, abs=0.02)
    assert masked["model"]["lost"] + masked["model"]["gained"] > 0
    assert "For the right reasons, without feature" in sparse_sentence(failures.last_report.report)


@pytest.mark.slow
def test_ddp__layers_of_conditions_by_rank_and_one_fit(tmp_path):
    for ended in fork("ddp_sparse", tmp_path, "conditions", environments=ranks(2), timeout=400):
        assert ended.status == 0, ended.said[-3000:]
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    section = first["section"]
    assert section["fitted_on"] == {"source": "train", "examples": 400, "of": 400}
    # labels of the mark are unknown for every seventh image
    assert [(one["name"], one["held_out"]) for one in section["conditions"]] == [("mark", 400 - 58), ("tint", 400)]
    assert section["conditions"][1]["accuracy"] > 0.8
    assert first["logged"]["failures/sparse/accuracy"] == pytest.approx(section["accuracy"])
