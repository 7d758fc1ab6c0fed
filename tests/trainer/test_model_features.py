"""The features of the live model in an analysis: names of features, late methods, and what is missing."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from lightning_failures.analysis.sparse_layers import SparseFit
from lightning_failures.data.report import FailureReport
from lightning_failures.methods.sparse import SparseLayers
from lightning_failures.methods.trees import Trees
from lightning_failures.trainer.model_features import (
    ModelFeatures,
    model_fingerprint,
    names_file,
    spurious_features,
    with_late,
    with_model,
    with_names,
)
from tests.helpers.results import analysed

PAIRS = [(Trees(), None), (SparseLayers(), SparseFit())]


def test_methods__of_the_last_analysis_of_the_first_loader():
    def names(features, loader):
        return [method.name for method, _ in features.methods(PAIRS, loader)]

    assert names(ModelFeatures(), 0) == ["trees"]
    assert names(ModelFeatures(last=True), 0) == ["trees", "sparse"]
    assert names(ModelFeatures(last=True), 1) == ["trees"]


def test_missing__says_why():
    assert ModelFeatures(problem="no head.").missing(PAIRS, {"trees": 1}) == ["No sparse decision layers: no head."]
    assert ModelFeatures(problem="no head.").missing(PAIRS, {"sparse": 1}) == []
    assert ModelFeatures().missing(PAIRS, {}) == []


def test_names__of_these_weights_alone(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    result = with_model(analysed(2, 0.5, (), methods={"sparse": {}}), SimpleNamespace(lightning_module=model), "1")
    section = result.report.methods["sparse"]
    assert section == {"head": "1", "fingerprint": model_fingerprint(model, "1")}
    file = names_file(None, tmp_path)
    entry = "- encoder: '{}'\n  feature: {}\n  name: {}\n"
    file.write_text(entry.format(section["fingerprint"], 3, "red") + entry.format("other", 4, "blue"))
    named = with_names(result, file).report.methods["sparse"]["names"]
    assert named == [{"feature": 3, "name": "red", "tag": None, "action": None}]
    nn.init.zeros_(model[0].weight)
    assert model_fingerprint(model, "1") != section["fingerprint"]
    # without a section nothing is added
    plain = analysed(2, 0.5, ())
    assert with_names(plain, file) is plain
    assert with_model(plain, None, "1") is plain
    assert torch.equal(model[0].weight, torch.zeros(4, 3))


def test_late__adds_what_is_new():
    former = analysed(2, 0.5, (), summary={"accuracy": 0.5}, notes=("a",), timings={"total": 1.0})
    late = analysed(
        2, 0.5, (), summary={"accuracy": 0.4, "sparse/accuracy": 0.3}, notes=("a", "b"), methods={"sparse": {"x": 1}}
    )
    both = with_late(former, late).report
    assert both.summary == {"accuracy": 0.5, "sparse/accuracy": 0.3}
    assert (both.notes, both.methods, both.timings) == (("a", "b"), {"sparse": {"x": 1}}, {"total": 1.0})
    assert isinstance(both, FailureReport)


def test_spurious__features_of_these_weights_with_the_last_layer(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    file = tmp_path / "features.yaml"
    assert spurious_features(model, "1", file) is None
    entry = "- encoder: '{}'\n  feature: {}\n  tag: {}\n"
    own = model_fingerprint(model, "1")
    file.write_text(entry.format(own, 3, "spurious") + entry.format(own, 1, "overemphasised"))
    found = spurious_features(model, "1", file)
    assert found.features == (3,)
    assert found.weight.shape == (2, 4)  # one logit: the absent class has none
    assert (found.weight[0] == 0).all()
    assert spurious_features(model, None, file) is None
    assert spurious_features(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), "1", file) is None
    features = ModelFeatures(last=True, spurious=found)
    fits = {method.name: fit for method, fit in features.methods(PAIRS, 0)}
    assert fits["sparse"].spurious is found
    assert features.last_methods(PAIRS)[0][1].spurious is found
    file.write_text("no list")
    assert spurious_features(model, "1", file) is None
