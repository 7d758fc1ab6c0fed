"""The benchmark of the paper's claims: the statistics, the files, and how an interrupted run resumes."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # scripts: they import each other by name

import paper_claims  # noqa: E402
from claims.common import World, fit, flip, unusual  # noqa: E402
from claims.comparing import Comparison, compare  # noqa: E402

from lightning_failures.bundled.digits import DigitClassifier  # noqa: E402

BETTER = Comparison("a > b", ("accuracy",), "a", "b")
RAW = {
    2: {"accuracy": {"b": 0.4, "a": 0.62, "c": 0.1}},
    1: {"accuracy": {"b": 0.5, "a": 0.7, "c": 0.2}},
    3: {"accuracy": {"b": 0.6, "a": 0.81, "c": 0.3}},
}


@pytest.mark.parametrize("n", [2, 3, 8])
def test_compare__interval_is_scipys_of_pairs(n):
    first, second = np.random.default_rng(n).random((2, n))
    expected = ttest_rel(first, second).confidence_interval(0.9)
    raw = {seed: {"accuracy": {"a": first[seed], "b": second[seed]}} for seed in range(n)}
    assert compare("flagged", BETTER, raw)["interval"] == pytest.approx([expected.low, expected.high])


def test_compare__one_seed_says_nothing():
    entry = compare("flagged", BETTER, {1: RAW[1]})
    assert (entry["holds"], entry["interval"]) == (False, None)


def test_compare__schema():
    entry = compare("upweight", BETTER, RAW)
    assert entry["name"] == "upweight: a > b"
    assert entry["difference"] == pytest.approx(0.21)
    low, high = entry["interval"]
    assert low < 0.21 < high
    assert entry["holds"] is True
    assert [row["seed"] for row in entry["seeds"]] == [1, 2, 3]
    assert list(entry["seeds"][0]) == ["seed", "a", "b", "c"], "the arm that should win, its rival, then the others"
    assert json.loads(json.dumps(entry)) == entry


@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=10), st.sampled_from([0.0, 0.01]))
def test_compare__holds_if_the_lower_end_is_above_minus_the_margin(differences, margin):
    raw = {seed: {"accuracy": {"a": 0.5 + d, "b": 0.5}} for seed, d in enumerate(differences)}
    entry = compare("filter", Comparison("a not below b", ("accuracy",), "a", "b", margin=margin), raw)
    assert entry["holds"] == (entry["interval"][0] > -margin)
    assert entry.get("not_inferior_by_more_than", 0.0) == margin


def test_compare__the_rival_wins():
    assert compare("upweight", Comparison("b > a", ("accuracy",), "b", "a"), RAW)["holds"] is False


def test_compare__seeds_where_it_is_not_defined_are_left_out():
    entry = compare("upweight", BETTER, RAW | {4: {"other": {}}, 5: {"accuracy": {"a": 1.0}}})
    assert [row["seed"] for row in entry["seeds"]] == [1, 2, 3]
    assert entry["seeds_left_out"] == [4, 5]
    nowhere = compare("upweight", BETTER, {4: {}})
    assert (nowhere["holds"], nowhere["difference"], nowhere["interval"]) == (False, None, None)


def test_table__one_row_a_claim_and_one_column_a_way():
    again = Comparison("a > b, continued", ("accuracy",), "a", "b")
    first = Comparison("a > b, retrained", ("accuracy",), "a", "b")
    entries = [compare("upweight", one, RAW) for one in (first, again)]
    entries += [
        compare("flagged", BETTER, {4: {}}),
        compare("strength", Comparison("b > a", ("accuracy",), "b", "a"), RAW),
    ]
    lines = paper_claims.table(entries).splitlines()
    assert len(lines) == 2 + 3
    assert {line.count("|") for line in lines} == {4}
    assert lines[2].count("yes: 0.710 - 0.500 = +0.210") == 2
    assert "not defined" in lines[3]
    assert "**no**: 0.500 - 0.710 = -0.210" in lines[4]


def test_run_claims__writes_after_every_seed_and_goes_on_where_it_was_cut(tmp_path, monkeypatch):
    path, ran = tmp_path / "new" / "claims.json", []

    def cheap(world):
        if world.seed == 3 and len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(world.seed)
        return {"accuracy": {"a": 0.6 + 0.01 * world.seed, "b": 0.5}}

    monkeypatch.setitem(paper_claims.ALL, "flagged", (cheap, (BETTER,)))
    with pytest.raises(KeyboardInterrupt):
        paper_claims.run_claims([1, 2, 3], ["flagged"], path)
    assert list(json.loads(path.read_text())["raw"]["flagged"]) == ["1", "2"]
    ran.append(0)  # the power is back
    paper_claims.run_claims([1, 2, 3], ["flagged"], path)
    assert ran == [1, 2, 0, 3]
    (entry,) = json.loads(path.read_text())["claims"]
    assert entry["difference"] == pytest.approx(0.12)
    assert [row["seed"] for row in entry["seeds"]] == [1, 2, 3]


def test_write__keeps_what_else_the_file_holds(tmp_path, monkeypatch):
    path = tmp_path / "claims.json"
    path.write_text(json.dumps({"coloured_mnist": {"claims": []}}))
    monkeypatch.setitem(paper_claims.ALL, "flagged", (lambda _: {"accuracy": {"a": 1.0, "b": 0.0}}, (BETTER,)))
    paper_claims.run_claims([1], ["flagged"], path)
    assert json.loads(path.read_text())["coloured_mnist"] == {"claims": []}


def test_flip__the_share_is_exact_and_every_flip_changes_the_label():
    labels = torch.arange(1000) % 10
    flipped = flip(labels, 0.12, np.random.default_rng(0))
    assert int((flipped != labels).sum()) == 120
    assert torch.equal(labels, torch.arange(1000) % 10)
    assert 0 <= int(flipped.min()) <= int(flipped.max()) <= 9


def test_world__parts_and_noise():
    world = World(1, train_size=200, size=200)
    assert world.data("test", 0.8) is world.data("test", 0.95)
    assert int((world.labels("train", 0.8, 0.12) != world.data("train", 0.8).labels).sum()) == 24
    minority, planted = unusual(world.data("test"))
    assert bool((minority <= planted).all())
    assert 0.35 < float(minority[planted].float().mean()) < 0.65


def test_fit__going_on_is_the_same_as_never_having_stopped():
    data = World(1, train_size=128, size=10).data("train")
    weights = np.where(np.arange(128) % 4 == 0, 2.0, 1.0)
    whole = fit(data.images, data.labels, seed=1, epochs=3, weights=weights)
    first = fit(data.images, data.labels, seed=1, epochs=1, weights=weights)
    before = first.logits(data.images)
    rest = fit(data.images, data.labels, seed=1, epochs=2, weights=weights, start=first)
    assert rest.epochs == 3
    assert torch.equal(rest.logits(data.images), whole.logits(data.images))
    assert torch.equal(first.logits(data.images), before), "the checkpoint stays as it was"
    plain = fit(data.images, data.labels, seed=1, epochs=3)
    assert not torch.equal(plain.logits(data.images), whole.logits(data.images))


def test_fit__trains_the_classifier_of_the_demo_step_by_step():
    data = World(1, train_size=150, size=10).data("train")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = DigitClassifier()
    optimizer = model.configure_optimizers()
    inputs = data.transform(data.images).contiguous(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    for rows in torch.from_numpy(np.random.default_rng([3, 0]).permutation(150)).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[rows]), data.labels[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        expected = model.eval()(inputs)
    assert torch.allclose(fit(data.images, data.labels, seed=3, epochs=1).logits(data.images), expected, atol=1e-6)


def test_judge__figures_by_hand():
    world = World(1, train_size=128, size=200)
    model, test = fit(world.data("train").images, world.data("train").labels, seed=1, epochs=1), world.data("test")
    right = (model.logits(test.images).argmax(dim=1) == test.labels).double().numpy()
    minority, planted = (mask.numpy() for mask in unusual(test))
    found = world.judge(model)
    assert found["minority"] == pytest.approx(right[minority].mean())
    assert found["majority"] == pytest.approx(right[planted & ~minority].mean())
    weights = np.where(planted, np.where(minority, 0.1, 1.9), 1.0)
    assert found["all, in the mix of training"] == pytest.approx(np.average(right, weights=weights), abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_script__one_seed_of_one_claim(tmp_path, monkeypatch, capsys):
    """On fewer images than the benchmark has; images, labels, models, directions and files are real."""
    path = tmp_path / "claims.json"
    monkeypatch.setattr(paper_claims, "World", partial(World, train_size=700, size=1000))
    monkeypatch.setattr(sys, "argv", ["paper_claims.py", "--output", str(path), "--seeds", "1", "--claims", "flagged"])
    paper_claims.main()
    entries = json.loads(path.read_text())["claims"]
    assert entries[0]["seeds"][0]["seed"] == 1
    assert entries[0]["difference"] > 0.1
    first_table = capsys.readouterr().out
    assert len(first_table.splitlines()) == 2 + len(entries), "one way each"
    monkeypatch.setattr(sys, "argv", ["paper_claims.py", "--output", str(path), "--table"])
    paper_claims.main()
    assert capsys.readouterr().out == first_table


def test_default_claims__are_those_of_one_paper():
    assert "sparse" in paper_claims.ALL
    assert "sparse" not in paper_claims.CLAIMS


@pytest.mark.slow
def test_sparse_claims__one_feature_fixes_more_than_a_random_one():
    found = paper_claims.ALL["sparse"][0](World(1, train_size=500, size=500))
    fixed = found["fixed"]
    assert fixed["one feature"] > fixed["random used"] >= 0
    assert found["features_per_class"]["5 points lost"] < found["features_per_class"]["dense"]
    assert found["accuracy"]["sparse"] > found["accuracy"]["dense"] - 0.15
    for table in ("redrawn", "raised"):
        assert found[table].keys() == {"sparse", "dense"}
        assert all(0 <= share <= 1 for share in found[table].values())
